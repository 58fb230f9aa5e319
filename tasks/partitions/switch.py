"""The one short transaction of a move: out of the table and into the archive, for everybody at the same moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from fleet.errors import PermanentError, TransientError
from fleet.postgres.catalog.partitions import Range
from fleet.postgres.patience import Deadline
from fleet.postgres.queries import load
from tasks.partitions import foreign_keys
from tasks.partitions.archive import ARCHIVED_AT, BATCH
from tasks.partitions.foreign_keys import Reference, Way
from tasks.partitions.hold import Hold
from tasks.partitions.leaving import CHECK_NAME, Leaving, read_members, read_within

_sql = load("tasks.partitions", "sql/move.sql")


class Written(Exception):
    """Something changed before the locks were ours; the try is in vain, and there is another one."""


@dataclass(frozen=True, kw_only=True)
class Switch:
    """What leaves, and under which conditions; `others` are partitions of companions."""

    connection: psycopg.Connection[Any]
    leaving: Leaving
    others: Sequence[Leaving]
    references: Sequence[tuple[Reference, Way]]
    range: Range
    rows: int
    batch: UUID
    bounds: Mapping[str, str | None]
    run_id: int | None
    told: Callable[[str], object]

    @property
    def locked(self) -> list[int]:
        """The tables that it will lock."""
        oids = [reference.table_oid for reference, _ in self.references]
        for each in (self.leaving, *self.others):
            oids += [each.parent_oid, *(member.oid for member in each.members)]
        return oids

    def carry_out(self, deadline: Deadline, held: Hold) -> None:
        """Do it, or raise and leave everything as it was.

        Raises:
            Written: a row may be held by now, or something refers to the range.
            TransientError: somebody has changed the partition.
        """
        connection, leaving = self.connection, self.leaving
        everything = (*self.others, leaving)
        self._lock(deadline)
        for each in everything:
            _refuse_changed(connection, each)
        if not held.stands(connection, deadline):
            raise Written(f"{leaving.partition} was written")
        again = []
        aligned = {each.parent for each in self.others}
        for reference, way in self.references:
            if way is Way.AGAIN:
                if reference.table not in aligned and foreign_keys.refers_under_lock(
                    deadline, connection, reference, self.range
                ):
                    raise Written(f"{leaving.partition} is referred to again")
                again.append(reference)
        for reference in again:
            foreign_keys.drop(deadline, reference)
            self.told(f"dropped {reference.name}")
        at: datetime = _sql.clock(connection)
        # Companions first: what they leave behind refers to nothing of the range.
        for each in everything:
            self._carry(deadline, each, at)
        for reference in again:
            foreign_keys.add_again(deadline, connection, reference)
            self.told(f"added {reference.name}")
        for each in everything:
            self._note(each, at)
        self.told("about to commit")

    def _lock(self, deadline: Deadline) -> None:
        tables: list[sql.Composable] = []
        for each in (self.leaving, *self.others):
            tables.append(sql.SQL("ONLY {}").format(each.parent.identifier()))
            if each.default is not None:
                tables.append(sql.SQL("ONLY {}").format(each.default.identifier()))
            tables.append(each.partition.identifier())  # with its leaves
        parents = {self.leaving.parent, *(each.parent for each in self.others)}
        tables += [
            sql.SQL("ONLY {}").format(name.identifier())
            for name in sorted({each.table for each, _ in self.references if each.may_alter} - parents)
        ]
        deadline.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(tables)))
        self.told("locked")

    def _carry(self, deadline: Deadline, leaving: Leaving, at: datetime) -> None:
        """Out of the table and into the archive, as it is."""
        connection = self.connection
        partition, archive = leaving.partition.identifier(), leaving.archive.name
        deadline.execute(
            sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(leaving.parent.identifier(), partition)
        )
        self.told(f"detached {leaving.partition}")
        if leaving.parent != self.leaving.parent:
            foreign_keys.drop_own(
                deadline, connection, leaving.oid, leaving.partition, self.leaving.parent_oid
            )
        for member in leaving.members:
            for trigger in member.triggers:
                deadline.execute(
                    sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(
                        sql.Identifier(trigger), member.name.identifier()
                    )
                )
        # A constant default is kept in the catalogue for the rows that are there; dropped again, it is nobody else's.
        deadline.execute(
            sql.SQL(
                "ALTER TABLE {} ADD COLUMN {} timestamptz NOT NULL DEFAULT {}, ADD COLUMN {} uuid NOT NULL DEFAULT {}"
            ).format(
                partition,
                sql.Identifier(ARCHIVED_AT),
                sql.Literal(at.isoformat()),
                sql.Identifier(BATCH),
                sql.Literal(str(self.batch)),
            )
        )
        deadline.execute(
            sql.SQL("ALTER TABLE {} ALTER COLUMN {} DROP DEFAULT, ALTER COLUMN {} DROP DEFAULT").format(
                partition, sql.Identifier(ARCHIVED_AT), sql.Identifier(BATCH)
            )
        )
        deadline.execute(
            sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(
                archive.identifier(), partition, sql.SQL(leaving.bound)
            )
        )
        self.told(f"attached {leaving.partition}")
        deadline.execute(
            sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(partition, sql.Identifier(CHECK_NAME))
        )
        for member in leaving.members:
            if member.name.schema != archive.schema:
                deadline.execute(
                    sql.SQL("ALTER TABLE {} SET SCHEMA {}").format(
                        member.name.identifier(), sql.Identifier(archive.schema)
                    )
                )
        files = {each.oid: each.file for each in read_members(connection, leaving.oid)}
        if files != {each.oid: each.file for each in leaving.members}:
            raise PermanentError(
                f"The server would have written all of {leaving.partition} anew to move it; nothing was kept of that",
                remedy="This is a mistake of Upkeep's: tell its maintainers the version of your server",
            )

    def _note(self, each: Leaving, at: datetime) -> None:
        values = {
            "id": self.batch,
            "parent": str(each.parent),
            "archive": str(each.archive.name),
            "archived": str(each.archived),
            "archived_at": at,
            "run_id": self.run_id,
        }
        if each is self.leaving:
            _sql.end_batch(self.connection, rows=self.rows, **values)
        else:
            _sql.note_batch(self.connection, kind="partition", rows=None, **values, **self.bounds)


def _refuse_changed(connection: psycopg.Connection[Any], leaving: Leaving) -> None:
    row = read_within(connection, leaving.partition)
    if row is None or (row["oid"], row["parent"], row["bound"]) != (
        leaving.oid,
        leaving.parent_oid,
        leaving.bound,
    ):
        raise TransientError(
            f"{leaving.partition} was changed by somebody while it was about to move",
            remedy="Upkeep looks again",
        )


__all__ = ["Switch", "Written"]
