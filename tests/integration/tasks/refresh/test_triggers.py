"""Triggers of on_write on a real server: each way to write a row behind a view requests its refresh, or is told."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from fleet.errors import TransientError
from fleet.names import RelationName
from fleet.postgres.catalog.triggers import TRIGGER_NAME, read_write_triggers
from tasks.refresh import trigger_ddl
from tasks.refresh.trigger_ddl import carry_out, follow_parent, look
from tasks.refresh.triggers import Action, State
from tests.conftest import NewRole
from tests.integration.tasks.refresh.conftest import System, view
from tests.servers import Database
from tests.waiting import wait_until

PATIENCE = timedelta(milliseconds=100)


def install(system: System) -> dict[str, Any]:
    """Bring them to what is declared; what became of each table."""
    lines = look(system.connection, system.settings).plan()
    return {
        deed.line.object: deed.error or deed.line.action
        for deed in carry_out(system.connection, lines, lock_timeout=PATIENCE)
    }


def states(system: System) -> dict[str, State]:
    return {line.object: line.state for line in look(system.connection, system.settings).plan()}


def taken(conn: psycopg.Connection[Any]) -> list[tuple[str, str | None]]:
    """The requests since the last look, with the table that was written."""
    rows = conn.execute(
        "WITH gone AS (DELETE FROM upkeep.refresh_request RETURNING id, view, source)"
        " SELECT view, source::regclass::text FROM gone ORDER BY id"
    )
    return rows.fetchall()


@pytest.fixture
def made(upkeep_database: Database) -> Callable[..., System]:
    """Runs a schema, and declares views of it with on_write (`off`: without)."""

    def make(schema: str, *views: str, off: tuple[str, ...] = ()) -> System:
        with upkeep_database.connect() as connection:
            connection.execute(schema)  # type: ignore[call-overload]
        return System(
            upkeep_database,
            [*(view(each, on_write=True) for each in views), *(view(each) for each in off)],
        )

    return make


PARTED = """
CREATE TABLE public.p (k int, n int, UNIQUE (k, n)) PARTITION BY LIST (k);
CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES IN (1);
CREATE TABLE public.p2 PARTITION OF public.p FOR VALUES IN (2) PARTITION BY LIST (n);
CREATE TABLE public.p21 PARTITION OF public.p2 DEFAULT;
CREATE MATERIALIZED VIEW public.all_of_it AS SELECT k, count(*) FROM public.p GROUP BY k;
CREATE MATERIALIZED VIEW public.one_of_it AS SELECT n FROM public.p1;
"""


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO public.t VALUES (100, 1)",
        "INSERT INTO public.t VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = 2",
        "UPDATE public.t SET n = n + 1",
        "DELETE FROM public.t WHERE id = 1",
        "TRUNCATE public.t",
        "WITH w AS (DELETE FROM public.t RETURNING id) SELECT count(*) FROM w",
        "INSERT INTO public.above VALUES (200, 1)",
        "DELETE FROM public.parent",
    ],
)
def test_each_kind_of_statement_requests_every_view_once(made, statement):
    system = made(
        "CREATE TABLE public.t (id int PRIMARY KEY, n int); INSERT INTO public.t VALUES (1, 1);"
        "CREATE TABLE public.parent (id int PRIMARY KEY); INSERT INTO public.parent VALUES (1), (2);"
        "ALTER TABLE public.t ADD FOREIGN KEY (n) REFERENCES public.parent ON DELETE CASCADE;"
        "CREATE VIEW public.above AS SELECT id, n FROM public.t;"
        'CREATE MATERIALIZED VIEW public."My ""View""" AS SELECT id FROM public.above;'
        "CREATE MATERIALIZED VIEW public.v AS SELECT n FROM public.t",
        'public."My ""View"""',
        "public.v",
    )
    assert install(system) == {"public.t": Action.INSTALL}
    with system.connection.transaction():
        system.connection.execute(statement)
        assert taken(system.connection) == [('public."My ""View"""', "t"), ("public.v", "t")]


