"""The class of a definition, for every way in which something besides rows gets into one."""
# ruff: noqa: E501  (one definition per line: folded SQL cannot be searched for)

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from fleet.names import RelationName
from fleet.postgres.catalog.definition import Definition, DefinitionClass, read_definitions
from tests import servers
from tests.conftest import NewRole
from tests.servers import Database
from worker.embedded.postgres import EmbeddedPostgres

SCHEMA = """
CREATE TABLE payment (id int PRIMARY KEY, loan_id int, amount numeric, paid_at timestamptz, paid_on date,
                      note text, method char(3), tags text[], data jsonb, took interval);
CREATE TYPE status AS ENUM ('open', 'closed');
CREATE TABLE loan (id int PRIMARY KEY, status status, since timestamp);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);

CREATE FUNCTION pure(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + 1';
CREATE FUNCTION reads(int) RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM payment WHERE id > $1';
CREATE FUNCTION rolls() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 4; END';
CREATE FUNCTION "Odd ""fn" () RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
CREATE FUNCTION many(int) RETURNS SETOF int LANGUAGE sql STABLE AS 'SELECT generate_series(1, $1)';
CREATE FUNCTION close_to(int, int) RETURNS bool LANGUAGE sql STABLE AS 'SELECT abs($1 - $2) < 2';
CREATE OPERATOR =~= (LEFTARG = int, RIGHTARG = int, FUNCTION = close_to);
CREATE FUNCTION shaky_add(bigint, int) RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT $1 + $2';
CREATE AGGREGATE shaky_sum(int) (SFUNC = shaky_add, STYPE = bigint, INITCOND = '0');
CREATE FUNCTION firm_add(bigint, int) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2';
CREATE AGGREGATE firm_sum(int) (SFUNC = firm_add, STYPE = bigint, INITCOND = '0');
CREATE FUNCTION now(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';

CREATE VIEW stamped AS SELECT id, now() AS seen_at, amount FROM payment;
CREATE VIEW stamped_again AS SELECT id, seen_at AS as_of FROM stamped;
CREATE VIEW today AS SELECT * FROM payment WHERE paid_on = CURRENT_DATE;
CREATE VIEW printed AS SELECT id, to_char(paid_at, 'YYYY') AS year FROM payment;
CREATE VIEW plain AS SELECT id, loan_id FROM payment;
"""

