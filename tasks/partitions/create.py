"""Makes a partition: one transaction, in which nobody waits for longer than the policy's budget, all locks together.

The table is made and filled where nobody sees it; only ATTACH, and what has to follow it, is under the deadline. A run
that is killed leaves nothing, and what somebody else has made meanwhile is found by looking again, not by failing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import errors, sql
from psycopg.types.numeric import Oid

from fleet.errors import PermanentError, TransientError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Partition, PartitionedTable, Range, read_partitioned
from fleet.postgres.failures import explain
from fleet.postgres.patience import Deadline, Patience, patiently
from fleet.postgres.queries import load
from fleet.settings import PartitionSet
from tasks.partitions import likeness, statements
from tasks.partitions.drain import Drain, wait_for_snapshots
from tasks.partitions.shape import Shape, read_shape
from tasks.refresh.trigger_ddl import follow_parent

_sql = load("tasks.partitions", "sql/create.sql")

# Somebody who makes partitions as well is looked at again; who does so all the time is an error.
LOOKS = 3
# Less than that ATTACH reads in no time.
LARGE_DEFAULT_BYTES = 1 << 20
# Of what is not alike: eight parts of a table, each with a dozen indexes, would fill a screen.
NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Made:
    """What became of a wanted partition; `created` False: its rows had their place already (`reason`)."""

    name: RelationName
    created: bool
    rows: int = 0
    """Moved from the default partition."""
    reason: str = ""
    beyond: tuple[str, ...] = ()
    """What the sibling has and a new partition is not given: rules, security labels."""


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes partitions of one table. Hold the table's advisory lock."""

    connection: psycopg.Connection[Any]
    policy: PartitionSet
    patience: Patience = field(default_factory=Patience)

    def make(self, name: RelationName, range_: Range | None, *, drain: bool = False) -> Made:
        """Make the partition of a range (None: the default partition), with the rows that it should have had.

        Raises:
            PermanentError: something else has its name, or what it should be like cannot be had.
            TransientError: no moment was found in which the locks were free.
        """
        overtaken: psycopg.Error | None = None
        if range_ is None and drain:
            raise ValueError("a default partition is not drained into itself")
        for _ in range(LOOKS):
            table = self._look()
            try:
                if (made := self._standing(table, name, range_)) is not None:
                    return made
                return self._patiently(table, name, range_, drain=drain)
            except (errors.DuplicateTable, errors.DuplicateObject, errors.InvalidObjectDefinition) as exc:
                # Somebody was faster, which the next look shows; or it cannot be done.
                overtaken = exc
            except errors.CheckViolation as exc:
                if drain or table.default is None:
                    raise explain(exc, doing=f"Making the partition {name}") from exc
                # Rows of its range have come into the default partition since it was planned.
                drain, overtaken = True, exc
            except errors.UniqueViolation as exc:
                if exc.diag.schema_name != "pg_catalog":
                    raise explain(exc, doing=f"Making the partition {name}") from exc
                # The same name, in the same moment.
                overtaken = exc
            except _Changed:
                continue
            except psycopg.Error as exc:
                raise explain(exc, doing=f"Making the partition {name}") from exc
        if overtaken is not None:
            raise explain(overtaken, doing=f"Making the partition {name}") from overtaken
        raise TransientError(
            f"The partitions of {self.policy.name} changed each time that {name} was about to be made",
            remedy="Somebody else makes them as well: let only one of the two",
        )

    def _look(self) -> PartitionedTable:
        table = read_partitioned(self.connection, [self.policy.name]).get(self.policy.name)
        if table is None or table.strategy != "range":
            raise PermanentError(
                f"{self.policy.name} is {'not there' if table is None else 'not partitioned by range'}",
                remedy="Create it, or take its policy out of upkeep.toml",
            )
        return table

    def _standing(self, table: PartitionedTable, name: RelationName, range_: Range | None) -> Made | None:
        """What is there already: the partition itself, another one with these rows, or something in the way."""
        for each in table.partitions:
            if each.detach_pending or not _overlaps(each, range_):
                continue
            if each.is_default or each.range == range_:
                return Made(name=each.name, created=False, reason=f"{each.name} is there already")
            return Made(name=each.name, created=False, reason=f"{each.name} has rows of that range already")
        for row in _sql.standing(self.connection, schema=name.schema, name=name.name):
            if row["parent"] == table.oid and row["oid"] not in {each.oid for each in table.partitions}:
                raise _Changed  # it came between our two looks
            what = (
                "a partition of it for another range" if row["parent"] == table.oid else "no partition of it"
            )
            raise PermanentError(
                f"{name} is there already, and is {what}: it is not touched",
                remedy=f"Attach it to {table.name} yourself if its rows belong there, or rename or drop it",
            )
        return None

    def _patiently(
        self, table: PartitionedTable, name: RelationName, range_: Range | None, *, drain: bool
    ) -> Made:
        # Locks that the application feels: the default partition's, and of what is referred to. ATTACH's own on the
        # table keeps nobody waiting.
        referenced = {each.referenced for each in table.foreign_keys if each.referencing == table.name}
        relations = _oids(self.connection, referenced)
        if table.default is not None:
            relations.append(table.default.oid)
        if drain:
            relations.append(table.oid)
            wait_for_snapshots(self.connection, table.name, self.patience)
        try:
            return patiently(
                self.connection,
                lambda deadline: _Step(
                    connection=self.connection,
                    policy=self.policy,
                    table=table,
                    name=name,
                    range=range_,
                    drain=drain,
                    deadline=deadline,
                ).take(),
                budget=self.policy.lock_budget,
                relations=relations,
                doing=f"Making the partition {name}",
                patience=self.patience,
            )
        except CounterpartMissing:
            raise
        except TransientError as exc:
            raise _with_figures(exc, table) from exc.__cause__


