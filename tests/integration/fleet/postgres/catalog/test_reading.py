"""Every way in which a source can change, and whether the counters tell."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest
from psycopg import sql

from fleet.postgres.catalog.reading import Reading, read_reading
from fleet.postgres.catalog.sources import read_sources
from tests import servers
from tests.integration.fleet.postgres.catalog.conftest import oid_of
from tests.servers import Database
from tests.waiting import wait_until

Connection = psycopg.Connection[Any]


class Watched:
    """A table `public.t` with 10 rows, read by a materialized view, with counters that have arrived."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.reader = database.connect()
        self.writer = database.connect()
        self.writer.execute(
            "CREATE TABLE t (id int PRIMARY KEY, note text);"
            "INSERT INTO t SELECT g, '' FROM generate_series(1, 10) g"
        )
        self.writer.execute("CREATE MATERIALIZED VIEW mv AS SELECT id, note FROM t")
        self.view = oid_of(self.reader, "mv")
        self.flush()
        oid = oid_of(self.reader, "t")
        wait_until(lambda: self.read([oid]).relations[oid].inserted == 10)

    def read(self, oids: Sequence[int] | None = None) -> Reading:
        if oids is None:
            oids = [s.oid for s in read_sources(self.reader, [self.view])[self.view]]
        return read_reading(self.reader, oids)

    def do(self, *statements: str) -> None:
        for statement in statements:
            self.writer.execute(statement)
        self.flush()

    def flush(self) -> None:
        """Publish the writer's counters: 15 and later on request, 14 when its session ends.

        Left alone, 14 publishes at the end of a statement that is half a second later than the last time, so
        those of a session that then falls silent stay unpublished until it says something again.
        """
        if self.writer.info.server_version >= 150_000:
            self.writer.execute("SELECT pg_stat_force_next_flush()")
        else:
            self.writer.close()
            self.writer = self.database.connect()

    def after(self, *statements: str) -> str:
        """What the counters say of some statements, once they have arrived."""
        earlier = self.read()
        self.do(*statements)
        return wait_until(lambda: self.read().difference(earlier) or "")


@pytest.fixture
def watched(database: Database) -> Watched:
    return Watched(database)


CHANGES = [
    ("INSERT INTO t VALUES (11, '')", "public.t: 1 row inserted"),
    ("INSERT INTO t SELECT g, '' FROM generate_series(1001, 6000) g", "public.t: 5,000 rows inserted"),
    ("UPDATE t SET note = 'x' WHERE id < 4", "public.t: 3 rows updated"),
    ("DELETE FROM t WHERE id < 3", "public.t: 2 rows deleted"),
    ("WITH gone AS (DELETE FROM t WHERE id = 1) INSERT INTO t VALUES (12, '')",
     "public.t: 1 row inserted, 1 row deleted"),
    ("INSERT INTO t VALUES (1, 'y') ON CONFLICT (id) DO UPDATE SET note = 'y'", "public.t: 1 row updated"),
    ("DO $$ BEGIN INSERT INTO t VALUES (13, ''); RAISE division_by_zero; EXCEPTION WHEN OTHERS THEN END $$",
     "public.t: 1 row inserted"),
    ("TRUNCATE t", "public.t: truncated or rewritten"),
    ("VACUUM FULL t", "public.t: truncated or rewritten"),
    ("CLUSTER t USING t_pkey", "public.t: truncated or rewritten"),
    ("ALTER TABLE t ADD COLUMN rolled float DEFAULT random()", "public.t: truncated or rewritten"),
    ("ALTER TABLE t SET UNLOGGED", "public.t: truncated or rewritten"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "said"), CHANGES, ids=[c[0] for c in CHANGES])
def test_a_change(watched: Watched, statement: str, said: str) -> None:
    assert watched.after(statement) == said


NO_CHANGES = [
    "SELECT count(*) FROM t",
    "ANALYZE t",
    "VACUUM t",
    "CREATE INDEX ON t (note)",
    "REINDEX TABLE t",
    "ALTER TABLE t ADD COLUMN extra int",
    "ALTER TABLE t RENAME TO renamed",
    "INSERT INTO t VALUES (1, '') ON CONFLICT DO NOTHING",
    "UPDATE t SET note = 'x' WHERE id < 0",
    "SELECT id FROM t FOR UPDATE",
    "REFRESH MATERIALIZED VIEW mv",
    "CREATE TABLE other AS SELECT 1 AS id",
    "SET track_counts = on",
]


@pytest.mark.parametrize("statement", NO_CHANGES)
def test_no_change(watched: Watched, statement: str) -> None:
    earlier = watched.read()
    watched.do(statement)
    # The counters of a later change have arrived, so those of the statement have as well.
    table = next(iter(earlier.relations))
    name = watched.read().relations[table].name
    watched.do(f"INSERT INTO {name} VALUES (99, 'arrived')")
    wait_until(lambda: watched.read().relations[table].inserted > 10)
    said = watched.read().difference(earlier)
    assert said == f"{name}: 1 row inserted"


