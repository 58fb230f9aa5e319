"""What holds for every reader: no privilege is needed, and any client encoding and style of date will do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from fleet.names import RelationName
from fleet.postgres.catalog.definition import read_definitions
from fleet.postgres.catalog.partitions import read_partitioned
from fleet.postgres.catalog.reading import read_reading
from fleet.postgres.catalog.server import read_server
from fleet.postgres.catalog.sources import read_sources
from fleet.postgres.catalog.triggers import read_write_triggers
from fleet.postgres.catalog.views import read_views
from tests import servers
from tests.conftest import NewRole
from tests.integration.fleet.postgres.catalog.conftest import oid_of
from tests.servers import Database

Connection = psycopg.Connection[Any]


def counters(conn: Connection) -> Any:
    oids = [s.oid for sources in read_sources(conn).values() for s in sources]
    reading = read_reading(conn, oids)
    return reading.relations, reading.markers


def partitions(conn: Connection) -> Any:
    (found,) = read_partitioned(conn, [RelationName("closed", "Täglich")]).values()
    return found.oid, found.key, found.partitions


READERS: dict[str, Callable[[Connection], Any]] = {
    "views": lambda conn: {
        v.oid: (v.name, v.definition_hash, v.unique_key) for v in read_views(conn).values()
    },
    "sources": read_sources,
    "definitions": read_definitions,
    "counters": counters,
    "server": lambda conn: read_server(conn).system_identifier,
    "triggers": read_write_triggers,
    "partitions": partitions,
}
SCHEMA = """
CREATE SCHEMA closed;
CREATE TABLE closed."Größe" (id int, "geändert" timestamptz);
CREATE VIEW closed."Übersicht" AS SELECT id, now() AS "geprüft" FROM closed."Größe";
CREATE MATERIALIZED VIEW closed."Wöchentlich" AS SELECT id, "geprüft" FROM closed."Übersicht" ORDER BY id;
CREATE UNIQUE INDEX ON closed."Wöchentlich" (id);
CREATE TABLE closed."Täglich" ("geändert" timestamptz) PARTITION BY RANGE ("geändert");
CREATE TABLE closed."Täglich 1" PARTITION OF closed."Täglich"
    FOR VALUES FROM ('2024-01-01 00:00+00') TO ('2024-01-02 00:00+05');
CREATE FUNCTION closed.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER upkeep_on_write AFTER INSERT ON closed."Größe" EXECUTE FUNCTION closed.note('closed."Wöchentlich"');
"""


@pytest.mark.parametrize("reader", READERS)
def test_needs_no_privilege(database: Database, role: NewRole, reader: str) -> None:
    read = READERS[reader]
    with database.connect() as admin, psycopg.connect(role(database), autocommit=True) as stranger:
        admin.execute(SCHEMA)
        found = read(admin)
        assert found
        assert read(stranger) == found


@pytest.mark.parametrize("reader", READERS)
def test_styles_of_the_session(database: Database, reader: str) -> None:
    read = READERS[reader]
    with database.connect() as conn:
        conn.execute(SCHEMA)
        usual = read(conn)
        conn.execute("SET DateStyle = 'German, DMY'; SET IntervalStyle = iso_8601; SET TimeZone = 'FOO+3'")
        conn.execute("SET bytea_output = escape; SET extra_float_digits = -15; SET search_path = closed")
        assert read(conn) == usual
        conn.autocommit = False
        assert read(conn) == usual
        conn.rollback()


def test_a_latin_1_database(database: Database) -> None:
    name = f"{database.name}_latin1"
    with servers.admin(database.server) as admin:
        # The embedded server's default provider knows UTF-8 only; before 15 a database had no choice of one.
        provider = sql.SQL("LOCALE_PROVIDER libc" if admin.info.server_version >= 150_000 else "")
        admin.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING LATIN1 LOCALE 'C' {}").format(
                sql.Identifier(name), provider
            )
        )
    latin = Database(server=database.server, name=name)
    try:
        with latin.connect() as conn:
            conn.execute(SCHEMA)
            oid = oid_of(conn, 'closed."Wöchentlich"')
            assert str(read_views(conn)[oid].name) == 'closed."Wöchentlich"'
            assert [s.name.name for s in read_sources(conn)[oid]] == ["Größe", "Übersicht"]
            definition = read_definitions(conn)[oid]
            assert (definition.stored_timestamps, definition.ordered_by) == (("geprüft",), ("id",))
    finally:
        servers.drop_database(latin)
