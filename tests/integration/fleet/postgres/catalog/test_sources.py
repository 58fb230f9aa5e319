"""The closure of sources: everything a view takes rows from, and nothing else."""
# ruff: noqa: E501  (one definition per line: folded SQL cannot be searched for)

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import namedtuple_row

from fleet.postgres.catalog.sources import Source, SourceKind, read_sources, upstream
from fleet.postgres.catalog.views import read_views
from tests.integration.fleet.postgres.catalog.conftest import ODD_NAMES, oid_of
from tests.servers import Database

TABLES = """
CREATE TABLE a (id int); CREATE TABLE b (id int); CREATE TABLE c (id int); CREATE UNLOGGED TABLE u (id int);
CREATE TABLE parent (id int); CREATE TABLE child () INHERITS (parent); CREATE TABLE grandchild () INHERITS (child);
CREATE TABLE part (id int, day date) PARTITION BY RANGE (day);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM ('2024-02-01') TO ('2024-03-01') PARTITION BY HASH (id);
CREATE TABLE part_2_0 PARTITION OF part_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE part_2_1 PARTITION OF part_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE VIEW v1 AS SELECT id FROM a; CREATE VIEW v2 AS SELECT v1.id FROM v1 JOIN b USING (id);
CREATE VIEW v3 AS SELECT id FROM v2 UNION SELECT id FROM parent;
CREATE MATERIALIZED VIEW base AS SELECT id FROM c; CREATE VIEW over_base AS SELECT id FROM base;
CREATE SEQUENCE s;
CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER away FOREIGN DATA WRAPPER nowhere;
CREATE FOREIGN TABLE far (id int) SERVER away;
CREATE TABLE mixed (id int) PARTITION BY LIST (id);
CREATE FOREIGN TABLE mixed_far PARTITION OF mixed FOR VALUES IN (1) SERVER away;
"""

# definition, sources with their kinds
CLOSURES = [
    ("SELECT 1 AS one", {}),
    ("SELECT id FROM a", {"a": "table"}),
    ("SELECT a.id FROM a JOIN a AS again USING (id)", {"a": "table"}),
    ("SELECT id FROM v1", {"v1": "view", "a": "table"}),
    ("SELECT id FROM v3", {"v3": "view", "v2": "view", "v1": "view", "a": "table", "b": "table", "parent": "table",
                           "child": "table", "grandchild": "table"}),
    ("WITH x AS (SELECT id FROM a), y AS (SELECT id FROM x) SELECT id FROM y", {"a": "table"}),
    ("WITH RECURSIVE x AS (SELECT id FROM a UNION SELECT b.id FROM b, x) SELECT id FROM x", {"a": "table", "b": "table"}),
    ("SELECT id FROM a WHERE id IN (SELECT id FROM b WHERE EXISTS (SELECT FROM c))",
     {"a": "table", "b": "table", "c": "table"}),
    ("SELECT (SELECT max(id) FROM b) AS m, x.id FROM a, LATERAL (SELECT id FROM c) x",
     {"a": "table", "b": "table", "c": "table"}),
    ("SELECT id FROM part", {"part": "partitioned", "part_1": "table", "part_2": "partitioned", "part_2_0": "table",
                             "part_2_1": "table"}),
    ("SELECT id FROM part_2", {"part_2": "partitioned", "part_2_0": "table", "part_2_1": "table"}),
    ("SELECT id FROM child", {"child": "table", "grandchild": "table"}),
    ("SELECT id FROM base", {"base": "matview"}),
    ("SELECT id FROM over_base", {"over_base": "view", "base": "matview"}),
    ("SELECT id FROM u", {"u": "table"}),
    ("SELECT id FROM far", {"far": "foreign"}),
    ("SELECT id FROM mixed", {"mixed": "partitioned", "mixed_far": "foreign"}),
    ("SELECT last_value FROM s", {"s": "sequence"}),
    ("SELECT relname FROM pg_class", {"pg_class": "system"}),
    ("SELECT a.id FROM a, pg_stat_activity", {"a": "table", "pg_stat_activity": "system"}),
    ("SELECT table_name::text FROM information_schema.tables", {"tables": "system"}),
    ("SELECT a.* FROM a WHERE 'b'::regclass IS NOT NULL", {"a": "table"}),
    ("SELECT a AS row_of_a FROM a", {"a": "table"}),
]  # fmt: skip


def create(conn: psycopg.Connection[Any], definition: str, name: str = "mv") -> int:
    statement = sql.SQL("CREATE MATERIALIZED VIEW {} AS {} WITH NO DATA")
    conn.execute(statement.format(sql.Identifier(name), sql.SQL(definition)))
    return oid_of(conn, name)


