"""The Celery tasks of refreshing: a view, a tier's tick, everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import structlog
from pydantic import model_validator

from fleet import ledger, settings
from fleet.ledger import NewRun, State
from fleet.names import RelationName
from schedules.bell import ring
from schedules.slots import interval, latest_slot
from tasks.base import Arguments, Delivery, LedgeredTask
from tasks.performing import Done, Outcome, Skip
from tasks.refresh.announce import Announcer
from tasks.refresh.execute import REFRESH_VIEW, Refresher
from tasks.refresh.promotion import FAN_OUT_ATTEMPTS, REFRESH_ALL
from tasks.refresh.verify import Verified, verify
from tasks.refresh.view import record_verified

log = structlog.get_logger(__name__)

REFRESH_TIER = "upkeep.refresh.tier"
# A tick that comes from a scheduler whose clock is ahead of ours belongs to the slot that it was sent for.
CLOCK_TOLERANCE = timedelta(seconds=30)


class ViewArguments(Arguments):
    """`view` as schema.view; needed unless a run is named."""

    view: str | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> ViewArguments:
        if self.run is None and self.view is None:
            raise ValueError("name the view")
        return self


class RefreshView(LedgeredTask[ViewArguments]):
    """Brings one managed view up to date, its upstream views first; an operator's request never skips by counters."""

    name = REFRESH_VIEW
    arguments = ViewArguments
    event = "view.refresh"

    def request_run(self, arguments: ViewArguments, database: settings.Database, now: datetime) -> NewRun:
        """An operator's run for a managed view."""
        view = database.view(arguments.view)
        return NewRun(
            task=self.name,
            target=str(view.name),
            entry=ledger.OPERATOR,
            queue=view.queue,
            max_attempts=1 + len(view.retries),
            request_id=self.request.id,
        )

    def work(self, delivery: Delivery[ViewArguments]) -> Outcome:
        """Refresh it."""
        refresher = Refresher(
            connection=delivery.connection,
            database=delivery.database,
            worker=delivery.worker,
            announcer=Announcer(delivery.database.name, broker=self.runtime.redis, cache=self.runtime.cache),
        )
        return refresher.refresh(delivery.run, RelationName.parse(delivery.run.target))

    def retries(self, delivery: Delivery[ViewArguments]) -> Sequence[timedelta]:
        """As the view declares them."""
        view = delivery.database.views.get(RelationName.parse(delivery.run.target))
        return view.retries if view else ()

    def _context(self, run: ledger.Run) -> dict[str, Any]:
        return {"view": run.target}


class TierArguments(Arguments):
    """`tier`, needed unless a run is named; `scheduled` is what the scheduler sends."""

    tier: str | None = None
    scheduled: bool = False

    @model_validator(mode="after")
    def _something_to_do(self) -> TierArguments:
        if self.run is None and self.tier is None:
            raise ValueError("name the tier")
        return self


class RefreshTier(LedgeredTask[TierArguments]):
    """A tier's tick: one run for each of its views, for the tick's slot; asked for by an operator, as of now."""

    name = REFRESH_TIER
    arguments = TierArguments
    event = "tier.refresh"

    def request_run(self, arguments: TierArguments, database: settings.Database, now: datetime) -> NewRun:
        """The latest slot's run for a tick, a run of its own for an operator."""
        tier = database.tier(arguments.tier)
        slot = None
        if arguments.scheduled:
            ahead = min(CLOCK_TOLERANCE, interval(tier.cron, tier.timezone, now) / 2)
            slot = latest_slot(tier.cron, tier.timezone, now + ahead)
        return NewRun(
            task=self.name,
            target=tier.name,
            entry=tier.name if slot else ledger.OPERATOR,
            slot=slot,
            queue="refresh",
            max_attempts=FAN_OUT_ATTEMPTS,
            request_id=self.request.id,
        )

    def work(self, delivery: Delivery[TierArguments]) -> Outcome:
        """Insert the runs of its views, then ring for them."""
        return _fan_out(self, delivery, delivery.database.views_in(delivery.run.target))


class RefreshAll(LedgeredTask[Arguments]):
    """Every managed view of a database, as of now: what an operator presses after a restore or a deployment."""

    name = REFRESH_ALL
    event = "all.refresh"

    def request_run(self, arguments: Arguments, database: settings.Database, now: datetime) -> NewRun:
        """An operator's run for the database."""
        return NewRun(
            task=self.name,
            target=database.name,
            entry=ledger.OPERATOR,
            queue="refresh",
            max_attempts=FAN_OUT_ATTEMPTS,
            request_id=self.request.id,
        )

    def work(self, delivery: Delivery[Arguments]) -> Outcome:
        """Insert the runs of all views, then ring for them."""
        return _fan_out(self, delivery, list(delivery.database.views.values()))


def _fan_out(task: LedgeredTask[Any], delivery: Delivery[Any], views: Sequence[settings.View]) -> Outcome:
    """One run per view, all or none, ended together with the run that made them; then the bells.

    A tick first looks which of them need no refresh: their runs are final from the start.
    """
    run, connection, database = delivery.run, delivery.connection, delivery.database
    if not views:
        return Skip(reason=f"no view of {database.name} is in {run.target}")
    spared: dict[RelationName, Verified] = {}
    if run.slot is not None:
        found, server = verify(
            connection, database, [view.name for view in views], entry=run.entry, slot=run.slot
        )
        spared = {each.view: each for each in found}
    wanted = {view.name for view in views}
    new = [
        NewRun(
            task=REFRESH_VIEW,
            target=str(view.name),
            entry=run.entry,
            slot=run.slot,
            as_of=run.as_of,
            queue=view.queue,
            max_attempts=1 + len(view.retries),
            requested_by=run.requested_by,
            # A second delivery of an operator's request must find the runs of the first.
            request_id=None if run.slot else f"{run.request_id or run.id}/{view.name}",
            parent_id=run.id,
            expires_at=run.expires_at,
            **_spared(spared.get(view.name)),
        )
        for view in views
    ] + [
        # What they are built on, for its own tier's slot.
        NewRun(
            task=REFRESH_VIEW,
            target=str(each.view),
            entry=each.entry,
            slot=each.slot,
            queue=database.views[each.view].queue,
            max_attempts=1 + len(database.views[each.view].retries),
            requested_by=f"run {run.id}",
            **_spared(each),
        )
        for each in spared.values()
        if each.view not in wanted
    ]
    with connection.transaction():
        made = ledger.insert_all(connection, new, worker=delivery.worker)
        verified = [each.view for each in spared.values() if each.by_counters]
        if verified:
            record_verified(connection, verified, server.clock)
        queued = [each for each in made if each.state == State.QUEUED]
        result = {"runs": len(queued), "skipped": len(made) - len(queued), "views": len(views)}
        ledger.finish(connection, run.id, State.SUCCEEDED, result=result)
    for each in spared.values():
        log.info("view.refresh.skipped", view=str(each.view), reason=each.reason)
    ring(task.app, database.name, ((each.id, each.task, each.queue) for each in queued))
    return Done(result=result, recorded=True)


def _spared(verified: Verified | None) -> dict[str, Any]:
    return {} if verified is None else {"state": State.SKIPPED, "reason": verified.reason}


TASKS = (RefreshView, RefreshTier, RefreshAll)
