"""What the archive's task and `upkeep check` refuse changes nothing; what somebody makes during a move loses no row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from fleet import ledger, settings
from fleet.errors import PermanentError
from fleet.ledger import NewRun, Run, State
from fleet.postgres.connect import connect
from tasks.base import Delivery
from tasks.partitions.archive_tasks import ARCHIVE, QUEUE, Archive
from tasks.partitions.archiving import archive
from tasks.partitions.per_table import TableArguments
from tasks.performing import Done, Outcome, perform
from tests.integration.tasks.partitions.cloning import Template, templates
from tests.integration.tasks.partitions.moving import MONTHS, ROWS, TABLE, System, policy
from tests.integration.worker.cli.conftest import Upkeep, config
from tests.servers import Database
from worker.embedded.postgres import EmbeddedPostgres

RELATIONS = """
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text, c.relowner::bigint, c.relacl::text, c.relnatts,
       c.relchecks, c.reltablespace::bigint, c.reloptions, c.relrowsecurity, pg_relation_filenode(c.oid)::bigint,
       pg_get_expr(c.relpartbound, c.oid) AS bound
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1
"""
CONSTRAINTS = """
SELECT oid::bigint, conrelid::bigint, conname::text, conparentid::bigint, convalidated, pg_get_constraintdef(oid)
  FROM pg_constraint ORDER BY 1
"""
INHERITS = (
    "SELECT inhrelid::bigint, inhparent::bigint, inhseqno, inhdetachpending FROM pg_inherits ORDER BY 1, 2"
)
SCHEMAS = (
    "SELECT oid::bigint, nspname::text, nspacl::text FROM pg_namespace WHERE nspname !~ '^pg_' ORDER BY 1"
)
# A run is noted there, whatever becomes of it.
OF_THE_LEDGER = frozenset({"run", "ticket", "attempt"})


def snapshot(database: Database, *, with_ledger: bool) -> dict[str, Any]:
    """The catalogue and every row, so that two of them are the same where nothing was changed."""
    with psycopg.connect(database.url, autocommit=True) as connection:
        found: dict[str, Any] = {
            name: connection.execute(question).fetchall()
            for name, question in (
                ("relations", RELATIONS),
                ("constraints", CONSTRAINTS),
                ("inherits", INHERITS),
                ("schemas", SCHEMAS),
            )
        }
        for _, schema, name, kind, *_ in found["relations"]:
            if kind in "rp" and (with_ledger or schema != "upkeep" or name not in OF_THE_LEDGER):
                found[f"rows of {schema}.{name}"] = connection.execute(
                    sql.SQL(
                        "SELECT count(*), md5(string_agg(t::text, ',' ORDER BY t::text)) FROM {} AS t"
                    ).format(sql.Identifier(schema, name))
                ).fetchone()
    return found


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A table, and lines of its policy that do not go together; what is said of it, with a word of the remedy."""

    tables: str
    lines: str = ""
    said: str
    remedy: str = ""
    name: str = "x"


