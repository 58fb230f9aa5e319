"""A table with a policy is ahead of the clock after every run, whoever works on it and whatever went wrong before."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from fleet import ledger, settings
from fleet.errors import PermanentError, TransientError, UpkeepError
from fleet.ledger import NewRun
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import read_partitioned
from tasks.base import Delivery
from tasks.partitions.keep import Kept as Found
from tasks.partitions.keep import keep as keep_table
from tasks.partitions.per_table import TableArguments
from tasks.partitions.tasks import MAINTAIN, Maintain, at_start, in_order
from tasks.performing import Done, Outcome, Wait
from tests.integration.tasks.partitions.creating import SOON, TABLE, Kept, keep, policy
from tests.servers import Database
from tests.waiting import wait_until

EMPTY = """
CREATE TABLE app.transactions (id bigint NOT NULL, created_at timestamptz NOT NULL, PRIMARY KEY (id, created_at))
  PARTITION BY RANGE (created_at);
"""


@pytest.fixture
def kept(upkeep_database: Database, role: Any) -> Kept:
    kept = keep(upkeep_database, role)
    with upkeep_database.connect() as admin:
        admin.execute(
            'GRANT USAGE ON SCHEMA upkeep TO "up-keep"; GRANT ALL ON ALL TABLES IN SCHEMA upkeep TO "up-keep";'
            'GRANT ALL ON ALL SEQUENCES IN SCHEMA upkeep TO "up-keep"'
        )
    return kept


def declared(kept: Kept, **changes: Any) -> settings.Database:
    one = policy(**({"archive": "none"} | changes))
    return settings.Database(name="kept", url=SecretStr(kept.keeper_url), partitions={one.name: one})


def maintain(kept: Kept, **changes: Any) -> Found:
    database = declared(kept, **changes)
    with kept.keeper() as connection:
        return keep_table(connection, database, database.partition_set(TABLE), patience=SOON)


def months(count: int) -> list[str]:
    today = datetime.now(UTC)
    found = []
    for number in range(count):
        year, month = divmod(today.year * 12 + today.month - 1 + number, 12)
        found.append(f"transactions_y{year}m{month + 1:02}")
    return found


def test_the_first_run_makes_the_current_period_and_three_whole_ones(kept: Kept) -> None:
    kept.set_up(EMPTY)
    found = maintain(kept)
    assert [each.name for each in found.created] == months(4)
    assert found.ahead_days >= 89
    assert found.analyzed
    assert not found.failures
    # On 14 what the server has counted comes a moment late.
    analyzed = (
        "SELECT last_analyze IS NOT NULL FROM pg_stat_user_tables WHERE relid = 'app.transactions'::regclass"
    )
    wait_until(lambda: kept.scalar(analyzed))
    again = maintain(kept)
    assert again.idle
    assert again.why_not_analyzed.startswith("it was at ")
    assert kept.partitions() == sorted(months(4))


def test_the_default_partition_is_made_and_emptied(kept: Kept) -> None:
    kept.set_up(EMPTY)
    maintain(kept, default="drain", premake=1)
    assert kept.partitions() == ["transactions_default", *months(2)]
    kept.set_up(
        "INSERT INTO app.transactions SELECT i, date_trunc('month', now(), 'UTC') + interval '65 days'"
        " FROM generate_series(1, 10) AS i"
    )
    found = maintain(kept, default="drain", premake=3)
    assert list(found.drained.values()) == [10]
    assert found.default_rows == 0
    assert found.to_json()["drained_rows"] == 10
    assert set(kept.partitions()) == {"transactions_default", *months(4)}


def test_what_fails_stops_nothing_else(kept: Kept) -> None:
    kept.set_up(f"{EMPTY} CREATE TABLE app.{months(2)[1]} (of_somebody int)")
    found = maintain(kept)
    assert [each.name for each in found.created] == [name for name in months(4) if name != months(2)[1]]
    (error,) = found.failures
    assert isinstance(error, PermanentError)
    assert months(2)[1] in error.message
    assert found.ahead_days < 32


def test_a_contradiction_is_told_and_nothing_done(kept: Kept) -> None:
    kept.set_up("CREATE TABLE app.transactions (id bigint) PARTITION BY LIST (id)")
    with pytest.raises(PermanentError, match=r"app\.transactions"):
        maintain(kept)


def test_somebodys_interrupted_detach_is_finished_first(kept: Kept) -> None:
    kept.set_up(EMPTY)
    maintain(kept)
    name = months(4)[3]
    with kept.owner() as reader, kept.owner() as detaching:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM app.transactions")
        thread = threading.Thread(target=_detach, args=(detaching, name))
        thread.start()
        pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
        wait_until(lambda: kept.scalar(pending) == 1)
        detaching.cancel_safe()
        thread.join()
        reader.execute("ROLLBACK")
    found = maintain(kept)
    assert [each.name for each in found.finalized] == [name]
    # It is a table of its own now, under the name that its successor would have had.
    assert [name in each.message for each in found.failures] == [True]
    kept.set_up(f"DROP TABLE app.{name}")
    assert [each.name for each in maintain(kept).created] == [name]


def _detach(connection: psycopg.Connection[Any], name: str) -> None:
    with suppress(psycopg.errors.QueryCanceled):
        connection.execute(
            sql.SQL("ALTER TABLE app.transactions DETACH PARTITION app.{} CONCURRENTLY").format(
                sql.Identifier(name)
            )
        )


def test_what_is_wrong_with_the_archive_keeps_no_partition_from_being_made(kept: Kept) -> None:
    kept.set_up(EMPTY)
    found = maintain(kept, archive="schema")
    assert [each.name for each in found.created] == months(4)
    (error,) = found.failures
    assert "there is no schema archive" in error.message


def test_many_at_once_and_one_by_hand_end_in_the_same_set(kept: Kept) -> None:
    kept.set_up(EMPTY)
    found: list[Found] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            found.append(maintain(kept, premake=12))
        except BaseException as exc:
            errors.append(exc)

    # Without the advisory lock that keeps them apart in a fleet.
    several = [threading.Thread(target=work) for _ in range(3)]
    for each in several:
        each.start()
    by_hand = "CREATE TABLE app.by_hand PARTITION OF app.transactions DEFAULT"
    kept.set_up(f"SET lock_timeout = '20s'; {by_hand}")
    for each in several:
        each.join()
    assert not errors
    assert kept.partitions() == ["by_hand", *months(13)]
    failed: list[UpkeepError] = [error for each in found for error in each.failures]
    assert failed == []
    assert maintain(kept, premake=12).created == []


def test_until_17_the_analysis_has_the_partitions_too_and_what_is_not_permitted_is_told(kept: Kept) -> None:
    kept.set_up(EMPTY)
    maintain(kept, premake=1)
    kept.set_up("INSERT INTO app.transactions SELECT i, now() FROM generate_series(1, 5000) AS i")
    kept.set_up(f"ANALYZE app.{months(1)[0]}")
    assert maintain(kept, premake=1).analyzed
    assert kept.scalar("SELECT reltuples FROM pg_class WHERE oid = 'app.transactions'::regclass") == 5000


def test_one_run_an_hour_for_all_workers_that_start(kept: Kept) -> None:
    kept.set_up(EMPTY)
    database = declared(kept)
    with kept.keeper() as connection:
        now = datetime(2026, 3, 1, 12, 34, tzinfo=UTC)
        first = at_start(connection, database, now)
        assert first is not None
        assert at_start(connection, database, now.replace(minute=59)) is None
        assert at_start(connection, database, now.replace(hour=13)) not in {None, first}
        assert at_start(connection, database.model_copy(update={"partitions": {}}), now) is None
        run = ledger.get(connection, first)
        assert run is not None
        assert (run.task, run.target, run.queue, run.requested_by) == (
            MAINTAIN,
            "kept",
            "maintenance",
            "start",
        )


def test_what_is_referred_to_comes_first(kept: Kept) -> None:
    kept.set_up(
        "CREATE TABLE app.a (id bigint, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        "CREATE TABLE app.b (id bigint, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        "ALTER TABLE app.a ADD FOREIGN KEY (id, at) REFERENCES app.b"
    )
    a, b = RelationName("app", "a"), RelationName("app", "b")
    with kept.keeper() as connection:
        assert in_order(read_partitioned(connection, [a, b]).values(), [a, b]) == [b, a]
        assert in_order((), [b, a]) == [a, b]


def test_what_refers_to_partitions_waits_for_the_run_that_makes_them(kept: Kept) -> None:
    """Bells are rung in the right order, and several workers do not keep it."""
    this_month = datetime.now(UTC).replace(day=1)
    bounds = f"FROM ('{this_month:%Y-%m-01}Z') TO ('{this_month + timedelta(days=31):%Y-%m-01}Z')"
    first = months(1)[0]
    of_orders = first.replace("transactions", "orders")
    kept.set_up(
        EMPTY
        + EMPTY.replace("transactions", "orders")
        + f"CREATE TABLE app.{first} PARTITION OF app.transactions FOR VALUES {bounds};"
        f"CREATE TABLE app.{of_orders} PARTITION OF app.orders FOR VALUES {bounds};"
        f"ALTER TABLE app.{first} ADD FOREIGN KEY (id, created_at) REFERENCES app.{of_orders}"
    )
    orders = RelationName("app", "orders")
    policies = {name: policy(name=name, archive="none", premake=1) for name in (TABLE, orders)}
    database = settings.Database(name="kept", url=SecretStr(kept.keeper_url), partitions=policies)

    with kept.keeper() as connection:

        def asked(table: RelationName) -> ledger.Run:
            new = NewRun(
                task=MAINTAIN, target=str(table), entry="operator", queue="maintenance", max_attempts=4
            )
            run = ledger.get(connection, ledger.insert(connection, new)[0])
            assert run is not None
            return run

        def work_on(run: ledger.Run) -> Outcome:
            found = Delivery(
                run=run,
                arguments=TableArguments(),
                database=database,
                connection=connection,
                worker="test",
            )
            return Maintain().work_on(policies[RelationName.parse(run.target)], found)

        run = asked(TABLE)
        with pytest.raises(TransientError, match=r"a partition of app\.orders for the same range"):
            work_on(run)
        leader = asked(orders)
        found = work_on(run)
        assert isinstance(found, Wait)
        assert found.reason == "partitions of app.orders are being made, which come first"
        # Not for ever: two may refer to each other.
        with pytest.raises(TransientError, match=r"a partition of app\.orders for the same range"):
            work_on(replace(run, created_at=run.created_at - timedelta(minutes=15)))
        assert isinstance(work_on(leader), Done)
        assert isinstance(work_on(run), Done)
    assert kept.partitions() == sorted(months(2))
