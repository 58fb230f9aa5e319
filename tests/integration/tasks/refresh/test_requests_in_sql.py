"""upkeep.request_refresh, in every kind of transaction: it commits with the write or not at all, and never harms it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from tests.servers import Database

Connection = psycopg.Connection[Any]
CALL = "SELECT upkeep.request_refresh(%s)"


def requests(connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT view FROM upkeep.refresh_request ORDER BY id")]


@pytest.fixture
def conn(upkeep_database: Database) -> Connection:
    connection = upkeep_database.connect()
    connection.execute("CREATE TABLE public.t (id int)")
    return connection


@pytest.fixture
def warnings(conn: Connection) -> list[str]:
    said: list[str] = []
    conn.add_notice_handler(lambda diag: said.append(f"{diag.severity_nonlocalized} {diag.message_primary}"))
    return said


def test_a_request_is_a_row_with_the_transaction_that_made_it(conn):
    with conn.transaction():
        conn.execute(CALL, ["public.v"])
        xid = conn.execute("SELECT pg_current_xact_id()").fetchone()
    row = conn.execute(
        "SELECT view, source, parameters, xid, created_at <= clock_timestamp() FROM upkeep.refresh_request"
    ).fetchone()
    assert row == ("public.v", None, None, xid[0], True)


@pytest.mark.parametrize(
    "call",
    [
        "upkeep.request_refresh(view => 'public.v', wake => true)",
        "upkeep.request_refresh(parameters => '{\"id\": 42}', view => 'public.v')",
        "upkeep.request_refresh('public.v', wake => NULL)",
    ],
)
def test_arguments_have_names(conn, call):
    conn.execute("SELECT " + call)
    assert requests(conn) == ["public.v"]


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ('{"id": 42}', {"id": 42}),
        ('[{"id": 1}, {"id": 2}]', [{"id": 1}, {"id": 2}]),
        ("[]", []),
        ("null", None),
    ],
)
def test_parameters_of_tags_are_kept(conn, warnings, parameters, kept):
    conn.execute("SELECT upkeep.request_refresh('public.v', %s::jsonb)", [parameters])
    assert conn.execute("SELECT parameters FROM upkeep.refresh_request").fetchone() == (kept,)
    assert not warnings


@pytest.mark.parametrize("parameters", ["42", '"x"', "true", "[1]", '[{"id": 1}, [2]]', "long"])
def test_parameters_that_make_no_sense_are_a_warning_and_stand_for_all(conn, warnings, parameters):
    value = json.dumps([{"id": "ten million"}] * 500_000) if parameters == "long" else parameters
    with conn.transaction():
        conn.execute("INSERT INTO public.t VALUES (1)")
        conn.execute("SELECT upkeep.request_refresh('public.v', %s::jsonb)", [value])
    assert conn.execute("SELECT view, parameters FROM upkeep.refresh_request").fetchone() == (
        "public.v",
        None,
    )
    assert [each.split()[0] for each in warnings] == ["WARNING"]
    assert "all of its tags are invalidated" in warnings[0]


@pytest.mark.parametrize("view", [None, "", "x" * 258, "x" * 10_000_000, "ä" * 129])
def test_a_view_that_cannot_be_one_is_a_warning_and_the_write_goes_on(conn, warnings, view):
    with conn.transaction():
        conn.execute("INSERT INTO public.t VALUES (1)")
        conn.execute(CALL, [view])
    assert requests(conn) == []
    assert conn.execute("SELECT count(*) FROM public.t").fetchone() == (1,)
    assert len(warnings) == 1
    assert "names no view, nothing is requested" in warnings[0]
    assert len(warnings[0]) < 200


def test_the_longest_name_there_is(conn):
    part = '"' + '""' * 63 + '"'
    conn.execute(CALL, [f"{part}.{part}"])
    assert requests(conn) == [f"{part}.{part}"]


def test_what_is_not_valid_is_kept_for_the_dispatcher_to_report(conn):
    conn.execute(CALL, ["'; DROP TABLE x; --"])
    assert requests(conn) == ["'; DROP TABLE x; --"]


def test_rolled_back_with_its_transaction(conn):
    with conn.transaction(force_rollback=True):
        conn.execute(CALL, ["public.v"])
        assert requests(conn) == ["public.v"]
    assert requests(conn) == []


def test_rolled_back_with_its_savepoint(conn):
    with conn.transaction():
        conn.execute(CALL, ["public.kept"])
        with conn.transaction(force_rollback=True):
            conn.execute(CALL, ["public.gone"])
        conn.execute(
            "DO $$BEGIN PERFORM upkeep.request_refresh('public.caught'); RAISE 'x'; EXCEPTION WHEN OTHERS THEN END$$"
        )
    assert requests(conn) == ["public.kept"]


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_at_every_isolation_level(upkeep_database, conn, level):
    other = upkeep_database.connect()
    begin = sql.SQL("BEGIN ISOLATION LEVEL {}").format(sql.SQL(level))
    for each in (conn, other):
        each.execute(begin)
        each.execute(CALL, ["public.v"])
    for each in (conn, other):
        each.execute("COMMIT")
    assert requests(conn) == ["public.v"] * 2


def test_a_read_only_transaction_has_nothing_to_request_for(conn, warnings):
    conn.execute("BEGIN READ ONLY")
    conn.execute(CALL, ["public.v"])
    conn.execute("COMMIT")
    assert requests(conn) == []
    assert (
        [each for each in warnings if "a read-only transaction has written nothing" in each] == warnings != []
    )


def test_in_functions_in_do_and_as_a_replica(conn):
    conn.execute(
        "CREATE FUNCTION public.f() RETURNS void LANGUAGE sql AS $$SELECT upkeep.request_refresh('public.f')$$"
    )
    conn.execute("SELECT public.f()")
    conn.execute("DO $$BEGIN PERFORM upkeep.request_refresh('public.do'); END$$")
    conn.execute("SET session_replication_role = replica")
    conn.execute(CALL, ["public.replica"])
    assert requests(conn) == ["public.f", "public.do", "public.replica"]


def test_in_a_prepared_transaction(conn):
    for gid, end in (("kept", "COMMIT PREPARED 'kept'"), ("gone", "ROLLBACK PREPARED 'gone'")):
        conn.execute("BEGIN")
        conn.execute(CALL, [f"public.{gid}"])
        conn.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(gid)))
        assert f"public.{gid}" not in requests(conn)
        conn.execute(end)
    assert requests(conn) == ["public.kept"]


def test_it_notifies_only_where_that_is_asked_for(upkeep_database, conn):
    listener = upkeep_database.connect()
    listener.execute("LISTEN upkeep_request")
    conn.execute(CALL, ["public.quiet"])
    assert list(listener.notifies(timeout=0.2)) == []
    conn.execute("SELECT upkeep.request_refresh('public.loud', wake => true)")
    assert len(list(listener.notifies(timeout=10, stop_after=1))) == 1


def test_a_writer_needs_execute_and_usage_and_no_right_on_the_table(upkeep_database, role, conn):
    url = role(upkeep_database, "a writer")
    with psycopg.connect(url, autocommit=True) as writer:
        with pytest.raises(errors.InsufficientPrivilege):
            writer.execute(CALL, ["public.v"])
        conn.execute('GRANT USAGE ON SCHEMA upkeep TO "a writer"')
        with pytest.raises(errors.InsufficientPrivilege):
            writer.execute(CALL, ["public.v"])
        conn.execute('GRANT EXECUTE ON FUNCTION upkeep.request_refresh TO "a writer"')
        writer.execute(CALL, ["public.v"])
        for query in ("SELECT 1 FROM upkeep.refresh_request", "DELETE FROM upkeep.refresh_request"):
            with pytest.raises(errors.InsufficientPrivilege):
                writer.execute(query)
    assert requests(conn) == ["public.v"]


def test_no_object_of_the_writers_takes_the_place_of_ours(upkeep_database, role, conn):
    url = role(upkeep_database, "evil")
    conn.execute(
        "GRANT USAGE ON SCHEMA upkeep TO evil; GRANT EXECUTE ON FUNCTION upkeep.request_refresh TO evil"
    )
    conn.execute("CREATE SCHEMA evil AUTHORIZATION evil")
    with psycopg.connect(url, autocommit=True) as evil:
        evil.execute(
            "CREATE FUNCTION evil.octet_length(text) RETURNS int LANGUAGE plpgsql AS $$BEGIN RAISE 'mine'; END$$"
        )
        evil.execute("SET search_path = evil, pg_catalog")
        evil.execute("SELECT upkeep.request_refresh('public.v')")
    assert requests(conn) == ["public.v"]


def test_eight_writers_at_once_wait_for_nobody(upkeep_database, conn):
    """Each has its requests uncommitted while the others make theirs: a lock between them would time out."""

    def write(number: int) -> None:
        with psycopg.connect(upkeep_database.url, autocommit=True) as writer:
            writer.execute("SET lock_timeout = '2s'")
            for position in range(200):
                with writer.transaction(force_rollback=position % 4 == 3):
                    writer.execute("INSERT INTO public.t VALUES (%s)", [number])
                    writer.execute(CALL, [f"public.v{position % 3}"])

    idle = upkeep_database.connect()
    idle.execute("BEGIN")
    idle.execute(CALL, ["public.v0"])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    idle.execute("COMMIT")
    written = conn.execute("SELECT count(*) FROM public.t").fetchone()
    assert written == (8 * 150,)
    assert len(requests(conn)) == 8 * 150 + 1


def test_the_dispatchers_look_reads_the_index_and_not_the_rows(conn):
    conn.execute(
        "INSERT INTO upkeep.refresh_request (view) SELECT 'public.v' || i % 5 FROM generate_series(1, 50000) AS i;"
        " ANALYZE upkeep.refresh_request"
    )
    plan = conn.execute(
        """EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)
        WITH RECURSIVE asked AS (
            (SELECT view FROM upkeep.refresh_request ORDER BY view LIMIT 1)
            UNION ALL
            SELECT (SELECT r.view FROM upkeep.refresh_request r WHERE r.view > a.view ORDER BY r.view LIMIT 1)
              FROM asked a WHERE a.view IS NOT NULL
        )
        SELECT a.view, low.id, high.id
          FROM asked a
         CROSS JOIN LATERAL (SELECT id FROM upkeep.refresh_request WHERE view = a.view ORDER BY id LIMIT 1) low
         CROSS JOIN LATERAL (SELECT id FROM upkeep.refresh_request WHERE view = a.view ORDER BY id DESC LIMIT 1) high
        """
    ).fetchone()[0][0]["Plan"]
    assert plan["Actual Rows"] == 5
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 120
