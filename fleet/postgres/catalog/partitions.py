"""How are tables partitioned, and what would it touch to change that? Read from the catalogue alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from math import ceil, floor
from sys import intern
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.queries import load

_sql = load("fleet.postgres.catalog", "partitions.sql")

# A bound of a partition in the control column's own type; a timestamp without zone is a naive datetime.
Value = date | datetime | int | UUID


class ControlType(StrEnum):
    """What a control column holds."""

    DATE = "date"
    TIMESTAMPTZ = "timestamptz"
    TIMESTAMP = "timestamp"
    INTEGER = "integer"
    """smallint, integer, bigint, or numeric without a fraction."""
    UUID = "uuid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """From `lower` up to, and without, `upper`; None is MINVALUE or MAXVALUE."""

    lower: Value | None
    upper: Value | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition of a set: a plain table, a partitioned one, or a foreign one.

    `range` is None for the default partition, and for bounds that no policy could speak of (`odd` says why).
    """

    oid: int
    name: RelationName
    kind: str
    """pg_class.relkind: r, p, f."""
    range: Range | None
    is_default: bool = False
    odd: str = ""
    hull: Range | None = None
    """Of odd bounds, where it can be told: a range outside of which it has no row."""
    detach_pending: bool = False
    """Somebody's DETACH … CONCURRENTLY was interrupted: its rows are in no partition of the parent any more."""
    owner: str = ""
    tablespace: str = ""
    """Empty: the database's own."""
    rows: int = 0
    """The planner's estimate, over its leaves."""
    bytes: int = 0
    """Of its leaves, indexes and TOAST included."""
    leaves: tuple[RelationName, ...] = ()
    """The tables with rows: itself, unless it is partitioned further."""
    subpartition_key: str = ""
    """pg_get_partkeydef of a partition that is partitioned further."""
    missing_remainders: int = 0
    """Of a hash-partitioned one: how many rows of a hundred, about, would find no place; 0 where all are there."""


@dataclass(frozen=True, kw_only=True)
class ForeignKey:
    """A foreign key from or to a partitioned table (the topmost one, not those it has on partitions)."""

    oid: int
    name: str
    referencing: RelationName
    referenced: RelationName
    columns: tuple[str, ...]
    """Of the referencing table."""
    referenced_columns: tuple[str, ...]
    validated: bool
    deferrable: bool


@dataclass(frozen=True, kw_only=True)
class PartitionedTable:
    """A declared table, with all of its partitions in the order of their ranges, the default partition last."""

    oid: int
    name: RelationName
    kind: str
    """p; anything else is no partitioned table, and has nothing of what follows."""
    owner: str = ""
    may_alter: bool = False
    """Whether the current role owns it or is a member of its owner."""
    owner_is_superuser: bool = False
    may_create_in_schema: bool = False
    strategy: str = ""
    """range, list or hash."""
    key: tuple[str, ...] = ()
    """The columns of its partition key; an expression is an empty string."""
    control_type: ControlType | None = None
    """The type of the first of these; None: one that no calendar speaks of."""
    control_type_name: str = ""
    control_nullable: bool = True
    columns: tuple[str, ...] = ()
    """All of them, of whatever kind of relation."""
    is_partition: bool = False
    """Of another table."""
    partitions: tuple[Partition, ...] = ()
    unique_keys: tuple[tuple[str, ...], ...] = ()
    """The columns of its primary key and unique constraints and indexes."""
    foreign_keys: tuple[ForeignKey, ...] = ()
    """From it and to it."""
    row_security: bool = False
    last_analyzed: datetime | None = None
    """Of the parent itself, which autovacuum never does."""

    @property
    def default(self) -> Partition | None:
        """Its default partition."""
        return next((each for each in self.partitions if each.is_default), None)


# OIDs of pg_type.dat, the same in every database.
_CONTROL_TYPES: Mapping[int, ControlType] = {
    1082: ControlType.DATE,
    1184: ControlType.TIMESTAMPTZ,
    1114: ControlType.TIMESTAMP,
    21: ControlType.INTEGER,
    23: ControlType.INTEGER,
    20: ControlType.INTEGER,
    1700: ControlType.INTEGER,
    2950: ControlType.UUID,
}
_NUMERIC = 1700
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STRATEGIES: Mapping[str, str] = {"r": "range", "l": "list", "h": "hash"}

# FOR VALUES FROM ('2024-01-01', MINVALUE) TO ('2024-02-01', MINVALUE); quotes within quotes are doubled.
_ITEM = r"(?:'(?:[^']|'')*'|[^',() ]+)"
_RANGE = re.compile(rf"FOR VALUES FROM \(({_ITEM}(?:, {_ITEM})*)\) TO \(({_ITEM}(?:, {_ITEM})*)\)", re.DOTALL)
_ITEMS = re.compile(_ITEM, re.DOTALL)


