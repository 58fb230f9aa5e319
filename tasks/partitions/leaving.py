"""A partition that leaves its table: what it is, what is in it and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.queries import load
from tasks.partitions.archive import Archive

_sql = load("tasks.partitions", "sql/move.sql")

# Equal to the partition's bounds: ATTACH then needs no look at its rows.
CHECK_NAME = "upkeep_range"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A table of a partition; `file` must be the same afterwards, `triggers` are ours and stay behind."""

    oid: int
    name: RelationName
    kind: str
    file: int | None
    tablespace: str
    triggers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """A partition that leaves a table in the critical transaction, and where it goes."""

    parent: RelationName
    parent_oid: int
    default: RelationName | None
    partition: RelationName
    oid: int
    bound: str
    condition: str
    members: tuple[Member, ...]
    archive: Archive

    @property
    def archived(self) -> RelationName:
        """Its name in the archive."""
        return RelationName(self.archive.name.schema, self.partition.name)

    @property
    def leaves(self) -> tuple[int, ...]:
        """Its tables with rows."""
        return tuple(each.oid for each in self.members if each.kind != "p")


def read(connection: psycopg.Connection[Any], name: RelationName) -> dict[str, Any] | None:
    """A table as it is now, with its bounds as they can be said again; None: it is gone."""
    with connection.transaction(force_rollback=True):
        return read_within(connection, name)


def read_within(connection: psycopg.Connection[Any], name: RelationName) -> dict[str, Any] | None:
    """The same in a transaction of the caller's, and without a SAVEPOINT that its deadline might cut short."""
    _sql.print_plainly(connection)
    row: dict[str, Any] | None = _sql.read_partition(
        connection, schema=name.schema, name=name.name, constraint=CHECK_NAME
    )
    return row


def read_members(connection: psycopg.Connection[Any], oid: int) -> list[Member]:
    """What a partition is made of, itself first."""
    return [
        Member(
            name=RelationName(row.pop("schema"), row.pop("name")),
            triggers=tuple(row.pop("triggers")),
            **row,
        )
        for row in _sql.read_members(connection, oid=Oid(oid))
    ]


__all__ = ["CHECK_NAME", "Leaving", "Member", "read", "read_members", "read_within"]
