"""Moves one partition to the archive: everything that takes time beforehand, and then one short transaction.

Each phase looks at what is there, so that whoever comes after a killed run goes on where that ended. Nothing is
half-done in between: a CHECK that the partition has more, a batch that is begun, companions' rows that are in the
archive already and in the view over both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.numeric import Oid

from fleet.errors import PermanentError, TransientError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Partition, PartitionedTable, Range, Value, read_partitioned
from fleet.postgres.patience import Deadline, patiently
from fleet.postgres.queries import load
from fleet.settings.partitions import PartitionSet
from tasks.partitions import archive as archives
from tasks.partitions import companions as accompanying
from tasks.partitions import foreign_keys, hold
from tasks.partitions.archive import ARCHIVED_AT, BATCH, Archive
from tasks.partitions.calendar import Calendar, less
from tasks.partitions.companions import Companions
from tasks.partitions.foreign_keys import Reference, Way
from tasks.partitions.hold import Held, Hold

_sql = load("tasks.partitions", "sql/move.sql")

# Equal to the partition's bounds: ATTACH then needs no look at its rows.
CHECK_NAME = "upkeep_range"
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


def legally_held(policy: PartitionSet, table: PartitionedTable, range_: Range) -> str:
    """Why the law wants a range to stay; empty: it does not."""
    if not policy.legal_holds or table.control_type is None:
        return ""
    calendar = Calendar.of(policy, table.control_type)
    for each in policy.legal_holds:
        ends_before = range_.upper is not None and not less(calendar.start_of(each.from_), range_.upper)
        begins_after = range_.lower is not None and not less(range_.lower, calendar.start_of(each.to))
        if not ends_before and not begins_after:
            return f"{each.reason} ({each.from_} to {each.to})"
    return ""


def printed(value: Value | None) -> str | None:
    """A bound as upkeep.archive_batch keeps it: PostgreSQL reads it back in its own type."""
    return None if value is None else value.isoformat(" ") if isinstance(value, datetime) else str(value)


@dataclass(frozen=True, kw_only=True)
class _Member:
    oid: int
    name: RelationName
    kind: str
    file: int | None
    tablespace: str
    triggers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Leaving:
    """A partition that leaves a table in the critical transaction, and where it goes."""

    parent: RelationName
    parent_oid: int
    default: RelationName | None
    partition: RelationName
    oid: int
    bound: str
    condition: str
    members: tuple[_Member, ...]
    archive: Archive

    @property
    def archived(self) -> RelationName:
        return RelationName(self.archive.name.schema, self.partition.name)

    @property
    def leaves(self) -> tuple[int, ...]:
        return tuple(each.oid for each in self.members if each.kind != "p")


def finalize_pending(
    connection: psycopg.Connection[Any], table: PartitionedTable, policy: PartitionSet
) -> tuple[RelationName, ...]:
    """End detaches that somebody's interrupted DETACH … CONCURRENTLY has left pending; nothing else can be detached.

    What they detached becomes a table of its own, as whoever began it wanted.

    Raises:
        TransientError: somebody's snapshot is older, all the time.
    """
    done = []
    for each in table.partitions:
        if each.detach_pending:
            statement = sql.SQL("ALTER TABLE {} DETACH PARTITION {} FINALIZE").format(
                table.name.identifier(), each.name.identifier()
            )
            patiently(
                connection,
                partial(_execute, statement),
                budget=policy.lock_budget,
                relations=[table.oid, each.oid],
                doing=f"Finalizing the detach of {each.name}",
            )
            done.append(each.name)
    return tuple(done)


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
        self._switch(leaving, others, references, batch, held)
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

    def _leaving(self, table: PartitionedTable, partition: Partition, policy: PartitionSet) -> _Leaving:
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
        members = _members(connection, partition.oid)
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
        row = _read(connection, partition.name)
        assert row is not None  # somebody would have had to drop it since it was read
        return _Leaving(
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

    def _look(self, leaving: _Leaving) -> Hold:
        return hold.look(
            self._connection,
            condition=self._policy.hold,
            table=self._table.name,
            partition=leaving.partition,
            leaves=leaving.leaves,
        )

    def _check(self, leaving: _Leaving) -> None:
        """The CHECK equal to the bounds, valid; one that a killed run has left is used."""
        row = _read(self._connection, leaving.partition)
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

    def _begin(self, leaving: _Leaving) -> UUID:
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
        self, companion: accompanying.Plain, archive: Archive, leaving: _Leaving, batch: UUID, held: Hold
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

    def _switch(
        self,
        leaving: _Leaving,
        others: Sequence[_Leaving],
        references: Sequence[tuple[Reference, Way]],
        batch: UUID,
        held: Hold,
    ) -> None:
        current = held
        for _ in range(LOOKS):
            if not current.stands(self._connection):
                current = self._look(leaving)
            looked = current
            try:
                return patiently(
                    self._connection,
                    lambda deadline, looked=looked: self._transaction(  # type: ignore[misc]
                        deadline, leaving, others, references, batch=batch, held=looked
                    ),
                    budget=self._policy.lock_budget,
                    relations=self._locked(leaving, others, references),
                    doing=f"Moving {leaving.partition} to {leaving.archive.name}",
                )
            except (_Written, psycopg.errors.ForeignKeyViolation):
                # Says which rows they are, where something refers to the range by now.
                foreign_keys.refuse_referred(
                    self._connection,
                    [each for each, _ in references if each.table not in {other.parent for other in others}],
                    self._range,
                    partition=leaving.partition,
                )
        raise hold.busy(current)

    def _locked(
        self,
        leaving: _Leaving,
        others: Sequence[_Leaving],
        references: Sequence[tuple[Reference, Way]],
    ) -> list[int]:
        oids = [reference.table_oid for reference, _ in references]
        for each in (leaving, *others):
            oids += [each.parent_oid, *(member.oid for member in each.members)]
        return oids

    def _transaction(
        self,
        deadline: Deadline,
        leaving: _Leaving,
        others: Sequence[_Leaving],
        references: Sequence[tuple[Reference, Way]],
        *,
        batch: UUID,
        held: Hold,
    ) -> None:
        connection = self._connection
        everything = (*others, leaving)
        self._lock(deadline, leaving, others, references)
        for each in everything:
            _refuse_changed(connection, each)
        if not held.stands(connection, deadline):
            raise _Written(f"{leaving.partition} was written")
        again = []
        aligned = {each.parent for each in others}
        for reference, way in references:
            if way is Way.AGAIN:
                if reference.table not in aligned and foreign_keys.refers_under_lock(
                    deadline, connection, reference, self._range
                ):
                    raise _Written(f"{leaving.partition} is referred to again")
                again.append(reference)
        for reference in again:
            foreign_keys.drop(deadline, reference)
            self._told(f"dropped {reference.name}")
        at: datetime = _sql.clock(connection)
        # Companions first: what they leave behind refers to nothing of the range.
        for each in everything:
            self._carry(deadline, each, batch, at)
        for reference in again:
            foreign_keys.add_again(deadline, connection, reference)
            self._told(f"added {reference.name}")
        for each in everything:
            self._note(each, leaving, batch, at)
        self._told("about to commit")

    def _lock(
        self,
        deadline: Deadline,
        leaving: _Leaving,
        others: Sequence[_Leaving],
        references: Sequence[tuple[Reference, Way]],
    ) -> None:
        tables: list[sql.Composable] = []
        for each in (leaving, *others):
            tables.append(sql.SQL("ONLY {}").format(each.parent.identifier()))
            if each.default is not None:
                tables.append(sql.SQL("ONLY {}").format(each.default.identifier()))
            tables.append(each.partition.identifier())  # with its leaves
        parents = {leaving.parent, *(each.parent for each in others)}
        tables += [
            sql.SQL("ONLY {}").format(name.identifier())
            for name in sorted({each.table for each, _ in references if each.may_alter} - parents)
        ]
        deadline.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.SQL(", ").join(tables)))
        self._told("locked")

    def _carry(self, deadline: Deadline, leaving: _Leaving, batch: UUID, at: datetime) -> None:
        """Out of the table and into the archive, as it is."""
        connection = self._connection
        partition, archive = leaving.partition.identifier(), leaving.archive.name
        deadline.execute(
            sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(leaving.parent.identifier(), partition)
        )
        self._told(f"detached {leaving.partition}")
        if leaving.parent != self._table.name:
            foreign_keys.drop_own(deadline, connection, leaving.oid, leaving.partition, self._table.oid)
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
                sql.Literal(str(batch)),
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
        self._told(f"attached {leaving.partition}")
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
        files = {each.oid: each.file for each in _members(connection, leaving.oid)}
        if files != {each.oid: each.file for each in leaving.members}:
            raise PermanentError(
                f"The server would have written all of {leaving.partition} anew to move it; nothing was kept of that",
                remedy="This is a mistake of Upkeep's: tell its maintainers the version of your server",
            )

    def _note(self, each: _Leaving, leaving: _Leaving, batch: UUID, at: datetime) -> None:
        values = {
            "id": batch,
            "parent": str(each.parent),
            "archive": str(each.archive.name),
            "archived": str(each.archived),
            "archived_at": at,
            "run_id": self._run_id,
        }
        if each is leaving:
            _sql.end_batch(self._connection, rows=self._partition.rows, **values)
        else:
            _sql.note_batch(self._connection, kind="partition", rows=None, **values, **self._bounds())


class _Written(Exception):
    """Something changed before the locks were ours; the try is in vain, and there is another one."""


def _execute(statement: sql.Composed, deadline: Deadline) -> None:
    deadline.execute(statement)


def _read(connection: psycopg.Connection[Any], name: RelationName) -> dict[str, Any] | None:
    with connection.transaction(force_rollback=True):
        return _read_within(connection, name)


def _read_within(connection: psycopg.Connection[Any], name: RelationName) -> dict[str, Any] | None:
    """The same in a transaction that may be cut short at any statement: a SAVEPOINT that is leaves psycopg astray."""
    _sql.print_plainly(connection)
    row: dict[str, Any] | None = _sql.read_partition(
        connection, schema=name.schema, name=name.name, constraint=CHECK_NAME
    )
    return row


def _members(connection: psycopg.Connection[Any], oid: int) -> list[_Member]:
    return [
        _Member(
            name=RelationName(row.pop("schema"), row.pop("name")),
            triggers=tuple(row.pop("triggers")),
            **row,
        )
        for row in _sql.read_members(connection, oid=Oid(oid))
    ]


def _refuse_changed(connection: psycopg.Connection[Any], leaving: _Leaving) -> None:
    row = _read_within(connection, leaving.partition)
    if row is None or (row["oid"], row["parent"], row["bound"]) != (
        leaving.oid,
        leaving.parent_oid,
        leaving.bound,
    ):
        raise TransientError(
            f"{leaving.partition} was changed by somebody while it was about to move",
            remedy="Upkeep looks again",
        )


def settle(connection: psycopg.Connection[Any], policy: PartitionSet, archived: RelationName) -> int:
    """Bring a partition in the archive to the archive's tablespace, table by table; returns how many were not there.

    PostgreSQL copies a table for that under ACCESS EXCLUSIVE. So it is done after the move, when nobody but readers
    of the archive can feel it, for one leaf at a time; and never waits long for its lock.
    """
    wanted = policy.archive_tablespace
    if wanted is None:
        return 0
    row = _read(connection, archived)
    if row is None:
        return 0
    done = 0
    for member in _members(connection, row["oid"]):
        if member.tablespace == wanted or member.kind == "p":
            continue
        _copy(connection, policy, member, wanted)
        done += 1
    return done


def _copy(
    connection: psycopg.Connection[Any], policy: PartitionSet, member: _Member, tablespace: str
) -> None:
    indexes = [row["name"] for row in _sql.read_indexes(connection, oid=Oid(member.oid))]

    def copy(deadline: Deadline) -> None:
        deadline.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(member.name.identifier()))
        # The lock is ours: what is left to wait for is the copy.
        _sql.unhurried(connection, longest=VALIDATES_FOR)
        connection.execute(
            sql.SQL("ALTER TABLE {} SET TABLESPACE {}").format(
                member.name.identifier(), sql.Identifier(tablespace)
            )
        )
        for index in indexes:
            connection.execute(
                sql.SQL("ALTER INDEX {} SET TABLESPACE {}").format(
                    sql.Identifier(member.name.schema, index), sql.Identifier(tablespace)
                )
            )

    patiently(
        connection,
        copy,
        budget=policy.lock_budget,
        relations=[member.oid],
        doing=f"Copying {member.name} to the tablespace {tablespace}",
    )


__all__ = ["Moved", "finalize_pending", "legally_held", "move", "printed", "settle"]
