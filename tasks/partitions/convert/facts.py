"""What the catalogue says of a table that is to be partitioned, and of everything that depends on it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import psycopg
from psycopg.types.numeric import Oid

from fleet.names import MAX_IDENTIFIER_BYTES, RelationName
from fleet.postgres.catalog.partitions import ControlType
from fleet.postgres.queries import load

facts_sql = load("tasks.partitions.convert", "sql/facts.sql")

# Made on the table by a conversion; sorts before every trigger that people would make, so that it fires first.
MIRROR = "!upkeep_mirror"
MIRROR_TRUNCATE = "!upkeep_mirror_truncate"
NEW, OLD = "_upkeep_new", "_upkeep_old"
CONTROL_TYPES = {
    "date": ControlType.DATE,
    "timestamptz": ControlType.TIMESTAMPTZ,
    "timestamp": ControlType.TIMESTAMP,
    "int2": ControlType.INTEGER,
    "int4": ControlType.INTEGER,
    "int8": ControlType.INTEGER,
    "uuid": ControlType.UUID,
}

Row = SimpleNamespace
"""A row of sql/facts.sql, its columns as attributes."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One table and what depends on it, as one moment has it."""

    table: Row
    columns: tuple[Row, ...]
    indexes: tuple[Row, ...]
    constraints: tuple[Row, ...]
    triggers: tuple[Row, ...]
    policies: tuple[Row, ...]
    grants: tuple[Row, ...]
    publications: tuple[Row, ...]
    readers: tuple[Row, ...]
    """Materialized views to be built anew, upstream first; then the views to be pointed to the new table."""
    bodies: tuple[Row, ...]
    others: tuple[Row, ...]
    """What depends on it and can be made anew by nobody but its author."""

    @property
    def oid(self) -> int:
        """The table's."""
        return int(self.table.oid)

    @property
    def name(self) -> RelationName:
        """The table's."""
        return RelationName(self.table.schema, self.table.name)

    @property
    def matviews(self) -> tuple[Row, ...]:
        """Upstream first."""
        return tuple(each for each in self.readers if each.kind == "m")

    @property
    def views(self) -> tuple[Row, ...]:
        """Plain ones, which keep their OID."""
        return tuple(each for each in self.readers if each.kind == "v")

    @property
    def remade(self) -> list[int]:
        """The OIDs on which nothing may depend after the switch: the table's and its materialized views'."""
        return [self.oid, *(each.oid for each in self.matviews)]

    @property
    def primary_key(self) -> Row | None:
        """Its index."""
        return next((each for each in self.indexes if each.is_primary), None)

    @property
    def outgoing(self) -> tuple[Row, ...]:
        """Its foreign keys."""
        return tuple(each for each in self.constraints if each.kind == "f" and each.ours)

    @property
    def incoming(self) -> tuple[Row, ...]:
        """Foreign keys to it, of other tables."""
        return tuple(each for each in self.constraints if each.kind == "f" and each.to_us)

    def column(self, name: str) -> Row | None:
        """One of its columns."""
        return next((each for each in self.columns if each.name == name), None)

    def keys(self, control: str) -> tuple[Row, ...]:
        """Its unique indexes that the control column must be added to."""
        return tuple(each for each in self.indexes if each.is_unique and control not in each.columns)

    @property
    def written(self) -> list[str]:
        """The columns that are copied: not those that PostgreSQL computes."""
        return [each.name for each in self.columns if not each.generated]


def working(name: str, suffix: str = NEW) -> str:
    """A name for the time of the conversion, cut where it would be too long, and still one's own."""
    if len((name + suffix).encode()) <= MAX_IDENTIFIER_BYTES:
        return name + suffix
    digest = "_" + hashlib.sha256(name.encode()).hexdigest()[:8]
    room = MAX_IDENTIFIER_BYTES - len((digest + suffix).encode())
    return name.encode()[:room].decode(errors="ignore") + digest + suffix


def as_role(connection: psycopg.Connection[Any]) -> str:
    """What pg_has_role must be asked for so that SET ROLE works: membership alone is not enough from 16 on."""
    return "SET" if connection.info.server_version >= 160000 else "MEMBER"


def look(connection: psycopg.Connection[Any], name: RelationName, control: str = "") -> Facts | None:
    """Read everything in one transaction; None: there is no such relation."""
    with connection.transaction():
        facts_sql.deparse(connection)
        table = facts_sql.table(connection, schema=name.schema, name=name.name, as_role=as_role(connection))
        return None if table is None else look_inside(connection, SimpleNamespace(**table), control)


def look_inside(connection: psycopg.Connection[Any], table: Row, control: str = "") -> Facts:
    """The same within a transaction of the caller's, in which definitions are printed with qualified names."""

    def rows(query: str, **values: Any) -> tuple[Row, ...]:
        return tuple(SimpleNamespace(**row) for row in getattr(facts_sql, query)(connection, **values))

    oid, role = Oid(table.oid), as_role(connection)
    readers = rows("readers", oid=oid, as_role=role)
    remade = [oid, *(Oid(each.oid) for each in readers if each.kind == "m")]
    indexes = rows("indexes", oid=oid)
    # What a conversion has built for them is not the table's own.
    built = {working(each.name, OLD) for each in indexes}
    indexes = tuple(each for each in indexes if each.name not in built)
    weakened = [
        Oid(each.constraint_oid)
        for each in indexes
        if each.is_unique and control not in each.columns and each.constraint_oid is not None
    ]
    return Facts(
        table=table,
        columns=rows("columns", oid=oid),
        indexes=indexes,
        constraints=rows("constraints", oid=oid, as_role=role),
        triggers=rows("triggers", oid=oid, not_these=[MIRROR, MIRROR_TRUNCATE]),
        policies=rows("policies", oid=oid),
        grants=rows("grants", oid=oid),
        publications=rows("publications", oid=oid, as_role=role),
        readers=readers,
        bodies=rows("bodies", oids=remade, as_role=role),
        others=rows("others", oids=remade, weakened=weakened),
    )