def test_copy(watched: Watched) -> None:
    earlier = watched.read()
    with watched.writer.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
        copy.write("101\ta\n102\tb\n")
    watched.flush()
    said = wait_until(lambda: watched.read().difference(earlier))
    assert said == "public.t: 2 rows inserted"


def test_a_transaction_that_was_rolled_back_counts_and_that_is_only_one_refresh_too_many(
    watched: Watched,
) -> None:
    assert watched.after("BEGIN", "INSERT INTO t VALUES (50, '')", "ROLLBACK") == "public.t: 1 row inserted"


def test_two_phase_commit(watched: Watched) -> None:
    said = watched.after(
        "BEGIN", "INSERT INTO t VALUES (51, '')", "PREPARE TRANSACTION 'reading'", "COMMIT PREPARED 'reading'"
    )
    assert said == "public.t: 1 row inserted"


def test_the_statistics_are_reset(watched: Watched) -> None:
    assert watched.after("SELECT pg_stat_reset()") == "the statistics of the database were reset"


def test_one_tables_statistics_are_reset(watched: Watched) -> None:
    said = watched.after("SELECT pg_stat_reset_single_table_counters('t'::regclass)")
    assert said in {"the statistics of the database were reset", "public.t: the counters began anew"}


def test_dropped(watched: Watched) -> None:
    earlier = watched.read()
    (oid,) = earlier.relations
    watched.do("DROP TABLE t CASCADE")
    assert watched.read([oid]).difference(earlier) == f"the relation with OID {oid}: does not exist"
    gone = watched.read([oid])
    assert watched.read([oid]).difference(gone) is not None


def test_dropped_and_made_anew_under_the_same_name(watched: Watched) -> None:
    earlier = watched.read()
    watched.do(
        "DROP TABLE t CASCADE",
        "CREATE TABLE t (id int, note text)",
        "CREATE MATERIALIZED VIEW mv AS SELECT id FROM t",
    )
    watched.view = oid_of(watched.reader, "mv")
    assert watched.read().difference(earlier) == "public.t: a new source; public.t: no longer a source"


def test_odd_names_are_quoted(watched: Watched) -> None:
    watched.do(
        'CREATE SCHEMA "Schéma"',
        'ALTER TABLE t RENAME TO "my ""t"""',
        'ALTER TABLE "my ""t""" SET SCHEMA "Schéma"',
    )
    assert watched.after('TRUNCATE "Schéma"."my ""t"""') == '"Schéma"."my ""t""": truncated or rewritten'


def test_partitions(watched: Watched) -> None:
    watched.do(
        "CREATE TABLE p (id int, n int) PARTITION BY LIST (n)",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)",
        "CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2) PARTITION BY LIST (id)",
        "CREATE TABLE p2_1 PARTITION OF p2 FOR VALUES IN (1)",
        "CREATE MATERIALIZED VIEW over_p AS SELECT id FROM p",
    )
    watched.view = oid_of(watched.reader, "over_p")
    assert watched.after("INSERT INTO p VALUES (1, 1)") == "public.p1: 1 row inserted"
    assert watched.after("INSERT INTO p VALUES (1, 2)") == "public.p2_1: 1 row inserted"
    said = watched.after("UPDATE p SET n = 1 WHERE n = 2")
    assert set(said.split("; ")) <= {"public.p1: 1 row inserted", "public.p2_1: 1 row deleted"}
    wait_until(lambda: watched.read().relations[oid_of(watched.reader, "p2_1")].deleted == 1)
    assert watched.after("CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3)") == "public.p3: a new source"
    assert watched.after("ALTER TABLE p DETACH PARTITION p1") == "public.p1: no longer a source"
    assert (
        watched.after("TRUNCATE p")
        == "public.p2_1: truncated or rewritten; public.p3: truncated or rewritten"
    )


def test_many_changes_are_counted_not_named(watched: Watched) -> None:
    watched.do("CREATE TABLE p (id int) PARTITION BY LIST (id)")
    watched.do(*(f"CREATE TABLE p{n} PARTITION OF p FOR VALUES IN ({n})" for n in range(6)))
    watched.do("CREATE MATERIALIZED VIEW over_p AS SELECT id FROM p")
    watched.view = oid_of(watched.reader, "over_p")
    said = watched.after("TRUNCATE p")
    assert said.startswith("public.p0: truncated or rewritten; ")
    assert said.endswith("; and 3 more relations")


UNCOUNTABLE = [
    ("SELECT id FROM far", "public.far: a foreign table, whose changes cannot be counted"),
    ("SELECT last_value FROM s", "public.s: a sequence, whose changes cannot be counted"),
    (
        "SELECT oid FROM pg_class",
        "pg_catalog.pg_class: a relation of the system, whose changes cannot be counted",
    ),
]