# definition, class, evidence
DEFINITIONS = [
    # rows alone
    ("SELECT 1 AS one", "data", ()),
    ("SELECT loan_id, sum(amount), count(*), max(paid_at) FROM payment GROUP BY loan_id", "data", ()),
    ("SELECT id, paid_on - 3 AS d, paid_on + interval '1 day' AS n FROM payment", "data", ()),
    ("SELECT id, id::text AS t, note::varchar(3) AS v, method::text AS m FROM payment", "data", ()),
    ("SELECT id, upper(note), row_number() OVER (PARTITION BY loan_id ORDER BY paid_at) FROM payment", "data", ()),
    ("SELECT pure(id) FROM payment", "data", ()),
    ("SELECT firm_sum(id) FROM payment", "data", ()),
    ("SELECT id FROM payment WHERE (loan_id, id) > (1, 2)", "data", ()),
    ("SELECT id FROM payment WHERE note LIKE '%now()%' OR note = 'random() CURRENT_DATE'", "data", ()),
    ('SELECT id AS "now()", loan_id AS "CURRENT_TIMESTAMP" FROM payment', "data", ()),
    ("SELECT now(id) FROM payment", "data", ()),
    ("SELECT timestamptz '2024-01-01 00:00:00Z' AS t, date 'today' AS when_created FROM payment", "data", ()),
    ("SELECT paid_at AT TIME ZONE 'UTC' AS utc, date_trunc('day', since) AS d FROM payment, loan", "data", ()),
    ("SELECT pg_typeof(id)::oid::int AS t FROM payment", "settings", ("pg_typeof()",)),
    ("SELECT * FROM plain", "data", ()),
    ("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT n FROM t", "data", ()),
    ("SELECT age(since, timestamp '2020-01-01') FROM loan", "data", ()),
    ("SELECT data->>'a' AS a, tags[1] AS first, jsonb_array_length(data) FROM payment", "data", ()),
    ("SELECT i.id FROM payment i, generate_series(1, 3) g", "data", ()),
    ("SELECT id::positive AS p FROM payment", "data", ()),
    # how it is printed, parsed, added
    ("SELECT to_char(paid_at, 'YYYY-MM') FROM payment", "settings", ("to_char()",)),
    ("SELECT paid_at + interval '1 day' AS t FROM payment", "settings", ("timestamptz_pl_interval()",)),
    ("SELECT date_trunc('day', paid_at) AS t FROM payment", "settings", ("date_trunc()",)),
    ("SELECT paid_at::date AS d FROM payment", "settings", ("date()",)),
    ("SELECT note::date AS d FROM payment", "settings", ("date_in()",)),
    ("SELECT paid_on::text AS t FROM payment", "settings", ("date_out()",)),
    ("SELECT status::text AS t FROM loan", "settings", ("enum_out()",)),
    ("SELECT tags::text AS t FROM payment", "settings", ("array_out()",)),
    ("SELECT id FROM payment WHERE paid_at > paid_on", "settings", ("timestamptz_gt_date()",)),
    ("SELECT id FROM payment WHERE (paid_at, id) > (paid_on, 1)", "settings", ("timestamptz_gt_date()",)),
    ("SELECT json_agg(payment) FROM payment", "settings", ("json_agg()",)),
    ("SELECT id FROM payment WHERE to_tsvector(note) @@ to_tsquery('a')", "settings", ("to_tsquery()", "to_tsvector()")),
    ("SELECT concat(id, note) FROM payment", "settings", ("concat()",)),
    ("SELECT x.a FROM payment, XMLTABLE('/a' PASSING xmlparse(content note) COLUMNS a date) x", "settings", None),
    ("SELECT year FROM printed", "settings", ("to_char()",)),
    ("SELECT id FROM payment WHERE note::date = ANY (ARRAY['2024-01-01'::text::date])", "settings", ("date_in()",)),
    # CURRENT_DATE is the only clock
    ("SELECT id FROM payment WHERE paid_on = CURRENT_DATE", "date", ("CURRENT_DATE",)),
    ("SELECT id, CURRENT_DATE - paid_on AS days FROM payment", "date", ("CURRENT_DATE",)),
    ("SELECT to_char(CURRENT_DATE, 'YYYY') AS y, id FROM payment", "date", ("CURRENT_DATE",)),
    ("SELECT id FROM payment WHERE paid_on = ('now'::text)::date", "date", ("'now'",)),
    ("SELECT id FROM today", "date", ("CURRENT_DATE",)),
    # the time of the refresh
    ("SELECT id, now() AS t FROM payment", "time", ("now()",)),
    ("SELECT id FROM payment WHERE paid_at > CURRENT_TIMESTAMP - interval '1 hour'", "time", ("CURRENT_TIMESTAMP",)),
    ("SELECT id FROM payment WHERE paid_on = now()::date", "time", ("now()",)),
    ("SELECT id, LOCALTIMESTAMP(0) AS t FROM payment", "time", ("LOCALTIMESTAMP",)),
    ("SELECT id, CURRENT_TIME AS t, LOCALTIME AS l FROM payment", "time", ("CURRENT_TIME", "LOCALTIME")),
    ("SELECT clock_timestamp() AS t", "time", ("clock_timestamp()",)),
    ("SELECT statement_timestamp() AS s, transaction_timestamp() AS t, timeofday() AS d", "time",
     ("statement_timestamp()", "timeofday()", "transaction_timestamp()")),
    ("SELECT age(paid_at) FROM payment", "time", ("age()",)),
    ("SELECT id, ('now'::text)::timestamptz AS t FROM payment", "time", ("'now'",)),
    ("SELECT id FROM payment WHERE paid_on > ('yesterday'::varchar)::timestamp", "time", ("'yesterday'",)),
    ("SELECT CURRENT_DATE AS d, now() AS t", "time", ("now()",)),
    ("SELECT id FROM payment WHERE EXISTS (SELECT 1 FROM loan WHERE since < LOCALTIMESTAMP)", "time", ("LOCALTIMESTAMP",)),
    ("WITH a AS (SELECT id FROM payment WHERE paid_at < now()) SELECT id FROM a", "time", ("now()",)),
    ("SELECT count(*) FILTER (WHERE paid_at < now()) FROM payment", "time", ("now()",)),
    ("SELECT sum(amount) OVER (ORDER BY age(paid_at)) FROM payment", "time", ("age()",)),
    ("SELECT p.id FROM payment p JOIN loan l ON l.since < now() AND l.id = p.loan_id", "time", ("now()", )),
    ("SELECT id FROM stamped_again", "time", ("now()",)),
    ("SELECT id FROM payment GROUP BY id HAVING max(paid_at) < now()", "time", ("now()",)),
    ("SELECT id FROM payment UNION ALL SELECT extract(epoch FROM now())::int", "time", ("now()",)),
    ("VALUES (1, now())", "time", ("now()",)),
    ("SELECT id FROM payment ORDER BY paid_at - now()", "time", ("now()",)),
    ("SELECT t FROM payment, LATERAL (SELECT now() AS t) x", "time", ("now()",)),
    # a user's own function
    ("SELECT reads(id) FROM payment", "opaque", ("public.reads()",)),
    ('SELECT "Odd ""fn"() AS n', "opaque", ('public."Odd ""fn"()',)),
    ("SELECT m FROM many(3) AS m", "opaque", ("public.many()",)),
    ("SELECT id FROM payment WHERE id =~= loan_id", "opaque", ("public.close_to()",)),
    ("SELECT id FROM payment WHERE id =~= ANY (ARRAY[1, 2])", "opaque", ("public.close_to()",)),
    ("SELECT reads(id), now() FROM payment", "opaque", ("public.reads()",)),
    # anything at all
    ("SELECT id, random() AS r FROM payment", "volatile", ("random()",)),
    ("SELECT id FROM payment TABLESAMPLE system (10)", "volatile", ("TABLESAMPLE",)),
    ("SELECT id FROM payment TABLESAMPLE bernoulli (10) REPEATABLE (1)", "volatile", ("TABLESAMPLE",)),
    ("SELECT gen_random_uuid() AS u, id FROM payment", "volatile", ("gen_random_uuid()",)),
    ("SELECT rolls() AS r, now() AS t, reads(1) AS n", "volatile", ("public.rolls()",)),
    ("SELECT shaky_sum(id) FROM payment", "volatile", ("public.shaky_add()",)),
    ("SELECT shaky_sum(id) OVER () FROM payment", "volatile", ("public.shaky_add()",)),
    ("SELECT id FROM payment WHERE id > (SELECT random() * 10)", "volatile", ("random()",)),
    ("SELECT id, pg_relation_size('payment') AS size FROM payment", "volatile", ("pg_relation_size()",)),
    # who asks, and whom
    ("SELECT id FROM payment WHERE note = CURRENT_USER", "session", ("CURRENT_USER",)),
    ("SELECT id FROM payment WHERE note = SESSION_USER OR note = CURRENT_SCHEMA", "session",
     ("CURRENT_SCHEMA", "SESSION_USER")),
    ("SELECT current_setting('TimeZone') AS zone", "session", ("current_setting()",)),
    ("SELECT id FROM payment WHERE note = current_setting('app.tenant', true)", "session", ("current_setting()",)),
    ("SELECT pg_backend_pid() AS pid", "session", ("pg_backend_pid()",)),
    ("SELECT version() AS v", "session", ("version()",)),
    ("SELECT CURRENT_DATE AS d, CURRENT_USER AS u", "session", ("CURRENT_USER",)),
    ("SELECT to_regclass(note) IS NULL AS gone FROM payment", "session", ("to_regclass()",)),
    ("SELECT has_table_privilege('payment', 'SELECT') AS may", "session", ("has_table_privilege()",)),
    ("SELECT table_to_xml('payment', true, false, '')::text AS x", "session", ("table_to_xml()",)),
]  # fmt: skip


