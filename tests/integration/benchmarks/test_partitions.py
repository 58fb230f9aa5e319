"""`python -m benchmarks partitions` as anybody starts it: every part of it in quick mode, and what it leans on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from benchmarks.partitions import tables
from benchmarks.partitions.application import working
from benchmarks.partitions.ratios import watched
from benchmarks.partitions.tables import Before, Calendar, Extent
from benchmarks.stage import Place
from examples.transactions import partitions
from tests.integration.benchmarks.quick import measure
from tests.servers import Database

pytestmark = pytest.mark.any_server

BOUNDS = {
    **{f"{part}.{shape}": "at most 300 ms" for part in ("create", "move") for shape in tables.Shape},
    "ratios.locked": "at least 1000 times less time under lock",
    "ratios.wal": "at least 1000 times less WAL",
    "planning": "at most 5 s",
    "planning.memory": "at most 256 MiB",
}
# What each part reports when there was any time for it.
FIGURES = {
    **{
        f"{part}.parents": (
            f"{part}.parents.ours.worst",
            f"{part}.parents.plain.worst",
            f"{part}.parents.nobody.p99",
        )
        for part in ("create", "move")
    },
    "ratios.locked": ("ratios.ours.locked", "ratios.documented.locked", "ratios.ours.seconds"),
    "ratios.wal": ("ratios.ours.wal", "ratios.documented.wal"),
    "planning": ("planning.sets",),
}
SMALL = Calendar(
    now=datetime(2026, 3, 31, 23, 30, tzinfo=UTC),
    extent=Extent(rows=500, today=50, months=4, ahead=2, tables=tables.TABLES[:2], sparse=True),
)


@pytest.mark.bench
@pytest.mark.slow
def test_every_part_measures_in_quick_mode() -> None:
    measure("partitions", BOUNDS, FIGURES)


@pytest.fixture
def place(database: Database) -> Place:
    """A small one of the benchmark's databases; its owner here is who owns everything."""
    made = Place(name=database.name, owner_url=database.url, fleet_url=database.url)
    tables.install(made, SMALL)
    return made


@pytest.fixture
def connection(place: Place) -> Iterator[psycopg.Connection[Any]]:
    with place.owner() as connection:
        yield connection


def state(connection: psycopg.Connection[Any]) -> tuple[object, ...]:
    """Which partitions there are, and what is in them."""
    trees = connection.execute(
        "SELECT array_agg(t.relid::regclass::text || ' of ' || coalesce(t.parentrelid::regclass::text, '-')"
        "                 ORDER BY t.relid::regclass::text)"
        " FROM unnest(ARRAY['transactions', 'transactions_eu', 'transaction_metadata']) AS p,"
        " LATERAL pg_partition_tree(p::regclass) AS t"
    ).fetchone()
    rows = connection.execute(
        "SELECT (SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM transactions AS t),"
        " (SELECT md5(string_agg(m::text, '|' ORDER BY m::text)) FROM transaction_metadata AS m)"
    ).fetchone()
    return trees, rows


def test_two_months_have_rows_and_what_was_made_and_moved_is_undone(
    connection: psycopg.Connection[Any],
) -> None:
    found = connection.execute(
        "SELECT date_trunc('month', partition_date)::date, count(*) FROM transactions GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert found == [(SMALL.due, 500), (SMALL.firsts[-1], 50)]
    assert SMALL.firsts == [SMALL.due, SMALL.today.replace(day=1)]
    assert connection.execute(
        "SELECT count(*) FROM transaction_metadata WHERE partition_date < %s", [SMALL.firsts[-1]]
    ).fetchone() == (100,)
    before, was = Before.of(connection, SMALL.extent.tables), state(connection)
    for table in SMALL.extent.tables:
        for first in SMALL.ahead:
            tables.make_month(connection, table, first)
    assert state(connection) != was
    month = partitions.name(tables.HOT, SMALL.due)
    connection.execute(
        "CREATE SCHEMA archive;"
        "CREATE TABLE archive.transactions (LIKE public.transactions, archived_at timestamptz, archive_batch_id uuid)"
        " PARTITION BY RANGE (partition_date)"
    )
    connection.execute("ALTER TABLE transactions DETACH PARTITION transactions_y2025m12")
    assert month == "transactions_y2025m12"
    connection.execute(
        "ALTER TABLE transactions_y2025m12 ADD archived_at timestamptz DEFAULT now(), ADD archive_batch_id uuid"
    )
    connection.execute("ALTER TABLE transactions_y2025m12 SET SCHEMA archive")
    connection.execute(
        "ALTER TABLE archive.transactions ATTACH PARTITION archive.transactions_y2025m12"
        " FOR VALUES FROM ('2025-12-01') TO ('2026-01-01')"
    )
    for _ in range(2):
        tables.drop_new(connection, before)
        tables.bring_back(connection, tables.HOT, month, SMALL.due)
        assert state(connection) == was


def test_the_application_feels_a_lock_from_when_its_statements_were_due(
    place: Place, connection: psycopg.Connection[Any]
) -> None:
    with working(place.owner_url, SMALL.today) as undisturbed:
        connection.execute("SELECT pg_sleep(1)")
    with working(place.owner_url, SMALL.today) as disturbed, connection.transaction():
        connection.execute("LOCK TABLE transactions")
        connection.execute("SELECT pg_sleep(0.8)")
    assert (undisturbed.errors, disturbed.errors) == ([], [])
    assert undisturbed.all
    # The lock itself waited for the report; who was due while it was held waited for both.
    assert disturbed.worst > 800
    assert sum(wait > 400 for wait in disturbed.all) > 20


def test_a_lock_is_seen_for_as_long_as_it_is_held(database: Database) -> None:
    connection = database.connect()
    connection.execute("CREATE TABLE transactions ()")
    with watched(database.url) as seen, connection.transaction():
        connection.execute("LOCK TABLE transactions")
        connection.execute("SELECT pg_sleep(0.3)")
    assert seen["locked_ms"] >= 300
    with watched(database.url) as seen:
        connection.execute("SELECT pg_sleep(0.1)")
    assert 0 < seen["locked_ms"] < 100
