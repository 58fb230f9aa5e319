"""What the tests of the readers share: a connection, and names that every careless quoting breaks on."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from fleet.names import RelationName
from tests.servers import Database

ODD_NAMES = [
    RelationName("public", "plain"),
    RelationName("public", "Capitals"),
    RelationName("public", "with space"),
    RelationName("public", 'double "quotes"'),
    RelationName("public", "apostrophe's"),
    RelationName("public", "Größe_übrig_€"),
    RelationName("public", "отчёт"),
    RelationName("public", "select"),
    RelationName("public", "per%cent %s :name {brace}"),
    RelationName("public", "back\\slash"),
    RelationName("public", ":relid 5"),
    RelationName("public", "x" * 63),
    RelationName("public", "ü" * 31 + "x"),
    RelationName('Odd "Schéma" %', "dotted.name"),
]


@pytest.fixture
def conn(database: Database) -> psycopg.Connection[Any]:
    return database.connect()


def oid_of(conn: psycopg.Connection[Any], name: str) -> int:
    row = conn.execute("SELECT %s::regclass::oid", [name]).fetchone()
    assert row is not None
    return int(row[0])