RANGE = """
CREATE TABLE app.x (id int NOT NULL DEFAULT 1, day date NOT NULL, other date, PRIMARY KEY (id, day))
    PARTITION BY RANGE (day);
CREATE TABLE app.x_y2020m01 PARTITION OF app.x FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');
"""
ODD = """
CREATE TABLE app.x (id int NOT NULL DEFAULT 1, day date NOT NULL) PARTITION BY RANGE (day, id);
CREATE TABLE app.x_y2020m01 PARTITION OF app.x FOR VALUES FROM ('2020-01-01', 1) TO ('2020-02-01', 1);
CREATE TABLE app.by_hand PARTITION OF app.x FOR VALUES FROM ('2020-02-01', 1) TO ('2090-01-01', 7);
"""
LONG_TABLE = "x" * 60
REFUSED = {
    "no column": Bad(tables=RANGE, lines='column = "dya"', said="dya is not a column", remedy='column = "day"'),
    "another column": Bad(tables=RANGE, lines='column = "other"', said="other is not what", remedy='column = "day"'),
    "by list": Bad(
        tables="CREATE TABLE app.x (id int DEFAULT 1, day date NOT NULL) PARTITION BY LIST (day);"
        "CREATE TABLE app.x_old PARTITION OF app.x DEFAULT;",
        said="partitioned by list, not by range",
        remedy="Partition it by range",
    ),
    "by hash": Bad(
        tables="CREATE TABLE app.x (id int DEFAULT 1, day date NOT NULL) PARTITION BY HASH (day);"
        "CREATE TABLE app.x_0 PARTITION OF app.x FOR VALUES WITH (MODULUS 1, REMAINDER 0);",
        said="partitioned by hash, not by range",
        remedy="Partition it by range",
    ),
    "by an expression": Bad(
        tables="CREATE TABLE app.x (id int DEFAULT 1, day date NOT NULL) PARTITION BY RANGE ((day + 1));"
        "CREATE TABLE app.x_old PARTITION OF app.x FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');",
        said="partitioned by an expression",
        remedy="Partition it by a column",
    ),
    "by a text": Bad(
        tables="CREATE TABLE app.x (id int DEFAULT 1, day text NOT NULL) PARTITION BY RANGE (day);"
        "CREATE TABLE app.x_old PARTITION OF app.x FOR VALUES FROM ('2020-01-01') TO ('2020-02-01');",
        said="of which no calendar speaks",
        remedy="Partition by a date",
    ),
    # Of a partitioned table PostgreSQL itself refuses such a key.
    "a primary key without the column": Bad(
        tables="CREATE TABLE app.x (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, day date NOT NULL);",
        said="app.x is not partitioned",
        remedy="convert-to-partitioned",
    ),
    "a primary key without the column of the parts": Bad(
        tables=RANGE,
        lines='subpartitions = { columns = ["other"], count = 4 }',
        said="cannot have the unique key (id, day)",
        remedy="Divide by columns of every primary",
    ),
    "an overlap with what is to be made": Bad(tables=ODD, said="app.by_hand overlaps", remedy="Detach it"),
    "a pattern of long names": Bad(
        tables=RANGE,
        lines=f'partition_name = "{{table}}_{"y" * 60}{{year}}{{month}}"',
        said="bytes, and PostgreSQL keeps 63",
        remedy="shorter",
    ),
    "a view with a long name": Bad(
        tables=RANGE.replace("app.x ", f"app.{LONG_TABLE} "),
        name=LONG_TABLE,
        lines='partition_name = "p_{year}_{month}"',
        said="longer than 63 bytes",
        remedy="Rename the table",
    ),
    "another archive": Bad(
        tables=f"{RANGE} CREATE TABLE archive.x (day date);", said="archive.x", remedy="another archive_schema"
    ),
}  # fmt: skip


@pytest.fixture
def upkeep_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    upkeep_database: Database,
) -> Callable[[Bad], Upkeep]:
    """Makes the table with a few rows, and the command with its policy."""

    def make(bad: Bad) -> Upkeep:
        with upkeep_database.connect() as admin:
            admin.execute("CREATE SCHEMA app; CREATE SCHEMA archive")
            admin.execute(bad.tables)
            admin.execute(
                sql.SQL("INSERT INTO {} (day) SELECT date '2020-01-01' + g FROM generate_series(0, 19) AS g").format(
                    sql.Identifier("app", bad.name)
                )
            )  # fmt: skip
        path = tmp_path / "upkeep.toml"
        path.write_text(
            f'{config({})}[databases.kept.partitions."app.{bad.name}"]\n{bad.lines}\n', encoding="utf-8"
        )
        environment = {
            "UPKEEP_CONFIG": str(path),
            "UPKEEP_KEPT_URL": upkeep_database.url,
            "UPKEEP_REDIS_URL": "redis://127.0.0.1:1/0",
        }
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        return Upkeep(config=path, environment=environment, capsys=capsys)

    return make


def archived(database: settings.Database, table: str) -> Run:
    """What became of a run of the task for a table, as the ledger has it."""
    with connect(database.url.get_secret_value(), application_name="upkeep/test") as connection:
        new = NewRun(task=ARCHIVE, target=table, entry=ledger.OPERATOR, queue=QUEUE)
        run_id, _ = ledger.insert(connection, new)
        with ledger.claim(connection, run_id, worker="test") as run:
            assert run is not None
            delivery = Delivery(
                run=run,
                arguments=TableArguments(table=table),
                database=database,
                connection=connection,
                worker="test",
            )
            perform(
                connection,
                run,
                lambda: Archive().work(delivery),
                retries=(),
                event=Archive.event,
                doing=f"Archiving {table}",
            )
        ended = ledger.get(connection, run_id)
    assert ended is not None
    return ended