def test_copy_and_merge(made):
    system = made(
        "CREATE TABLE public.t (id int); CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t",
        "public.v",
    )
    install(system)
    with system.connection.cursor().copy("COPY public.t FROM STDIN") as copy:
        copy.write_row((1,))
    assert taken(system.connection) == [("public.v", "t")]
    if system.connection.info.server_version >= 150000:
        system.connection.execute(
            "MERGE INTO public.t USING (VALUES (1), (2)) AS s (id) ON t.id = s.id"
            " WHEN MATCHED THEN UPDATE SET id = 3 WHEN NOT MATCHED THEN INSERT VALUES (s.id)"
        )
        assert taken(system.connection) == [("public.v", "t")]


def test_partitions_are_written_through_every_table_above_and_below(made):
    system = made(PARTED, "public.all_of_it", "public.one_of_it")
    both = ["public.all_of_it", "public.one_of_it"]
    assert install(system) == dict.fromkeys(
        ["public.p", "public.p1", "public.p2", "public.p21"], Action.INSTALL
    )
    for table, views in {
        "p": both,
        "p1": both,
        "p2": ["public.all_of_it"],
        "p21": ["public.all_of_it"],
    }.items():
        system.connection.execute(
            sql.SQL("INSERT INTO {} VALUES (%s, 1) ON CONFLICT DO NOTHING").format(
                sql.Identifier("public", table)
            ),
            [1 if table in {"p", "p1"} else 2],
        )
        written = None if table in {"p", "p2"} else table  # through a parent: nobody can say which child
        assert taken(system.connection) == [(each, written) for each in views]
    # A row that moves: the statement names the parent.
    system.connection.execute("UPDATE public.p SET k = 2, n = 2 WHERE k = 1")
    assert taken(system.connection) == [(each, None) for each in both]
    system.connection.execute("TRUNCATE public.p")
    assert {source for _, source in taken(system.connection)} == {None, "p1", "p21"}


def test_a_new_partition_has_none_until_it_is_told(made):
    system = made(PARTED, "public.all_of_it")
    install(system)
    system.connection.execute("CREATE TABLE public.p3 PARTITION OF public.p FOR VALUES IN (3)")
    system.connection.execute("INSERT INTO public.p3 VALUES (3, 1)")
    assert taken(system.connection) == []
    assert states(system)["public.p3"] is State.MISSING
    with system.connection.transaction():
        system.connection.execute("CREATE TABLE public.p4 (LIKE public.p)")
        views = follow_parent(
            system.connection, RelationName("public", "p4"), parent=RelationName("public", "p")
        )
        assert views == ("public.all_of_it",)
        system.connection.execute("ALTER TABLE public.p ATTACH PARTITION public.p4 FOR VALUES IN (4)")
    system.connection.execute("INSERT INTO public.p4 VALUES (4, 1)")
    assert taken(system.connection) == [("public.all_of_it", "p4")]
    assert install(system) == {"public.p3": Action.INSTALL}
    assert (
        follow_parent(system.connection, RelationName("public", "p4"), parent=RelationName("public", "p3x"))
        == ()
    )


def test_inheritance_children_and_parents(made):
    system = made(
        "CREATE TABLE public.mother (id int); CREATE TABLE public.child () INHERITS (public.mother);"
        "CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.child; INSERT INTO public.child VALUES (1)",
        "public.v",
    )
    assert install(system) == {"public.child": Action.INSTALL, "public.mother": Action.INSTALL}
    system.connection.execute("UPDATE public.mother SET id = 2")
    assert taken(system.connection) == [("public.v", None)]
    system.connection.execute("INSERT INTO public.child VALUES (3)")
    assert taken(system.connection) == [("public.v", "child")]


