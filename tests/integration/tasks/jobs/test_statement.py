"""One statement on a real server: what is kept of what it returns, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors, generators, sql
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from fleet.errors import PermanentError
from tasks.jobs.statement import Effect, execute, parse
from tests.servers import Database
from tests.waiting import wait_until

pytestmark = pytest.mark.any_server


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection[Any]]:
    made = database.connect()
    made.execute("CREATE TABLE t AS SELECT i AS id, i::text AS s FROM generate_series(1, 10) i")
    with made.transaction(force_rollback=True):
        yield made


@pytest.mark.parametrize(
    ("statement", "effect"),
    [
        ("SELECT 5", Effect(command="SELECT", affected=1, columns=1, returned=1, first=5)),
        ("SELECT 5::bigint, 'x'", Effect(command="SELECT", affected=1, columns=2, returned=1, first=5)),
        ("SELECT 5::smallint;", Effect(command="SELECT", affected=1, columns=1, returned=1, first=5)),
        ("VALUES (3), (4)", Effect(command="SELECT", affected=2, columns=1, returned=2, first=3)),
        ("SELECT sum(id) FROM t", Effect(command="SELECT", affected=1, columns=1, returned=1, first=55)),
        (
            "SELECT sum(id::numeric) FROM t",
            Effect(command="SELECT", affected=1, columns=1, returned=1, first=55),
        ),
        ("SELECT id FROM t WHERE false", Effect(command="SELECT", affected=0, columns=1)),
        ("UPDATE t SET s = 'x' WHERE id > 4", Effect(command="UPDATE", affected=6)),
        ("DELETE FROM t WHERE s LIKE '%0'", Effect(command="DELETE", affected=1)),
        (
            "DELETE FROM t WHERE id > 8 RETURNING id",
            Effect(command="DELETE", affected=2, columns=1, returned=2, first=9),
        ),
        ("INSERT INTO t SELECT 11, 'y'", Effect(command="INSERT", affected=1)),
        (
            "WITH gone AS (DELETE FROM t RETURNING 1) SELECT count(*) FROM gone",
            Effect(command="SELECT", affected=1, columns=1, returned=1, first=10),
        ),
        ("CREATE TABLE u AS SELECT * FROM t", Effect(command="SELECT", affected=10)),
        ("CREATE TABLE v (id int)", Effect(command="CREATE TABLE")),
        ("DO $$ BEGIN PERFORM 1; END $$", Effect(command="DO")),
        ("-- nothing but a comment", Effect(command="")),
        (" ; ", Effect(command="")),
    ],
)
def test_what_is_kept(connection: psycopg.Connection[Any], statement: str, effect: Effect) -> None:
    assert execute(connection, statement) == effect
    # The session goes on.
    assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT NULL::int", "NULL (int4)"),
        ("SELECT 'hunter2'", "a value of type text"),
        ("SELECT true", "a value of type bool"),
        ("SELECT 1.5", "1.5 (numeric)"),
        ("SELECT 'NaN'::numeric", "NaN (numeric)"),
        ("SELECT 1::float8", "a value of type float8"),
        ("SELECT current_date", "a value of type date"),
        ("SELECT pg_notify('x', 'y')", "void"),
        ("SELECT FROM t LIMIT 1", "a row without columns"),
        ("SELECT '(1,2)'::point", "a value of type point"),
        ("SELECT t FROM t LIMIT 1", "a value of a type of its own"),
    ],
)
def test_what_is_no_number_is_named_and_not_quoted(
    connection: psycopg.Connection[Any], statement: str, shown: str
) -> None:
    effect = execute(connection, statement)
    assert (effect.returned, effect.first, effect.first_shown) == (1, None, shown)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("UPDATE t SET s = 'x'; DROP TABLE t", errors.SyntaxError),
        ("SELECT 1; SELECT 2", errors.SyntaxError),
        ("SELEC 1", errors.SyntaxError),
        ("SELECT missing()", errors.UndefinedFunction),
        ("SELECT 1 / (id - 5) FROM t", errors.DivisionByZero),
        ("VACUUM t", errors.ActiveSqlTransaction),
        ("SELECT $1", errors.IndeterminateDatatype),
    ],
)
def test_what_the_server_refuses(
    connection: psycopg.Connection[Any], statement: str, error: type[psycopg.Error]
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        execute(connection, statement)
    if error is errors.IndeterminateDatatype:
        # A parameter without a value: which of two errors it is depends on the version.
        assert caught.value.sqlstate in {"42P18", "08P01", "42P02"}
    else:
        assert isinstance(caught.value, error)
    assert connection.info.transaction_status is TransactionStatus.INERROR


@pytest.mark.parametrize("statement", ["COPY t TO STDOUT", "COPY t FROM STDIN"])
def test_a_copy_with_nobody_at_the_other_end(database: Database, statement: str) -> None:
    connection = database.connect()
    connection.execute("CREATE TABLE t AS SELECT 1 AS id")
    with pytest.raises(PermanentError, match="COPY"), connection.transaction():
        execute(connection, statement)
    assert connection.closed


def test_a_server_that_ends_the_session_has_said_why(database: Database) -> None:
    connection = database.connect()
    with pytest.raises(errors.AdminShutdown):
        execute(connection, "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(10)")


ALONE = """
import resource, sys, psycopg
from tasks.jobs.statement import execute
with psycopg.connect(sys.argv[1]) as connection:
    execute(connection, "SELECT 1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    effect = execute(connection, "SELECT i, repeat('x', 1000) FROM generate_series(1, 100000) i")
    print(effect.returned, effect.first, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_rows_are_not_kept(database: Database) -> None:
    """In a process of its own, whose peak is nobody else's: 100 MB pass through it."""
    said = subprocess.run(
        [sys.executable, "-c", ALONE, database.url], check=True, capture_output=True, text=True, timeout=60
    )
    returned, first, grown_kib = map(int, said.stdout.split())
    assert (returned, first) == (100_000, 1)
    assert grown_kib < 10_000


def sleeping(watcher: psycopg.Connection[Any], backend: int) -> bool:
    """Whether the server executes what a session has sent, as far as its pg_sleep()."""
    query = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    return bool(watcher.execute(query, [backend]).fetchall())


def test_a_statement_is_over_before_its_interruption_passes(
    database: Database,
) -> None:
    """Cancelled in the server and received to its end: the transaction can be rolled back, and need not be given up."""
    connection = database.connect()
    connection.execute("BEGIN")
    watcher, backend = database.connect(), connection.info.backend_pid

    def interrupt() -> None:
        wait_until(lambda: sleeping(watcher, backend))
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sender = threading.Thread(target=interrupt)
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(connection, "SELECT pg_sleep(30)")
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)
    assert connection.info.transaction_status is TransactionStatus.INERROR
    connection.execute("ROLLBACK")


class Interrupted(KeyboardInterrupt):
    """What a signal is made of."""


@pytest.fixture
def interrupt_within(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """What is raised, one after the other, within the generators that receive: where no waiting is interrupted."""
    coming: list[BaseException] = []
    fetch = generators.fetch

    def interrupted(server: PGconn) -> PQGen[PGresult | None]:
        result = yield from fetch(server)
        if coming:
            raise coming.pop(0)
        return result

    monkeypatch.setattr(generators, "fetch", interrupted)
    yield coming
    assert not coming


# Its rows come for days, one by one.
ENDLESS = "SELECT generate_series(1, 1000000000000)"


@pytest.mark.parametrize("interruption", [Interrupted(), SystemExit()])
def test_a_statement_is_over_also_when_its_receiving_is_interrupted(
    database: Database, interrupt_within: list[BaseException], interruption: BaseException
) -> None:
    """psycopg's own care is for a KeyboardInterrupt, and has no generator left to receive with."""
    connection = database.connect()
    connection.execute("BEGIN")
    interrupt_within.append(interruption)
    with pytest.raises(type(interruption)) as caught:
        execute(connection, ENDLESS)
    assert caught.value is interruption
    assert connection.info.transaction_status is TransactionStatus.INERROR
    connection.execute("ROLLBACK")
    assert execute(connection, "SELECT 1").first == 1


def test_another_interruption_passes_at_once(
    database: Database, interrupt_within: list[BaseException]
) -> None:
    """Nobody receives what was being cancelled: the connection is closed, and the server ends it by that."""

    class Another(Interrupted):
        pass

    connection = database.connect()
    connection.execute("BEGIN")
    interrupt_within += [Interrupted(), Another()]
    with pytest.raises(KeyboardInterrupt) as caught:
        execute(connection, ENDLESS)
    assert caught.type is Another
    assert connection.closed


UNCANCELLABLE = """
DO $$ BEGIN
    LOOP
        BEGIN
            PERFORM pg_sleep(30);
        EXCEPTION WHEN query_canceled THEN
            NULL;
        END;
    END LOOP;
END $$
"""


def test_a_statement_that_does_not_end_is_given_up_with_its_connection(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psycopg waits five seconds for it where it does; here the sending is interrupted, and the waiting is ours."""
    connection = database.connect()
    connection.execute("BEGIN")
    watcher, backend = database.connect(), connection.info.backend_pid
    send = generators.send

    def interrupted(server: PGconn) -> PQGen[None]:
        yield from send(server)
        wait_until(lambda: sleeping(watcher, backend))
        raise SystemExit

    monkeypatch.setattr(generators, "send", interrupted)
    try:
        with pytest.raises(SystemExit):
            execute(connection, UNCANCELLABLE)
        assert connection.closed
    finally:
        watcher.execute("SELECT pg_terminate_backend(%s)", [backend])


def test_parsing_executes_nothing(connection: psycopg.Connection[Any]) -> None:
    parse(connection, "DELETE FROM t")
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (10,)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("SELECT missing()", errors.UndefinedFunction),
        ("DELETE FROM nowhere", errors.UndefinedTable),
        ("SELECT 1; SELECT 2", errors.SyntaxError),
    ],
)
def test_parsing_finds_what_is_not_there(
    database: Database, statement: str, error: type[psycopg.Error]
) -> None:
    connection = database.connect()
    with pytest.raises(error):
        parse(connection, statement)
    # The session goes on.
    parse(connection, "SELECT 1")


def test_names_are_the_servers_to_look_up(connection: psycopg.Connection[Any]) -> None:
    connection.execute("CREATE SCHEMA elsewhere")
    connection.execute("CREATE TABLE elsewhere.u AS SELECT 7 AS id")
    connection.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier("elsewhere")))
    assert execute(connection, "SELECT id FROM u").first == 7
