"""The threads beside the leader's: one for each database that gets runs, and one that rings.

A database that is away, or a Redis that stalls, holds up nobody else, least of all the heartbeat that leading
depends on. They are told and answer through SimpleQueues, whose put a signal handler may interrupt and call.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg
import structlog

from fleet import ledger
from fleet.errors import UpkeepError
from fleet.ledger import Inserted, NewRun, State
from fleet.postgres.connect import connect
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import Database
from schedules.due import Due, missed
from schedules.entries import Entry
from schedules.expiry import end_expired

log = structlog.get_logger(__name__)

# Runs in one INSERT. After each the leader hears of them: an outage of days is written down in hundreds of these.
ROWS = 1000

NOBODY_LED = "not inserted in its time: no scheduler led, or its database was away"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one database gets at once, and who asked: a leader's earlier term must not advance a later one's state."""

    term: int
    items: tuple[tuple[Entry, Due], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a batch, or of a part of it."""

    database: str
    batch: Batch
    made: tuple[Inserted, ...] = ()
    error: Exception | None = None


class End:
    """Whether it is near. A threading.Event has a lock, on which a signal handler can wait for ever."""

    near = False


class Inserter:
    """One database's thread: inserts batches of runs, one after the other."""

    def __init__(
        self,
        database: Database,
        make_run: Callable[[Entry, datetime], NewRun],
        answers: queue.SimpleQueue[Answer],
        end: End,
    ) -> None:
        self._database = database
        self._make_run = make_run
        self._answers = answers
        self._end = end
        self._batches: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self._connection: psycopg.Connection[Any] | None = None
        self._away = False
        self._thread: threading.Thread | None = None

    def submit(self, batch: Batch) -> None:
        """Take a batch on; the answer goes to the leader's queue."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, name=f"schedule-{self._database.name}", daemon=True
            )
            self._thread.start()
        self._batches.put(batch)

    def _work(self) -> None:
        while not self._end.near:
            try:
                batch = self._batches.get(timeout=60)
            except queue.Empty:
                self._disconnect()  # a daily entry needs no session all day
                continue
            left = list(batch.items)
            try:
                connection = self._connect()
                # A worker's reaper does this every second. Where there is none, a tick ends when its next one comes.
                while end_expired(connection, self._database.name):
                    pass
                while left:
                    answer = self._insert(connection, replace(batch, items=tuple(left)))
                    self._answers.put(answer)
                    del left[: len(answer.batch.items)]
                if self._away:
                    log.info("schedule.database_back", database=self._database.name)
                self._away = False
            except Exception as exc:  # noqa: BLE001 - whatever it is, the leader must hear of it and try again
                self._disconnect()
                rest = replace(batch, items=tuple(left))
                self._answers.put(Answer(database=self._database.name, batch=rest, error=exc))
                if not self._away:
                    self._tell(exc)
                self._away = True

    def _tell(self, exc: Exception) -> None:
        if isinstance(exc, psycopg.Error | UpkeepError):
            log.warning("schedule.database_away", database=self._database.name, error=str(exc).strip())
        else:  # a fault of ours is told with where it happened
            log.error("schedule.insert_failed", database=self._database.name, exc_info=exc)

    def _connect(self) -> psycopg.Connection[Any]:
        """A session that answers: one that broke while it lay there must not make a slot late."""
        if self._connection is not None:
            try:
                self._connection.execute("SELECT")
            except psycopg.Error:
                self._disconnect()
        if self._connection is None:
            connection = connect(self._database.url.get_secret_value(), application_name="upkeep/schedule")
            self._connection = connection
            refuse_unless_current(connection, self._database.name)
        return self._connection

    def _insert(self, connection: psycopg.Connection[Any], batch: Batch) -> Answer:
        """Insert the runs of the batch's first items; the answer has these items only."""
        runs: list[NewRun] = []
        more = set()
        taken = 0
        for entry, found in batch.items:
            slots, older = missed(entry, found)
            if older:
                more.add(entry.label)
            runs += self._runs(entry, found, slots, older=older)
            taken += 1
            if len(runs) >= ROWS:
                break
        made = ledger.insert_all(connection, runs, worker="scheduler")
        self._tell_missed(made, more)
        part = replace(batch, items=batch.items[:taken])
        return Answer(database=self._database.name, batch=part, made=tuple(made))

    def _tell_missed(self, made: Iterable[Inserted], more: Collection[str]) -> None:
        """By what was written down just now: a slot that somebody inserted before he died was not missed."""
        slots: dict[str, list[datetime]] = defaultdict(list)
        for each in made:
            if each.state == State.MISSED and each.slot is not None:
                slots[each.entry].append(each.slot)
        for label, missing in slots.items():
            log.error(
                "schedule.missed",
                entry=f"{self._database.name}/{label}",
                slots=len(missing),
                more=label in more,
                first=min(missing).isoformat(),
                last=max(missing).isoformat(),
            )

    def _runs(self, entry: Entry, found: Due, slots: Sequence[datetime], *, older: bool) -> list[NewRun]:
        runs = []
        for position, slot in enumerate(slots):
            note = " (as were older slots)" if older and position == 0 else ""
            run = self._make_run(entry, slot)
            runs.append(replace(run, state=State.MISSED, reason=f"{NOBODY_LED}{note}"))
        if found.run is not None:
            runs.append(self._make_run(entry, found.run))
        return runs

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class Bells:
    """Rings in a thread of its own: a broker that stalls for half a minute must cost bells, not leadership."""

    def __init__(self, ring: Callable[[str, Iterable[tuple[int, str, str]]], object]) -> None:
        self._ring = ring
        self._waiting: queue.SimpleQueue[tuple[float, str, list[tuple[int, str, str]]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def ring(self, database: str, runs: list[tuple[int, str, str]]) -> None:
        """Ring soon."""
        if not runs:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="schedule-bells", daemon=True)
            self._thread.start()
        self._waiting.put((time.monotonic(), database, runs))

    def close(self) -> None:
        """Let the thread end; bells that it has not rung are the reaper's."""
        self._waiting.put(None)

    def _work(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            since, database, runs = waiting
            if time.monotonic() - since > ledger.LONG_RING_PATIENCE.total_seconds():
                # The reaper has rung for these, or will: a broker that is back must not be flooded with an hour's.
                log.info("schedule.bells_left_out", database=database, runs=len(runs))
                continue
            try:
                self._ring(database, runs)
            except Exception:  # the thread must live on: the reaper rings for these
                log.exception("schedule.bells_failed", database=database)
