"""The ledger, which is the queue: every piece of work is a row here before it is a message.

A run's lock (an advisory lock on the working connection) says who works on it; its row says what became of
it. Both survive what Redis forgets, and the lock is freed by the server when the worker dies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from fleet.postgres import locks
from fleet.postgres.queries import load

_sql = load("fleet", "ledger.sql")

# A bell that its queue does not hold is lost; ringing twice costs one message that finds its run taken.
RING_PATIENCE = timedelta(seconds=20)
# Where nobody knows what the queue holds, the bell is most likely in it: every further ring would make it longer.
LONG_RING_PATIENCE = timedelta(minutes=5)
# A running run whose lock is free belonged to a worker that died; its session may be a moment behind its row.
LOST_GRACE = timedelta(seconds=5)
RING_BATCH = 200
PRUNE_BATCH = 1000


class State(StrEnum):
    """Where a run is; the last five are final."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"
    MISSED = "missed"
    LOST = "lost"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to the run."""
        return self not in {State.QUEUED, State.RUNNING, State.WAITING}


# Why a run exists, where it is not a tier's tick.
OPERATOR = "operator"
EVENT = "event"
UPSTREAM = "upstream"


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """A request for work, before it has an id.

    `as_of` defaults to the slot, and without one to the moment of insertion on the kept database's own clock.
    `expires_at`: when it is missed if no worker has started it by then.
    `state`, `reason` and `error`: whoever inserts it knows its end already (nothing to do, missed); only
    `insert_all` takes such.
    """

    task: str
    target: str
    entry: str
    queue: str
    max_attempts: int = 1
    slot: datetime | None = None
    as_of: datetime | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    requested_by: str | None = None
    request_id: str | None = None
    parent_id: int | None = None
    expires_at: datetime | None = None
    state: State = State.QUEUED
    reason: str | None = None
    error: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Inserted:
    """A run that an insert of many has made."""

    id: int
    task: str
    target: str
    entry: str
    slot: datetime | None
    queue: str
    state: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of upkeep.run."""

    id: int
    task: str
    target: str
    entry: str
    slot: datetime | None
    as_of: datetime | None
    queue: str
    arguments: dict[str, Any]
    state: str
    attempt: int
    max_attempts: int
    not_before: datetime | None
    waits_for: str | None
    rung_at: datetime | None
    requested_by: str | None
    request_id: str | None
    parent_id: int | None
    worker: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    reason: str | None
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    expires_at: datetime | None

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to it."""
        return State(self.state).final

    @property
    def duration(self) -> timedelta | None:
        """From its first claim to its end, waits included."""
        if self.started_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.started_at


@dataclass(frozen=True, kw_only=True)
class Due:
    """A run that needs its bell rung."""

    id: int
    task: str
    queue: str
    state: str


def insert(connection: psycopg.Connection[Any], new: NewRun) -> tuple[int, bool]:
    """Put a run into the queue; returns its id and whether it is new.

    A second insert of the same slot, request, or queued event changes nothing and finds the first.
    """
    while True:
        row = _one(
            connection,
            "insert_run",
            task=new.task,
            target=new.target,
            entry=new.entry,
            slot=new.slot,
            as_of=new.as_of,
            expires_at=new.expires_at,
            queue=new.queue,
            arguments=Jsonb(dict(new.arguments)),
            max_attempts=new.max_attempts,
            requested_by=new.requested_by,
            request_id=new.request_id,
            parent_id=new.parent_id,
        )
        # No row: the conflicting one was committed after our snapshot, or just left the queued state. Look
        # again.
        if row is not None:
            return int(row["id"]), bool(row["created"])


def insert_all(connection: psycopg.Connection[Any], new: Iterable[NewRun], *, worker: str) -> list[Inserted]:
    """Put many runs into the queue in one statement; returns those that are new.

    One that was there already, by its slot, request or queued event, is left alone.
    """
    # In the order of their keys: two inserts of the same runs must not wait for each other in a circle.
    ordered = sorted(new, key=lambda run: (run.task, run.target, run.entry))
    runs = [asdict(each) for each in ordered]
    with connection.cursor(row_factory=class_row(Inserted)) as cursor:
        return cursor.execute(
            _text("insert_runs"), {"runs": Jsonb(runs, dumps=_dumps), "worker": worker}
        ).fetchall()


@contextmanager
def claim(
    connection: psycopg.Connection[Any], run_id: int, *, worker: str, task: str | None = None
) -> Iterator[Run | None]:
    """Take a run over for the length of the block, or yield None where there is nothing to do.

    The run's lock not free: somebody works on it. Final, not due yet, or another task's: nothing to do.
    Otherwise it is ours, whatever its row said before. The claim itself is committed without waiting for the
    disk: if it is lost, so is the worker's lock, and the run is found again.
    """
    key = locks.run_key(run_id)
    if not locks.try_acquire(connection, key):
        yield None
        return
    try:
        run = _run(connection, "claim_run", id=run_id, worker=worker, task=task)
        yield run
    finally:
        locks.release(connection, key)


def get(connection: psycopg.Connection[Any], run_id: int) -> Run | None:
    """One run by id."""
    return _run(connection, "get_run", id=run_id)


def get_request(connection: psycopg.Connection[Any], request_id: str) -> Run | None:
    """The run that a message asked for."""
    return _run(connection, "get_request", request_id=request_id)


def children(connection: psycopg.Connection[Any], run_id: int) -> list[Run]:
    """The runs that a run made: the views of a tier."""
    return _runs(connection, "children", id=run_id)


def open_run_for(
    connection: psycopg.Connection[Any], *, task: str, target: str, as_of: datetime
) -> int | None:
    """An open run that will bring a target up to `as_of` anyway: no need for another one."""
    row = _one(connection, "open_run_for", task=task, target=target, as_of=as_of)
    return None if row is None else int(row["id"])


def history(
    connection: psycopg.Connection[Any],
    *,
    target: str | None = None,
    task: str | None = None,
    state: str | None = None,
    limit: int = 20,
) -> list[Run]:
    """The newest runs first."""
    return _runs(connection, "history", target=target, task=task, state=state, limit=limit)


def latest(connection: psycopg.Connection[Any], task: str) -> dict[str, Run]:
    """The newest final run of every target of a task."""
    return {run.target: run for run in _runs(connection, "latest_runs", task=task)}


def open_runs(connection: psycopg.Connection[Any]) -> list[dict[str, Any]]:
    """How many runs are open, by state and queue, with the oldest's creation."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_text("open_runs")).fetchall()