def test_the_same_task_moves_what_is_good(
    upkeep_of: Callable[[Bad], Upkeep], upkeep_database: Database
) -> None:
    """Or a refusal of what is bad would say nothing."""
    upkeep = upkeep_of(Bad(tables=RANGE, said=""))
    before = snapshot(upkeep_database, with_ledger=False)
    ended = archived(settings.load(upkeep.config).database("kept"), "app.x")
    assert ended.state == State.SUCCEEDED
    after = snapshot(upkeep_database, with_ledger=False)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert {"relations", "inherits", "rows of app.x", "rows of upkeep.archive_batch"} <= changed


@pytest.mark.any_server
@pytest.mark.parametrize("what", REFUSED)
def test_the_task_refuses_what_is_bad_and_changes_nothing(
    upkeep_of: Callable[[Bad], Upkeep], upkeep_database: Database, what: str
) -> None:
    bad = REFUSED[what]
    upkeep = upkeep_of(bad)
    before = snapshot(upkeep_database, with_ledger=False)
    ended = archived(settings.load(upkeep.config).database("kept"), f"app.{bad.name}")
    assert snapshot(upkeep_database, with_ledger=False) == before
    assert (ended.state, ended.reason) == (State.FAILED, (ended.error or {}).get("message"))
    assert ended.error is not None
    assert ended.error["kind"] == "permanent"
    assert f"app.{bad.name}" in ended.error["message"]
    assert bad.said in ended.error["message"]
    assert bad.remedy in ended.error["remedy"]


@pytest.mark.any_server
@pytest.mark.parametrize("what", REFUSED)
def test_check_says_what_is_bad_and_changes_nothing(
    upkeep_of: Callable[[Bad], Upkeep], upkeep_database: Database, what: str
) -> None:
    bad = REFUSED[what]
    upkeep = upkeep_of(bad)
    before = snapshot(upkeep_database, with_ledger=True)
    said = upkeep("check", "--json")
    assert snapshot(upkeep_database, with_ledger=True) == before
    assert said.code == 1, said.out
    (problem,) = [each for each in said.json["problems"] if each["level"] == "error"]
    assert problem["key"].startswith(f'databases.kept.partitions."app.{bad.name}"')
    assert bad.said in problem["message"]
    assert bad.remedy in problem["remedy"]


# What contradicts itself, so that no process of the fleet starts with it.
UNREADABLE = {
    "hot shorter than premake": Bad(
        tables=RANGE, lines='hot = "2 months"', said="shorter than premake = 3 months", remedy="smaller premake"
    ),
    "premake longer than hot": Bad(
        tables=RANGE, lines="premake = 14", said="shorter than premake = 14 months", remedy="smaller premake"
    ),
    "warm before hot": Bad(
        tables=RANGE, lines='warm = "12 months"', said="warm before they are hot no longer", remedy="at least 13 months"
    ),
    "cold before warm": Bad(
        tables=RANGE, lines='cold = "1 year"', said="cold before they are warm no longer", remedy="at least 3 years"
    ),
}  # fmt: skip


@pytest.mark.any_server
@pytest.mark.parametrize("what", UNREADABLE)
def test_a_policy_that_contradicts_itself_is_read_by_nobody(
    upkeep_of: Callable[[Bad], Upkeep], upkeep_database: Database, what: str
) -> None:
    bad = UNREADABLE[what]
    upkeep = upkeep_of(bad)
    before = snapshot(upkeep_database, with_ledger=True)
    checked = upkeep("check", "--json")
    (problem,) = [each for each in checked.json["problems"] if each["level"] == "error"]
    assert (checked.code, problem["key"].rpartition(".")[0]) == (1, 'databases.kept.partitions."app.x"')
    assert bad.said in problem["message"]
    assert bad.remedy in problem["remedy"]
    asked = upkeep("run", ARCHIVE, "table=app.x")
    whole = " ".join(asked.err.split())
    assert asked.code != 0
    assert 'partitions."app.x"' in whole
    assert bad.said in whole
    assert bad.remedy in whole
    assert snapshot(upkeep_database, with_ledger=True) == before