def read_partitioned(
    conn: psycopg.Connection[Any], names: Iterable[RelationName]
) -> dict[RelationName, PartitionedTable]:
    """Everything about some tables in a few statements, however many there are; one that is not there is left out.

    Bounds are read under UTC and ISO dates, whatever the session or the database has. Waits for no lock and needs no
    privilege. A plain table has its columns, keys and foreign keys; it and a view have no partitions.
    """
    asked = sorted(set(names))
    # What is set here ends here, also inside a transaction of the caller's.
    with conn.transaction(force_rollback=True):
        _sql.read_as_utc(conn)
        tables = list(
            _sql.read_tables(
                conn, schemas=[each.schema for each in asked], names=[each.name for each in asked]
            )
        )
        oids = [Oid(row["oid"]) for row in tables]
        types = {row["oid"]: _control_type(row) for row in tables if row["kind"] == "p"}
        ranged = {row["oid"] for row in tables if row["strategy"] == "r"}
        partitions: dict[int, list[Partition]] = {oid: [] for oid in types}
        for row in _sql.read_partitions(conn, oids=[Oid(oid) for oid in types]):
            parent = row["parent"]
            kind = types[parent] if parent in ranged else None
            partitions[parent].append(_partition(row, kind))
        unique: dict[int, list[tuple[str, ...]]] = {}
        for row in _sql.read_unique_keys(conn, oids=oids):
            unique.setdefault(row["table"], []).append(tuple(row["columns"]))
        foreign: dict[int, list[ForeignKey]] = {}
        for row in _sql.read_foreign_keys(conn, oids=oids):
            for oid in {row["referencing"], row["referenced"]}:
                foreign.setdefault(oid, []).append(_foreign_key(row))
    found = [
        _table(
            row,
            types.get(row["oid"]),
            partitions.get(row["oid"], []),
            unique.get(row["oid"], ()),
            foreign.get(row["oid"], ()),
        )
        for row in tables
    ]
    return {table.name: table for table in found}


def _table(
    row: Mapping[str, Any],
    control_type: ControlType | None,
    partitions: list[Partition],
    unique: Iterable[tuple[str, ...]],
    foreign: Iterable[ForeignKey],
) -> PartitionedTable:
    analyzed = row["analyzed_us"]
    return PartitionedTable(
        oid=row["oid"],
        name=RelationName(row["schema"], row["name"]),
        kind=row["kind"],
        owner=row["owner"],
        may_alter=row["may_alter"],
        owner_is_superuser=row["owner_is_superuser"],
        may_create_in_schema=row["may_create_in_schema"],
        strategy=_STRATEGIES.get(row["strategy"], ""),
        key=tuple(row["key"]),
        control_type=control_type,
        control_type_name=row["control_type_name"] or "",
        control_nullable=row["control_nullable"],
        columns=tuple(row["columns"]),
        is_partition=row["is_partition"],
        partitions=tuple(sorted(partitions, key=_order)),
        unique_keys=tuple(unique),
        foreign_keys=tuple(foreign),
        row_security=row["row_security"],
        last_analyzed=None if analyzed is None else _EPOCH + timedelta(microseconds=analyzed),
    )


def _control_type(row: Mapping[str, Any]) -> ControlType | None:
    kind = row["control_type"]
    # numeric(12, 2): the lower bits of what is kept of it are its scale (numeric.c).
    if kind == _NUMERIC and row["control_modifier"] >= 0 and (row["control_modifier"] - 4) & 0x7FF:
        return None
    return _CONTROL_TYPES.get(kind)


def _order(partition: Partition) -> tuple[Any, ...]:
    """By range; what has none by name, and the default partition last."""
    if partition.is_default:
        return (2,)
    if partition.range is None:
        return (1, partition.name)
    lower = partition.range.lower
    return (0, 0, partition.name) if lower is None else (0, 1, lower, partition.name)


def _partition(row: Mapping[str, Any], kind: ControlType | None) -> Partition:
    name = RelationName(intern(row["schema"]), row["name"])
    found, hull, odd = _bounds(row["bound"], kind)
    leaves: tuple[RelationName, ...] = (name,)
    if row["kind"] == "p":
        leaves = tuple(
            RelationName(intern(schema), leaf)
            for schema, leaf in zip(row["leaf_schemas"] or (), row["leaf_names"] or (), strict=True)
        )
    missing = 1.0 - (row["share"] or 0.0) if row["hashed"] else 0.0
    return Partition(
        oid=row["oid"],
        name=name,
        kind=intern(row["kind"]),
        range=found,
        is_default=row["bound"] == "DEFAULT",
        odd=odd,
        hull=hull,
        detach_pending=row["pending"],
        owner=intern(row["owner"]),
        tablespace=intern(row["tablespace"]),
        rows=row["rows"],
        bytes=row["bytes"],
        leaves=leaves,
        subpartition_key=intern(row["subpartition_key"] or ""),
        # Sums of thirds and sixths are not exactly one.
        missing_remainders=max(1, round(100 * missing)) if missing > 1e-9 else 0,
    )