def test_names_of_every_kind(made):
    long = "ä" * 31 + "x"
    system = made(
        f'CREATE SCHEMA "Büro ""1"""; CREATE TABLE "Büro ""1""" ."{long}" (id int);'
        f'CREATE MATERIALIZED VIEW "Büro ""1""" ."a\\000b\\" AS SELECT id FROM "Büro ""1""" ."{long}"',
        '"Büro ""1"""."a\\000b\\"',
    )
    name = f'"Büro ""1""".{long}'
    assert install(system) == {name: Action.INSTALL}
    assert states(system) == {name: State.INSTALLED}
    [trigger] = read_write_triggers(system.connection)
    assert trigger.views == ('"Büro ""1"""."a\\000b\\"',)
    system.connection.execute(sql.SQL("INSERT INTO {} VALUES (1)").format(sql.Identifier('Büro "1"', long)))
    assert [each for each, _ in taken(system.connection)] == ['"Büro ""1"""."a\\000b\\"']


def test_what_is_behind_a_managed_upstream_view_and_an_unmanaged_one_is_told(made):
    schema = """
    CREATE TABLE public.t (id int); CREATE TABLE public.u (id int);
    CREATE MATERIALIZED VIEW public.base AS SELECT id FROM public.t;
    CREATE MATERIALIZED VIEW public.stray AS SELECT id FROM public.u;
    CREATE FUNCTION public.f() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM public.u';
    CREATE FOREIGN DATA WRAPPER dummy; CREATE SERVER far FOREIGN DATA WRAPPER dummy;
    CREATE FOREIGN TABLE public.ft (id int) SERVER far;
    CREATE SEQUENCE public.s;
    CREATE UNLOGGED TABLE public.quick (id int);
    CREATE MATERIALIZED VIEW public.top AS
        SELECT b.id, public.f() AS f, (SELECT last_value FROM public.s) AS s, (SELECT count(*) FROM pg_class) AS c
          FROM public.base b JOIN public.stray USING (id) JOIN public.quick USING (id) LEFT JOIN public.ft USING (id)
          WITH NO DATA;
    """
    system = made(schema, "public.top", off=("public.base",))
    assert install(system) == {"public.quick": Action.INSTALL, "public.t": Action.INSTALL}
    assert states(system) == {
        "public.quick": State.INSTALLED,
        "public.t": State.INSTALLED,
        "public.stray": State.IMPOSSIBLE,
        "public.f()": State.IMPOSSIBLE,
        "public.ft": State.IMPOSSIBLE,
        "public.s": State.IMPOSSIBLE,
        "pg_catalog.pg_class": State.IMPOSSIBLE,
    }


def test_a_loop_in_one_transaction_makes_one_row_and_savepoints_lose_none(made):
    system = made(
        "CREATE TABLE public.t (id int); CREATE TABLE public.u (id int);"
        "CREATE MATERIALIZED VIEW public.v AS SELECT t.id FROM public.t, public.u",
        "public.v",
    )
    install(system)
    conn = system.connection
    conn.execute("DO $$BEGIN FOR i IN 1 .. 1000 LOOP INSERT INTO public.t VALUES (i); END LOOP; END$$")
    assert taken(conn) == [("public.v", "t")]
    with conn.transaction():
        with conn.transaction(force_rollback=True):
            conn.execute("INSERT INTO public.t VALUES (1)")
        conn.execute("INSERT INTO public.t VALUES (2)")
    assert taken(conn) == [("public.v", "t")]
    conn.execute(
        "DO $$BEGIN BEGIN INSERT INTO public.t VALUES (1); RAISE 'x'; EXCEPTION WHEN OTHERS THEN END;"
        " INSERT INTO public.t VALUES (2); INSERT INTO public.u VALUES (1); INSERT INTO public.t VALUES (3); END$$"
    )
    assert taken(conn) == [("public.v", "t"), ("public.v", "u"), ("public.v", "t")]
    with conn.transaction(force_rollback=True):
        conn.execute("INSERT INTO public.t VALUES (1)")
    assert taken(conn) == []
    conn.execute("INSERT INTO public.t VALUES (1)")
    conn.execute("INSERT INTO public.t VALUES (1)")
    assert len(taken(conn)) == 2


def test_in_a_prepared_transaction(made):
    system = made(
        "CREATE TABLE public.t (id int); CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t",
        "public.v",
    )
    install(system)
    system.connection.execute("BEGIN; INSERT INTO public.t VALUES (1); PREPARE TRANSACTION 'noted'")
    assert taken(system.connection) == []
    system.connection.execute("COMMIT PREPARED 'noted'")
    assert taken(system.connection) == [("public.v", "t")]


