"""The Celery tasks of refreshing: a view, a tier's tick, everything at once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic import model_validator

from fleet import ledger, settings
from fleet.ledger import NewRun, State
from fleet.names import RelationName
from schedules.slots import interval, latest_slot
from tasks.base import Arguments, Delivery, LedgeredTask, ring
from tasks.performing import Done, Outcome, Skip
from tasks.refresh.execute import REFRESH_VIEW, Refresher

REFRESH_TIER = "upkeep.refresh.tier"
REFRESH_ALL = "upkeep.refresh.all"
# A tick that comes from a scheduler whose clock is ahead of ours belongs to the slot that it was sent for.
CLOCK_TOLERANCE = timedelta(seconds=30)
# With a single one, a worker that dies while it fans out would take the tick with it.
FAN_OUT_ATTEMPTS = 4


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
            connection=delivery.connection, database=delivery.database, worker=delivery.worker
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
    """One run per view, all or none, ended together with the run that made them; then the bells."""
    run = delivery.run
    if not views:
        return Skip(reason=f"no view of {delivery.database.name} is in {run.target}")
    made: list[tuple[int, str, str]] = []
    with delivery.connection.transaction():
        for view in views:
            run_id, created = ledger.insert(
                delivery.connection,
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
                ),
            )
            if created:
                made.append((run_id, REFRESH_VIEW, view.queue))
        result = {"runs": len(made), "views": len(views)}
        ledger.finish(delivery.connection, run.id, State.SUCCEEDED, result=result)
    ring(task.app, delivery.database.name, made)
    return Done(result=result)


TASKS = (RefreshView, RefreshTier, RefreshAll)
