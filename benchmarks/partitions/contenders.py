"""Who makes three months ahead and moves one to the archive: the fleet's tasks, plain statements, and nobody at all."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg import sql

from benchmarks.partitions import tables
from benchmarks.partitions.application import REPORT_S
from benchmarks.partitions.tables import ELSEWHERE, HOT, METADATA, Before, Calendar, Shape, public
from benchmarks.stage import Place
from examples.transactions import generate, partitions

OURS, PLAIN, PARTMAN, REPLANNED, NOBODY = "ours", "plain", "pg_partman", "replanned", "nobody"

MAINTAIN = "upkeep.partitions.maintain"
ARCHIVE = "upkeep.partitions.archive"

# A month's metadata in one statement, as 004's function takes its rows.
_TAKE_METADATA = """
WITH gone AS (DELETE FROM public.transaction_metadata
               WHERE partition_date >= %(from)s AND partition_date < %(to)s RETURNING *)
INSERT INTO elsewhere.transaction_metadata SELECT * FROM gone
"""


class Contender(Protocol):
    """Works on a database of the application's, and can be undone."""

    @property
    def place(self) -> Place: ...  # noqa: D102

    def create(self) -> None:
        """Three months ahead on five tables."""

    def move(self) -> None:
        """The due month of the first one to the archive."""

    def undo(self) -> None:
        """Whatever it did, all of it or not; while nobody else works."""


@dataclass(kw_only=True)
class _Here:
    """What contenders of our databases have in common: the ways back."""

    place: Place
    superuser: psycopg.Connection[Any]
    calendar: Calendar
    shape: Shape | None
    before: Before

    @property
    def _kept(self) -> Sequence[str]:
        found = self.calendar.extent.tables
        return (*found, METADATA) if self.shape is Shape.PARTITIONS else found

    def undo(self) -> None:
        """Drop what has been made, put back what has been moved."""
        connection, due = self.superuser, self.calendar.due
        tables.drop_new(connection, self.before)
        tables.bring_back(connection, HOT, partitions.name(HOT, due), due)
        if self.shape is Shape.PARTITIONS:
            month = partitions.name(METADATA, due)
            if tables.bring_back(connection, METADATA, month, due):
                connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(public(month)))
        elif self.shape is Shape.PARENTS:
            for schema in (tables.ARCHIVE, ELSEWHERE):
                tables.bring_back_metadata(connection, schema)
        connection.execute("DELETE FROM upkeep.archive_batch")


@dataclass(kw_only=True)
class Ours(_Here):
    """The fleet's tasks, called in this process: everything of a run but the broker."""

    database: str
    tasks: Mapping[str, Any]

    def create(self) -> None:
        """One run a table."""
        for table in self._kept:
            self._run(MAINTAIN, table)

    def move(self) -> None:
        """One run."""
        self._run(ARCHIVE, HOT)

    def _run(self, task: str, table: str) -> None:
        ended = self.tasks[task](database=self.database, table=f"public.{table}")
        if ended["state"] != "succeeded":
            raise ValueError(f"{task} of {table} did not do it: {ended}")


@dataclass(kw_only=True)
class Plain(_Here):
    """The statements of the manual, one after the other, with the server's own idea of a lock_timeout: none."""

    connection: psycopg.Connection[Any]

    def prepare(self) -> None:
        """A schema and parents to move to."""
        with self.connection.transaction():
            self.connection.execute("CREATE SCHEMA IF NOT EXISTS elsewhere")
            for table in (HOT, METADATA):
                split = "PARTITION BY RANGE (partition_date)"
                if table == METADATA and self.shape is not Shape.PARTITIONS:
                    split = ""
                self.connection.execute(
                    sql.SQL("CREATE TABLE IF NOT EXISTS {} (LIKE {} INCLUDING DEFAULTS) {}").format(
                        sql.Identifier(ELSEWHERE, table), public(table), sql.SQL(split)
                    )
                )

    def create(self) -> None:
        """CREATE TABLE … PARTITION OF."""
        for first in self.calendar.ahead:
            for table in self.calendar.extent.tables:
                tables.make_month(self.connection, table, first)
            if self.shape is Shape.PARTITIONS:
                start, end = sql.Literal(f"{first}"), sql.Literal(f"{generate.following(first)}")
                self.connection.execute(
                    sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})").format(
                        public(partitions.name(METADATA, first)), public(METADATA), start, end
                    )
                )
                partitions.reference(self.connection, [first])

    def move(self) -> None:
        """DETACH and ATTACH; what refers to the month goes first."""
        if self.shape is Shape.PARENTS:
            take_metadata(self.connection, self.calendar)
        elif self.shape is Shape.PARTITIONS:
            self._move(METADATA)
        self._move(HOT)

    def _move(self, table: str) -> None:
        due = self.calendar.due
        month = partitions.name(table, due)
        start, end = sql.Literal(f"{due}"), sql.Literal(f"{generate.following(due)}")
        with self.connection.transaction():
            self.connection.execute(
                sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(public(table), public(month))
            )
            self.connection.execute(
                sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
                    sql.Identifier(ELSEWHERE, table), public(month), start, end
                )
            )


@dataclass(kw_only=True)
class Nobody:
    """Nobody: what the application waits for anyway."""

    place: Place
    seconds: float

    def create(self) -> None:
        """Until a report has been opened, closed, and opened again."""
        time.sleep(self.seconds)

    def move(self) -> None:
        """As long."""
        time.sleep(self.seconds)

    def undo(self) -> None:
        """Nothing."""


@dataclass(kw_only=True)
class Replanned(Nobody):
    """Nobody who makes anything: what it costs alone that every session has to plan its statements anew.

    Any change of a partitioned table's definition does that, and ATTACH is one. So often as months are made.
    """

    connection: psycopg.Connection[Any]
    times: int

    def create(self) -> None:
        """A change that changes nothing, under the lock that ATTACH takes."""
        for _ in range(self.times):
            self.connection.execute("ALTER TABLE public.transactions ALTER COLUMN amount SET STATISTICS -1")
            time.sleep(self.seconds / self.times)

    def move(self) -> None:
        """Twice, as DETACH and ATTACH do."""
        for _ in range(2):
            self.connection.execute("ALTER TABLE public.transactions ALTER COLUMN amount SET STATISTICS -1")
            time.sleep(self.seconds / 2)


NOTHING_S, QUICK_NOTHING_S = 4 * REPORT_S, REPORT_S


def take_metadata(connection: psycopg.Connection[Any], calendar: Calendar) -> None:
    """A month's metadata out of the way, in one statement."""
    connection.execute(_TAKE_METADATA, {"from": calendar.due, "to": generate.following(calendar.due)})