def show_progress(connection: psycopg.Connection[Any], run_id: int, **progress: Any) -> None:
    """Note where a run is; for watchers only, so the disk is not waited for."""
    connection.execute(_text("show_progress"), {"id": run_id, "progress": Jsonb(progress)})


def finish(
    connection: psycopg.Connection[Any],
    run_id: int,
    state: State,
    *,
    reason: str | None = None,
    result: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
    wakes: str | None = None,
) -> None:
    """End a run; call it in the transaction of the work where there is one. A final run stays as it is.

    What waited for the view that it `wakes` is due at once.
    """
    connection.execute(
        _text("finish_run"),
        {
            "id": run_id,
            "state": state.value,
            "reason": reason,
            "result": None if result is None else Jsonb(dict(result)),
            "error": None if error is None else Jsonb(dict(error)),
            "wakes": wakes,
        },
    )


def hand_back(
    connection: psycopg.Connection[Any],
    run_id: int,
    *,
    wait: timedelta,
    reason: str,
    waits_for: str | None = None,
    error: Mapping[str, Any] | None = None,
    counts: bool = False,
) -> None:
    """Let a run wait. `counts`: whether this was an attempt (a retry) or only a busy object (a hand-back)."""
    connection.execute(
        _text("hand_back"),
        {
            "id": run_id,
            "wait": wait,
            "reason": reason,
            "waits_for": waits_for,
            "error": None if error is None else Jsonb(dict(error)),
            "counts": counts,
        },
    )


def overdue_in(
    connection: psycopg.Connection[Any],
    queues: Iterable[str],
    *,
    limit: int,
    patience: timedelta = RING_PATIENCE,
) -> dict[str, list[int]]:
    """The runs, by queue, that nobody has picked up for so long that their bell may be lost."""
    found: dict[str, list[int]] = {}
    values = {"queues": list(queues), "patience": patience, "limit": limit}
    for run_id, queue in connection.execute(_text("overdue_in"), values):
        found.setdefault(queue, []).append(run_id)
    return found


def bell_seen(connection: psycopg.Connection[Any], run_ids: Iterable[int]) -> None:
    """Note that the bells of these runs wait in the broker: nothing is lost for now."""
    connection.execute(_text("bell_seen"), {"ids": list(run_ids)})


def ring_due(
    connection: psycopg.Connection[Any],
    *,
    busy: Iterable[str] = (),
    patience: timedelta = RING_PATIENCE,
    long_patience: timedelta = LONG_RING_PATIENCE,
    grace: timedelta = LOST_GRACE,
    batch: int = RING_BATCH,
) -> list[Due]:
    """Mark and return the runs whose bell must be rung (again); any number of callers side by side is safe.

    `busy`: the queues that hold more messages than anybody can look through.
    """
    values = {
        "busy": list(busy),
        "patience": patience,
        "long_patience": long_patience,
        "grace": grace,
        "batch": batch,
    }
    with connection.cursor(row_factory=class_row(Due)) as cursor:
        return cursor.execute(_text("ring_due"), values).fetchall()


def miss_expired(connection: psycopg.Connection[Any], *, batch: int = RING_BATCH) -> list[Run]:
    """End the ticks that no worker has started before their next slot; returns them, for somebody to be told."""
    return _runs(connection, "miss_expired", batch=batch)


def prune(
    connection: psycopg.Connection[Any],
    *,
    keep_skipped: timedelta,
    keep_runs: timedelta,
    batch: int = PRUNE_BATCH,
) -> int:
    """Move one batch of old runs into the monthly summaries; returns how many, 0 when there are no more."""
    row = _one(connection, "prune", keep_skipped=keep_skipped, keep_runs=keep_runs, batch=batch)
    return 0 if row is None else int(row["pruned"])


def _dumps(value: Any) -> str:
    return json.dumps(value, default=datetime.isoformat)


def _text(name: str) -> Any:
    return getattr(_sql, name).sql


def _one(connection: psycopg.Connection[Any], query: str, **values: Any) -> dict[str, Any] | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_text(query), values).fetchone()


def _run(connection: psycopg.Connection[Any], query: str, **values: Any) -> Run | None:
    with connection.cursor(row_factory=class_row(Run)) as cursor:
        return cursor.execute(_text(query), values).fetchone()


def _runs(connection: psycopg.Connection[Any], query: str, **values: Any) -> list[Run]:
    with connection.cursor(row_factory=class_row(Run)) as cursor:
        return cursor.execute(_text(query), values).fetchall()
