"""Refreshes one view: upstream first, one at a time, skipped where nothing changed, recorded with its effect.

The order of the steps is what makes it safe: the relation's advisory lock before the statement (a refresh's
snapshot is taken before it waits for its lock), the clock and the sources' counters before the refresh, the
state and the ledger in its transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

import psycopg
import stamina
import structlog
from psycopg import errors, sql

from fleet import ledger, settings
from fleet.ledger import NewRun, Run, State
from fleet.names import RelationName
from fleet.postgres import locks
from fleet.postgres.catalog.definition import read_definitions
from fleet.postgres.catalog.server import Server, read_server
from fleet.postgres.queries import load
from tasks.interruption import uninterrupted
from tasks.performing import Done, Outcome, Skip, Wait, perform, tell_lost
from tasks.refresh import view as views
from tasks.refresh.plan import Demand, Need, depends, differs, of_another_timeline, satisfied, upstream_needs
from tasks.refresh.promotion import refresh_what_is_of_another_timeline
from tasks.refresh.readings import take_readings
from tasks.refresh.strategy import PLAIN_LIMIT, How, Strategy, choose, too_slow
from tasks.refresh.view import SourceReading, Subject

log = structlog.get_logger(__name__)
_sql = load("tasks.refresh", "sql/execute.sql")

REFRESH_VIEW = "upkeep.refresh.view"
# Longer would keep a worker's place from other work; the run is handed back and another worker finishes it.
BUSY_WAIT_S = 3.0
# What is busy with a skip is free again in milliseconds, what is busy with a refresh in seconds: look often at first.
FIRST_POLL_S = 0.004
LAST_POLL_S = 0.1
HAND_BACK = timedelta(seconds=2)
# Tries within one attempt when only the lock was not free: jittered, a few seconds in all.
LOCK_TRIES = 5
# A refresh that takes less than this is over before anybody could watch it.
WATCHED_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Refresher:
    """What a refresh needs besides the view: the connection that does the work and the database's declarations."""

    connection: psycopg.Connection[Any]
    database: settings.Database
    worker: str

    def refresh(self, run: Run, name: RelationName) -> Outcome:
        """Bring a view up to the run's as_of, its upstream views first.

        Raises:
            PermanentError: not managed, missing, not a materialized view, not ours, only refreshable by blocking.
            psycopg.Error: as the server said it; the caller tells transient from permanent.

        """
        subjects = views.look(self.connection, self.database, name)
        demand = Demand.of(run.entry)
        as_of = run.as_of or run.created_at
        server = read_server(self.connection)
        if server.in_recovery:
            return Wait(reason="the server is a standby: waiting for a primary", wait=timedelta(seconds=30))
        if of_another_timeline(subjects[name], server):
            refresh_what_is_of_another_timeline(self.connection, self.database, server)
        if satisfied(subjects[name], server, as_of=as_of, demand=demand):
            return Skip(reason="already fresh")
        stale: list[str] = []
        needs = upstream_needs(subjects, name, as_of=as_of, demand=demand)
        needs = [n for n in needs if not satisfied(subjects[n.view], server, as_of=n.as_of, demand=demand)]
        if needs:
            busy = self._bring_up(run, needs, stale)
            if busy is not None:
                return busy
        return self._refresh_one(
            run, subjects[name], server, as_of=as_of, demand=demand, stale=tuple(stale), waited=bool(needs)
        )

    def _bring_up(self, run: Run, needs: list[Need], stale: list[str]) -> Wait | None:
        """Refresh upstream views here, or wait for the workers that do; a failed one does not stop the view."""
        deadline = time.monotonic() + BUSY_WAIT_S
        pauses = _pauses()
        pending = list(needs)
        # Asked for once, however often it is looked at: an insert that conflicts uses up an id.
        asked: dict[RelationName, int] = {}
        while pending:
            still: list[Need] = []
            for need in pending:
                # An upstream's own upstream comes first in the list; while that is busy, this one waits too.
                if need.view not in asked:
                    asked[need.view] = self._ask_for(run, need)
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
                time.sleep(next(pauses))
            pending = still
        return None

    def _ask_for(self, parent: Run, need: Need) -> int:
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
    ) -> Outcome:
        name = seen.name
        with _held(self.connection, locks.relation_key(seen.found.oid)) as holding:
            held = holding.relation
            if held is Held.NOT:
                return Wait(
                    reason=f"{name} is being worked on by somebody else", wait=HAND_BACK, waits_for=str(name)
                )
            subject = self._look_again(seen) if held is Held.AT_ONCE and not waited else None
            if subject is None:
                # While we waited somebody else may have refreshed, recreated or dropped it.
                subject = views.look(self.connection, self.database, name)[name]
                server = read_server(self.connection)
            if subject.found.oid != seen.found.oid:
                return Wait(reason=f"{name} was recreated a moment ago", wait=timedelta())
            if satisfied(subject, server, as_of=as_of, demand=demand):
                return Skip(reason="already fresh")
            reading = take_readings(self.connection, [subject], server)[name]
            why = differs(subject, server, reading, demand) or self._depends(subject, reading)
            if why is None:
                with self.connection.transaction():
                    views.record_verified(self.connection, [name], server.clock)
                    ledger.finish(
                        self.connection, run.id, State.SKIPPED, reason="its sources have not changed"
                    )
                return Skip(reason="its sources have not changed", recorded=True)
            if not self._take_place(holding):
                limit = self.database.max_parallel_refreshes
                return Wait(
                    reason=f"{limit} refreshes are running in {self.database.name} already",
                    wait=HAND_BACK,
                )
            result = self._execute(
                run, subject, choose(subject), server=server, reason=why, reading=reading, stale=stale
            )
        return Done(result=result, recorded=True)

    def _depends(self, subject: Subject, reading: SourceReading) -> str | None:
        oid = subject.found.oid
        definition = read_definitions(self.connection, [oid]).get(oid)
        return "dropped a moment ago" if definition is None else depends(subject, definition, reading)

    def _look_again(self, seen: Subject) -> Subject | None:
        """The lock was free at once: unless a refresh ended in this very moment, what was seen still holds."""
        state = views.read_states(self.connection).get(str(seen.name))
        return seen if (state or views.ViewState(view=str(seen.name))) == seen.state else None

    def _execute(
        self,
        run: Run,
        subject: Subject,
        strategy: Strategy,
        *,
        server: Server,
        reason: str,
        reading: SourceReading,
        stale: tuple[str, ...],
    ) -> Mapping[str, Any]:
        expected = subject.state.duration.total_seconds() if subject.state.duration else None
        if expected is None or expected >= WATCHED_S:
            ledger.show_progress(
                self.connection,
                run.id,
                phase="refreshing",
                view=str(subject.name),
                strategy=strategy.how.value,
                reason=reason,
                expected_s=expected,
            )
        try:
            for attempt in stamina.retry_context(
                on=errors.LockNotAvailable, attempts=LOCK_TRIES, timeout=None, wait_initial=0.1, wait_max=1.0
            ):
                with attempt:
                    return self._statement(
                        run, subject, strategy, server=server, reason=reason, reading=reading, stale=stale
                    )
        except errors.QueryCanceled as exc:
            if strategy.how is not How.PLAIN_BOUNDED:
                raise
            views.record_too_slow(self.connection, subject.name, PLAIN_LIMIT + timedelta(milliseconds=1))
            error = too_slow(subject)
            if subject.found.unique_index is None:
                raise error from exc
            # It could be refreshed concurrently after all; the prediction was wrong.
            calm = replace(
                subject, state=replace(subject.state, plain_duration=PLAIN_LIMIT * 2, rows_changed=None)
            )
            return self._execute(
                run, calm, choose(calm), server=server, reason=reason, reading=reading, stale=stale
            )
        raise AssertionError("stamina returns or raises")  # pragma: no cover

    def _statement(
        self,
        run: Run,
        subject: Subject,
        strategy: Strategy,
        *,
        server: Server,
        reason: str,
        reading: SourceReading,
        stale: tuple[str, ...],
    ) -> Mapping[str, Any]:
        """One transaction: the refresh, what is known of the view afterwards, and the run's end."""
        connection, found = self.connection, subject.found
        with connection.transaction():
            # SET takes no parameters. The clock is read before REFRESH takes its snapshot.
            row = connection.execute(
                _sql.begin_refresh.sql,
                {
                    "lock_timeout": _ms(strategy.lock_timeout),
                    "statement_timeout": _ms(strategy.statement_timeout),
                    "timezone": subject.declared.timezone,
                    "work_mem": subject.declared.work_mem,
                    "relation": found.oid,
                },
            ).fetchone()
            assert row is not None  # SELECT without FROM
            snapshot_at: datetime = row[0]
            counted_before: int = row[1]
            began = time.monotonic()
            connection.execute(
                sql.SQL("REFRESH MATERIALIZED VIEW {}{}").format(
                    sql.SQL("CONCURRENTLY ") if strategy.concurrently else sql.SQL(""),
                    found.name.identifier(),
                )
            )
            duration = timedelta(seconds=time.monotonic() - began)
            rows_changed = views.rows_written(connection, found.oid, server) - counted_before
            plain = not strategy.concurrently
            result = {
                "strategy": strategy.how.value,
                "reason": reason,
                "duration_s": round(duration.total_seconds(), 4),
                "rows_changed": rows_changed,
                "snapshot_at": snapshot_at.isoformat(),
            } | ({"upstream_stale": list(stale)} if stale else {})
            views.record_refresh(
                connection,
                subject,
                server=server,
                snapshot_at=snapshot_at,
                run_id=run.id,
                strategy=strategy.how.value,
                duration=duration,
                plain=plain,
                rows_changed=rows_changed,
                row_estimate=rows_changed if plain else found.row_estimate,
                reading=reading,
                upstream_stale=stale,
            )
            ledger.finish(connection, run.id, State.SUCCEEDED, result=result, wakes=str(subject.name))
        return result

    def _take_place(self, holding: Holding) -> bool:
        """One of the database's places for refreshes, waited for briefly; given back with the relation."""
        keys = [locks.slot_key(n) for n in range(self.database.max_parallel_refreshes)]
        deadline = time.monotonic() + BUSY_WAIT_S
        pauses = _pauses()
        while True:
            key = next((k for k in keys if locks.try_acquire(self.connection, k)), None)
            if key is not None:
                holding.keys.append(key)
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(next(pauses))


def _pauses() -> Iterator[float]:
    pause = FIRST_POLL_S
    while True:
        yield pause
        pause = min(2 * pause, LAST_POLL_S)


class Held(Enum):
    """How a lock was got: without waiting, after waiting, not at all."""

    AT_ONCE = 1
    AFTER_WAITING = 2
    NOT = 3


@dataclass
class Holding:
    """How the relation's lock was got, and every lock to be given back after the work."""

    relation: Held
    keys: list[str]


@contextmanager
def _held(connection: psycopg.Connection[Any], key: str) -> Iterator[Holding]:
    held = Held.AT_ONCE
    if not locks.try_acquire(connection, key):
        held = (
            Held.AFTER_WAITING if locks.acquire_within(connection, key, timeout_s=BUSY_WAIT_S) else Held.NOT
        )
    holding = Holding(relation=held, keys=[] if held is Held.NOT else [key])
    try:
        yield holding
    finally:
        locks.release(connection, *holding.keys)


def _ms(value: timedelta) -> str:
    return f"{max(1, int(value.total_seconds() * 1000))}ms"
