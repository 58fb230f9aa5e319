"""Puts what is due into the ledgers, in the one process of many that leads.

Leadership is a session advisory lock in the home database; it saves work. What makes a slot run once is its run's
key, whoever inserts it, however often. For a slot: insert the run, note how far the entry is, ring the bell, in
that order: a crash after the first finds the run there, after the second the reaper rings.

Every database has a thread of its own, and so have the bells (`schedules.inserting`). The clock is the home
database's, never this machine's.
"""

from __future__ import annotations

import heapq
import queue
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import psycopg
import structlog

from fleet.errors import PermanentError, TransientError, UpkeepError
from fleet.ledger import NewRun, State
from fleet.postgres import locks
from fleet.postgres.connect import connect
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import Database
from schedules import state
from schedules.due import Due, due
from schedules.entries import Entry
from schedules.inserting import Answer, Batch, Bells, End, Inserter

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
        self._end = End()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._inserters = {
            name: Inserter(database, make_run, self._answers, self._end)
            for name, database in databases.items()
        }
        self._bells = Bells(ring)
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
            self._inserters[database].submit(Batch(term=self._term, items=tuple(items)))

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

    def _take(self, answer: Answer) -> None:
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
