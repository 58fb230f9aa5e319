"""Reads all that a plan needs, for many tables at once: the catalogue first, then rows where a plan depends on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import sql

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import (
    ControlType,
    PartitionedTable,
    Range,
    bound_value,
    read_partitioned,
)
from fleet.postgres.queries import load
from fleet.settings import Database
from fleet.settings.partitions import PartitionSet, leaders
from tasks.jobs.statement import parse
from tasks.partitions.calendar import Calendar, Period, subpartition_name, text
from tasks.partitions.lines import Action, Batch, DefaultRows, Known, Line
from tasks.partitions.plan import plan
from tasks.partitions.policy import Contradiction, Surroundings, judge

T = TypeVar("T")

_sql = load("tasks.partitions", "sql/look.sql")

_NOTHING_MORE = Known(taken=frozenset())
# So many tables are in memory at a time.
AT_ONCE = 100
# For how long rows of one table are counted for a plan; what is not known by then is not in it.
LONGEST_S = 5.0
# Of rows that stand in the way nobody needs to know more.
COUNTED = 1000
# Rows of the default partition that are further from now are of no period.
_YEARS = 200
_UUIDS_SINCE = 1970
_TYPES: Mapping[ControlType, sql.SQL] = {
    ControlType.DATE: sql.SQL("date"),
    ControlType.TIMESTAMPTZ: sql.SQL("timestamptz"),
    ControlType.TIMESTAMP: sql.SQL("timestamp"),
    # Bounds may be beyond what a smaller type holds.
    ControlType.INTEGER: sql.SQL("numeric"),
    ControlType.UUID: sql.SQL("uuid"),
}


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One policy and what became of looking at its table."""

    policy: PartitionSet
    table: PartitionedTable | None
    archive: PartitionedTable | None = None
    contradictions: tuple[Contradiction, ...] = ()
    lines: tuple[Line, ...] = ()
    """Empty where a contradiction is an error: then nothing is done."""
    unknown: tuple[str, ...] = ()
    """What could not be counted, and why."""

    @property
    def refused(self) -> bool:
        """Whether something is to be done, or to be put right, that cannot be as it is."""
        return any(not each.warning for each in self.contradictions) or any(
            line.action is Action.REFUSE for line in self.lines
        )


def look(
    connection: psycopg.Connection[Any],
    database: Database,
    names: Iterable[RelationName] | None = None,
    *,
    clock: datetime,
    rows: bool = True,
) -> Iterator[Looked]:
    """Judge and plan the tables with a policy (None: all), in the order of their names; changes nothing.

    `rows`: count those that a plan depends on. Needs an autocommit connection.
    """
    wanted = sorted(database.partitions if names is None else names)
    for start in range(0, len(wanted), AT_ONCE):
        yield from _Look(connection, database, wanted[start : start + AT_ONCE], clock=clock, rows=rows)()


