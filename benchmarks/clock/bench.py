"""What the parts share: the stage, the report, schedules of as many entries as a part wants, and peers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg.rows import class_row

from benchmarks import bench
from benchmarks.clock import peer
from benchmarks.clock.processes import Crew, Process
from benchmarks.stage import Place, clean_environment
from fleet import settings
from schedules import state
from schedules.entries import Entry, entries

# The ledger's own pruning: any task would do, because nobody works on its runs here.
TASK = "upkeep.ledger.prune"
QUEUE = "maintenance"
NEVER = "0 0 1 1 *"
# Entries that are there and not due: what a fleet of some dozens of views and jobs declares.
IDLE_ENTRIES = 50
LEADS, STANDS_BY = "scheduler.leads", "scheduler.stands_by"

_MOMENT = timedelta(microseconds=1)
_RUNS = """
SELECT r.entry, r.slot, r.state, r.created_at, pg_catalog.pg_xact_commit_timestamp(r.xmin) AS committed_at
  FROM upkeep.run r
 WHERE r.entry LIKE 'schedule.%'
"""


@dataclass(frozen=True, kw_only=True)
class Inserted:
    """A slot's run: when its row was made, and when it was committed, both on the database's clock."""

    entry: str
    slot: datetime
    state: str
    created_at: datetime
    committed_at: datetime


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A database with a schedule, the processes that may run it, and a look at what they did."""

    place: Place
    connection: psycopg.Connection[Any]
    crew: Crew
    broker: redis.Redis
    entries: Mapping[str, Entry]
    """By name, without the ledger's own pruning."""
    declared: Mapping[str, Entry]

    def now(self) -> datetime:
        """The clock that slots are on."""
        row = self.connection.execute("SELECT pg_catalog.clock_timestamp()").fetchone()
        assert row is not None  # SELECT without FROM
        found: datetime = row[0]
        return found

    def set_back(self, to: datetime) -> None:
        """As a leader would have left it that led until this moment; only while nobody leads."""
        self.connection.execute("TRUNCATE upkeep.run, upkeep.schedule_state")
        self.broker.delete(QUEUE)
        state.reconcile(self.connection, self.declared.values(), to)
        state.advance(
            self.connection,
            {e.name: self.now() for e in self.declared.values() if e.name not in self.entries},
        )

    def advance(self, slots: Mapping[str, datetime]) -> None:
        """Note that these entries' slots have been dealt with."""
        if slots:
            state.advance(self.connection, slots)

    def forget(self, entry: str, last_slot: datetime) -> None:
        """Take an entry's runs away and set it back: a leader does not notice, the next one will."""
        label = self.entries[entry].label
        with self.connection.transaction():
            self.connection.execute("DELETE FROM upkeep.run WHERE entry = %s", (label,))
            self.connection.execute(
                "UPDATE upkeep.schedule_state SET last_slot = %s WHERE entry = %s", (last_slot, entry)
            )

    def lead(self) -> tuple[Process, datetime]:
        """Start a scheduler and wait until it leads; returns since when."""
        process = self.crew.beat()
        return process, process.wait_said(LEADS)

    def inserted(self) -> list[Inserted]:
        """The entries' runs."""
        with self.connection.cursor(row_factory=class_row(Inserted)) as cursor:
            return cursor.execute(_RUNS).fetchall()

    def rung(self) -> int:
        """How many bells the broker holds."""
        return int(self.broker.llen(QUEUE))


@dataclass(kw_only=True)
class Pair:
    """A leader and a standby."""

    leader: Process
    standby: Process


@dataclass(kw_only=True)
class Bench(bench.Bench):
    """The stage, schedules of as many entries as a part wants, and peers."""

    @property
    def floor_s(self) -> float:
        """What absolute bounds in seconds are compared with."""
        return self.stage.floor.worst_ms / 1000

    def clock(self, name: str, count: int, cron: str, *, jitter: str = "0s") -> Clock:
        """A migrated database that a number of entries, all alike, are declared for."""
        place = self.stage.place(name)
        self.stage.migrate(place)
        environment = self.stage.environment(name, configuration(name, count, cron, jitter), [place])
        loaded = settings.load(Path(environment["UPKEEP_CONFIG"]), environment)
        declared = entries(loaded)
        return Clock(
            place=place,
            connection=self.fleet(place),
            crew=self.crew("worker.app", environment),
            broker=self.client(environment["UPKEEP_REDIS_URL"]),
            entries={n: entry for n, entry in declared.items() if entry.label.startswith("schedule.")},
            declared=declared,
        )

    def peer(
        self, name: str, celery: Mapping[str, Any] | None = None, *, count: int = 0, minutes: str = "never"
    ) -> tuple[Crew, redis.Redis]:
        """Processes of the peer's app on a broker of their own, with these settings of Celery."""
        folder = self.stage.folder / name
        folder.mkdir()
        environment = clean_environment() | {
            peer.BROKER: self.stage.broker(),
            peer.ENTRIES: str(count),
            peer.MINUTES: minutes,
            peer.CELERY: json.dumps(celery or {}),
        }
        crew = Crew(app="benchmarks.clock.peer", folder=folder, environment=environment)
        self.exits.callback(crew.close)
        return crew, self.client(environment[peer.BROKER])

    def crew(self, app: str, environment: Mapping[str, str]) -> Crew:
        """Processes that are gone when the run ends."""
        crew = Crew(app=app, folder=Path(environment["UPKEEP_CONFIG"]).parent, environment=environment)
        self.exits.callback(crew.close)
        return crew

    @cached_property
    def idle_clock(self) -> Clock:
        """A schedule of which nothing is due."""
        return self.clock("idle", IDLE_ENTRIES, NEVER)

    @cached_property
    def pair(self) -> Pair:
        """Two schedulers of that: one leads, the other stands by."""
        one, other = self.idle_clock.crew.beat(), self.idle_clock.crew.beat()
        # Side by side, because that is quicker; which of them leads makes no difference.
        for each in (one, other):
            each.wait_said('"scheduler.')
        leader, standby = (other, one) if one.said(STANDS_BY) else (one, other)
        leader.wait_said(LEADS)
        return Pair(leader=leader, standby=standby)


def configuration(database: str, count: int, cron: str, jitter: str) -> str:
    """An upkeep.toml with so many entries, all alike."""
    lines = ["[fleet]", f'home = "{database}"', f"[databases.{database}]"]
    for number in range(count):
        lines += [f"[schedule.e{number:04d}]", f'task = "{TASK}"', f'cron = "{cron}"', f'jitter = "{jitter}"']
    return "\n".join(lines) + "\n"


def seconds(later: datetime, earlier: datetime) -> float:
    """From one moment to another."""
    return (later - earlier).total_seconds()


def just_before(slot: datetime) -> datetime:
    """A last slot with which this one is the next."""
    return slot - _MOMENT