@pytest.fixture(scope="module")
def home(postgres_server: EmbeddedPostgres) -> Iterator[Database]:
    """One database for all definitions; each test rolls back what it does there."""
    made = servers.create_database(postgres_server)
    made.connect().execute(SCHEMA)
    yield made
    servers.drop_database(made)


@pytest.fixture
def conn(home: Database) -> Iterator[psycopg.Connection[Any]]:
    connection = home.connect(autocommit=False)
    yield connection
    connection.close()


def create(conn: psycopg.Connection[Any], definition: str, name: str = "mv", columns: str = "") -> int:
    view = RelationName("public", name).identifier()
    statement = sql.SQL("CREATE MATERIALIZED VIEW {} {} AS {} WITH NO DATA")
    conn.execute(statement.format(view, sql.SQL(columns), sql.SQL(definition)))
    row = conn.execute("SELECT oid FROM pg_class WHERE relname = %s", [name]).fetchone()
    assert row is not None
    return int(row[0])


def read(conn: psycopg.Connection[Any], oid: int) -> Definition:
    found = read_definitions(conn, [oid])
    assert list(found) == [oid]
    return found[oid]


@pytest.mark.parametrize(("definition", "kind", "evidence"), DEFINITIONS, ids=[d[0] for d in DEFINITIONS])
def test_class(
    conn: psycopg.Connection[Any], definition: str, kind: str, evidence: tuple[str, ...] | None
) -> None:
    found = read(conn, create(conn, definition))
    assert found.kind == kind
    assert evidence in {None, found.evidence}