class _Look:
    """A few tables at once."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        database: Database,
        names: Sequence[RelationName],
        *,
        clock: datetime,
        rows: bool,
    ) -> None:
        self.connection, self.clock, self.rows = connection, clock, rows
        self.policies = [database.partitions[name] for name in names]
        asked = {
            *names,
            *map(_archive_of, self.policies),
            *(c for each in self.policies for c in each.companions),
            *(leader for name in names for leader in leaders(database.partitions, name)),
        }
        self.tables = read_partitioned(connection, asked)
        row = _sql.read_surroundings(
            connection, schemas=sorted({each.archive_schema for each in self.policies})
        )
        self.around = Surroundings(
            role=row["role"],
            version_num=row["version_num"],
            database=row["database"],
            may_create_schemas=row["may_create_schemas"],
            schemas=row["schemas"] or {},
            tablespaces=row["tablespaces"] or {},
            tables=self.tables,
            policies=database.partitions,
        )
        self.batches = self._gone()

    def __call__(self) -> Iterator[Looked]:
        found = [self._first(policy) for policy in self.policies]
        taken = self._taken(found)
        for each in found:
            table = each.table
            if table is None or any(not said.warning for said in each.contradictions):
                yield each
                continue
            known = Known(taken=frozenset(taken & _names(each)))
            asked = _Rows(self.connection, each.policy, table, each.lines, self.clock) if self.rows else None
            if asked is not None:
                known = replace(
                    known, default_rows=asked.default_rows(), held=asked.held(), referenced=asked.referenced()
                )
            # Where nobody knows more than the catalogue, the plan is there already.
            lines = each.lines if known == _NOTHING_MORE else tuple(self._plan(each.policy, table, known))
            yield replace(each, lines=lines, unknown=tuple(asked.unknown) if asked is not None else ())

    def _first(self, policy: PartitionSet) -> Looked:
        """What the catalogue alone says."""
        table = self.tables.get(policy.name)
        around = replace(self.around, hold_error=self._hold_error(policy, table))
        contradictions = tuple(judge(policy, table, around, clock=self.clock))
        wrong = table is None or any(not each.warning for each in contradictions)
        return Looked(
            policy=policy,
            table=table,
            archive=self.tables.get(_archive_of(policy)),
            contradictions=contradictions,
            lines=() if wrong or table is None else tuple(self._plan(policy, table, Known())),
        )

    def _plan(self, policy: PartitionSet, table: PartitionedTable, known: Known) -> list[Line]:
        return plan(
            policy,
            table,
            archive=self.tables.get(_archive_of(policy)) if policy.archive != "none" else None,
            batches=self.batches.get(policy.name, ()),
            companions=[self.tables[name] for name in policy.companions if name in self.tables],
            leaders=[
                self.tables[name]
                for name in leaders(self.around.policies, policy.name)
                if name in self.tables
            ],
            clock=self.clock,
            known=known,
        )

    def _hold_error(self, policy: PartitionSet, table: PartitionedTable | None) -> str:
        if policy.hold is None or table is None:
            return ""
        question = held_rows(policy.name, policy, policy.hold)
        try:
            parse(self.connection, question.as_string(self.connection))
        except psycopg.Error as exc:
            if self.connection.closed:
                raise
            return exc.diag.message_primary or str(exc).strip()
        return ""

    def _gone(self) -> dict[RelationName, list[Batch]]:
        row = self.connection.execute("SELECT pg_catalog.to_regclass('upkeep.archive_batch')").fetchone()
        if row is None or row[0] is None:
            return {}
        found: dict[RelationName, list[Batch]] = {}
        for each in _sql.read_gone(self.connection, parents=[str(policy.name) for policy in self.policies]):
            name = RelationName.parse(each["parent"])
            table = self.tables.get(name)
            if table is not None and table.control_type is not None:
                found.setdefault(name, []).append(_batch(each, table.control_type))
        return found

    def _taken(self, found: Iterable[Looked]) -> set[RelationName]:
        """Which names that the plans would give are given already."""
        names = sorted(set().union(*map(_names, found)))
        return {
            RelationName(row["schema"], row["name"])
            for row in _sql.read_taken(
                self.connection, schemas=[each.schema for each in names], names=[each.name for each in names]
            )
        }


@dataclass
class _Rows:
    """Counts rows of one table for its plan, for a bounded time."""

    connection: psycopg.Connection[Any]
    policy: PartitionSet
    table: PartitionedTable
    lines: Sequence[Line]
    clock: datetime
    unknown: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + LONGEST_S

    def default_rows(self) -> DefaultRows | None:
        """How many rows the default partition has of each period."""
        default, control = self.table.default, self.table.control_type
        if default is None or control is None:
            return None
        calendar = Calendar.of(self.policy, control)
        year = self.clock.year
        earliest = max(year - _YEARS, _UUIDS_SINCE) if control is ControlType.UUID else year - _YEARS
        lower, upper = (
            text(calendar.start_of(self.clock.date().replace(year=each, month=1, day=1)))
            for each in (earliest, year + _YEARS)
        )
        column = sql.Identifier(self.table.key[0])
        parts = {
            "column": column,
            # Before 18 a uuid has no minimum; its text has the same order, byte by byte.
            "value": sql.SQL('{}::text COLLATE "C"' if control is ControlType.UUID else "{}::{}").format(
                column, _TYPES[control]
            ),
            "table": default.name.identifier(),
            "type": _TYPES[control],
            "within": sql.SQL("{0} >= {1}::{3} AND {0} < {2}::{3}").format(
                column, sql.Literal(lower), sql.Literal(upper), _TYPES[control]
            ),
        }

        def count() -> DefaultRows:
            ends = self.connection.execute(
                sql.SQL(
                    "SELECT min({value}) FILTER (WHERE {within}), max({value}) FILTER (WHERE {within}),"
                    " count(*) FILTER (WHERE ({within}) IS NOT TRUE) FROM {table}"
                ).format(**parts)
            ).fetchone()
            assert ends is not None  # an aggregate
            first, last, stray = ends
            if first is None:
                return DefaultRows(periods={}, stray=stray)
            native = {ControlType.INTEGER: int, ControlType.UUID: UUID}.get(control, _as_it_is)
            periods = list(_periods(calendar, native(first), native(last)))
            counted = self.connection.execute(
                sql.SQL(
                    "SELECT pg_catalog.width_bucket({column}::{type}, %s::text[]::{type}[]), count(*) FROM {table}"
                    " WHERE {within} GROUP BY 1"
                ).format(**parts),
                [[text(calendar.start_of(each.first)) for each in periods]],
            ).fetchall()
            return DefaultRows(
                periods={periods[bucket - 1]: number for bucket, number in counted}, stray=stray
            )

        return self._bounded(count, f"the rows of {default.name}")

    def held(self) -> dict[RelationName, int] | None:
        """How many rows of partitions that are due the policy's `hold` keeps."""
        if self.policy.hold is None:
            return None
        found = {}
        for name in self._due():
            question = held_rows(name, self.policy, self.policy.hold)
            count = self._count(question, f"rows of {name} that must not be moved yet")
            if count is None:
                break
            found[name] = count
        return found

    def referenced(self) -> dict[RelationName, dict[str, int]] | None:
        """How many rows refer to partitions that are due, from tables that are no companions."""
        control = self.table.key[0]
        keys = [
            (key, dict(zip(key.referenced_columns, key.columns, strict=True))[control])
            for key in self.table.foreign_keys
            if key.referenced == self.table.name
            and key.referencing not in self.policy.companions
            and control in key.referenced_columns
        ]
        if not keys:
            return None
        due = self._due()
        found: dict[RelationName, dict[str, int]] = {}
        for partition in self.table.partitions:
            if partition.name not in due or partition.range is None:
                continue
            counts = {}
            for key, column in keys:
                question = sql.SQL("SELECT FROM {} WHERE {}").format(
                    key.referencing.identifier(), _within(column, partition.range)
                )
                count = self._count(question, f"rows of {key.referencing} that refer to {partition.name}")
                if count is None:
                    return found
                counts[key.name] = count
            found[partition.name] = counts
        return found

    def _due(self) -> set[RelationName]:
        mine = {each.name for each in self.table.partitions}
        return {
            line.partition
            for line in self.lines
            if line.action in (Action.MOVE, Action.REFUSE) and line.partition in mine
        }

    def _count(self, question: sql.Composed, what: str) -> int | None:
        def count() -> int:
            row = self.connection.execute(
                sql.SQL("SELECT count(*) FROM ({} LIMIT {}) AS found").format(question, sql.Literal(COUNTED))
            ).fetchone()
            assert row is not None  # an aggregate
            return int(row[0])

        return self._bounded(count, what)

    def _bounded(self, ask: Callable[[], T], what: str) -> T | None:
        left = self._ends - time.monotonic()
        if left <= 0:
            self.unknown.append(f"{what} were not counted: it would take too long")
            return None
        try:
            with self.connection.transaction(force_rollback=True):
                _sql.look_briefly(self.connection, milliseconds=f"{max(1, int(left * 1000))}ms")
                return ask()
        except (psycopg.Error, PermanentError) as exc:
            if self.connection.closed:
                raise
            said = exc.diag.message_primary if isinstance(exc, psycopg.Error) else exc.message
            self.unknown.append(f"{what} were not counted: {said}")
            return None


