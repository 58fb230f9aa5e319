"""Puts what is due into the ledgers, in the one process of many that leads.

Leadership is a session advisory lock in the home database; it saves work. What makes a slot run once is its run's
key, whoever inserts it, however often. For a slot: insert the run, note how far the entry is, ring the bell, in
that order: a crash after the first finds the run there, after the second the reaper rings.

Every database has a thread of its own, and so have the bells: one that is away, or a Redis that stalls, holds up
nobody else, least of all the heartbeat that leading depends on. The clock is the home database's, never this
machine's.
"""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import structlog

from fleet import ledger
from fleet.errors import PermanentError, TransientError, UpkeepError
from fleet.ledger import Inserted, NewRun, State
from fleet.postgres import locks
from fleet.postgres.connect import connect
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import Database
from schedules import state
from schedules.due import Due, due, missed
from schedules.entries import Entry
from schedules.expiry import end_expired

log = structlog.get_logger(__name__)

# A standby looks this often whether the lock is free; it is as soon as the leader's process is gone.
STANDBY_S = 0.5
# The leader asks at least this often whether it leads still, and what has been paused.
HEARTBEAT_S = 1.0
# A leader that was stopped (SIGSTOP, a paused machine) keeps its session: the server ends it after this silence,
# which no standby keeps either.
SILENCE = "5s"
# After an error: of the home database, or of one that slots belong to.
RETRY_S = 2.0
# A clock that moved by more than this against ours was set: everything is looked at anew.
CLOCK_JUMP = timedelta(seconds=2)
# Entries that a log line names.
NAMED = 10
# Runs in one INSERT. After each the leader hears of them: an outage of days is written down in hundreds of these.
ROWS = 1000

