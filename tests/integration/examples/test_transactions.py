"""The transactions' rows and partitions, what their indexes and keys promise, and the summary against a plain query."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from psycopg import sql

from examples import transactions
from examples.transactions import generate, partitions
from fleet import settings
from fleet.ledger import Run, State
from fleet.names import RelationName
from fleet.postgres.migrations import migrate
from fleet.settings import check
from schedules.entries import entries
from tasks.partitions.keep import keep
from tasks.refresh.dispatch import Dispatcher
from tasks.refresh.trigger_ddl import carry_out, look
from tasks.refresh.triggers import Action
from tests.integration.examples.conftest import SIZES, Installed
from tests.integration.tasks.refresh.conftest import System
from tests.servers import Database

pytestmark = pytest.mark.any_server

# Whoever archives a month asks this first.
HOLD = sql.SQL(
    "(status IN ('pending', 'processing') OR completed_at IS NULL OR completed_at > now() - interval '30 days')"
)

VOLUME = generate.Volume.at(SIZES[transactions]["scale"])

# Deferred constraints are checked now, as a commit would.
COMMITTED = "SET CONSTRAINTS ALL IMMEDIATE"

ALL = sql.SQL("true")

SUMMARY = "public.daily_transaction_summary"
TRANSACTIONS = RelationName("public", "transactions")
WRONG = """
SELECT count(*) FROM ((TABLE {view} EXCEPT ALL ({query})) UNION ALL (({query}) EXCEPT ALL TABLE {view})) AS either
"""

INDEXES = {
    "transactions": {
        "transactions_pkey": "UNIQUE btree (transaction_id, partition_date)",
        "idx_unique_pending_reference": "UNIQUE btree (reference_number, partition_date, transaction_id)",
        "idx_transactions_uuid": "UNIQUE btree (transaction_uuid, partition_date, transaction_id)",
        "idx_transactions_partition_date_brin": "brin (partition_date)",
        "idx_transactions_created_brin": "brin (created_at)",
        "idx_transactions_source_account": "btree (source_account_id, partition_date, created_at)",
        "idx_transactions_destination_account": "btree (destination_account_id, partition_date, created_at)",
        "idx_transactions_status_created": "btree (status, created_at)",
        "idx_transactions_reference": "btree (reference_number)",
        "idx_transactions_account_status_date": "btree (source_account_id, status, created_at)",
        "idx_transactions_region_date": "btree (regulatory_region, partition_date, created_at)",
        "idx_transactions_risk_score": "btree (risk_score, created_at)",
        "idx_transactions_account_covering": "btree (source_account_id, partition_date, created_at)"
        " INCLUDE (transaction_uuid, amount, currency_code, status, transaction_type)",
        "idx_transactions_completed": "btree (completed_at)",
    },
    "transaction_audit_log": {"transaction_audit_log_pkey": "UNIQUE btree (audit_id, partition_date)"},
    "transaction_metadata": {
        "transaction_metadata_pkey": "UNIQUE btree (transaction_id, partition_date)",
        "idx_transaction_metadata_custom_fields": "gin (custom_fields)",
        "idx_transaction_metadata_merchant": "gin (merchant_data)",
    },
    "account_balances": {"account_balances_pkey": "UNIQUE btree (account_id)"},
    "session_logs": {"session_logs_pkey": "UNIQUE btree (session_id, started_at)"},
}


@pytest.fixture
def system(transactions_system: psycopg.Connection) -> psycopg.Connection:
    return transactions_system


def only(connection: psycopg.Connection, query: str | sql.Composable, *parameters: object) -> Any:
    """The one value of a query."""
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]


def first_months(connection: psycopg.Connection) -> list[date]:
    """As the installed system has them: it may have been installed before midnight."""
    names = connection.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'transactions'::regclass ORDER BY 1"
    ).fetchall()
    return [datetime.strptime(name, "transactions_y%Ym%m").date() for (name,) in names]  # noqa: DTZ007


def count(connection: psycopg.Connection, table: str, condition: sql.Composable = ALL) -> int:
    query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(sql.Identifier(table), condition)
    return only(connection, query)


def new_transaction(
    connection: psycopg.Connection, number: int, day: date, *, table: str = "transactions"
) -> None:
    connection.execute(
        sql.SQL(
            "INSERT INTO {} (transaction_id, reference_number, transaction_type, amount, source_account_id,"
            " settlement_date, regulatory_region, created_by, updated_by, partition_date)"
            " VALUES (%s, 'R', 'fee', 1, 1, %s, 'US', 'test', 'test', %s)"
        ).format(sql.Identifier(table)),
        [number, day, day],
    )


def new_metadata(connection: psycopg.Connection, number: int, day: date) -> None:
    connection.execute(
        "INSERT INTO transaction_metadata (transaction_id, partition_date) VALUES (%s, %s)", [number, day]
    )


def assert_partitions(connection: psycopg.Connection, months: int) -> None:
    firsts = first_months(connection)
    assert firsts == generate.months(datetime.combine(firsts[-1], datetime.min.time(), tzinfo=UTC), months)
    for table in partitions.BY_MONTH:
        found = {
            name
            for (name,) in connection.execute(
                "SELECT relid::regclass::text FROM pg_partition_tree(%s) WHERE level > 0", [table]
            )
        }
        expected = {partitions.name(table, first) for first in firsts}
        if table == "transactions":
            expected |= {f"{month}_{remainder}" for month in expected for remainder in range(8)}
            assert len(found) == months * (1 + 8)
        elif table == "session_logs":
            expected.add("session_logs_default")
        assert found == expected


class TestRows:
    def test_every_month_has_its_share_of_every_table(self, system: psycopg.Connection) -> None:
        per_month = VOLUME.transactions_per_month
        for first in first_months(system)[:-1]:
            assert count(system, partitions.name("transactions", first)) == per_month
            assert count(system, partitions.name("transaction_metadata", first)) == per_month // 5
            assert count(system, partitions.name("transaction_audit_log", first)) == per_month // 10
            assert count(system, partitions.name("session_logs", first)) == per_month // 10
        assert count(system, "session_logs_default") == 0
        assert count(system, "account_balances") == VOLUME.accounts

    def test_ids_grow_with_time_and_so_do_the_sequences(self, system: psycopg.Connection) -> None:
        assert not only(
            system,
            "SELECT count(*) FROM (SELECT created_at < lag(created_at) OVER (ORDER BY transaction_id) AS earlier"
            " FROM transactions) AS pairs WHERE earlier",
        )
        assert only(system, "SELECT count(*) = max(transaction_id) FROM transactions")
        assert only(
            system,
            "SELECT nextval('transactions_transaction_id_seq') = max(transaction_id) + 1 FROM transactions",
        )
        assert only(
            system,
            "SELECT nextval('transaction_audit_log_audit_id_seq') = max(audit_id) + 1"
            " FROM transaction_audit_log",
        )

    def test_dates_agree_with_moments(self, system: psycopg.Connection) -> None:
        assert not only(
            system,
            "SELECT count(*) FROM transactions WHERE partition_date <> (created_at AT TIME ZONE 'UTC')::date"
            " OR completed_at <= created_at OR (completed_at IS NULL) <> (status IN ('pending', 'processing'))",
        )

    def test_every_value_occurs(self, system: psycopg.Connection) -> None:
        def values(query: str) -> set[object]:
            return {value for (value,) in system.execute(query)}

        assert values("SELECT transaction_type FROM transactions") == set(generate.TYPES)
        assert values("SELECT regulatory_region FROM transactions") == set(generate.REGIONS)
        assert values("SELECT currency_code FROM transactions") == set(generate.CURRENCIES.values())
        assert values("SELECT status FROM transactions") == {
            "pending", "processing", "completed", "failed", "reversed",
        }  # fmt: skip
        assert values("SELECT DISTINCT risk_score > 0.7 FROM transactions") == {True, False}
        assert values("SELECT DISTINCT compliance_flags = '{}' FROM transactions") == {True, False}

    def test_the_server_puts_accounts_where_the_application_does(self, system: psycopg.Connection) -> None:
        found = system.execute(
            "SELECT DISTINCT source_account_id % 10, regulatory_region, currency_code::text FROM transactions"
        ).fetchall()
        assert sorted(found) == [
            (digit, region, generate.CURRENCIES[region]) for digit, region in enumerate(generate.REGIONS)
        ]

    def test_what_must_stay_is_in_the_oldest_month_but_one_and_in_the_newest(
        self, system: psycopg.Connection
    ) -> None:
        firsts = first_months(system)
        held = {first: count(system, partitions.name("transactions", first), HOLD) for first in firsts}
        # What was completed in the last 30 days is in the newest two months, and in the one before on the first days
        # of one that follows a short February.
        assert {first for first in firsts[:-3] if held[first]} == {firsts[generate.HELD_MONTH]}
        assert held[firsts[generate.HELD_MONTH]] == generate.HELD
        waiting = sql.SQL("status IN ('pending', 'processing')")
        assert count(system, partitions.name("transactions", firsts[-2]), waiting)


class TestPartitions:
    def test_every_month_is_there_split_into_8_and_none_ahead(self, system: psycopg.Connection) -> None:
        assert_partitions(system, SIZES[transactions]["months"])
        newest = only(system, "SELECT max(partition_date) FROM transactions")
        assert (
            newest.replace(day=1) in first_months(system)[-2:]
        )  # in a month's first minute it may have none

    def test_the_last_moment_decides_on_the_months_and_the_session_on_nothing(
        self, database: Database
    ) -> None:
        """Just where it hurts: a month that begins now, in UTC, installed by a session that is in the one before."""
        connection = database.connect()
        connection.execute("SET timezone = 'America/New_York'")
        moment = datetime(2026, 3, 1, tzinfo=UTC)
        transactions.install(connection, scale=0.0001, as_of=moment, populate=True)
        connection.execute("SET timezone = 'UTC'")
        assert_partitions(connection, 26)  # the whole history, as nobody asked for less
        assert first_months(connection)[-1] == date(2026, 3, 1)
        assert count(connection, "transactions_y2026m03") == 0
        latest = "SELECT max(greatest(created_at, updated_at, completed_at)) < %s FROM transactions"
        assert only(connection, latest, moment)
        bounds = {
            table: only(
                connection,
                "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = %s",
                partitions.name(table, date(2026, 2, 1)),
            )
            for table in partitions.BY_MONTH
        }
        assert bounds.pop("session_logs") == (
            "FOR VALUES FROM ('2026-02-01 00:00:00+00') TO ('2026-03-01 00:00:00+00')"
        )
        assert set(bounds.values()) == {"FOR VALUES FROM ('2026-02-01') TO ('2026-03-01')"}

    def test_storage_parameters_stand_on_what_has_rows(self, system: psycopg.Connection) -> None:
        found = system.execute(
            "SELECT DISTINCT c.reloptions FROM pg_partition_tree('transactions') t JOIN pg_class c ON c.oid = t.relid"
            " WHERE t.isleaf"
        ).fetchall()
        assert found == [
            (["fillfactor=85", "autovacuum_vacuum_scale_factor=0.02", "autovacuum_vacuum_cost_limit=3000"],)
        ]

    def test_a_row_of_a_month_to_come_has_no_place_but_a_session_has(
        self, system: psycopg.Connection
    ) -> None:
        ahead = generate.following(first_months(system)[-1])
        with pytest.raises(psycopg.errors.CheckViolation, match="no partition"), system.transaction():
            new_transaction(system, 1, ahead)
        system.execute(
            "INSERT INTO session_logs (session_id, account_id, started_at) VALUES ('s', 1, %s)",
            [datetime.combine(ahead, datetime.min.time(), tzinfo=UTC)],
        )
        assert count(system, "session_logs_default") == 1


class TestConstraints:
    @pytest.mark.parametrize("table", INDEXES)
    def test_every_documented_index_is_there_and_on_every_partition(
        self, system: psycopg.Connection, table: str
    ) -> None:
        defined = system.execute(
            "SELECT i.indexrelid::regclass::text, i.indisvalid, i.indisunique, a.amname,"
            " ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, true) FROM generate_series(1, i.indnkeyatts) n),"
            " ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, true)"
            "       FROM generate_series(i.indnkeyatts + 1, i.indnatts) n),"
            " (SELECT count(*) FROM pg_partition_tree(i.indexrelid) t WHERE t.isleaf)"
            " FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam"
            " WHERE i.indrelid = %s::regclass",
            [table],
        ).fetchall()
        leaves = only(system, "SELECT count(*) FROM pg_partition_tree(%s) WHERE isleaf", table)
        found = {}
        for name, valid, unique, method, keys, included, copies in defined:
            assert valid, name
            assert copies == leaves, name  # 0 for a plain table: it has no tree
            more = f" INCLUDE ({', '.join(included)})" if included else ""
            found[name] = f"{'UNIQUE ' if unique else ''}{method} ({', '.join(keys)}){more}"
        assert found == INDEXES[table]

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("idx_unique_pending_reference", "WHERE ((status)::text = ANY"),
            ("idx_transactions_status_created", "WHERE ((status)::text = ANY"),
            ("idx_transactions_risk_score", "WHERE (risk_score > 0.7)"),
            ("idx_transactions_source_account", "partition_date DESC, created_at DESC"),
            ("idx_transactions_partition_date_brin", "pages_per_range='128'"),
            ("idx_transactions_created_brin", "pages_per_range='64'"),
            ("idx_transaction_metadata_merchant", "merchant_data jsonb_path_ops"),
        ],
    )
    def test_indexes_are_as_documented_beyond_their_keys(
        self, system: psycopg.Connection, name: str, says: str
    ) -> None:
        definition = only(system, "SELECT pg_get_indexdef(%s::regclass)", name)
        assert says in definition

    def test_what_must_stay_is_found_without_reading_the_month(self, system: psycopg.Connection) -> None:
        month = sql.Identifier(partitions.name("transactions", first_months(system)[generate.HELD_MONTH]))
        system.execute("SET LOCAL enable_seqscan = off")  # the months of a test are of a few pages each
        query = sql.SQL("EXPLAIN SELECT count(*) FROM {} WHERE {}").format(month, HOLD)
        plan = "\n".join(line for (line,) in system.execute(query))
        assert plan.count("BitmapOr") == 8
        assert "Seq Scan" not in plan

    @pytest.mark.parametrize(
        "assignment",
        ["status = 'lost'", "amount = 0", "currency_code = 'usd'", "settlement_date = NULL"],
    )
    def test_rows_that_make_no_sense_are_refused(self, system: psycopg.Connection, assignment: str) -> None:
        change = sql.SQL("UPDATE transactions SET {} WHERE transaction_id = 1").format(
            sql.SQL(assignment)  # one of the literals above
        )
        with pytest.raises(psycopg.errors.IntegrityError), system.transaction():
            system.execute(change)

    def test_metadata_needs_its_transaction_when_it_is_committed(self, system: psycopg.Connection) -> None:
        day = first_months(system)[-1]
        number = only(system, "SELECT nextval('transactions_transaction_id_seq')")
        new_metadata(system, number, day)  # a batch may bring it first
        new_transaction(system, number, day)
        system.execute(COMMITTED)
        system.execute("SET CONSTRAINTS ALL DEFERRED")
        new_metadata(system, number + 1, day)
        with pytest.raises(psycopg.errors.ForeignKeyViolation, match="fk_metadata_transaction"):
            system.execute(COMMITTED)

    def test_a_transaction_cannot_go_before_its_metadata(self, system: psycopg.Connection) -> None:
        system.execute(COMMITTED)
        with pytest.raises(psycopg.errors.ForeignKeyViolation, match="still referenced from table"):
            system.execute("DELETE FROM transactions WHERE transaction_id = 5")

    def test_each_month_references_its_own(self, system: psycopg.Connection) -> None:
        found = system.execute(
            "SELECT conrelid::regclass::text, confrelid::regclass::text, condeferrable, condeferred, convalidated"
            " FROM pg_constraint WHERE conname = 'fk_metadata_transaction' AND conparentid = 0 ORDER BY 1"
        ).fetchall()
        assert found == [
            (
                partitions.name("transaction_metadata", first), partitions.name("transactions", first),
                True, True, True,
            )
            for first in first_months(system)
        ]  # fmt: skip


def test_the_summary_holds_what_a_plain_query_finds(system: psycopg.Connection) -> None:
    system.execute("REFRESH MATERIALIZED VIEW daily_transaction_summary")
    found = system.execute(
        "SELECT partition_date, regulatory_region, transaction_type, transaction_count, total_amount,"
        " round(avg_amount, 4), unique_accounts FROM daily_transaction_summary ORDER BY 1, 2, 3"
    ).fetchall()
    groups: dict[tuple[object, ...], list[tuple[Decimal, int]]] = defaultdict(list)
    for *key, amount, account in system.execute(
        "SELECT (created_at AT TIME ZONE 'UTC')::date, regulatory_region, transaction_type, amount,"
        " source_account_id FROM transactions"
        " WHERE CURRENT_DATE - (created_at AT TIME ZONE 'UTC')::date <= 90"
    ):
        groups[tuple(key)].append((amount, account))
    expected = []
    for group, rows in sorted(groups.items()):
        total = sum(amount for amount, _ in rows)
        average = (total / len(rows)).quantize(Decimal("0.0001"), ROUND_HALF_UP)
        expected.append((*group, len(rows), total, average, len({account for _, account in rows})))
    assert len(found) > 1000
    assert found == expected


def test_bursts_stay_in_the_current_month(clone: Installed) -> None:
    connection = clone(transactions).connect()
    rows = {table: count(connection, table) for table in partitions.BY_MONTH}
    began = only(connection, "SELECT now()")
    rng = Random(11)
    bursts = [transactions.write(connection, rng) for _ in range(5)]
    grown = {table: count(connection, table) - before for table, before in rows.items()}
    assert grown == {
        "transactions": sum(burst.transactions for burst in bursts),
        "transaction_audit_log": sum(burst.settled for burst in bursts),
        "transaction_metadata": sum(burst.transactions for burst in bursts) // 5,
        "session_logs": sum(burst.sessions for burst in bursts),
    }
    assert grown["transaction_audit_log"]
    written = connection.execute(
        "SELECT DISTINCT tableoid::regclass::text ~ ('^' || %s || '_[0-7]$') FROM transactions"
        " WHERE updated_at >= %s",
        [partitions.name("transactions", first_months(connection)[-1]), began],
    ).fetchall()
    assert written == [(True,)]
    assert count(connection, "session_logs_default") == 0


def test_a_moment_without_a_time_zone_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="time zone"):
        transactions.install(database.connect(), scale=0.001, as_of=datetime(2026, 1, 1))  # noqa: DTZ001


def test_a_history_too_short_for_what_is_special_about_it_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="months must be 4 or more, not 3"):
        transactions.install(database.connect(), scale=0.001, months=3)


def test_the_configuration_has_nothing_to_complain_of(tmp_path: Path) -> None:
    path = tmp_path / "upkeep.toml"
    path.write_text(transactions.CONFIG, encoding="utf-8")
    report = check(path, {"UPKEEP_TRANSACTIONS_URL": "postgresql://localhost/x"})
    assert (report.errors, report.warnings) == ((), ())


class TestTheSummaryUnderTheFleet:
    """As its upkeep.toml declares it, by the components that a worker has, in this process."""

    @pytest.fixture
    def fleet(self, clone: Installed, tmp_path: Path) -> Iterator[Callable[..., System]]:
        made: list[System] = []

        def declare(text: str = transactions.CONFIG) -> System:
            database = clone(transactions)
            migrate(database.url)
            path = tmp_path / "upkeep.toml"
            path.write_text(text, encoding="utf-8")
            loaded = settings.load(path, {"UPKEEP_TRANSACTIONS_URL": database.url})
            assert entries(loaded)["transactions/daily"].cron == "0 6 * * *"
            kept = loaded.databases["transactions"]
            made.append(System(database, list(kept.views.values())))
            made[-1].settings = kept
            return made[-1]

        yield declare
        for each in made:
            System.made.remove(each)
            each.connection.close()

    def differing(self, system: System) -> int:
        """How many rows the summary has that its query does not find, or lacks."""
        (query,) = system.connection.execute("SELECT pg_get_viewdef(%s::regclass)", [SUMMARY]).fetchone()
        return only(
            system.connection,
            sql.SQL(WRONG).format(
                view=sql.Identifier(*SUMMARY.split(".")), query=sql.SQL(query.rstrip().removesuffix(";"))
            ),
        )

    def burst(self, system: System, seed: int) -> None:
        """In a session of its own, which flushes its counters by ending."""
        with psycopg.connect(system.database.url) as application:
            transactions.write(application, Random(seed))
        assert self.differing(system) > 0

    def requests(self, system: System) -> list[tuple[Any, ...]]:
        return system.connection.execute(
            "SELECT view, source::regclass::text FROM upkeep.refresh_request ORDER BY id"
        ).fetchall()

    def work_on_requests(self, system: System) -> Run:
        """Nothing before the delay that upkeep.toml gives it, then one run, done here as by a worker."""
        dispatcher = Dispatcher(system.settings)
        early = dispatcher.look_at_rows(system.connection)
        assert early.created == ()
        assert early.next_in is not None
        assert 1 < early.next_in <= 5
        system.connection.execute(
            "UPDATE upkeep.refresh_request SET created_at = created_at - interval '5 seconds'"
        )
        (created,) = dispatcher.look_at_rows(system.connection).created
        assert created.target == SUMMARY
        return system.deliver(created.id)

    def test_its_tier_refreshes_it_and_no_write_does(self, fleet: Callable[..., System]) -> None:
        system = fleet()
        assert system.tick(SUMMARY, system.now(), "daily").state == State.SUCCEEDED
        self.burst(system, 1)
        assert self.requests(system) == []
        ticked = system.tick(SUMMARY, system.now(), "daily")
        assert (ticked.state, ticked.entry) == (State.SUCCEEDED, "daily")
        assert self.differing(system) == 0
        assert system.tick(SUMMARY, system.now(), "daily").state == State.SKIPPED

    def test_the_end_of_a_settlement_run_asks_for_it(self, fleet: Callable[..., System]) -> None:
        system = fleet()
        system.refresh(SUMMARY)
        for seed in range(3):
            self.burst(system, seed)
            system.connection.execute("SELECT upkeep.request_refresh(%s)", [SUMMARY])
        run = self.work_on_requests(system)
        assert (run.state, run.entry, run.result["requests"]) == (State.SUCCEEDED, "event", 3)
        assert self.differing(system) == 0
        assert self.requests(system) == []

    def test_with_on_write_so_does_every_write_also_into_partitions_made_since(
        self, fleet: Callable[..., System]
    ) -> None:
        system = fleet(transactions.CONFIG.replace('tier = "daily"', 'tier = "daily"\non_write = true'))
        connection = system.connection
        connection.execute("CREATE SCHEMA archive")
        system.refresh(SUMMARY)
        deeds = list(
            carry_out(
                connection,
                look(connection, system.settings).plan(),
                lock_timeout=timedelta(milliseconds=500),
            )
        )
        assert {(deed.line.action, deed.error) for deed in deeds} == {(Action.INSTALL, None)}
        kept = keep(connection, system.settings, system.settings.partition_set(TRANSACTIONS))
        assert (len(kept.created), kept.failures) == (3, [])
        newest, day = kept.created[-1].name, max(first_months(connection))
        assert newest == partitions.name("transactions", day)
        leaf = f"{newest}_0"
        numbers = connection.execute(
            "SELECT n FROM transactions_transaction_id_seq AS s,"
            " generate_series(s.last_value + 1, s.last_value + 999) AS n"
            " WHERE satisfies_hash_partition(%s::regclass, 8, 0, n) LIMIT 3",
            [newest],
        ).fetchall()
        # Who writes through a partitioned table cannot be told which partition it was.
        for table, source, (number,) in zip(
            ("transactions", newest, leaf), (None, None, leaf), numbers, strict=True
        ):
            with psycopg.connect(system.database.url, autocommit=True) as application:
                new_transaction(application, number, day, table=table)
            assert self.requests(system) == [(SUMMARY, source)], table
            assert self.differing(system) > 0
            run = self.work_on_requests(system)
            assert (run.state, run.entry, run.result["requests"]) == (State.SUCCEEDED, "event", 1)
            assert self.differing(system) == 0
        assert only(
            connection,
            "SELECT sum(transaction_count) FROM daily_transaction_summary WHERE partition_date = %s",
            day,
        ) == 3  # fmt: skip