class CounterpartMissing(TransientError):
    """A partition would refer to one of `table` for the same range, which is not there yet."""

    def __init__(self, name: RelationName, table: RelationName) -> None:
        super().__init__(
            f"{name} would refer to a partition of {table} for the same range, which is not there yet",
            remedy=f"Give {table} a policy with the same interval, or make that partition first",
        )
        self.table = table


class _Changed(Exception):
    """Somebody has changed the partitions since we looked."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One try, in its transaction."""

    connection: psycopg.Connection[Any]
    policy: PartitionSet
    table: PartitionedTable
    name: RelationName
    range: Range | None
    drain: bool
    deadline: Deadline

    def take(self) -> Made:
        """Make it, attach it."""
        connection, table = self.connection, self.table
        budget_ms = int(self.policy.lock_budget.total_seconds() * 1000)
        _sql.bound_waits(connection, milliseconds=f"{budget_ms}ms")
        now = read_partitioned(connection, [table.name]).get(table.name)
        if now is None or _bounds(now) != _bounds(table):
            raise _Changed
        pattern, wanted = self._wanted()
        like = {each.oid: each for each in likeness.tree(pattern)}
        self._act_as(wanted.owner)
        self._do(statements.creation(wanted, like, version=connection.info.server_version))
        made = self._found()
        self._do(statements.indexes(wanted, made))
        self._do(statements.privileges(wanted, made))
        if self.range is not None:
            self._execute(statements.add_bound_check(self.name, table.key[0], self.range))
        drain = self._drain(wanted) if self.drain else None
        moved = 0 if drain is None else drain.move()
        self._adorn(wanted)
        self._act_as_both(wanted)
        if drain is not None:
            self._do(statements.silence(wanted))
            # From here on everybody waits who wants anything of the table.
            drain.lock(self.deadline)
            moved += drain.move_rest(self.deadline)
            for statement in statements.unsilence(wanted):
                self.deadline.execute(statement)
        self._attach(wanted)
        return Made(name=self.name, created=True, rows=moved, beyond=pattern.beyond)

    # What it should be

    def _wanted(self) -> tuple[Shape, Shape]:
        sibling = newest(self.table)
        pattern = read_shape(
            self.connection, self.table.oid if sibling is None else sibling.oid, deep=sibling is not None
        )
        if pattern is None:
            raise _Changed
        wanted = likeness.liken(
            pattern,
            self.name,
            policy=self.policy,
            control=self.table.key[0],
            version=self.connection.info.server_version,
            references=self._counterparts(pattern, sibling),
            first=sibling is None,
            default=self.range is None,
        )
        likeness.refuse_incomplete(wanted)
        return pattern, wanted

    def _counterparts(self, pattern: Shape, sibling: Partition | None) -> Mapping[int, RelationName]:
        """Where the new partition's rows find theirs: keys between partitions go to that of the same range."""
        keys = {
            each.referenced_oid: each.referenced_set
            for shape in likeness.tree(pattern)
            for each in shape.constraints
            if each.kind == "f" and not each.inherited and each.referenced_set is not None
        }
        found = {pattern.oid: self.name}
        sets = read_partitioned(self.connection, {each for each in keys.values() if each is not None})
        for oid, name in keys.items():
            assert name is not None  # chosen so
            theirs = {each.oid: each for each in sets[name].partitions} if name in sets else {}
            if sibling is None or oid not in theirs or theirs[oid].range != sibling.range:
                continue
            same = next((each for each in theirs.values() if each.range == self.range), None)
            if same is None:
                raise CounterpartMissing(self.name, name)
            found[oid] = same.name
        return found

    # How it is made

    def _act_as(self, owner: str) -> None:
        """What is made belongs to him who makes it."""
        if owner == self.connection.info.user:
            self._act_as_the_fleet()
        else:
            self._execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)))

    def _act_as_the_fleet(self) -> None:
        self._execute(sql.SQL("SET LOCAL ROLE NONE"))

    def _act_as_both(self, wanted: Shape) -> None:
        """Own the table and the new partition: as their owner, or as a member of both."""
        if self.table.owner == wanted.owner:
            self._act_as(wanted.owner)
        else:
            self._act_as_the_fleet()

    def _found(self) -> Shape:
        rows = list(_sql.standing(self.connection, schema=self.name.schema, name=self.name.name))
        found = read_shape(self.connection, rows[0]["oid"])
        assert found is not None  # this transaction has made it
        return found

    def _drain(self, wanted: Shape) -> Drain | None:
        default = self.table.default
        assert self.range is not None  # a default partition is not drained into itself
        if default is None:
            return None
        self._act_as_both(wanted)
        drain = Drain(
            connection=self.connection,
            table=self.table,
            default=default,
            into=self.name,
            columns=[each.name for each in wanted.columns if not each.generated],
            range=self.range,
            batch_timeout=self.policy.lock_budget,
        )
        drain.refuse_unless_moved_unseen()
        return drain

    def _adorn(self, wanted: Shape) -> None:
        """What must not see most rows come, and what only the fleet's role may do; then look whether all is there."""
        found = self._found()  # which sets how names are deparsed, after the rows have had their own settings
        self._act_as(wanted.owner)
        self._do(statements.triggers(wanted))
        self._act_as_the_fleet()
        self._do(statements.owners(wanted, wanted.owner))
        for publication, statement in statements.publications(wanted):
            try:
                self._execute(statement)
            except errors.InsufficientPrivilege as exc:
                raise PermanentError(
                    f"{self.name} cannot be added to the publication {publication}, which names its sibling",
                    remedy=f'Publish {self.table.name} itself: ALTER PUBLICATION "{publication}" ADD TABLE '
                    f"{self.table.name}; or make the fleet's role a member of the publication's owner",
                ) from exc
        for each in likeness.tree(found):
            follow_parent(self.connection, each.name, parent=self.table.name)
        if missing := likeness.differences(wanted, self._found()):
            raise PermanentError(
                f"{self.name} would not be like its sibling: {_first(missing)}",
                remedy="Make this one by hand, and report what it could not be given; nothing was changed",
            )

    def _attach(self, wanted: Shape) -> None:
        for statement in statements.foreign_keys(wanted):
            self.deadline.execute(statement)
        self.deadline.execute(
            statements.attach(self.table.name, self.name, self.range, key_columns=len(self.table.key))
        )
        switched = [
            (shape, trigger)
            for shape in likeness.tree(wanted)
            for trigger in shape.triggers
            if trigger.inherited and trigger.enabled != "O"
        ]
        for shape, trigger in switched:
            self.deadline.execute(statements.trigger_state(shape, trigger))
        if self.range is not None:
            self.deadline.execute(statements.drop_bound_check(self.name))

    def _do(self, several: Iterator[statements.Statement]) -> None:
        for each in several:
            self._execute(each)

    def _execute(self, statement: statements.Statement) -> None:
        self.connection.execute(statement)


