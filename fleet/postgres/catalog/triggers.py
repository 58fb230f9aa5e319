"""Which triggers request refreshes, and on which tables could they stand? Read from the catalogue alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.catalog.sources import KINDS, SourceKind
from fleet.postgres.queries import load

_sql = load("fleet.postgres.catalog", "triggers.sql")

TRIGGER_NAME = "upkeep_on_write"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, and what the current user may do about triggers on it.

    Creating and replacing one needs the privilege TRIGGER, dropping one the table's owner or a member of it;
    both need USAGE on the schema. `persistence` is pg_class.relpersistence.
    """

    oid: int
    name: RelationName
    kind: SourceKind
    persistence: str
    owner: str
    may_use_schema: bool
    may_install: bool
    may_remove: bool


@dataclass(frozen=True, kw_only=True)
class WriteTrigger:
    """A trigger that calls upkeep.note_write, whatever its name (`ours`), or one of somebody else with our name.

    `views` are its arguments as they stand there. `whole`: it fires for every statement that writes.
    `enabled`: it fires in an ordinary session.
    """

    table: int
    table_name: RelationName
    name: str
    ours: bool
    enabled: bool
    whole: bool
    views: tuple[str, ...]


def read_tables(conn: psycopg.Connection[Any], oids: Iterable[int]) -> dict[int, tuple[Table, ...]]:
    """For each of some tables: itself and every table above it, through which its rows can be written as well.

    An OID that is no table, partitioned table or foreign table is left out of the answer.
    """
    found: dict[int, tuple[Table, ...]] = {}
    for row in _sql.read_tables(conn, oids=[Oid(oid) for oid in sorted(oids)]):
        table = Table(
            oid=row["oid"],
            name=RelationName(row["schema"], row["name"]),
            kind=KINDS[row["kind"]],
            persistence=row["persistence"],
            owner=row["owner"],
            may_use_schema=row["may_use_schema"],
            may_install=row["may_install"],
            may_remove=row["may_remove"],
        )
        found[row["written"]] = (*found.get(row["written"], ()), table)
    return found


def read_write_triggers(conn: psycopg.Connection[Any]) -> list[WriteTrigger]:
    """All of them in the database, by table and name; needs no privilege."""
    return [
        WriteTrigger(
            table=row["oid"],
            table_name=RelationName(row["schema"], row["name"]),
            name=row["trigger"],
            ours=row["ours"],
            enabled=row["enabled"],
            whole=row["whole"],
            views=tuple(row["views"]),
        )
        for row in _sql.read_write_triggers(conn)
    ]