def test_a_name_that_is_too_long_for_a_companions_rows_is_found_before_anything_happens(
    upkeep_of: Callable[[Bad], Upkeep], upkeep_database: Database
) -> None:
    partition = "p" * 63
    bad = Bad(
        tables=RANGE.replace("x_y2020m01", partition) + "CREATE TABLE app.c (id int, day date NOT NULL);",
        lines='companions = ["app.c"]',
        said="longer than 63 bytes",
        remedy=f"the partition app.{partition}",
    )
    upkeep = upkeep_of(bad)
    before = snapshot(upkeep_database, with_ledger=False)
    ended = archived(settings.load(upkeep.config).database("kept"), "app.x")
    assert ended.state == State.FAILED
    assert ended.error is not None
    assert bad.said in ended.error["message"]
    assert bad.remedy in ended.error["remedy"]
    assert snapshot(upkeep_database, with_ledger=False) == before


# What somebody makes by hand while a month is on its way.

OWN = policy(legal_holds=[{"from": date(2024, 2, 1), "to": date(2024, 5, 1), "reason": "not yet"}])
VISIBLE = """
SELECT (SELECT array[count(*), count(DISTINCT id)] FROM archive.transactions_all WHERE id <= %s) AS transactions,
       (SELECT array[count(*), count(DISTINCT transaction_id)] FROM archive.transaction_metadata_all) AS metadata
"""


@pytest.fixture(scope="module")
def template(postgres_server: EmbeddedPostgres) -> Iterator[Template]:
    with templates(postgres_server, "refusals") as (made,):
        yield made


@pytest.fixture
def system(template: Template) -> Iterator[System]:
    with template.cloned() as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(template: Template) -> dict[str, Any]:
    """The catalogue after a move during which nobody made anything."""
    with template.cloned() as system:
        assert isinstance(archive(system.connection, {TABLE: OWN}, OWN), Done)
        return system.catalogue()


def move_while(system: System, made: str, *, at: str = "begun") -> Outcome:
    """Archive January; when it comes to that step somebody makes something, once."""
    left = [made]

    def told(step: str) -> None:
        if step == at and left:
            system.as_owner(left.pop())

    try:
        return archive(system.connection, {TABLE: OWN}, OWN, told=told)
    finally:
        assert left == []