def _first(missing: list[str]) -> str:
    rest = len(missing) - NAMED
    return "; ".join(missing[:NAMED]) + (f"; and {rest} more" if rest > 0 else "")


def newest(table: PartitionedTable) -> Partition | None:
    """The partition that new ones are made like: the last one whose bounds are ordinary."""
    ordinary = [
        each
        for each in table.partitions
        if each.range is not None and not each.detach_pending and each.kind in {"r", "p"}
    ]
    return ordinary[-1] if ordinary else None


def _bounds(table: PartitionedTable) -> set[tuple[int, Range | None, bool]]:
    return {(each.oid, each.range, each.detach_pending) for each in table.partitions}


def _overlaps(partition: Partition, range_: Range | None) -> bool:
    if range_ is None or partition.is_default:
        return range_ is None and partition.is_default
    theirs = partition.range or partition.hull
    if theirs is None:
        return False
    return _before(theirs.lower, range_.upper) and _before(range_.lower, theirs.upper)


def _before(lower: Any, upper: Any) -> bool:
    return lower is None or upper is None or lower < upper


def _oids(connection: psycopg.Connection[Any], names: set[RelationName]) -> list[int]:
    several = sorted(names)
    rows = _sql.read_oids(
        connection, schemas=[each.schema for each in several], names=[each.name for each in several]
    )
    return [Oid(row["oid"]) for row in rows]


def _with_figures(error: TransientError, table: PartitionedTable) -> TransientError:
    """Say so where it is the size of the default partition that does not fit."""
    default = table.default
    if default is None or default.bytes < LARGE_DEFAULT_BYTES:
        return error
    return TransientError(
        f"{error.message}; ATTACH reads the whole default partition {default.name} under its lock "
        f"(about {default.rows} rows, {default.bytes >> 20} MB)",
        remedy=f"{error.remedy}. If it is the reading that takes too long: raise lock_budget, or take rows out of "
        f"{default.name}",
    )
