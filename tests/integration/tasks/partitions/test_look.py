"""What a plan goes on, read from a real server by a role like production's."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from fleet.names import RelationName
from fleet.settings import Database as Kept
from fleet.settings.partitions import PartitionSet
from tasks.partitions.lines import Action, Line
from tasks.partitions.look import Looked, look
from tests.conftest import NewRole
from tests.integration.deploy.test_grants import run_grants
from tests.servers import Database

pytestmark = pytest.mark.any_server

Connection = psycopg.Connection[Any]
NAME = RelationName("app", "t")
CLOCK = datetime(2024, 3, 12, 10, 30, tzinfo=UTC)
SCHEMA = """
CREATE TABLE app.account (id int PRIMARY KEY);
CREATE TABLE app.t (id int, day date NOT NULL, status text, account int REFERENCES app.account, PRIMARY KEY (id, day))
    PARTITION BY RANGE (day);
CREATE TABLE app.t_y2023m01 PARTITION OF app.t FOR VALUES FROM ('2023-01-01') TO ('2023-02-01');
CREATE TABLE app.t_y2023m02 PARTITION OF app.t FOR VALUES FROM ('2023-02-01') TO ('2024-03-01');
CREATE TABLE app.t_default PARTITION OF app.t DEFAULT;
CREATE TABLE app.meta (id int, day date, FOREIGN KEY (id, day) REFERENCES app.t (id, day));
INSERT INTO app.t VALUES (1, '2023-01-05', 'pending'), (2, '2023-01-06', 'done'), (3, '2023-01-07', 'pending');
INSERT INTO app.t VALUES (4, '2024-03-05', ''), (5, '2024-03-06', ''), (6, '2024-04-06', ''), (7, '2099-01-01', '');
INSERT INTO app.t VALUES (8, 'infinity', ''), (9, '20000-01-01', ''), (10, '0044-03-15 BC', '');
INSERT INTO app.meta VALUES (2, '2023-01-06');
"""


@pytest.fixture
def fleet(upkeep_database: Database, role: NewRole) -> Connection:
    """The fleet's role; the tables are another's, of whom it is a member."""
    owner_url, fleet_url = role(upkeep_database, "app_owner"), role(upkeep_database, "fleet_role")
    with upkeep_database.connect() as admin:
        admin.execute("CREATE SCHEMA app AUTHORIZATION app_owner")
        admin.execute(
            "GRANT app_owner TO fleet_role; GRANT SELECT ON ALL TABLES IN SCHEMA upkeep TO fleet_role"
        )
        admin.execute(
            "GRANT USAGE ON SCHEMA upkeep TO fleet_role; CREATE SCHEMA archive AUTHORIZATION app_owner"
        )
        with psycopg.connect(owner_url, autocommit=True) as owner:
            owner.execute(SCHEMA)
    run_grants(upkeep_database.url, role="fleet_role", owner="app_owner")
    connection = psycopg.connect(fleet_url, autocommit=True)
    upkeep_database._connections.append(connection)
    connection.execute("SET default_transaction_read_only = on")
    connection.execute("SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'German, DMY'")
    return connection


def kept(*policies: PartitionSet) -> Kept:
    return Kept(
        name="kept", url=SecretStr("postgresql:///kept"), partitions={each.name: each for each in policies}
    )


def policy(**given: Any) -> PartitionSet:
    return PartitionSet.model_validate({"name": NAME, **given})


def looked(connection: Connection, **given: Any) -> Looked:
    (found,) = look(connection, kept(policy(**given)), clock=CLOCK)
    return found


def shown(lines: tuple[Line, ...]) -> list[tuple[str, str, int | None]]:
    return [(each.action.value, each.partition.name if each.partition else "", each.rows) for each in lines]


def test_rows_of_the_default_partition(fleet: Connection) -> None:
    found = looked(fleet, default="drain", companions=["app.meta"])
    assert found.contradictions == ()
    assert found.unknown == ()
    assert shown(found.lines) == [
        ("create", "t_y2024m05", None),
        ("create", "t_y2024m06", None),
        ("drain", "t_y2024m03", 2),
        ("drain", "t_y2024m04", 1),
        ("move", "t_y2023m01", 0),
        ("warn", "t_default", 3),
        ("warn", "t_default", 1),
        ("warn", "", None),
    ]
    assert not found.refused


CONTROLS = {
    "date": ("'2024-04-06'", {}),
    "timestamptz": ("'2024-04-06 12:00+00'", {}),
    "timestamp": ("'2024-04-06 12:00'", {}),
    "int": ("1712404800", {"epoch": "seconds"}),
    "bigint": ("1712404800000::bigint << 22", {"epoch": "milliseconds", "epoch_shift": 22}),
    "numeric(30, 0)": ("1712404800000000000", {"epoch": "nanoseconds"}),
    "uuid": ("'018eb34f-a000-7000-8000-000000000000'", {"epoch": "uuidv7"}),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_rows_of_every_kind_of_control_column(database: Database, control: str) -> None:
    value, given = CONTROLS[control]
    with database.connect() as conn:
        conn.execute("SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'German, DMY'; CREATE SCHEMA app")
        conn.execute(sql.SQL("CREATE TABLE app.t (at {}) PARTITION BY RANGE (at)").format(sql.SQL(control)))
        conn.execute("CREATE TABLE app.t_default PARTITION OF app.t DEFAULT; CREATE SCHEMA archive")
        conn.execute(
            sql.SQL("INSERT INTO app.t VALUES ({}), ({}), (NULL)").format(sql.SQL(value), sql.SQL(value))
        )
        found = looked(conn, default="drain", **given)
    assert found.unknown == ()
    assert [each.warning for each in found.contradictions] == [True]  # the column may be NULL
    (drained,) = [line for line in found.lines if line.action is Action.DRAIN]
    assert (drained.partition, drained.rows) == (RelationName("app", "t_y2024m04"), 2)
    (stray,) = [line for line in found.lines if line.action is Action.WARN]
    assert stray.rows == 1


def test_rows_that_keep_a_partition(fleet: Connection) -> None:
    found = looked(fleet, default="drain", hold="t.status = 'pending' -- 004", companions=["app.meta"])
    (held,) = [line for line in found.lines if line.action is Action.HOLD]
    assert (held.partition, held.rows) == (RelationName("app", "t_y2023m01"), 2)


def test_rows_that_refer_to_a_partition(fleet: Connection, upkeep_database: Database) -> None:
    found = looked(fleet, default="drain")
    (refused,) = [line for line in found.lines if line.action is Action.REFUSE]
    assert "1 of app.meta" in refused.reason
    assert found.refused
    with upkeep_database.connect() as admin:
        admin.execute("DELETE FROM app.meta")
    assert not looked(fleet, default="drain").refused


def test_a_count_that_takes_too_long_is_said(fleet: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.partitions.counts.LONGEST_S", 0.2)
    found = looked(fleet, default="drain", hold="pg_sleep(10) IS NULL", companions=["app.meta"])
    assert any("t_y2023m01 that must not be moved yet were not counted" in each for each in found.unknown)


def test_names_that_are_taken(fleet: Connection, upkeep_database: Database) -> None:
    with upkeep_database.connect() as admin:
        admin.execute("CREATE TABLE app.t_y2024m05 (id int); CREATE VIEW app.t_y2024m06_3 AS SELECT 1 AS one")
        admin.execute("CREATE TABLE archive.t_y2023m01 (id int)")
    found = looked(
        fleet, default="drain", companions=["app.meta"], subpartitions={"columns": ["id"], "count": 4}
    )
    assert [str(line.partition) for line in found.lines if line.action is Action.REFUSE] == [
        "app.t_y2024m05",
        "app.t_y2024m06_3",
        "app.t_y2023m01",
    ]


def test_what_has_left_the_database(fleet: Connection, upkeep_database: Database) -> None:
    with upkeep_database.connect() as admin:
        admin.execute("INSERT INTO app.t VALUES (20, '2022-11-05', '')")
        columns = admin.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'archive_batch'"
        ).fetchall()
        with_type = ("control_type",) in columns
        admin.execute(
            sql.SQL(
                "INSERT INTO upkeep.archive_batch (id, kind, parent, archive, partition, lower_bound, upper_bound, "
                "archived_at, cold_at{}) VALUES (gen_random_uuid(), 'partition', 'app.t', 'archive.t', "
                "'archive.t_y2022m11', '2022-11-01', '2023-01-01', now(), now(){})"
            ).format(*([sql.SQL(", control_type"), sql.SQL(", 'date'")] if with_type else [sql.SQL("")] * 2))
        )
    found = looked(fleet, default="drain", companions=["app.meta"])
    (late,) = [line for line in found.lines if line.action is Action.LATE]
    assert "supplement" in late.reason
    assert not [line for line in found.lines if line.reason.startswith("gap")]


def test_as_many_statements_for_many_tables(database: Database) -> None:
    names = [RelationName("app", f"t{number}") for number in range(150)]
    with database.connect() as conn:
        conn.execute("CREATE SCHEMA app; CREATE SCHEMA archive")
        for name in names:
            conn.execute(
                sql.SQL("CREATE TABLE {} (day date NOT NULL) PARTITION BY RANGE (day)").format(
                    name.identifier()
                )
            )
        policies = kept(*(PartitionSet.model_validate({"name": name}) for name in names))
        found = list(look(conn, policies, clock=CLOCK))
    assert [each.policy.name for each in found] == sorted(names)
    assert all(len(each.lines) == 4 for each in found)


# What a policy says, and the database does not.

BAD: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "no table": ("", {"name": RelationName("app", "absent")}, "no table", "Create it"),
    "plain": ("CREATE TABLE app.x (day date)", {}, "not partitioned", "convert-to-partitioned"),
    "a view": ("CREATE VIEW app.x AS SELECT 1 AS one", {}, "not partitioned", ""),
    "by list": ("CREATE TABLE app.x (day date) PARTITION BY LIST (day)", {}, "by list", ""),
    "an expression": (
        "CREATE TABLE app.x (at timestamptz) PARTITION BY RANGE ((at AT TIME ZONE 'UTC'))",
        {},
        "expression",
        "",
    ),
    "another column": (
        "CREATE TABLE app.x (day date NOT NULL, at date) PARTITION BY RANGE (day)",
        {"column": "at"},
        "at is not what",
        'column = "day"',
    ),
    "no column": (
        "CREATE TABLE app.x (day date NOT NULL) PARTITION BY RANGE (day)",
        {"column": "dya"},
        "not a column",
        'column = "day"',
    ),
    "a text": ("CREATE TABLE app.x (day text NOT NULL) PARTITION BY RANGE (day)", {}, "type text", ""),
    "a number": (
        "CREATE TABLE app.x (n bigint NOT NULL) PARTITION BY RANGE (n)",
        {},
        "what it counts",
        "epoch",
    ),
    "a small number": (
        "CREATE TABLE app.x (n int NOT NULL) PARTITION BY RANGE (n)",
        {"epoch": "milliseconds"},
        "more than a integer",
        "bigint",
    ),
    "a uuid": ("CREATE TABLE app.x (n uuid NOT NULL) PARTITION BY RANGE (n)", {}, "uuid", "uuidv7"),
    "a date with an epoch": (
        "CREATE TABLE app.x (day date NOT NULL) PARTITION BY RANGE (day)",
        {"epoch": "seconds"},
        "counts no epoch",
        "Remove",
    ),
    "a long name": (
        "CREATE TABLE app.x (day date NOT NULL) PARTITION BY RANGE (day)",
        {"partition_name": "{table}_" + "x" * 60 + "{year}{month}"},
        "bytes",
        "shorter",
    ),
    "an overlap": (
        "CREATE TABLE app.x (day date NOT NULL, n int) PARTITION BY RANGE (day, n);"
        "CREATE TABLE app.odd PARTITION OF app.x FOR VALUES FROM ('2024-04-05', 3) TO ('2024-04-07', 4)",
        {},
        "app.odd overlaps",
        "Detach",
    ),
    "subpartitions of nothing": (
        "CREATE TABLE app.x (day date NOT NULL, id int) PARTITION BY RANGE (day)",
        {"subpartitions": {"columns": ["idd"], "count": 4}},
        "no column idd",
        '"id"',
    ),
    "subpartitions outside of the key": (
        "CREATE TABLE app.x (day date, id int, n int, PRIMARY KEY (day, n)) PARTITION BY RANGE (day)",
        {"subpartitions": {"columns": ["id"], "count": 4}},
        "unique key",
        "",
    ),
    "no tablespace": (
        "CREATE TABLE app.x (day date NOT NULL) PARTITION BY RANGE (day)",
        {"tablespace": "pg_defautl"},
        "no tablespace",
        "pg_default",
    ),
    "an unknown parameter": (
        "CREATE TABLE app.x (day date NOT NULL) PARTITION BY RANGE (day)",
        {"storage_parameters": {"filfactor": 70}},
        "no parameter filfactor",
        "fillfactor",
    ),
    "a hold that is no condition": (
        "CREATE TABLE app.x (day date NOT NULL) PARTITION BY RANGE (day)",
        {"hold": "stauts = 1"},
        "cannot read it",
        "",
    ),
    "two statements in hold": (
        "CREATE TABLE app.x (day date NOT NULL) PARTITION BY RANGE (day)",
        {"hold": "true); DROP TABLE app.x; SELECT (1"},
        "cannot read it",
        "",
    ),
    "no companion": (
        "CREATE TABLE app.x (day date NOT NULL) PARTITION BY RANGE (day)",
        {"companions": ["app.nobody"]},
        "no table app.nobody",
        "",
    ),
    "a companion without anything": (
        "CREATE TABLE app.x (day date NOT NULL) PARTITION BY RANGE (day); CREATE TABLE app.c (id int)",
        {"companions": ["app.c"]},
        "neither a foreign key",
        "",
    ),
    "a partitioned companion without a policy": (
        "CREATE TABLE app.x (day date NOT NULL) PARTITION BY RANGE (day);"
        "CREATE TABLE app.c (day date) PARTITION BY RANGE (day)",
        {"companions": ["app.c"]},
        "no policy",
        "Declare",
    ),
    "another archive": (
        "CREATE TABLE app.x (day date NOT NULL) PARTITION BY RANGE (day); CREATE TABLE archive.x (day date)",
        {},
        "archive.x is there",
        "",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_refused(fleet: Connection, upkeep_database: Database, role: NewRole, what: str) -> None:
    statements, given, message, remedy = BAD[what]
    with upkeep_database.connect() as admin:
        admin.execute("SET ROLE app_owner")
        if statements:
            admin.execute(sql.SQL(statements))
    kept_policy = PartitionSet.model_validate({"name": RelationName("app", "x"), **given})
    (found,) = look(fleet, kept(kept_policy), clock=CLOCK)
    errors = [each for each in found.contradictions if not each.warning]
    assert errors, found
    assert message in errors[0].message
    assert remedy in errors[0].remedy
    assert errors[0].remedy
    assert found.lines == ()


def test_privileges_that_are_missing(fleet: Connection, upkeep_database: Database, role: NewRole) -> None:
    role(upkeep_database, "Somebody Else")
    with upkeep_database.connect() as admin:
        admin.execute('CREATE SCHEMA other AUTHORIZATION "Somebody Else"; SET ROLE "Somebody Else"')
        admin.execute("CREATE TABLE other.x (day date NOT NULL) PARTITION BY RANGE (day)")
    kept_policy = PartitionSet.model_validate(
        {"name": RelationName("other", "x"), "archive_schema": "nowhere"}
    )
    (found,) = look(fleet, kept(kept_policy), clock=CLOCK)
    assert [each.remedy for each in found.contradictions] == [
        'GRANT "Somebody Else" TO fleet_role',
        'CREATE SCHEMA nowhere AUTHORIZATION "Somebody Else"',
    ]


def test_row_security_before_15(fleet: Connection, upkeep_database: Database) -> None:
    with upkeep_database.connect() as admin:
        admin.execute("ALTER TABLE app.t ENABLE ROW LEVEL SECURITY")
    found = looked(fleet, default="drain", companions=["app.meta"])
    said = [each for each in found.contradictions if "row security" in each.message]
    assert bool(said) is (fleet.info.server_version < 150_000)


def test_a_nullable_column_is_a_warning(database: Database) -> None:
    with database.connect() as conn:
        conn.execute("CREATE SCHEMA app; CREATE SCHEMA archive")
        conn.execute("CREATE TABLE app.t (day date) PARTITION BY RANGE (day)")
        found = looked(conn)
    assert [each.warning for each in found.contradictions] == [True]
    assert len(found.lines) == 4
    assert found.lines[0].range is not None
    assert found.lines[0].range.lower == date(2024, 3, 1)
