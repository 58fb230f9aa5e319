"""Refreshes one view: upstream first, one at a time, skipped where nothing changed, recorded with its effect.

The order of the steps is what makes it safe: the relation's advisory lock before the statement (a refresh's
snapshot is taken before it waits for its lock), the clock and the sources' counters before the refresh, the
state and the ledger in its transaction.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
import structlog

from fleet import events, ledger, settings
from fleet.ledger import NewRun, Run, State
from fleet.names import RelationName
from fleet.postgres import locks
from fleet.postgres.catalog.definition import read_definitions
from fleet.postgres.catalog.server import Server, read_server
from tasks.interruption import uninterrupted
from tasks.performing import Done, Outcome, Skip, Wait, perform, tell_lost
from tasks.refresh import requests, statement
from tasks.refresh import view as views
from tasks.refresh.announce import Announcer, invalidate_later
from tasks.refresh.holding import BUSY_WAIT_S, Held, held, pauses
from tasks.refresh.plan import (
    Demand,
    Need,
    depends,
    differs,
    of_another_timeline,
    own_sources,
    satisfied,
    upstream_needs,
)
from tasks.refresh.promotion import refresh_what_is_of_another_timeline
from tasks.refresh.readings import take_readings
from tasks.refresh.requests import Parameters, Seen, Within
from tasks.refresh.view import SourceReading, Subject

log = structlog.get_logger(__name__)

REFRESH_VIEW = "upkeep.refresh.view"
HAND_BACK = timedelta(seconds=2)
# A view that could not be refreshed after a write is left alone for so long, however many writes come.
EVENT_PAUSE = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Refresher:
    """What a refresh needs besides the view: the connection that does the work and the database's declarations."""

    connection: psycopg.Connection[Any]
    database: settings.Database
    worker: str
    announcer: Announcer | None = None

    def refresh(self, run: Run, name: RelationName) -> Outcome:
        """Bring a view up to the run's as_of, its upstream views first.

        Raises:
            PermanentError: not managed, missing, not a materialized view, not ours, only refreshable by blocking.
            psycopg.Error: as the server said it; the caller tells transient from permanent.

        """
        subjects = views.look(self.connection, self.database, name)
        demand = Demand.of(run.entry)
        server = read_server(self.connection)
        if server.in_recovery:
            return Wait(reason="the server is a standby: waiting for a primary", wait=timedelta(seconds=30))
        if demand is Demand.EVENT and (later := self._later(run, subjects, name, server)) is not None:
            return later
        # A writer's clock is nobody's business: what it wrote was committed before the run was claimed.
        as_of = server.clock if demand is Demand.EVENT else run.as_of or run.created_at
        if of_another_timeline(subjects[name], server):
            refresh_what_is_of_another_timeline(self.connection, self.database, server)
        if satisfied(subjects[name], server, as_of=as_of, demand=demand):
            return Skip(reason="already fresh")
        seen = None if demand is Demand.TICK else requests.see(self.connection, name)
        if demand is Demand.EVENT and seen is not None and not seen.requests and _by_rows_only(run):
            return Skip(reason="another refresh has fulfilled its requests")
        written = _written(run, seen)
        stale: list[str] = []
        needs = upstream_needs(subjects, name, as_of=as_of, demand=demand, written=written)
        needs = [n for n in needs if not satisfied(subjects[n.view], server, as_of=n.as_of, demand=demand)]
        if needs:
            busy = self._bring_up(run, needs, stale, written)
            if busy is not None:
                return busy
        fulfils = Within(
            everything=not subjects[name].upstream,
            own=own_sources(subjects, name),
            snapshot=None if seen is None or stale else seen.snapshot,
        )
        return self._refresh_one(
            run,
            subjects[name],
            server,
            as_of=as_of,
            demand=demand,
            stale=tuple(stale),
            waited=bool(needs),
            fulfils=fulfils,
        )

    def _later(
        self, run: Run, subjects: Mapping[RelationName, Subject], name: RelationName, server: Server
    ) -> Outcome | None:
        """Why an event's refresh is not to begin now: another one waits already, or the last one has just failed."""
        joined = events.join_waiting(self.connection, run)
        if joined is not None:
            return Skip(reason=f"run {joined[0]} takes its requests in")
        last = events.last(self.connection, task=run.task, target=run.target)
        if last is None or last.finished_at is None:
            return None
        state = subjects[name].state
        if last.state != State.SUCCEEDED:
            if state.snapshot_at is not None and state.snapshot_at > last.finished_at:
                return None
            why, waits_for = "failed", name
        else:
            stale = [each for each in map(RelationName.parse, state.upstream_stale) if each in subjects]
            stale = [each for each in stale if not _younger(subjects[each], subjects[name])]
            if not stale:
                return None
            why, waits_for = f"used a stale {', '.join(map(str, stale))}", stale[0]
        wait = last.finished_at + EVENT_PAUSE - server.clock
        # A clock that was set back must not keep a view waiting for long.
        if not timedelta() < wait <= EVENT_PAUSE:
            return None
        return Wait(
            reason=f"its last refresh after a write, run {last.id}, {why}",
            wait=wait,
            # Whoever refreshes that after all shows that it works again.
            waits_for=str(waits_for),
        )

    def _bring_up(
        self, run: Run, needs: list[Need], stale: list[str], written: Collection[int] | None
    ) -> Wait | None:
        """Refresh upstream views here, or wait for the workers that do; a failed one does not stop the view."""
        deadline = time.monotonic() + BUSY_WAIT_S
        waits = pauses()
        pending = list(needs)
        # Asked for once, however often it is looked at: an insert that conflicts uses up an id.
        asked: dict[RelationName, int] = {}
        while pending:
            still: list[Need] = []
            for need in pending:
                # An upstream's own upstream comes first in the list; while that is busy, this one waits too.
                if need.view not in asked:
                    asked[need.view] = self._ask_for(run, need, written)
                state = self._bring_up_one(run, need, asked[need.view])
                if state is None:
                    still.append(need)
                elif state not in {State.SUCCEEDED, State.SKIPPED}:
                    stale.append(str(need.view))
            if still and time.monotonic() >= deadline:
                return Wait(
                    reason=f"waiting for {still[0].view}", wait=HAND_BACK, waits_for=str(still[0].view)
                )
            if still and len(still) == len(pending):
                time.sleep(next(waits))
            pending = still
        return None

    def _ask_for(self, parent: Run, need: Need, written: Collection[int] | None) -> int:
        """The run that brings an upstream view up: an open one that will do so anyway, or its own."""
        declared = self.database.views[need.view]
        run_id = None
        if need.entry == ledger.UPSTREAM:
            run_id = ledger.open_run_for(
                self.connection, task=REFRESH_VIEW, target=str(need.view), as_of=need.as_of
            )
        if run_id is None:
            new = NewRun(
                task=REFRESH_VIEW,
                target=str(need.view),
                entry=need.entry,
                slot=need.slot,
                as_of=need.as_of,
                queue=declared.queue,
                max_attempts=1 + len(declared.retries),
                requested_by=f"run {parent.id}",
                arguments={} if written is None else {"sources": sorted(written)},
            )
            run_id, _ = ledger.insert(self.connection, new)
        return run_id

    def _bring_up_one(self, parent: Run, need: Need, run_id: int) -> State | None:
        """The state that an upstream's run ended in, None while somebody works on it.

        WAITING: it failed and will be tried again.
        """
        declared = self.database.views[need.view]
        with uninterrupted(), ledger.claim(self.connection, run_id, worker=self.worker) as run:
            if run is None:
                known = ledger.get(self.connection, run_id)
                if known is None or known.final:
                    return State(known.state) if known else State.SKIPPED
                # A waiting run with an error failed and is tried again later: the downstream view goes on
                # without it.
                return State.WAITING if known.state == State.WAITING and known.error else None
            if run.final:
                tell_lost(run)
                return State(run.state)
            with structlog.contextvars.bound_contextvars(run_id=run.id, view=str(need.view)):
                conclusion = perform(
                    self.connection,
                    run,
                    lambda: self.refresh(run, need.view),
                    retries=declared.retries,
                    event="view.refresh",
                    doing=f"Refreshing {need.view}",
                    within=parent,
                )
        if conclusion.state is State.WAITING and conclusion.error is None:
            return None
        return conclusion.state

    def _refresh_one(
        self,
        run: Run,
        seen: Subject,
        server: Server,
        *,
        as_of: datetime,
        demand: Demand,
        stale: tuple[str, ...],
        waited: bool,
        fulfils: Within,
    ) -> Outcome:
        name = seen.name
        with held(self.connection, locks.relation_key(seen.found.oid)) as holding:
            how = holding.relation
            if how is Held.NOT:
                return Wait(
                    reason=f"{name} is being worked on by somebody else", wait=HAND_BACK, waits_for=str(name)
                )
            subject = self._look_again(seen) if how is Held.AT_ONCE and not waited else None
            if subject is None:
                # While we waited somebody else may have refreshed, recreated or dropped it.
                subject = views.look(self.connection, self.database, name)[name]
                server = read_server(self.connection)
            if subject.found.oid != seen.found.oid:
                return Wait(reason=f"{name} was recreated a moment ago", wait=timedelta())
            if satisfied(subject, server, as_of=as_of, demand=demand):
                return self._already_fresh(run, subject, demand)
            reading = take_readings(self.connection, [subject], server)[name]
            why = differs(subject, server, reading, demand) or self._depends(subject, reading)
            if why is None:
                with self.connection.transaction():
                    views.record_verified(self.connection, [name], server.clock)
                    ledger.finish(
                        self.connection, run.id, State.SKIPPED, reason="its sources have not changed"
                    )
                return Skip(reason="its sources have not changed", recorded=True)
            limit = self.database.max_parallel_refreshes
            if not holding.take_place(self.connection, limit):
                return Wait(
                    reason=f"{limit} refreshes are running in {self.database.name} already",
                    wait=HAND_BACK,
                )
            work = statement.Work(
                run=run,
                subject=subject,
                server=server,
                reason=why,
                reading=reading,
                stale=stale,
                fulfils=fulfils,
                limits=_limits(run, demand),
                followers=views.followers(self.connection, self.database, subject),
            )
            result = statement.refresh(self.connection, self.database.name, work)
        if self.announcer is not None:
            snapshot_at = datetime.fromisoformat(result["snapshot_at"])
            # It is committed: nothing is won by leaving off here.
            with uninterrupted():
                self.announcer.refreshed(
                    self.connection, subject.declared, run_id=run.id, snapshot_at=snapshot_at
                )
        return Done(result=result, recorded=True)

    def _already_fresh(self, run: Run, subject: Subject, demand: Demand) -> Skip:
        """Somebody else's refresh has seen what this one was for; but not which cached results that makes wrong."""
        reason = "already fresh"
        limits = _limits(run, demand)
        if demand is not Demand.EVENT or limits == [] or not subject.declared.invalidates:
            return Skip(reason=reason)
        assert subject.state.snapshot_at is not None  # satisfied by a real refresh
        with self.connection.transaction():
            invalidate_later(
                self.connection,
                subject.declared,
                run_id=run.id,
                snapshot_at=subject.state.snapshot_at,
                parameters=limits,
            )
            ledger.finish(self.connection, run.id, State.SKIPPED, reason=reason)
        if self.announcer is not None:
            self.announcer.invalidate_of(self.connection, subject.declared, run.id)
        return Skip(reason=reason, recorded=True)

    def _depends(self, subject: Subject, reading: SourceReading) -> str | None:
        oid = subject.found.oid
        definition = read_definitions(self.connection, [oid]).get(oid)
        return "dropped a moment ago" if definition is None else depends(subject, definition, reading)

    def _look_again(self, seen: Subject) -> Subject | None:
        """The lock was free at once: unless a refresh ended in this very moment, what was seen still holds."""
        state = views.read_states(self.connection).get(str(seen.name))
        return seen if (state or views.ViewState(view=str(seen.name))) == seen.state else None


def _younger(one: Subject, other: Subject) -> bool:
    """Whether one view was refreshed since another one was."""
    at, since = one.state.snapshot_at, other.state.snapshot_at
    return at is not None and since is not None and at > since


def _by_rows_only(run: Run) -> bool:
    """Whether nothing but requests in the database asked for the run."""
    return run.arguments.get("sources") == []


def _written(run: Run, seen: Seen | None) -> frozenset[int] | None:
    """The relations whose writes the run is about; None where that is not known of every one of its requests."""
    known = run.arguments.get("sources")
    if seen is None or seen.sources is None or not isinstance(known, list):
        return None
    return seen.sources.union(known)


def _limits(run: Run, demand: Demand) -> Parameters:
    """The parameters of tags that a run's requests are limited to."""
    limits = run.arguments.get("parameters") if demand is Demand.EVENT else None
    return limits if isinstance(limits, list) else None