def test_a_writer_without_any_right_on_our_schema(made, role: NewRole, upkeep_database):
    system = made(
        "CREATE TABLE public.t (id int); CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t",
        "public.v",
    )
    install(system)
    url = role(upkeep_database, "writer")
    system.connection.execute("GRANT INSERT ON public.t TO writer; REVOKE ALL ON SCHEMA upkeep FROM PUBLIC")
    with psycopg.connect(url, autocommit=True) as writer:
        writer.execute("INSERT INTO public.t VALUES (1)")
        with pytest.raises(errors.InsufficientPrivilege):
            writer.execute("SELECT upkeep.request_refresh('public.v')")
        writer.execute("CREATE TEMPORARY TABLE mine (id int)")
        with pytest.raises(errors.InsufficientPrivilege):
            writer.execute(
                "CREATE TRIGGER x AFTER INSERT ON mine FOR EACH STATEMENT EXECUTE FUNCTION upkeep.note_write()"
            )
    assert taken(system.connection) == [("public.v", "t")]


def test_eight_writers_lose_nothing_and_wait_for_nobody(made, upkeep_database):
    system = made(
        "CREATE TABLE public.t (id int); CREATE TABLE public.u (id int);"
        "CREATE MATERIALIZED VIEW public.v AS SELECT t.id FROM public.t, public.u;"
        "CREATE MATERIALIZED VIEW public.w AS SELECT id FROM public.t",
        "public.v",
        "public.w",
    )
    install(system)

    def write(number: int) -> None:
        with psycopg.connect(upkeep_database.url, autocommit=True) as writer:
            writer.execute("SET lock_timeout = '2s'")
            for position in range(100):
                with writer.transaction(force_rollback=position % 5 == 4):
                    for table in ("t", "u") if number % 2 else ("u", "t"):
                        writer.execute(
                            sql.SQL("INSERT INTO {} VALUES (%s)").format(sql.Identifier("public", table)),
                            [number],
                        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(taken(system.connection)) == 8 * 80 * 3


def test_where_they_do_not_fire(made, upkeep_database):
    """As the reference says: session_replication_role, DISABLE, and what is no statement on the table."""
    system = made(PARTED, "public.all_of_it")
    install(system)
    conn = system.connection
    conn.execute("SET session_replication_role = replica")
    conn.execute("INSERT INTO public.p VALUES (1, 1)")
    conn.execute("RESET session_replication_role")
    conn.execute("CREATE TABLE public.p5 (LIKE public.p); INSERT INTO public.p5 VALUES (5, 1)")
    conn.execute("ALTER TABLE public.p ATTACH PARTITION public.p5 FOR VALUES IN (5)")
    conn.execute("ALTER TABLE public.p DETACH PARTITION public.p5")
    conn.execute("DROP TABLE public.p1 CASCADE")
    conn.execute("ALTER TABLE public.p DISABLE TRIGGER upkeep_on_write")
    conn.execute("INSERT INTO public.p VALUES (2, 1)")
    assert taken(conn) == []
    assert states(system)["public.p"] is State.DISABLED
    assert install(system) == {}
    conn.execute("ALTER TABLE public.p ENABLE ALWAYS TRIGGER upkeep_on_write")
    assert states(system)["public.p"] is State.INSTALLED
    # A statement that changes no row is one that writes, for a statement-level trigger.
    conn.execute("UPDATE public.p SET n = 1 WHERE k = 2 AND n = 77")
    assert taken(conn) == [("public.all_of_it", None)]


def test_a_change_of_the_declaration_adds_changes_and_removes(made):
    system = made(
        "CREATE TABLE public.t (id int); CREATE TABLE public.u (id int);"
        "CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t;"
        "CREATE MATERIALIZED VIEW public.w AS SELECT t.id FROM public.t, public.u",
        "public.v",
        "public.w",
    )
    assert install(system) == dict.fromkeys(["public.t", "public.u"], Action.INSTALL)
    assert install(system) == {}
    system.settings = system.settings.model_copy(
        update={"views": {RelationName("public", "v"): view("public.v", on_write=True)}}
    )
    assert states(system) == {"public.t": State.OUTDATED, "public.u": State.LEFTOVER}
    assert install(system) == {"public.t": Action.REPLACE, "public.u": Action.REMOVE}
    [trigger] = read_write_triggers(system.connection)
    assert (trigger.table_name, trigger.views, trigger.name) == (
        RelationName("public", "t"),
        ("public.v",),
        TRIGGER_NAME,
    )
    system.connection.execute("ALTER TRIGGER upkeep_on_write ON public.t RENAME TO other")
    assert install(system) == {"public.t": Action.REPLACE}
    assert [each.name for each in read_write_triggers(system.connection)] == [TRIGGER_NAME]


def test_somebody_elses_triggers_stay(made):
    system = made(
        "CREATE TABLE public.t (id int); CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t;"
        "CREATE FUNCTION public.note_write() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER upkeep_on_write AFTER INSERT ON public.t EXECUTE FUNCTION public.note_write()",
        "public.v",
    )
    assert states(system) == {"public.t": State.FORBIDDEN}
    assert install(system) == {}
    assert look(system.connection, system.settings).without(None) == []


def test_a_busy_table_is_reported_and_the_others_are_done(made, upkeep_database, monkeypatch):
    monkeypatch.setattr(trigger_ddl, "TRIES", 2)
    system = made(
        "CREATE TABLE public.a (id int); CREATE TABLE public.z (id int);"
        "CREATE MATERIALIZED VIEW public.v AS SELECT a.id FROM public.a, public.z",
        "public.v",
    )
    holder = upkeep_database.connect()
    holder.execute("BEGIN; LOCK public.a IN ROW EXCLUSIVE MODE")
    done = install(system)
    assert isinstance(done["public.a"], TransientError)
    assert "public.a was busy" in done["public.a"].message
    assert done["public.z"] is Action.INSTALL
    # A reader's lock is not in the way.
    holder.execute("COMMIT; BEGIN; LOCK public.a IN ACCESS SHARE MODE")
    assert install(system) == {"public.a": Action.INSTALL}


def test_it_waits_its_turn_when_the_table_is_busy_for_a_moment(made, upkeep_database):
    system = made(
        "CREATE TABLE public.t (id int); CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t",
        "public.v",
    )
    holder = upkeep_database.connect()
    holder.execute("BEGIN; LOCK public.t IN ROW EXCLUSIVE MODE")
    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(install, system)
        watcher = upkeep_database.connect()
        wait_until(
            lambda: watcher.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone(), message="a waiter"
        )
        wait_until(
            lambda: not watcher.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone(),
            message="that it gives up for a moment",
        )
        holder.execute("COMMIT")
        assert doing.result() == {"public.t": Action.INSTALL}


def test_a_role_with_the_privilege_trigger_installs_and_replaces_but_does_not_drop(
    made, role, upkeep_database
):
    system = made(
        "CREATE TABLE public.t (id int); CREATE TABLE public.u (id int);"
        "CREATE MATERIALIZED VIEW public.v AS SELECT t.id FROM public.t, public.u",
        "public.v",
    )
    url = role(upkeep_database, "fleet")
    system.connection.execute(
        "GRANT USAGE ON SCHEMA upkeep TO fleet; GRANT SELECT ON ALL TABLES IN SCHEMA upkeep TO fleet;"
        "GRANT EXECUTE ON FUNCTION upkeep.note_write TO fleet; GRANT TRIGGER ON public.t TO fleet"
    )
    system.connection.close()
    system.connection = psycopg.connect(url, autocommit=True)
    assert states(system) == {"public.t": State.MISSING, "public.u": State.FORBIDDEN}
    assert install(system) == {"public.t": Action.INSTALL}
    system.settings = system.settings.model_copy(update={"views": {}})
    [line] = look(system.connection, system.settings).plan()
    assert (line.state, line.remedy) == (
        State.LEFTOVER,
        'DROP TRIGGER "upkeep_on_write" ON "public"."t";',
    )


KILLED = """
import sys
import psycopg
from fleet.names import RelationName
from fleet.postgres.connect import connect
from tasks.refresh.trigger_ddl import carry_out, look
from tests.integration.tasks.refresh.conftest import System, view
from tests.servers import Database
from fleet import settings
from pydantic import SecretStr
from datetime import timedelta
url = sys.argv[1]
declared = view("public.v", on_write=True)
database = settings.Database(name="kept", url=SecretStr(url), views={declared.name: declared})
connection = connect(url, application_name="upkeep/test")
lines = look(connection, database).plan()
for deed in carry_out(connection, lines, lock_timeout=timedelta(seconds=5)):
    print(deed.line.object, flush=True)
"""


def test_killed_in_the_middle_and_run_again(made, upkeep_database):
    system = made(
        "CREATE TABLE public.a (id int); CREATE TABLE public.b (id int); CREATE TABLE public.c (id int);"
        "CREATE MATERIALIZED VIEW public.v AS SELECT a.id FROM public.a, public.b, public.c",
        "public.v",
    )
    holder = upkeep_database.connect()
    holder.execute("BEGIN; LOCK public.b IN ROW EXCLUSIVE MODE")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, upkeep_database.url],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[4],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "public.a\n"
        process.send_signal(signal.SIGKILL)
    holder.execute("COMMIT")
    watcher = upkeep_database.connect()
    wait_until(
        lambda: (
            not watcher.execute(
                "SELECT 1 FROM pg_locks WHERE relation = 'public.b'::regclass AND mode = 'ShareRowExclusiveLock'"
            ).fetchone()
        ),
        message="the server to notice",
    )
    assert set(install(system)) >= {"public.c"}
    assert set(states(system).values()) == {State.INSTALLED}