# from which major version on, definition, class, evidence
NEWER = [
    (16, "SELECT JSON_OBJECT('at': paid_at) AS o FROM payment", "settings", ("SQL/JSON",)),
    (16, "SELECT JSON_ARRAYAGG(paid_at) AS o FROM payment", "settings", None),
    (16, "SELECT SYSTEM_USER AS u", "session", ("system_user()",)),
    (17, "SELECT JSON_VALUE(data, '$.a') AS a FROM payment", "settings", None),
    (17, "SELECT t.a FROM payment, JSON_TABLE(data, '$[*]' COLUMNS (a date PATH '$.a')) t", "settings", None),
    (17, "SELECT paid_at AT LOCAL AS a FROM payment", "settings", ("timezone()",)),
]


@pytest.mark.parametrize(("version", "definition", "kind", "evidence"), NEWER, ids=[d[1] for d in NEWER])
def test_class_of_newer_syntax(
    conn: psycopg.Connection[Any],
    version: int,
    definition: str,
    kind: str,
    evidence: tuple[str, ...] | None,
) -> None:
    if conn.info.server_version < version * 10_000:
        pytest.skip(f"PostgreSQL {version}'s syntax")
    found = read(conn, create(conn, definition))
    assert found.kind == kind
    assert evidence in {None, found.evidence}


def test_xml(conn: psycopg.Connection[Any]) -> None:
    try:
        oid = create(conn, "SELECT xmlelement(name a, paid_at)::text FROM payment")
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server is built without libxml")
    assert read(conn, oid).kind == "settings"


def test_all_at_once_as_one_by_one(conn: psycopg.Connection[Any]) -> None:
    kinds = {create(conn, definition, f"mv{n}"): kind for n, (definition, kind, _) in enumerate(DEFINITIONS)}
    assert {oid: d.kind for oid, d in read_definitions(conn).items()} == kinds


def test_skippable_classes() -> None:
    assert {kind for kind in DefinitionClass if kind.skippable} == {"date", "settings", "data"}


def test_oids_that_are_no_materialized_views_are_left_out(conn: psycopg.Connection[Any]) -> None:
    oid = create(conn, "SELECT 1 AS one")
    assert list(read_definitions(conn, [oid, 1, 4_000_000_000])) == [oid]
    assert read_definitions(conn, []) == {}


def test_alter_function_changes_the_class_without_a_new_tree(conn: psycopg.Connection[Any]) -> None:
    oid = create(conn, "SELECT pure(id) FROM payment")
    assert read(conn, oid).kind == "data"
    conn.execute("ALTER FUNCTION pure STABLE")
    assert read(conn, oid).kind == "opaque"