@pytest.mark.parametrize(("definition", "said"), UNCOUNTABLE, ids=[u[0] for u in UNCOUNTABLE])
def test_what_cannot_be_counted_always_differs(watched: Watched, definition: str, said: str) -> None:
    watched.do(
        "CREATE SEQUENCE s",
        "CREATE FOREIGN DATA WRAPPER nowhere",
        "CREATE SERVER away FOREIGN DATA WRAPPER nowhere",
        "CREATE FOREIGN TABLE far (id int) SERVER away",
        f"CREATE MATERIALIZED VIEW other AS {definition} WITH NO DATA",
    )
    watched.view = oid_of(watched.reader, "other")
    earlier = watched.read()
    assert watched.read().difference(earlier) == said


def test_a_materialized_view_as_a_source(watched: Watched) -> None:
    watched.do("CREATE UNIQUE INDEX ON mv (id)", "CREATE MATERIALIZED VIEW top AS SELECT id FROM mv")
    watched.view = oid_of(watched.reader, "top")
    assert watched.after("REFRESH MATERIALIZED VIEW mv").endswith("refreshed")
    wait_until(lambda: watched.read().relations[oid_of(watched.reader, "mv")].inserted == 20)
    earlier = watched.read()
    watched.do("REFRESH MATERIALIZED VIEW CONCURRENTLY mv")  # nothing has changed
    watched.do("INSERT INTO t VALUES (77, '')", "REFRESH MATERIALIZED VIEW CONCURRENTLY mv")
    assert wait_until(lambda: watched.read().difference(earlier)) == "public.mv: 1 row inserted"


def test_counting_that_is_off_in_this_session(watched: Watched) -> None:
    earlier = watched.read()
    assert watched.read().difference(earlier) is None
    watched.reader.execute("SET track_counts = off")
    assert watched.read().difference(earlier) == "track_counts is off, changes are not counted"


@pytest.mark.parametrize("value", ["off", "false", "0", "no"])
def test_counting_that_is_off_for_somebody(watched: Watched, value: str) -> None:
    earlier = watched.read()
    here = sql.Identifier(watched.database.name)
    watched.writer.execute(
        sql.SQL("ALTER ROLE postgres IN DATABASE {} SET track_counts = {}").format(here, value)
    )
    assert watched.read().difference(earlier) == "track_counts is off, changes are not counted"
    watched.writer.execute(sql.SQL("ALTER ROLE postgres IN DATABASE {} SET track_counts = on").format(here))
    assert watched.read().difference(earlier) is None


def test_another_database(watched: Watched, new_database: Callable[..., Database]) -> None:
    with new_database().connect() as conn:
        said = read_reading(conn, []).difference(watched.read())
    assert said == "the earlier reading is of another database"


def test_in_a_transaction_the_counters_are_not_those_read_before(watched: Watched) -> None:
    with watched.reader.transaction():
        earlier = watched.read()
        assert watched.read().difference(earlier) is None
        watched.do("INSERT INTO t VALUES (60, '')")
        assert wait_until(lambda: watched.read().difference(earlier)) == "public.t: 1 row inserted"


def test_nothing_asked(watched: Watched) -> None:
    reading = watched.read([])
    assert reading.relations == {}
    assert watched.read([]).difference(reading) is None


def test_json_and_back(watched: Watched) -> None:
    reading = watched.read([*watched.read().relations, 4_000_000_000])
    stored = json.loads(json.dumps(reading.to_json()))
    assert Reading.from_json(stored) == reading
    watched.reader.execute("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'")
    again = Reading.from_json(stored)
    assert watched.read(list(watched.read().relations)).markers == again.markers
    assert watched.read().taken_at > again.taken_at


@pytest.fixture
def own_server() -> Iterator[Database]:
    with servers.new_postgres(restart_after_crash="on") as server:
        database = servers.create_database(server)
        yield database
        database.close_connections()


def read_again(database: Database, oids: Sequence[int]) -> Reading:
    """After a restart, as soon as the server answers."""

    def attempt() -> Reading | None:
        try:
            with psycopg.connect(database.url, autocommit=True) as conn:
                return read_reading(conn, oids)
        except psycopg.OperationalError:
            return None

    reading = wait_until(attempt, timeout=30)
    assert reading is not None
    return reading


def test_a_crash_that_the_postmaster_survives(own_server: Database) -> None:
    watched = Watched(own_server)
    earlier = watched.read()
    os.kill(watched.writer.info.backend_pid, signal.SIGKILL)

    def crashed() -> bool:
        # Until the postmaster has noticed, the old server still answers.
        return read_again(own_server, list(earlier.relations)).markers != earlier.markers

    wait_until(crashed, timeout=30)
    later = read_again(own_server, list(earlier.relations))
    assert later.markers.started_us == earlier.markers.started_us
    assert later.markers.crash_us != earlier.markers.crash_us
    # 14 begins the database's statistics anew as well, and says so.
    assert later.difference(earlier) in {
        "the statistics of the server were reset, by a crash or by hand",
        "the statistics of the database were reset",
    }


def test_a_restart(own_server: Database) -> None:
    watched = Watched(own_server)
    earlier = watched.read()
    own_server.close_connections()
    own_server.server.restart()
    later = read_again(own_server, list(earlier.relations))
    assert later.difference(earlier) == "the server was restarted"
