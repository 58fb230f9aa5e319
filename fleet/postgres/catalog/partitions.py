"""How are tables partitioned, and what would it touch to change that? Read from the catalogue alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import psycopg

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


@dataclass(frozen=True, kw_only=True)
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
    may_create_in_schema: bool = False
    strategy: str = ""
    """range, list or hash."""
    key: tuple[str, ...] = ()
    """The columns of its partition key; an expression is an empty string."""
    control_type: ControlType | None = None
    """The type of the first of these; None: one that no calendar speaks of."""
    control_type_name: str = ""
    control_nullable: bool = True
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


def read_partitioned(
    conn: psycopg.Connection[Any], names: Iterable[RelationName]
) -> dict[RelationName, PartitionedTable]:
    """Everything about some tables in a few statements, however many there are; one that is not there is left out.

    Bounds are read under UTC and ISO dates, whatever the session or the database has.
    """
    raise NotImplementedError