def test_replacing_an_inlined_view_changes_the_class(conn: psycopg.Connection[Any]) -> None:
    oid = create(conn, "SELECT id FROM plain")
    assert read(conn, oid).kind == "data"
    conn.execute("CREATE OR REPLACE VIEW plain AS SELECT id, loan_id FROM payment WHERE paid_at < now()")
    assert read(conn, oid).kind == "time"


TIMESTAMPS = [
    ("SELECT id, now() AS seen FROM payment", ("seen",)),
    ("SELECT id, CURRENT_TIMESTAMP AS a, LOCALTIMESTAMP AS b, clock_timestamp() AS c, CURRENT_TIME AS d FROM payment",
     ("a", "b", "c", "d")),
    ("SELECT id, CURRENT_DATE AS day, now()::date AS same FROM payment", ()),
    ("SELECT id, now()::timestamp(0) AS a, now()::text AS b, now()::timestamp AS c, CURRENT_TIMESTAMP(3) AS d FROM payment",
     ("a", "b", "c", "d")),
    ("SELECT id, now() AT TIME ZONE 'UTC' AS utc FROM payment", ("utc",)),
    ("WITH c AS (SELECT id, now() AS seen FROM payment), d AS (SELECT seen AS as_of, id FROM c) SELECT as_of, id FROM d",
     ("as_of",)),
    ("SELECT s.seen FROM (SELECT now() AS seen, id FROM payment) s", ("seen",)),
    ("SELECT x.id, x.seen FROM payment p JOIN (SELECT id, now() AS seen FROM payment) x USING (id)", ("seen",)),
    ("SELECT seen, id FROM payment FULL JOIN (SELECT id, now() AS seen FROM payment) x USING (id)", ("seen",)),
    ("SELECT * FROM (SELECT now() AS t) a FULL JOIN (SELECT now() AS t, 1 AS n) b USING (t)", ()),
    ("SELECT as_of, id FROM stamped_again", ("as_of",)),
    ("SELECT s.seen_at FROM stamped s WHERE EXISTS (SELECT now())", ("seen_at",)),
    ("SELECT loan_id, now() AS seen, count(*) FROM payment GROUP BY loan_id, now()", ("seen",)),
    ("SELECT loan_id, seen_at, count(*) FROM stamped JOIN loan l USING (id) JOIN payment USING (id) GROUP BY 1, 2", ("seen_at",)),
    ("SELECT id, paid_at FROM payment UNION ALL SELECT id, now() FROM loan", ("paid_at",)),
    ("SELECT (SELECT now()) AS seen, id FROM payment", ("seen",)),
    ("SELECT id, seen FROM payment, now() AS seen", ("seen",)),
    ("SELECT id, seen FROM payment, LATERAL (SELECT payment.id + 1, now()) AS l (n, seen)", ("seen",)),
    ("SELECT now() - paid_at AS age, id FROM payment WHERE paid_at < now() ORDER BY now()", ()),
    ("SELECT max(paid_at) AS newest FROM payment", ()),
    ('SELECT now() AS "Zuletzt ""geändert"" (um)", id FROM payment', ('Zuletzt "geändert" (um)',)),
    ("WITH RECURSIVE t(n, at) AS (SELECT 1, now() UNION ALL SELECT n + 1, at FROM t WHERE n < 3) SELECT n, at FROM t", ("at",)),
    ("WITH RECURSIVE t(n, at) AS (SELECT 1, CURRENT_DATE UNION ALL SELECT n + 1, at FROM t WHERE n < 3) SELECT n, at FROM t", ()),
    ("WITH c AS (SELECT now() AS seen) SELECT (SELECT c.seen FROM c) AS inner_seen FROM payment", ("inner_seen",)),
]  # fmt: skip


@pytest.mark.parametrize(("definition", "columns"), TIMESTAMPS, ids=[d[0] for d in TIMESTAMPS])
def test_stored_timestamps(conn: psycopg.Connection[Any], definition: str, columns: tuple[str, ...]) -> None:
    assert read(conn, create(conn, definition)).stored_timestamps == columns


