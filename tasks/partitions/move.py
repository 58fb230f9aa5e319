"""Moves one partition to the archive: everything that takes time beforehand, and then one short transaction.

Each phase looks at what is there, so that whoever comes after a killed run goes on where that ended. Nothing is
half-done in between: a CHECK that the partition has more, a batch that is begun, companions' rows that are in the
archive already and in the view over both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Partition, PartitionedTable, Value, read_partitioned
from fleet.postgres.patience import Deadline, patiently
from fleet.postgres.queries import load
from fleet.settings.partitions import PartitionSet
from tasks.partitions import archive as archives
from tasks.partitions import companions as accompanying
from tasks.partitions import foreign_keys, hold
from tasks.partitions.archive import Archive
from tasks.partitions.companions import Companions
from tasks.partitions.foreign_keys import Reference, Way
from tasks.partitions.hold import Held, Hold, legally_held
from tasks.partitions.leaving import CHECK_NAME, Leaving, read, read_members
from tasks.partitions.pending import finalize_pending
from tasks.partitions.switch import Switch, Written
from tasks.partitions.tablespace import settle

_sql = load("tasks.partitions", "sql/move.sql")

VALIDATES_FOR = "1h"
# How often a partition that is written all the time is looked at again.
LOOKS = 5

Told = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What a move came to."""

    partition: RelationName
    archived: RelationName
    batch: UUID
    rows: int
    """The planner's estimate."""
    companions: Mapping[str, int] = field(default_factory=dict)
    """How many rows of each moved one by one."""
    already: bool = False


def printed(value: Value | None) -> str | None:
    """A bound as upkeep.archive_batch keeps it: PostgreSQL reads it back in its own type."""
    return None if value is None else value.isoformat(" ") if isinstance(value, datetime) else str(value)


def move(
    connection: psycopg.Connection[Any],
    policies: Mapping[RelationName, PartitionSet],
    policy: PartitionSet,
    partition: RelationName,
    *,
    run_id: int | None = None,
    told: Told = lambda step: None,
) -> Moved:
    """Move one partition of a table, and its companions' rows, to the archive.

    On a connection in autocommit mode, under the table's advisory lock. `told`: called with each step that is done.

    Raises:
        Held: rows in it must not be moved yet.
        PermanentError: it cannot be moved as it is; says what to do about it.
        TransientError: its locks were never free, or it was written all the time.
    """
    table = _table(connection, policy)
    if pending := finalize_pending(connection, table, policy):
        told("finalized")
        table = _table(connection, policy)
        if partition in pending:
            raise PermanentError(
                f"{partition} is no partition of {table.name} any more: somebody's pending DETACH is finalized",
                remedy="Attach it again, or to the archive",
            )
    found = next((each for each in table.partitions if each.name == partition), None)
    if found is None:
        return _already(connection, policy, table, partition)
    return _Mover(connection, policies, policy, table, found, run_id=run_id, told=told).move()


def _table(connection: psycopg.Connection[Any], policy: PartitionSet) -> PartitionedTable:
    table = read_partitioned(connection, [policy.name]).get(policy.name)
    if table is None or table.strategy != "range" or table.control_type is None or len(table.key) != 1:
        raise PermanentError(
            f"{policy.name} is not partitioned by the range of one column that the calendar speaks of",
            remedy="`upkeep check` says what is wrong with its policy",
        )
    return table


def _already(
    connection: psycopg.Connection[Any],
    policy: PartitionSet,
    table: PartitionedTable,
    partition: RelationName,
) -> Moved:
    archived = RelationName(policy.archive_schema, partition.name)
    row = _sql.archived_as(connection, parent=str(table.name), archived=str(archived))
    if row is None:
        raise PermanentError(
            f"{partition} is no partition of {table.name}",
            remedy="`upkeep plan partitions` shows which there are",
        )
    return Moved(partition=partition, archived=archived, batch=row["id"], rows=row["rows"] or 0, already=True)


