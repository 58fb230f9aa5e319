"""Moves rows of the default partition into a partition that the same transaction makes: each is seen once, always.

What has to be kept out, and how:

- A reader who has already learned which partitions there are, and waits for the default one, would afterwards see the
  moved rows in neither. So the last step locks the table itself, and with it everybody who is about to read it.
- An UPDATE that waits for a row which is moved away would find it deleted, and change nothing. Nobody who waits so lets
  the table be locked: the step is rolled back, and his row is where it was. And nobody waits for longer than a batch
  takes: after each one we look whether somebody does, and give way.
- A transaction in REPEATABLE READ, and one in SERIALIZABLE, goes on with its snapshot, in which the rows are where they
  were, and looks for them where they are. So those that are there already are waited for. Whose snapshot is taken while
  the rows are moved, and who does not touch the table before they are, misses them: nothing tells us of him.
- ON DELETE actions and triggers take the move for a deletion. Rows that are referenced, and triggers on DELETE, are a
  reason not to begin.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import errors, sql

from fleet.errors import PermanentError, TransientError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import ForeignKey, Partition, PartitionedTable, Range
from fleet.postgres.patience import Deadline, Patience
from fleet.postgres.queries import load
from tasks.partitions.statements import within

_sql = load("tasks.partitions", "sql/drain.sql")

# Some milliseconds of work: so long somebody who wants one of the rows waits before we look.
BATCH = 2_000
# Between two looks at who has a snapshot.
LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Drain:
    """The rows of the default partition that belong into one that is being made."""

    connection: psycopg.Connection[Any]
    table: PartitionedTable
    default: Partition
    into: RelationName
    columns: Sequence[str]
    """Those that are written: what is generated is not."""
    range: Range
    batch_timeout: timedelta

    def refuse_unless_moved_unseen(self) -> None:
        """Stop where something would take the move for a deletion.

        Raises:
            PermanentError: a trigger on DELETE.
        """
        rows = list(
            _sql.read_delete_triggers(
                self.connection,
                schemas=[each.schema for each in self.default.leaves],
                names=[each.name for each in self.default.leaves],
            )
        )
        if rows:
            first = rows[0]
            name = RelationName(first["schema"], first["table"])
            raise PermanentError(
                f"The rows of {self.default.name} cannot be moved: the trigger {first['name']} on {name} would take "
                "that for their deletion",
                remedy=f'Disable it there while they are moved: ALTER TABLE {name} DISABLE TRIGGER "{first["name"]}"',
            )

    def move(self) -> int:
        """Move what can be had at once, in batches; returns how many rows.

        Raises:
            LockNotAvailable: somebody waits for one of them.
            PermanentError: one of them is referenced.
        """
        _sql.as_usual(self.connection)
        moved = 0
        for leaf in self.default.leaves:
            while True:
                _sql.bound(self.connection, milliseconds=_ms(self.batch_timeout))
                taken = self._take(self.connection.execute(self._rows(leaf, limit=BATCH)))
                moved += self._move(leaf, taken)
                if _sql.somebody_waits(self.connection):
                    raise errors.LockNotAvailable("somebody waits for a row that is being moved")
                if not taken:
                    break
        _sql.as_declared(self.connection)
        return moved

    def lock(self, deadline: Deadline) -> None:
        """Keep everybody out, for what is left of the deadline.

        An UPDATE may wait for one of our rows by now, and hold the table that we want: the server would end one of
        the two after its deadlock_timeout, and he has waited for longer. So we give up before.
        """
        half = timedelta(milliseconds=_sql.deadlock_timeout(self.connection) / 2)
        table, default = self.table.name.identifier(), self.default.name.identifier()
        for statement in (
            sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(table),
            sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(default),
        ):
            deadline.execute(statement, at_most=half)

    def move_rest(self, deadline: Deadline) -> int:
        """Move what has come meanwhile; nothing can come any more."""
        _sql.as_usual(self.connection)
        moved = 0
        for leaf in self.default.leaves:
            taken = self._take(deadline.execute(self._rows(leaf, limit=None)))
            moved += self._move(leaf, taken)
        _sql.as_dumped(self.connection)
        return moved

    def _rows(self, leaf: RelationName, *, limit: int | None) -> sql.Composed:
        # Locked, so that nobody can begin to refer to one after we have looked whether anybody does. A row that
        # somebody works on is left to the end.
        return sql.SQL("SELECT ctid::text FROM ONLY {} WHERE {} {} FOR UPDATE SKIP LOCKED").format(
            leaf.identifier(),
            within(self.table.key[0], self.range),
            sql.SQL("") if limit is None else sql.SQL("LIMIT {}").format(sql.Literal(limit)),
        )

    def _take(self, found: Iterable[tuple[str]]) -> list[str]:
        return [row[0] for row in found]

    def _move(self, leaf: RelationName, taken: list[str]) -> int:
        if not taken:
            return 0
        for each in self.table.foreign_keys:
            if each.referenced == self.table.name:
                self._refuse_referenced(leaf, each, taken)
        columns = sql.SQL(", ").join(map(sql.Identifier, self.columns))
        moved = self.connection.execute(
            sql.SQL(
                "WITH moved AS (DELETE FROM ONLY {} WHERE ctid = ANY(%s::tid[]) RETURNING {})"
                " INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM moved"
            ).format(leaf.identifier(), columns, self.into.identifier(), columns, columns),
            (taken,),
        ).rowcount
        if moved != len(taken):
            raise PermanentError(
                f"Of {len(taken)} rows of {leaf} only {moved} could be moved: something kept the others there",
                remedy=f"Look for rules on {leaf}; nothing was changed",
            )
        return moved

    def _refuse_referenced(self, leaf: RelationName, key: ForeignKey, taken: list[str]) -> None:
        same = sql.SQL(" AND ").join(
            [
                sql.SQL("referring.{} = row.{}").format(sql.Identifier(theirs), sql.Identifier(ours))
                for theirs, ours in zip(key.columns, key.referenced_columns, strict=True)
            ]
        )
        found = self.connection.execute(
            sql.SQL(
                "SELECT count(*) FROM ONLY {} AS row JOIN {} AS referring ON {} WHERE row.ctid = ANY(%s::tid[])"
            ).format(leaf.identifier(), key.referencing.identifier(), same),
            (taken,),
        ).fetchone()
        assert found is not None  # an aggregate
        if found[0]:
            raise PermanentError(
                f"Rows of {leaf} cannot be moved: {found[0]} rows of {key.referencing} refer to them ({key.name}), "
                "and their foreign key would take the move for a deletion",
                remedy=f"Drop the constraint, let the rows be moved, and add it again; or take the rows out of {leaf}",
            )


def wait_for_snapshots(connection: psycopg.Connection[Any], table: RelationName, patience: Patience) -> None:
    """Let the transactions end that would look for moved rows where they were, or finish their statement.

    On a connection in autocommit mode: within a transaction the server shows the same sessions again and again.

    Raises:
        TransientError: one is open all the time.
    """
    ends = time.monotonic() + patience.total.total_seconds()
    there = _snapshots(connection)
    while there := there & _snapshots(connection):
        if time.monotonic() >= ends:
            raise TransientError(
                f"Rows of the default partition of {table} cannot be moved: process {min(there)[0]} looks at the "
                "database as it was before, and would not find them",
                remedy="Upkeep tries again. Who works for long: "
                "SELECT * FROM pg_stat_activity ORDER BY xact_start LIMIT 5",
            )
        time.sleep(LOOK_S)


def _snapshots(connection: psycopg.Connection[Any]) -> set[tuple[int, str]]:
    return {(row["pid"], row["transaction"]) for row in _sql.snapshots(connection)}


def _ms(value: timedelta) -> str:
    return f"{max(1, int(value.total_seconds() * 1000))}ms"