def test_columns_have_the_names_of_the_view_not_of_the_query(conn: psycopg.Connection[Any]) -> None:
    oid = create(
        conn, "SELECT id, now() AS seen FROM payment ORDER BY seen, id", columns="(key, last_updated)"
    )
    assert read(conn, oid).stored_timestamps == ("last_updated",)
    conn.execute('ALTER MATERIALIZED VIEW mv RENAME COLUMN key TO "Der Schlüssel"')
    assert read(conn, oid).ordered_by == ("last_updated", "Der Schlüssel")


ORDERS = [
    ("SELECT id, note FROM payment", ()),
    ("SELECT id, loan_id FROM payment ORDER BY loan_id, id DESC", ("loan_id", "id")),
    ("SELECT id, note FROM payment ORDER BY paid_at, id", ()),
    ("SELECT id, note FROM payment ORDER BY id, paid_at, note", ("id",)),
    ("SELECT loan_id AS key, sum(amount) AS total FROM payment GROUP BY loan_id ORDER BY 2, 1", ("total", "key")),
    ("SELECT id FROM payment UNION SELECT id FROM loan ORDER BY id", ("id",)),
    ("SELECT id FROM (SELECT id FROM payment ORDER BY id) s", ()),
    ("WITH c AS (SELECT id FROM payment ORDER BY id) SELECT id FROM c", ()),
    ("SELECT DISTINCT ON (loan_id) loan_id, id FROM payment ORDER BY loan_id, paid_at", ("loan_id",)),
]  # fmt: skip


@pytest.mark.parametrize(("definition", "columns"), ORDERS, ids=[d[0] for d in ORDERS])
def test_ordered_by(conn: psycopg.Connection[Any], definition: str, columns: tuple[str, ...]) -> None:
    assert read(conn, create(conn, definition)).ordered_by == columns


def test_row_security_makes_it_depend_on_the_owner(home: Database, role: NewRole) -> None:
    role(home, "rls_reader")
    with home.connect(autocommit=False) as conn:
        conn.execute("CREATE TABLE tenant_row (id int); ALTER TABLE tenant_row ENABLE ROW LEVEL SECURITY")
        conn.execute("CREATE VIEW tenant_view AS SELECT id FROM tenant_row")
        direct = create(conn, "SELECT id FROM tenant_row")
        through = create(conn, "SELECT id FROM tenant_view", "through")
        assert read(conn, direct).kind == "data"  # the superuser is exempt
        conn.execute("ALTER MATERIALIZED VIEW mv OWNER TO rls_reader")
        found = read(conn, direct)
        assert (found.kind, found.evidence) == ("session", ("row security of public.tenant_row",))
        assert read(conn, through).kind == "data"
        conn.execute("ALTER VIEW tenant_view OWNER TO rls_reader")
        assert read(conn, through).kind == "session"
        conn.execute("ALTER TABLE tenant_row OWNER TO rls_reader")
        assert read(conn, direct).kind == "data"  # a table's owner is exempt as well
        conn.execute("ALTER TABLE tenant_row FORCE ROW LEVEL SECURITY")
        assert read(conn, direct).kind == "session"
        conn.rollback()


def test_a_very_long_and_a_very_deep_definition(conn: psycopg.Connection[Any]) -> None:
    chain = " || ".join(["note"] * 1500)
    columns = ", ".join(f"coalesce(amount, {n}) AS c{n}" for n in range(800))
    oid = create(conn, f"SELECT id, {chain} AS long, {columns}, now() AS seen FROM payment")
    assert read(conn, oid).stored_timestamps == ("seen",)


def test_session_settings_do_not_matter_and_are_left_alone(conn: psycopg.Connection[Any]) -> None:
    oid = create(conn, "SELECT id, now() AS seen FROM payment ORDER BY id")
    usual = read(conn, oid)
    conn.execute(
        "SET LOCAL search_path = ''; SET LOCAL DateStyle = 'German'; SET LOCAL quote_all_identifiers = on"
    )
    assert read(conn, oid) == usual
    assert conn.execute("SHOW search_path").fetchone() == ('""',)