def test_a_dump_brings_them_back_and_its_data_request_nothing(made, upkeep_database, new_database, tmp_path):
    system = made(
        "CREATE TABLE public.t (id int); INSERT INTO public.t VALUES (1);"
        "CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t",
        "public.v",
    )
    install(system)
    bin_dir = upkeep_database.server.bin_dir
    if not (bin_dir / "pg_dump").exists():
        pytest.skip("this installation has no pg_dump")
    dump = tmp_path / "dump.sql"
    subprocess.run([bin_dir / "pg_dump", "-f", dump, upkeep_database.url], check=True)
    copy = new_database()
    subprocess.run(
        [bin_dir / "psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", dump, copy.url],
        check=True,
        capture_output=True,
    )
    conn = copy.connect()
    assert taken(conn) == []
    conn.execute("INSERT INTO public.t VALUES (2)")
    assert taken(conn) == [("public.v", "t")]


def test_logical_replication_applies_without_them(made, new_database, upkeep_database):
    """The apply worker fires no statement-level triggers, not even those that are enabled always."""
    schema = "CREATE TABLE public.t (id int PRIMARY KEY); CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t"
    system = made(schema, "public.v")
    install(system)
    system.connection.execute("ALTER TABLE public.t ENABLE ALWAYS TRIGGER upkeep_on_write")
    source = new_database()
    publisher = source.connect()
    publisher.execute("CREATE TABLE public.t (id int PRIMARY KEY)")
    publisher.execute("CREATE PUBLICATION p FOR TABLE public.t")
    publisher.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
    subscriber = upkeep_database.connect()
    subscriber.execute(
        sql.SQL(
            "CREATE SUBSCRIPTION s CONNECTION {} PUBLICATION p "
            "WITH (create_slot = false, slot_name = 's', copy_data = false)"
        ).format(sql.Literal(source.url))
    )
    try:
        publisher.execute("INSERT INTO public.t VALUES (1)")
        wait_until(
            lambda: subscriber.execute("SELECT count(*) FROM public.t").fetchone() == (1,),
            timeout=30,
            message="the row to arrive",
        )
        assert taken(subscriber) == []
    finally:
        subscriber.execute("ALTER SUBSCRIPTION s DISABLE")
        subscriber.execute("ALTER SUBSCRIPTION s SET (slot_name = NONE)")
        subscriber.execute("DROP SUBSCRIPTION s")
