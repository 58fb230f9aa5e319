"""The sample systems with views: what the demo, the benchmarks and a fleet rely on, whichever they run on."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from random import Random
from types import ModuleType

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from examples import lending, lp, trading, transactions
from examples.transactions import generate
from fleet import settings
from fleet.names import RelationName
from fleet.postgres.catalog.definition import DefinitionClass, read_definitions
from fleet.postgres.catalog.views import read_views
from tests.conftest import NewDatabase
from tests.integration.examples.conftest import Installed
from tests.servers import Database

SMALL = 0.001
# A month's rows are made like any other's.
FEWEST = {transactions: {"months": generate.LEAST_MONTHS}}

DEFINITION_CLASSES = {
    **dict.fromkeys(lending.VIEWS, DefinitionClass.DATA),
    "public.mv_ml_features_cache": DefinitionClass.DATE,
    **dict.fromkeys(lp.VIEWS, DefinitionClass.DATA),
    "monitoring.mv_trading_summary_24h": DefinitionClass.TIME,
    "monitoring.mv_order_flow_metrics": DefinitionClass.TIME,
    "monitoring.mv_user_trading_stats": DefinitionClass.DATE,
    "public.daily_transaction_summary": DefinitionClass.DATE,
}


@pytest.fixture(params=[lending, lp, trading, transactions], ids=["lending", "lp", "trading", "transactions"])
def example(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.fixture
def system(request: pytest.FixtureRequest, example: ModuleType) -> psycopg.Connection:
    """The system to look at and to refresh; whatever the test does is rolled back."""
    systems = {
        lending: "lending_system",
        lp: "lp_system",
        trading: "trading_system",
        transactions: "transactions_system",
    }
    return request.getfixturevalue(systems[example])


@pytest.fixture
def own_system(clone: Installed, example: ModuleType) -> Database:
    """The system to commit in."""
    return clone(example)


@pytest.fixture
def connection(own_system: Database) -> psycopg.Connection:
    return own_system.connect()


def identifier(view: str) -> sql.Identifier:
    return RelationName.parse(view).identifier()


def fingerprint(connection: psycopg.Connection, relation: str) -> str:
    """All rows, in an order that does not depend on how they were written."""
    query = sql.SQL(
        "SELECT md5(coalesce(string_agg(r::text, E'\n' ORDER BY r::text COLLATE \"C\"), '')) FROM {} r"
    )
    return connection.execute(query.format(identifier(relation))).fetchone()[0]


def table_fingerprints(connection: psycopg.Connection) -> dict[str, str]:
    tables = connection.execute(
        "SELECT quote_ident(relname) FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
    ).fetchall()
    return {name: fingerprint(connection, f"public.{name}") for (name,) in tables}


def refresh(connection: psycopg.Connection, view: str) -> None:
    connection.execute(sql.SQL("REFRESH MATERIALIZED VIEW CONCURRENTLY {}").format(identifier(view)))


def refresh_all(connection: psycopg.Connection, example: ModuleType) -> dict[str, str]:
    for view in example.VIEWS:
        refresh(connection, view)
    return {view: fingerprint(connection, view) for view in example.VIEWS}


def test_views_are_left_to_the_fleet_unless_populated(database, example):
    connection = database.connect()
    example.install(connection, scale=SMALL, **FEWEST.get(example, {}))
    populated = {str(view.name): view.populated for view in read_views(connection).values()}
    assert populated == dict.fromkeys(example.VIEWS, False)


def test_every_view_has_rows_and_may_be_refreshed_concurrently(system, example):
    views = {str(view.name): view for view in read_views(system).values()}
    assert set(views) == set(example.VIEWS)
    for name, view in views.items():
        assert view.unique_index is not None
        count = system.execute(sql.SQL("SELECT count(*) FROM {}").format(identifier(name))).fetchone()[0]
        assert count > 0, name
        refresh(system, name)


def test_keys_have_no_nulls_and_definitions_are_ordered_by_them(system, example):
    definitions = read_definitions(system)
    for oid, view in read_views(system).items():
        key = sql.SQL(" OR ").join(
            sql.SQL("{} IS NULL").format(sql.Identifier(column)) for column in view.unique_key
        )
        nulls = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(view.name.identifier(), key)
        assert system.execute(nulls).fetchone()[0] == 0
        assert definitions[oid].ordered_by == view.unique_key


def test_no_view_stores_the_time_of_its_refresh(system, example):
    definitions = read_definitions(system)
    for oid, view in read_views(system).items():
        assert definitions[oid].stored_timestamps == ()
        columns = system.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0", [oid]
        ).fetchall()
        assert ("last_updated",) not in columns, view.name


def test_definitions_are_of_the_class_their_comments_promise(system, example):
    definitions = read_definitions(system)
    found = {str(view.name): definitions[oid].kind for oid, view in read_views(system).items()}
    assert found == {view: DEFINITION_CLASSES[view] for view in example.VIEWS}


def test_a_concurrent_refresh_without_changes_rewrites_no_row(system, example):
    def versions(view: str) -> list[tuple]:
        query = sql.SQL("SELECT ctid::text, xmin::text FROM {} ORDER BY ctid").format(identifier(view))
        return system.execute(query).fetchall()

    for view in example.VIEWS:
        before = versions(view)
        refresh(system, view)
        assert versions(view) == before, view


@pytest.mark.any_server
def test_the_same_seed_gives_the_same_rows(new_database: NewDatabase, example):
    as_of = {
        lending: datetime(2026, 3, 31, tzinfo=UTC).date(),
        lp: datetime(2026, 3, 31, tzinfo=UTC).date(),
        trading: datetime(2026, 3, 31, 13, 5, tzinfo=UTC),
        transactions: datetime(2026, 3, 31, 13, 5, tzinfo=UTC),
    }[example]
    prints = []
    for seed, zone in ((7, "UTC"), (7, "Asia/Kathmandu"), (8, "UTC")):
        connection = new_database().connect()
        connection.execute(sql.SQL("SET timezone = {}").format(sql.Literal(zone)))
        connection.execute("SET datestyle = 'SQL, DMY'")
        example.install(connection, scale=SMALL, seed=seed, as_of=as_of, **FEWEST.get(example, {}))
        connection.execute("SET timezone = 'UTC'")
        prints.append(table_fingerprints(connection))
    assert prints[0] == prints[1]
    assert prints[0].keys() == prints[2].keys()
    assert prints[0] != prints[2]


def test_rows_do_not_lie_in_the_future(system, example):
    columns = system.execute(
        "SELECT format('%I.%I', table_schema, table_name), column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND data_type = 'timestamp with time zone'"
    ).fetchall()
    assert columns
    for relation, column in columns:
        query = sql.SQL("SELECT count(*) FROM {} WHERE {} > now()").format(
            identifier(relation), sql.Identifier(column)
        )
        assert system.execute(query).fetchone()[0] == 0, (relation, column)


def test_a_burst_is_committed_whatever_the_connection_is_like(own_system, connection, example):
    before = table_fingerprints(connection)
    with psycopg.connect(own_system.url, row_factory=dict_row) as writer:
        writer.execute("SELECT 1")  # a transaction is open now: the burst has to be committed with it
        written = example.write(writer, Random(5))
        assert writer.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        after = table_fingerprints(connection)
    changed = {name for name in before if before[name] != after[name]}
    expected = {
        lending: {"payment", "payment_allocation", "collections_event"},
        lp: {"capital_activities"},
        trading: {"orders", "trades"},
        transactions: {
            "transactions",
            "transaction_audit_log",
            "transaction_metadata",
            "account_balances",
            "session_logs",
        },
    }[example]
    assert expected <= changed
    assert written


def test_bursts_change_the_views(connection, example):
    before = refresh_all(connection, example)
    rng = Random(1)
    for _ in range(3):
        example.write(connection, rng)
    after = refresh_all(connection, example)
    assert sum(before[view] != after[view] for view in example.VIEWS) >= min(3, len(example.VIEWS))


def test_touching_all_changes_every_view(connection, example):
    rng = Random(3)
    before = refresh_all(connection, example)
    for _ in range(3):
        example.touch_all(connection, rng)
        after = refresh_all(connection, example)
        assert [view for view in example.VIEWS if after[view] == before[view]] == []
        before = after


def test_what_a_second_install_finds_is_left_alone(connection, example):
    before = table_fingerprints(connection)
    with pytest.raises((psycopg.errors.DuplicateTable, psycopg.errors.DuplicateSchema)):
        example.install(connection, scale=SMALL)
    assert table_fingerprints(connection) == before


@pytest.mark.parametrize("scale", [0, -1])
def test_a_scale_of_nothing_is_refused(database, example, scale):
    with pytest.raises(ValueError, match="scale must be above 0"):
        example.install(database.connect(), scale=scale)


def test_the_configuration_puts_every_view_in_its_tier(tmp_path, example):
    name = example.__name__.rpartition(".")[2]
    path = tmp_path / "upkeep.toml"
    path.write_text(example.CONFIG, encoding="utf-8")
    loaded = settings.load(path, {f"UPKEEP_{name.upper()}_URL": "postgresql://localhost/x"})
    tiers = {str(view): kept.tier for view, kept in loaded.databases[name].views.items()}
    assert tiers == dict(example.TIERS)
    assert list(example.TIERS) == list(example.VIEWS)
    assert loaded.fleet.home == name


def test_the_definitions_name_no_function_of_time_but_those_explained(system, example):
    for view in example.VIEWS:
        text = system.execute("SELECT pg_get_viewdef(%s::regclass)", [view]).fetchone()[0]
        found = set(re.findall(r"CURRENT_\w+|LOCALTIME\w*|now\(\)|clock_timestamp\(\)", text))
        expected = {
            DefinitionClass.DATA: set(),
            DefinitionClass.DATE: {"CURRENT_DATE"},
            DefinitionClass.TIME: {"now()"},
        }[DEFINITION_CLASSES[view]]
        assert found == expected, view
