"""Counts the rows that a plan depends on: those of the default partition, those that are held, those that refer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import sql

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import ControlType, PartitionedTable, Range
from fleet.postgres.queries import load
from fleet.settings.partitions import PartitionSet
from tasks.partitions.calendar import Calendar, Period, text
from tasks.partitions.lines import Action, DefaultRows, Line

T = TypeVar("T")

_sql = load("tasks.partitions", "sql/look.sql")

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


@dataclass
class Rows:
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


def _as_it_is(value: Any) -> Any:
    return value
