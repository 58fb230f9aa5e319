"""Which materialized views there are, and what is in the way of refreshing them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import namedtuple_row

from fleet.names import RelationName
from fleet.postgres.catalog.views import MaterializedView, read_views
from tests.conftest import NewRole
from tests.integration.fleet.postgres.catalog.conftest import ODD_NAMES, oid_of
from tests.servers import Database


def one(conn: psycopg.Connection[Any], name: str = "mv") -> MaterializedView:
    (view,) = [v for v in read_views(conn).values() if v.name.name == name]
    return view


def test_none(conn: psycopg.Connection[Any]) -> None:
    assert read_views(conn) == {}


def test_a_view(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "CREATE MATERIALIZED VIEW mv AS SELECT g AS id FROM generate_series(1, 1000) AS g WITH NO DATA"
    )
    view = one(conn)
    assert view.name == RelationName("public", "mv")
    assert (view.owner, view.populated, view.unique_index, view.unique_key) == ("postgres", False, None, ())
    assert view.owner_has_temp
    assert view.may_refresh
    assert (view.size_bytes, view.row_estimate) == (0, None)
    conn.execute("CREATE UNIQUE INDEX ON mv (id)")
    conn.execute("REFRESH MATERIALIZED VIEW mv")
    refreshed = one(conn)
    assert refreshed.populated
    assert refreshed.filenode != view.filenode
    assert refreshed.definition_hash == view.definition_hash
    assert refreshed.size_bytes > 0
    assert refreshed.row_estimate == 1000
    assert (refreshed.unique_index, refreshed.unique_key) == ("mv_id_idx", ("id",))


def test_odd_names(conn: psycopg.Connection[Any]) -> None:
    for schema in {n.schema for n in ODD_NAMES} - {"public"}:
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    for name in ODD_NAMES:
        column, index = sql.Identifier(name.name), sql.Identifier(name.name[:20] + "_idx")
        conn.execute(
            sql.SQL("CREATE MATERIALIZED VIEW {} AS SELECT 1 AS {}").format(name.identifier(), column)
        )
        conn.execute(sql.SQL("CREATE UNIQUE INDEX {} ON {} ({})").format(index, name.identifier(), column))
    found = {v.name: v for v in read_views(conn).values()}
    assert set(found) == set(ODD_NAMES)
    for name, view in found.items():
        assert view.unique_key == (name.name,)
        assert view.unique_index == name.name[:20] + "_idx"
        assert RelationName.parse(str(name)) == name


# index, does it make the view eligible
INDEXES = [
    ("CREATE UNIQUE INDEX k ON mv (a)", True),
    ("CREATE UNIQUE INDEX k ON mv (b, a)", True),
    ("CREATE UNIQUE INDEX k ON mv (a DESC NULLS FIRST) INCLUDE (b)", True),
    ("CREATE UNIQUE INDEX k ON mv (a) WHERE a > 0", False),
    ("CREATE UNIQUE INDEX k ON mv ((a + 1))", False),
    ("CREATE UNIQUE INDEX k ON mv (a, (b + 1))", False),
    ("CREATE INDEX k ON mv (a)", False),
]


@pytest.mark.parametrize(("index", "eligible"), INDEXES, ids=[i[0] for i in INDEXES])
def test_eligible_as_the_server_says(conn: psycopg.Connection[Any], index: str, eligible: bool) -> None:
    conn.execute("CREATE MATERIALIZED VIEW mv AS SELECT 1 AS a, 2 AS b")
    conn.execute(index)
    assert (one(conn).unique_index == "k") is eligible
    try:
        conn.execute("REFRESH MATERIALIZED VIEW CONCURRENTLY mv")
    except psycopg.errors.ObjectNotInPrerequisiteState:
        assert not eligible
    else:
        assert eligible


def test_an_invalid_index_does_not_count(conn: psycopg.Connection[Any]) -> None:
    conn.execute("CREATE MATERIALIZED VIEW mv AS SELECT 1 AS a UNION ALL SELECT 1")
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute("CREATE UNIQUE INDEX CONCURRENTLY k ON mv (a)")
    assert one(conn).unique_index is None


def test_the_narrowest_index_then_the_first_by_name(conn: psycopg.Connection[Any]) -> None:
    conn.execute("CREATE MATERIALIZED VIEW mv AS SELECT 1 AS a, 2 AS b, 3 AS c WITH NO DATA")
    conn.execute("CREATE UNIQUE INDEX a_wide ON mv (c, a)")
    assert one(conn).unique_key == ("c", "a")
    conn.execute("CREATE UNIQUE INDEX z_narrow ON mv (b)")
    assert one(conn).unique_key == ("b",)
    conn.execute("CREATE UNIQUE INDEX y_narrow ON mv (a) INCLUDE (b, c)")
    view = one(conn)
    assert (view.unique_index, view.unique_key, view.populated) == ("y_narrow", ("a",), False)


def test_hash_is_of_the_definition(conn: psycopg.Connection[Any]) -> None:
    conn.execute("CREATE TABLE t (id int, note text)")
    conn.execute("CREATE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1'")
    conn.execute("CREATE VIEW inner_v AS SELECT id FROM t WHERE f(id) > 0")
    conn.execute("CREATE VIEW outer_v AS SELECT id FROM inner_v")
    conn.execute("CREATE MATERIALIZED VIEW mv AS SELECT id FROM outer_v")
    first = one(conn)
    seen = {first.definition_hash}

    def moved() -> bool:
        now = one(conn).definition_hash
        new = now not in seen
        seen.add(now)
        return new

    # What does not matter: settings, refreshes, renamed relations, indexes, rows.
    conn.execute("SET search_path = ''")
    conn.execute("SET quote_all_identifiers = on")
    conn.execute("INSERT INTO public.t VALUES (1)")
    conn.execute("REFRESH MATERIALIZED VIEW public.mv")
    conn.execute("CREATE UNIQUE INDEX ON public.mv (id)")
    conn.execute("ALTER TABLE public.t RENAME TO renamed")
    conn.execute("ALTER TABLE public.renamed RENAME TO t")
    conn.execute("GRANT SELECT ON public.t, public.mv TO public")
    assert not moved()
    conn.execute("RESET ALL")
    # What does.
    conn.execute("CREATE OR REPLACE VIEW inner_v AS SELECT id FROM t WHERE f(id) > 1")
    assert moved()
    conn.execute("CREATE OR REPLACE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1'")
    assert moved()
    conn.execute("CREATE OR REPLACE VIEW outer_v AS SELECT id FROM t")
    assert moved()
    conn.execute("DROP MATERIALIZED VIEW mv")
    conn.execute("CREATE MATERIALIZED VIEW mv AS SELECT id FROM outer_v WHERE id > 7")
    assert moved()


def test_who_may_refresh(database: Database, role: NewRole) -> None:
    owner = role(database, "mv_owner")
    member = role(database, "mv_member")
    stranger = role(database, "mv_stranger")
    with database.connect() as admin:
        admin.execute("CREATE SCHEMA closed")
        admin.execute("CREATE MATERIALIZED VIEW closed.mv AS SELECT 1 AS id")
        admin.execute("ALTER MATERIALIZED VIEW closed.mv OWNER TO mv_owner")
        admin.execute("GRANT mv_owner TO mv_member")

        def may(url: str) -> bool:
            with psycopg.connect(url, autocommit=True) as conn:
                view = one(conn)
                assert view.owner == "mv_owner"
                try:
                    conn.execute("REFRESH MATERIALIZED VIEW closed.mv")
                except psycopg.errors.InsufficientPrivilege:
                    assert not view.may_refresh
                else:
                    assert view.may_refresh
                return view.may_refresh

        assert may(database.url)
        assert not may(owner)  # no USAGE on the schema
        admin.execute("GRANT USAGE ON SCHEMA closed TO public")
        assert may(owner)
        assert may(member)
        assert not may(stranger)
        if admin.info.server_version >= 170_000:
            admin.execute("GRANT MAINTAIN ON closed.mv TO mv_stranger")
            assert may(stranger)


def test_temp_is_the_owners(database: Database, role: NewRole) -> None:
    role(database, "no_temp")
    with database.connect() as conn:
        conn.execute("CREATE MATERIALIZED VIEW mv AS SELECT 1 AS id")
        conn.execute("ALTER MATERIALIZED VIEW mv OWNER TO no_temp")
        assert one(conn).owner_has_temp
        conn.execute(sql.SQL("REVOKE TEMP ON DATABASE {} FROM public").format(sql.Identifier(database.name)))
        view = one(conn)
        assert not view.owner_has_temp
        assert view.may_refresh


def test_waits_for_nobody(database: Database) -> None:
    with database.connect() as conn, database.connect(autocommit=False) as refresher:
        conn.execute("CREATE TABLE t (id int)")
        conn.execute("CREATE MATERIALIZED VIEW mv AS SELECT id FROM t")
        conn.execute("CREATE UNIQUE INDEX ON mv (id)")
        refresher.execute("LOCK TABLE t")
        refresher.execute("REFRESH MATERIALIZED VIEW mv")  # ACCESS EXCLUSIVE until it commits
        conn.execute("SET lock_timeout = '1ms'")
        assert one(conn).populated
        refresher.rollback()


def test_any_row_factory_in_and_out_of_a_transaction(database: Database) -> None:
    with database.connect(autocommit=False, row_factory=namedtuple_row) as conn:
        conn.execute("CREATE MATERIALIZED VIEW mv AS SELECT 1 AS id")
        inside = one(conn)
        conn.commit()
        assert one(conn) == inside


def test_only_those_asked_for(conn: psycopg.Connection[Any]) -> None:
    for name in ("a", "b", "c"):
        conn.execute(sql.SQL("CREATE MATERIALIZED VIEW {} AS SELECT 1 AS id").format(sql.Identifier(name)))
    conn.execute("CREATE TABLE t (id int)")
    everything = read_views(conn)
    a, b = one(conn, "a").oid, one(conn, "b").oid
    assert read_views(conn, [a, oid_of(conn, "t"), b, 4_000_000_000]) == {a: everything[a], b: everything[b]}
    assert read_views(conn, []) == {}