def _foreign_key(row: Mapping[str, Any]) -> ForeignKey:
    return ForeignKey(
        oid=row["oid"],
        name=row["name"],
        referencing=RelationName(row["referencing_schema"], row["referencing_name"]),
        referenced=RelationName(row["referenced_schema"], row["referenced_name"]),
        columns=tuple(row["columns"]),
        referenced_columns=tuple(row["referenced_columns"]),
        validated=row["validated"],
        deferrable=row["deferrable"],
    )


# Sets with the same calendar share their bounds, and so do the ends of neighbours.
@lru_cache(maxsize=4096)
def _bounds(bound: str | None, kind: ControlType | None) -> tuple[Range | None, Range | None, str]:
    """The range of the control column; else a hull of it where there is one, and why."""
    if bound == "DEFAULT":
        return None, None, ""
    if bound is None:
        return None, None, "it has no bounds"
    said = bound.removeprefix("FOR VALUES ")
    match = _RANGE.fullmatch(bound)
    if kind is None or match is None:
        return None, None, f"no calendar speaks of its bounds: {said}"
    lowers, uppers = (_ITEMS.findall(each) for each in match.groups())
    lower, upper = _value(lowers[0], kind), _value(uppers[0], kind)
    if isinstance(lower, _Beyond) or isinstance(upper, _Beyond):
        hull = Range(
            lower=lower.below if isinstance(lower, _Beyond) else lower,
            upper=upper.above if isinstance(upper, _Beyond) else upper,
        )
        return None, hull, f"its bounds are none of any calendar: {said}"
    if any(each != "MINVALUE" for each in uppers[1:]) and upper is not None:
        # Rows with exactly the upper value of the first column may be in it.
        return (
            None,
            Range(lower=lower, upper=_next(upper)),
            f"its bounds say more than the control column: {said}",
        )
    if any(each != "MINVALUE" for each in lowers[1:]):
        return None, Range(lower=lower, upper=upper), f"its bounds say more than the control column: {said}"
    return Range(lower=lower, upper=upper), None, ""


def bound_value(text: str, kind: ControlType) -> Value:
    """A bound that was kept as PostgreSQL prints it under UTC and ISO dates.

    Raises:
        ValueError: it is none of Python's values.
    """
    value = _value(text, kind)
    if value is None or isinstance(value, _Beyond):
        raise ValueError(text)
    return value


@dataclass(frozen=True, slots=True)
class _Beyond:
    """A bound that is no value of Python's, between two that are; None: there is none on that side."""

    below: Value | None = None
    above: Value | None = None


_EARLIEST: Mapping[ControlType, Value] = {
    ControlType.DATE: date.min,
    ControlType.TIMESTAMPTZ: datetime.min.replace(tzinfo=UTC),
    ControlType.TIMESTAMP: datetime.min,  # noqa: DTZ901 - it has no zone
}
_LATEST: Mapping[ControlType, Value] = {
    ControlType.DATE: date.max,
    ControlType.TIMESTAMPTZ: datetime.max.replace(tzinfo=UTC),
    ControlType.TIMESTAMP: datetime.max,  # noqa: DTZ901
}


def _value(text: str, kind: ControlType) -> Value | _Beyond | None:
    """A bound as PostgreSQL prints it; None for MINVALUE and MAXVALUE."""
    if text in ("MINVALUE", "MAXVALUE"):
        return None
    text = text.strip("'")
    try:
        match kind:
            case ControlType.DATE:
                return date.fromisoformat(text)
            case ControlType.TIMESTAMPTZ:
                return datetime.fromisoformat(text).astimezone(UTC)
            case ControlType.TIMESTAMP:
                return datetime.fromisoformat(text)
            case ControlType.INTEGER:
                number = Decimal(text)
                if number.is_finite() and number != number.to_integral_value():
                    return _Beyond(below=floor(number), above=ceil(number))
                return int(number)
            case ControlType.UUID:
                return UUID(text)
    except (ValueError, ArithmeticError):
        # -infinity and years before Christ, or infinity, NaN and years after 9999.
        if text.startswith("-") or text.endswith(" BC"):
            return _Beyond(above=_EARLIEST.get(kind))
        return _Beyond(below=_LATEST.get(kind))


def _next(value: Value) -> Value | None:
    """The smallest value after one; None where Python has none."""
    try:
        match value:
            case datetime():
                return value + timedelta(microseconds=1)
            case date():
                return value + timedelta(days=1)
            case UUID():
                return UUID(int=value.int + 1)
            case _:
                return value + 1
    except (OverflowError, ValueError):
        return None