def closure(conn: psycopg.Connection[Any], oid: int) -> tuple[Source, ...]:
    found = read_sources(conn, [oid])
    assert list(found) == [oid]
    return found[oid]


def kinds(sources: tuple[Source, ...]) -> dict[str, str]:
    return {s.name.name: s.kind.value for s in sources}


def test_closures(conn: psycopg.Connection[Any]) -> None:
    conn.execute(TABLES)
    made = {create(conn, definition, f"mv{n}"): wanted for n, (definition, wanted) in enumerate(CLOSURES)}
    assert {oid: kinds(closure(conn, oid)) for oid in made} == made
    together = read_sources(conn)
    assert {oid: kinds(together[oid]) for oid in made} == made
    assert set(together) == {*made, oid_of(conn, "base")}


def test_one_source(conn: psycopg.Connection[Any]) -> None:
    conn.execute(TABLES)
    (source,) = closure(conn, create(conn, "SELECT id FROM u"))
    assert (source.oid, str(source.name), source.kind, source.persistence) == (
        oid_of(conn, "u"),
        "public.u",
        SourceKind.TABLE,
        "u",
    )


def test_what_is_no_materialized_view_is_left_out(conn: psycopg.Connection[Any]) -> None:
    conn.execute(TABLES)
    oid = oid_of(conn, "base")
    assert list(read_sources(conn, [oid_of(conn, "a"), oid, oid_of(conn, "v1"), 4_000_000_000])) == [oid]
    assert read_sources(conn, []) == {}


def test_partitions_come_and_go(conn: psycopg.Connection[Any]) -> None:
    conn.execute(TABLES)
    oid = create(conn, "SELECT id FROM part")
    conn.execute("CREATE TABLE part_3 PARTITION OF part FOR VALUES FROM ('2024-03-01') TO ('2024-04-01')")
    assert "part_3" in kinds(closure(conn, oid))
    conn.execute("ALTER TABLE part DETACH PARTITION part_2")
    assert set(kinds(closure(conn, oid))) == {"part", "part_1", "part_3"}


def test_which_kinds_have_rows_and_which_are_counted() -> None:
    assert {k for k in SourceKind if not k.leaf} == {SourceKind.PARTITIONED, SourceKind.VIEW}
    assert {k for k in SourceKind if not k.countable} == {
        SourceKind.FOREIGN,
        SourceKind.SEQUENCE,
        SourceKind.SYSTEM,
    }


def test_odd_names(conn: psycopg.Connection[Any]) -> None:
    for schema in {n.schema for n in ODD_NAMES} - {"public"}:
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    for name in ODD_NAMES:
        conn.execute(sql.SQL("CREATE TABLE {} (id int)").format(name.identifier()))
    union = sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT id AS {} FROM {} AS {}").format(
            sql.Identifier(n.name), n.identifier(), sql.Identifier(n.name)
        )
        for n in ODD_NAMES
    )
    conn.execute(sql.SQL("CREATE MATERIALIZED VIEW mv AS {}").format(union))
    assert {s.name for s in closure(conn, oid_of(conn, "mv"))} == set(ODD_NAMES)


def test_upstream_is_one_step_and_managed_views_only(conn: psycopg.Connection[Any]) -> None:
    conn.execute(TABLES)
    base = oid_of(conn, "base")
    middle = create(conn, "SELECT b.id FROM over_base b JOIN a USING (id)", "middle")
    top = create(conn, "SELECT id FROM middle UNION SELECT id FROM base", "top")
    views = read_views(conn)
    assert upstream(read_sources(conn), views) == {
        base: frozenset(),
        middle: frozenset({base}),
        top: frozenset({base, middle}),
    }
    assert upstream(read_sources(conn, [top]), {middle}) == {top: frozenset({middle})}


@pytest.mark.parametrize("autocommit", [True, False])
def test_session_settings_and_row_factories_do_not_matter(database: Database, autocommit: bool) -> None:
    with database.connect() as conn:
        conn.execute(TABLES)
        oid = create(conn, "SELECT id FROM v3")
        usual = closure(conn, oid)
    with database.connect(row_factory=namedtuple_row) as conn:
        conn.execute("CREATE SCHEMA trap; CREATE TABLE trap.pg_class (oid oid, relkind text)")
        conn.execute("SET search_path = trap, pg_catalog")
        conn.autocommit = autocommit
        assert closure(conn, oid) == usual
        assert [*read_views(conn)]
        conn.rollback()
        shown = conn.execute("SHOW search_path").fetchone()
        assert shown is not None
        assert shown[0] == "trap, pg_catalog"