def every_row_is_there(system: System) -> None:
    assert system.rows(VISIBLE, ROWS) == [{"transactions": [ROWS, ROWS], "metadata": [ROWS // 2, ROWS // 2]}]


ANOTHER = {
    "a later month": (
        "by_hand",
        "CREATE TABLE public.by_hand PARTITION OF public.transactions FOR VALUES FROM ('2024-05-01') TO ('2024-06-01')",
    ),
    "a default one": (
        "by_hand",
        "CREATE TABLE public.by_hand PARTITION OF public.transactions DEFAULT;"
        "INSERT INTO public.transactions (id, partition_date, amount) VALUES (1001, '2030-01-01', 5)",
    ),
}


@pytest.mark.parametrize("step", ["begun", "companions"])
@pytest.mark.parametrize("what", ANOTHER)
def test_another_partition_that_somebody_makes_during_a_move_stays_as_it_is(
    system: System, undisturbed: dict[str, Any], what: str, step: str
) -> None:
    name, statement = ANOTHER[what]
    done = move_while(system, statement, at=step)
    assert isinstance(done, Done)
    assert done.result["moved"] == ["public.transactions_y2024m01"]
    every_row_is_there(system)
    months = [f"transactions_y{month.replace('-', 'm')}" for month in MONTHS[1:]]
    assert system.partitions("public.transactions") == [name, *months]
    assert system.scalar("SELECT count(*) FROM public.by_hand") == int(what == "a default one")
    # Apart from that one everything is as if nobody had made it.
    system.as_owner(
        "ALTER TABLE public.transactions DETACH PARTITION public.by_hand; DROP TABLE public.by_hand"
    )
    assert system.catalogue() == undisturbed


def test_an_older_month_that_somebody_makes_during_a_move_goes_with_the_next_run(system: System) -> None:
    done = move_while(
        system,
        "CREATE TABLE public.by_hand PARTITION OF public.transactions FOR VALUES FROM ('2023-12-01') TO ('2024-01-01');"
        "INSERT INTO public.transactions (id, partition_date, amount) VALUES (1001, '2023-12-05', 5)",
    )
    assert isinstance(done, Done)
    assert done.result["moved"] == ["public.transactions_y2024m01"]
    assert system.scalar("SELECT count(*) FROM public.by_hand") == 1
    done = archive(system.connection, {TABLE: OWN}, OWN)
    assert isinstance(done, Done)
    assert done.result["moved"] == ["public.by_hand"]
    assert system.scalar("SELECT count(*) FROM archive.by_hand") == 1
    every_row_is_there(system)


IN_THE_WAY = {
    "a part of its range": (
        "by_hand",
        "CREATE TABLE archive.by_hand PARTITION OF archive.transactions"
        " FOR VALUES FROM ('2024-01-15') TO ('2024-01-20')",
        "DROP TABLE archive.by_hand",
    ),
    "its range": (
        "by_hand",
        "CREATE TABLE archive.by_hand PARTITION OF archive.transactions"
        " FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')",
        "DROP TABLE archive.by_hand",
    ),
    "a default one with a row of it": (
        "by_hand",
        "CREATE TABLE archive.by_hand PARTITION OF archive.transactions DEFAULT;"
        "INSERT INTO archive.transactions (id, partition_date, status, amount, archived_at, archive_batch_id)"
        " VALUES (1001, '2024-01-05', 'completed', 5, now(), gen_random_uuid())",
        "DROP TABLE archive.by_hand",
    ),
    "its name": (
        "transactions_y2024m01",
        "CREATE TABLE archive.transactions_y2024m01 (i int)",
        "DROP TABLE archive.transactions_y2024m01",
    ),
    "the name of one of its parts": (
        "transactions_y2024m01_p1",
        "CREATE VIEW archive.transactions_y2024m01_p1 AS SELECT 1 AS one",
        "DROP VIEW archive.transactions_y2024m01_p1",
    ),
    "the name of an index of it": (
        "transactions_y2024m01_pkey",
        "CREATE TABLE archive.transactions_y2024m01_pkey (i int)",
        "DROP TABLE archive.transactions_y2024m01_pkey",
    ),
    "a part of the range of the companion's": (
        "by_hand",
        "CREATE TABLE archive.by_hand PARTITION OF archive.transaction_metadata"
        " FOR VALUES FROM ('2024-01-15') TO ('2024-01-20')",
        "DROP TABLE archive.by_hand",
    ),
    "the name of the companion's": (
        "archive.transaction_metadata_y2024m01",
        "CREATE TABLE archive.transaction_metadata_y2024m01 (i int)",
        "DROP TABLE archive.transaction_metadata_y2024m01",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_somebody_puts_in_the_way_during_a_move_is_named_and_loses_no_row(
    system: System, undisturbed: dict[str, Any], what: str
) -> None:
    named, made, removed = IN_THE_WAY[what]
    partitions = system.partitions("public.transactions")
    with pytest.raises(PermanentError) as refused:
        move_while(system, made)
    # Nothing is half-done: January is in its table with all its parts, none of it in the archive.
    assert system.partitions("public.transactions") == partitions
    assert len(system.partitions("public.transactions_y2024m01")) == 2
    assert [each for each in system.partitions("archive.transactions") if "by_hand" not in each] == []
    assert system.scalar("SELECT count(*) FROM upkeep.archive_batch WHERE kind = 'partition'") == 1
    assert system.scalar("SELECT count(archived_at) FROM upkeep.archive_batch WHERE kind = 'partition'") == 0
    every_row_is_there(system)
    # The next run, and everyone after it, says what is in the way too.
    with pytest.raises(PermanentError) as again:
        archive(system.connection, {TABLE: OWN}, OWN)
    every_row_is_there(system)
    system.as_owner(removed)
    done = archive(system.connection, {TABLE: OWN}, OWN)
    assert isinstance(done, Done)
    assert done.result["moved"] == ["public.transactions_y2024m01"]
    every_row_is_there(system)
    assert system.catalogue() == undisturbed
    for each in (refused.value, again.value):
        assert named in each.message
        assert each.remedy, each.message