def held_rows(partition: RelationName, policy: PartitionSet, condition: str) -> sql.Composed:
    """A query for the rows that must not be moved yet; the condition may name the table."""
    # On a line of its own, so that a comment at its end ends there.
    return sql.SQL("SELECT FROM {} AS {} WHERE (\n{}\n)").format(
        partition.identifier(), sql.Identifier(policy.name.name), sql.SQL(condition)
    )


def _within(column: str, bounds: Range) -> sql.Composable:
    conditions = []
    if bounds.lower is not None:
        conditions.append(sql.SQL("{} >= {}").format(sql.Identifier(column), sql.Literal(text(bounds.lower))))
    if bounds.upper is not None:
        conditions.append(sql.SQL("{} < {}").format(sql.Identifier(column), sql.Literal(text(bounds.upper))))
    return sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("true")


def _periods(calendar: Calendar, first: Any, last: Any) -> Iterator[Period]:
    period, end = calendar.period_of(first), calendar.period_of(last)
    while period <= end:
        bounds = calendar.range(period)
        if bounds.lower != bounds.upper:
            yield period
        period = calendar.following(period)


def _names(looked: Looked) -> set[RelationName]:
    """What a plan would call new tables."""
    policy, found = looked.policy, set()
    for line in looked.lines:
        if line.partition is None:
            continue
        if line.action in (Action.CREATE, Action.DRAIN):
            found.add(line.partition)
            if policy.subpartitions is not None and line.range is not None:
                found |= {subpartition_name(line.partition, r) for r in range(policy.subpartitions.count)}
        elif line.action is Action.MOVE:
            found.add(RelationName(policy.archive_schema, line.partition.name))
    return found


def _as_it_is(value: Any) -> Any:
    return value


def _archive_of(policy: PartitionSet) -> RelationName:
    return RelationName(policy.archive_schema, policy.name.name)


def _batch(row: Mapping[str, Any], control: ControlType) -> Batch:
    lower, upper = (
        None if row[each] is None else bound_value(row[each], control)
        for each in ("lower_bound", "upper_bound")
    )
    return Batch(
        partition=RelationName.parse(row["partition"]),
        range=Range(lower=lower, upper=upper),
        cold=row["cold"],
        purged=row["purged"],
    )