class _Mover:
    def __init__(
        self,
        connection: psycopg.Connection[Any],
        policies: Mapping[RelationName, PartitionSet],
        policy: PartitionSet,
        table: PartitionedTable,
        partition: Partition,
        *,
        run_id: int | None,
        told: Told,
    ) -> None:
        self._connection = connection
        self._policies = policies
        self._policy = policy
        self._table = table
        self._partition = partition
        self._run_id = run_id
        self._told = told
        if partition.range is None or partition.odd:
            raise PermanentError(
                f"{partition.name} has no bounds that a calendar speaks of: {partition.odd or 'it is the default'}",
                remedy="Move it by hand",
            )
        self._range = partition.range

    def move(self) -> Moved:
        connection, policy = self._connection, self._policy
        reason = legally_held(policy, self._table, self._range)
        if reason:
            raise Held(
                f"{self._partition.name} is held by law: {reason}",
                remedy="Take it out of legal_holds when it ends",
            )
        companions = accompanying.look(connection, self._policies, policy, self._table, self._range)
        for companion in companions.plain:
            # Refuses a name that is too long, before anything is changed.
            accompanying.child_name(
                companion.name,
                table=self._table.name,
                partition=self._partition.name,
                schema=policy.archive_schema,
            )
        references = self._references(companions)
        leaving = self._leaving(self._table, self._partition, policy)
        others = [self._leaving(each.table, each.partition, each.policy) for each in companions.aligned]
        plain = [
            (
                each,
                archives.ensure(
                    connection,
                    each.name,
                    policy.archive_schema,
                    budget=policy.lock_budget,
                    partition_by=each.column,
                ),
            )
            for each in companions.plain
        ]
        self._told("archive")
        held = self._look(leaving)
        foreign_keys.refuse_referred(
            connection,
            [each for each, _ in references if each.table not in policy.companions],
            self._range,
            partition=self._partition.name,
        )
        for each in (*others, leaving):
            self._check(each)
        batch = self._begin(leaving)
        self._told("begun")
        moved = {}
        for companion, archive in plain:
            held, rows = self._rows(companion, archive, leaving, batch, held)
            moved[str(companion.name)] = rows
        self._told("companions")
        aligned = {each.table.name for each in companions.aligned}
        foreign_keys.refuse_referred(
            connection,
            [each for each, _ in references if each.table not in aligned],
            self._range,
            partition=self._partition.name,
        )
        switch = Switch(
            connection=connection,
            leaving=leaving,
            others=others,
            references=references,
            range=self._range,
            rows=self._partition.rows,
            batch=batch,
            bounds=self._bounds(),
            run_id=self._run_id,
            told=self._told,
        )
        self._switch(switch, held)
        self._told("moved")
        settle(connection, policy, leaving.archived)
        self._told("settled")
        foreign_keys.validate(connection)
        self._told("validated")
        return Moved(
            partition=leaving.partition,
            archived=leaving.archived,
            batch=batch,
            rows=self._partition.rows,
            companions=moved,
        )

    def _references(self, companions: Companions) -> list[tuple[Reference, Way]]:
        control = self._table.key[0]
        return [
            (
                each,
                foreign_keys.way(
                    each,
                    table=self._table.name,
                    table_oid=self._table.oid,
                    server_version=self._connection.info.server_version,
                ),
            )
            for each in foreign_keys.read_references(self._connection, self._table.oid, control)
        ]

    def _leaving(self, table: PartitionedTable, partition: Partition, policy: PartitionSet) -> Leaving:
        """A partition that is to leave, with its archive.

        Raises:
            PermanentError: it cannot, before anything is changed.
        """
        connection = self._connection
        if not table.may_alter:
            raise PermanentError(
                f"The fleet's role may not detach a partition of {table.name}, which belongs to {table.owner}",
                remedy="Grant it membership in that role",
            )
        members = read_members(connection, partition.oid)
        foreign = [each.name for each in members if each.kind not in ("r", "p")]
        if foreign:
            raise PermanentError(
                f"{foreign[0]} is a foreign table, which cannot be given the archive's columns",
                remedy="Move it by hand",
            )
        elsewhere = sorted({each.name.name for each in members if each.name.schema != policy.archive_schema})
        taken = [row["name"] for row in _sql.taken(connection, schema=policy.archive_schema, names=elsewhere)]
        if taken:
            raise PermanentError(
                f"{partition.name} cannot go to the schema {policy.archive_schema}: there is a {taken[0]} already",
                remedy="Rename that, if it is nothing of the archive's",
            )
        archive = archives.ensure(connection, table.name, policy.archive_schema, budget=policy.lock_budget)
        row = read(connection, partition.name)
        assert row is not None  # somebody would have had to drop it since it was read
        return Leaving(
            parent=table.name,
            parent_oid=table.oid,
            default=table.default.name if table.default is not None else None,
            partition=partition.name,
            oid=partition.oid,
            bound=row["bound"],
            condition=row["condition"],
            members=tuple(members),
            archive=archive,
        )

    def _look(self, leaving: Leaving) -> Hold:
        return hold.look(
            self._connection,
            condition=self._policy.hold,
            table=self._table.name,
            partition=leaving.partition,
            leaves=leaving.leaves,
        )

    def _check(self, leaving: Leaving) -> None:
        """The CHECK equal to the bounds, valid; one that a killed run has left is used."""
        row = read(self._connection, leaving.partition)
        if row is not None and not row["has_check"]:
            statement = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({}) NOT VALID").format(
                leaving.partition.identifier(), sql.Identifier(CHECK_NAME), sql.SQL(leaving.condition)
            )
            patiently(
                self._connection,
                partial(_execute, statement),
                budget=self._policy.lock_budget,
                relations=[each.oid for each in leaving.members],
                doing=f"Adding a CHECK to {leaving.partition}",
            )
            self._told("check added")
        if row is None or not row["checked"]:
            with self._connection.transaction():
                _sql.unhurried(self._connection, longest=VALIDATES_FOR)
                self._connection.execute(
                    sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(
                        leaving.partition.identifier(), sql.Identifier(CHECK_NAME)
                    )
                )
            self._told("check valid")

    def _begin(self, leaving: Leaving) -> UUID:
        batch: UUID = _sql.begin_batch(
            self._connection,
            parent=str(leaving.parent),
            partition=str(leaving.partition),
            archive=str(leaving.archive.name),
            run_id=self._run_id,
            **self._bounds(),
        )
        return batch

    def _bounds(self) -> dict[str, str | None]:
        return {
            "control_type": str(self._table.control_type),
            "lower": printed(self._range.lower),
            "upper": printed(self._range.upper),
        }

    def _rows(
        self, companion: accompanying.Plain, archive: Archive, leaving: Leaving, batch: UUID, held: Hold
    ) -> tuple[Hold, int]:
        connection, policy = self._connection, self._policy
        name = accompanying.child_name(
            companion.name,
            table=self._table.name,
            partition=leaving.partition,
            schema=policy.archive_schema,
        )
        child = accompanying.ensure_child(
            connection, companion, archive, name, bound=leaving.bound, budget=policy.lock_budget
        )
        at: datetime = _sql.clock(connection)

        def note(rows: int) -> None:
            _sql.note_batch(
                connection,
                id=batch,
                kind="rows",
                parent=str(companion.name),
                archive=str(archive.name),
                archived=str(child),
                rows=rows,
                run_id=self._run_id,
                archived_at=at,
                **self._bounds(),
            )
            self._told(f"batch of {companion.name}")

        current = held

        def still_free() -> None:
            nonlocal current
            if not current.stands(connection):
                # Somebody has written: is a row held now? Raises, if one is.
                current = self._look(leaving)

        rows = accompanying.move_rows(
            connection,
            companion,
            archive,
            range_=self._range,
            batch=batch,
            at=at,
            budget=policy.lock_budget,
            before=still_free,
            after=note,
        )
        return current, rows

    def _switch(self, switch: Switch, held: Hold) -> None:
        others = {each.parent for each in switch.others}
        for _ in range(LOOKS):
            if not held.stands(self._connection):
                held = self._look(switch.leaving)
            try:
                return patiently(
                    self._connection,
                    partial(_carry_out, switch, held),
                    budget=self._policy.lock_budget,
                    relations=switch.locked,
                    doing=f"Moving {switch.leaving.partition} to {switch.leaving.archive.name}",
                )
            except archives.IN_THE_WAY as exc:
                raise archives.in_the_way(
                    exc, what=switch.leaving.partition, archive=switch.leaving.archive.name
                ) from exc
            except (Written, psycopg.errors.ForeignKeyViolation):
                # Says which rows they are, where something refers to the range by now.
                foreign_keys.refuse_referred(
                    self._connection,
                    [each for each, _ in switch.references if each.table not in others],
                    self._range,
                    partition=switch.leaving.partition,
                )
        raise hold.busy(held)


def _carry_out(switch: Switch, held: Hold, deadline: Deadline) -> None:
    switch.carry_out(deadline, held)


def _execute(statement: sql.Composed, deadline: Deadline) -> None:
    deadline.execute(statement)


__all__ = ["Moved", "move", "printed"]