NOBODY_LED = "not inserted in its time: no scheduler led, or its database was away"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """What one database gets at once, and who asked: a leader's earlier term must not advance a later one's state."""

    term: int
    items: tuple[tuple[Entry, Due], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What became of a batch, or of a part of it."""

    database: str
    batch: _Batch
    made: tuple[Inserted, ...] = ()
    error: Exception | None = None


class _End:
    """Whether it is near. A threading.Event has a lock, on which a signal handler can wait for ever."""

    near = False


class Leader:
    """One process's part: stands by until it leads, then ticks."""

    def __init__(
        self,
        home: Database,
        databases: Mapping[str, Database],
        entries: Mapping[str, Entry],
        *,
        make_run: Callable[[Entry, datetime], NewRun],
        ring: Callable[[str, Iterable[tuple[int, str, str]]], object],
    ) -> None:
        self._home = home
        self._entries = entries
        self._connection: psycopg.Connection[Any] | None = None
        self._end = _End()
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._inserters = {
            name: _Inserter(database, make_run, self._answers, self._end)
            for name, database in databases.items()
        }
        self._bells = _Bells(ring)
        self._term = 0
        self._leads = False
        self._told: str | None = None
        self._last: dict[str, datetime] = {}
        self._paused: frozenset[str] = frozenset()
        self._heap: list[tuple[datetime, str]] = []
        self._on_their_way: set[str] = set()
        self._unnoted: dict[str, datetime] = {}
        self._clock: datetime | None = None
        self._read_at = 0.0

    @property
    def leads(self) -> bool:
        """Whether this process led when it last looked."""
        return self._leads

    def tick(self) -> None:
        """Do what is due, and wait for what comes next, a second at most."""
        try:
            if not self._lead():
                self._settle()
                time.sleep(STANDBY_S)
                return
            self._beat()
            self._settle()
            self._submit()
            self._wait()
        except (psycopg.Error, UpkeepError) as exc:
            self._step_down(exc)
            time.sleep(RETRY_S)

    def close(self) -> None:
        """Stop; the lock goes with the process, or with the connection if that lives on.

        Called by a signal handler, at any instruction of `tick`: nothing here takes a lock that it may hold.
        """
        self._end.near = True
        self._bells.close()

    def release(self) -> None:
        """Give leadership back at once; not from a signal handler, which may have interrupted a query."""
        self.close()
        self._disconnect()

    # ---- leading ----

    def _lead(self) -> bool:
        if self._leads:
            return True
        if self._connection is None:
            self._connection = connect(self._home.url.get_secret_value(), application_name="upkeep/scheduler")
            # Before it has the lock: whoever gets it and is stopped before its next word holds it no longer either.
            self._connection.execute(
                "SELECT pg_catalog.set_config('idle_session_timeout', %s, false)", (SILENCE,)
            )
            refuse_unless_current(self._connection, self._home.name)
            state.refuse_newer(self._connection)
        if not locks.try_acquire(self._connection, state.LEADER):
            self._tell("scheduler.stands_by")
            return False
        self._term += 1
        self._begin(self._connection)
        self._tell("scheduler.leads", entries=len(self._entries), term=self._term)
        self._leads = True
        return True

    def _begin(self, connection: psycopg.Connection[Any]) -> None:
        """Take over from what the last leader wrote, not from what was read while standing by."""
        beat = state.heartbeat(connection)
        if beat.in_recovery:
            raise TransientError(
                f"The home database {self._home.name!r} is a standby",
                remedy="Point its URL at the primary, or list all servers with target_session_attrs=read-write",
            )
        self._set_clock(beat.clock)
        states = state.reconcile(connection, self._entries.values(), beat.clock)
        if lacking := sorted(self._entries.keys() - states.keys()):
            # Two that lead for a moment, with different configurations.
            raise TransientError(
                f"Another scheduler has taken {len(lacking)} entries off the schedule: {', '.join(lacking[:3])}",
                remedy="Give all schedulers the same configuration",
            )
        self._last = {name: states[name].last_slot for name in self._entries}
        self._paused = beat.paused
        self._on_their_way.clear()  # answers of an earlier term are not waited for
        self._unnoted.clear()
        self._look_at_all(self._now())

    def _beat(self) -> None:
        assert self._connection is not None  # it leads
        asked = self._now()
        beat = state.heartbeat(self._connection)
        answered = self._now()
        if not beat.leads or beat.in_recovery:
            raise TransientError("The session in the home database leads no longer")
        # It was read between the question and the answer, which may have taken long.
        jumped = not asked - CLOCK_JUMP <= beat.clock <= answered + CLOCK_JUMP
        self._set_clock(
            beat.clock if jumped else max(beat.clock, min(answered, beat.clock + (answered - asked)))
        )
        resumed = (self._paused - beat.paused) & self._entries.keys()
        self._paused = beat.paused
        if self._unnoted:
            self._note(self._connection, {})
        if resumed:
            states = state.read_states(self._connection)
            self._last |= {name: states[name].last_slot for name in resumed if name in states}
        if jumped:
            log.warning("scheduler.clock_was_set", clock=beat.clock.isoformat())
        if jumped or resumed:
            self._look_at_all(beat.clock)

    def _step_down(self, exc: Exception) -> None:
        said = exc.message if isinstance(exc, UpkeepError) else str(exc).strip()
        remedy = exc.remedy if isinstance(exc, UpkeepError) else None
        level = "error" if isinstance(exc, PermanentError) else "warning"
        event = "scheduler.leads_no_longer" if self._leads else "scheduler.home_away"
        self._leads = False
        self._disconnect()
        self._tell(event, level=level, error=said, **({"remedy": remedy} if remedy else {}))

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _tell(self, event: str, *, level: str = "info", **values: Any) -> None:
        # Once: a standby says nothing for months, a database that is away is known to be.
        key = f"{event} {values.get('error', '')}"
        if key != self._told:
            getattr(log, level)(event, **values)
        self._told = key

    # ---- what is due ----

    def _set_clock(self, clock: datetime) -> None:
        self._clock, self._read_at = clock, time.monotonic()

    def _now(self) -> datetime:
        assert self._clock is not None  # set when it began to lead
        return self._clock + timedelta(seconds=time.monotonic() - self._read_at)

    def _look_at_all(self, now: datetime) -> None:
        """Look at every entry at the next pass; those on their way to a database come back with its answer."""
        self._heap = [(now, name) for name in self._entries if name not in self._on_their_way]
        heapq.heapify(self._heap)

    def _submit(self) -> None:
        """Hand what is due to its database's thread, until it is time for a heartbeat."""
        now = self._now()
        until = time.monotonic() + HEARTBEAT_S
        self._take_back(now)
        batches: dict[str, list[tuple[Entry, Due]]] = defaultdict(list)
        while self._heap and self._heap[0][0] <= now and time.monotonic() < until:
            _, name = heapq.heappop(self._heap)
            entry = self._entries[name]
            found = due(entry, self._last[name], now)
            if found.last_slot is None or name in self._paused:
                heapq.heappush(self._heap, (max(found.look_at, now + timedelta(milliseconds=1)), name))
            else:
                batches[entry.database].append((entry, found))
                self._on_their_way.add(name)
        for database, items in batches.items():
            self._inserters[database].submit(_Batch(term=self._term, items=tuple(items)))

    def _take_back(self, now: datetime) -> None:
        """Let go on what was inserted up to a moment that has not come: the clock was wrong, maybe by a year."""
        assert self._connection is not None  # it leads
        ahead = {
            name: self._last[name]
            for due_at, name in self._heap
            if due_at <= now and self._last[name] > now + CLOCK_JUMP
        }
        if not ahead:
            return
        state.take_back(self._connection, ahead, now)
        self._last |= dict.fromkeys(ahead, now)
        log.warning(
            "schedule.taken_back",
            entries=sorted(ahead)[:NAMED],
            count=len(ahead),
            was=max(ahead.values()).isoformat(),
            clock=now.isoformat(),
        )

    def _wait(self) -> None:
        """Until something is due or a database has answered, the heartbeat's interval at most."""
        wait = HEARTBEAT_S
        if self._heap:
            wait = min(wait, (self._heap[0][0] - self._now()).total_seconds())
        try:
            answer = self._answers.get(timeout=max(0.0, wait))
        except queue.Empty:
            return
        self._take(answer)

    def _settle(self) -> None:
        while True:
            try:
                answer = self._answers.get_nowait()
            except queue.Empty:
                return
            self._take(answer)

    def _take(self, answer: _Answer) -> None:
        """Note what a database has got, then ring; what it could not take is tried again."""
        queued = [(each.id, each.task, each.queue) for each in answer.made if each.state == State.QUEUED]
        if answer.batch.term != self._term or not self._leads or self._connection is None:
            # They are there all the same: whoever leads now makes none of them, and so rings for none.
            self._bells.ring(answer.database, queued)
            return
        self._on_their_way -= {entry.name for entry, _ in answer.batch.items}
        if answer.error is not None:
            again = self._now() + timedelta(seconds=RETRY_S)
            for entry, _ in answer.batch.items:
                heapq.heappush(self._heap, (again, entry.name))
            return
        slots = {entry.name: found.last_slot for entry, found in answer.batch.items if found.last_slot}
        self._note(self._connection, slots)
        self._bells.ring(answer.database, queued)
        for entry, found in answer.batch.items:
            # Somebody may have resumed it meanwhile, from a later moment on.
            self._last[entry.name] = max(self._last[entry.name], slots[entry.name])
            ahead = slots[entry.name] > self._now() + CLOCK_JUMP  # by a clock that was set since
            heapq.heappush(self._heap, (self._now() if ahead else found.look_at, entry.name))
        names = [entry.name for entry, found in answer.batch.items if found.run]
        if names:
            log.info("schedule.inserted", database=answer.database, runs=len(queued), entries=names[:NAMED])

    def _note(self, connection: psycopg.Connection[Any], slots: Mapping[str, datetime]) -> None:
        """Note how far entries are; a row that somebody holds is noted when it is free, and holds up no other."""
        self._unnoted |= slots
        held = state.advance(connection, self._unnoted)
        self._unnoted = {name: slot for name, slot in self._unnoted.items() if name in held}


class _Inserter:
    """One database's thread: inserts batches of runs, one after the other."""

    def __init__(
        self,
        database: Database,
        make_run: Callable[[Entry, datetime], NewRun],
        answers: queue.SimpleQueue[_Answer],
        end: _End,
    ) -> None:
        self._database = database
        self._make_run = make_run
        self._answers = answers
        self._end = end
        self._batches: queue.SimpleQueue[_Batch] = queue.SimpleQueue()
        self._connection: psycopg.Connection[Any] | None = None
        self._away = False
        self._thread: threading.Thread | None = None

    def submit(self, batch: _Batch) -> None:
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
                self._answers.put(_Answer(database=self._database.name, batch=rest, error=exc))
                if not self._away:
                    log.warning(
                        "schedule.database_away", database=self._database.name, error=str(exc).strip()
                    )
                self._away = True

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

    def _insert(self, connection: psycopg.Connection[Any], batch: _Batch) -> _Answer:
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
        return _Answer(database=self._database.name, batch=part, made=tuple(made))

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


class _Bells:
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
