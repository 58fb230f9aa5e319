"""The trading views against plain queries written another way, and the partitions they read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

import psycopg
import pytest

from examples import trading
from examples.trading import generate
from fleet.settings import check
from tests.integration.examples.conftest import Installed
from tests.servers import Database

pytestmark = pytest.mark.any_server


@pytest.fixture
def empty(trading_system: psycopg.Connection) -> psycopg.Connection:
    trading_system.execute("TRUNCATE orders, trades")
    return trading_system


def rows(connection: psycopg.Connection, query: str) -> list[dict]:
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        return cursor.execute(query).fetchall()


def trade(connection: psycopg.Connection, symbol: str, price: str, quantity: str, **more: object) -> None:
    columns = {
        "buy_order_id": 1, "sell_order_id": 2, "buyer_user_id": 1, "seller_user_id": 2, "taker_side": "buy",
        "buyer_fee": 0, "seller_fee": 0, "executed_at": datetime.now(UTC), **more,
    }  # fmt: skip
    connection.execute(
        psycopg.sql.SQL("INSERT INTO trades (symbol, price, quantity, {}) VALUES ({})").format(
            psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, columns)),
            psycopg.sql.SQL(", ").join([psycopg.sql.Placeholder()] * (len(columns) + 3)),
        ),
        [symbol, Decimal(price), Decimal(quantity), *columns.values()],
    )


def test_the_summary_holds_what_a_plain_query_finds(trading_system):
    with trading_system.transaction():  # one now() for the view and the query
        trading_system.execute("REFRESH MATERIALIZED VIEW monitoring.mv_trading_summary_24h")
        found = rows(
            trading_system,
            "SELECT symbol, trade_count, open_price, high_price, low_price, close_price, volume, vwap"
            " FROM monitoring.mv_trading_summary_24h ORDER BY symbol",
        )
        expected = rows(
            trading_system,
            """
            WITH recent AS (SELECT * FROM trades WHERE now() - executed_at <= '24:00:00')
            SELECT s.symbol,
                (SELECT count(*) FROM recent t WHERE t.symbol = s.symbol) AS trade_count,
                (SELECT price FROM recent t WHERE t.symbol = s.symbol
                    ORDER BY executed_at, id LIMIT 1) AS open_price,
                (SELECT price FROM recent t WHERE t.symbol = s.symbol
                    ORDER BY price DESC LIMIT 1) AS high_price,
                (SELECT price FROM recent t WHERE t.symbol = s.symbol ORDER BY price LIMIT 1) AS low_price,
                (SELECT price FROM recent t WHERE t.symbol = s.symbol
                    ORDER BY executed_at DESC, id DESC LIMIT 1) AS close_price,
                (SELECT COALESCE(sum(quantity), 0) FROM recent t WHERE t.symbol = s.symbol) AS volume,
                (SELECT round(sum(quantity * price) / sum(quantity), 8) FROM recent t
                    WHERE t.symbol = s.symbol) AS vwap
            FROM symbols s ORDER BY symbol
            """,
        )
    assert len(found) == 20
    assert found == expected


def test_the_users_statistics_hold_what_a_plain_query_finds(trading_system):
    found = rows(
        trading_system,
        "SELECT user_id, symbol, trade_count, buy_count, sell_count, net_volume, fees_paid, active_days"
        " FROM monitoring.mv_user_trading_stats ORDER BY user_id, symbol",
    )
    expected = rows(
        trading_system,
        """
        SELECT u.id AS user_id, t.symbol,
            count(*) AS trade_count,
            count(*) FILTER (WHERE t.buyer_user_id = u.id) AS buy_count,
            count(*) FILTER (WHERE t.seller_user_id = u.id) AS sell_count,
            sum(CASE WHEN t.buyer_user_id = u.id THEN t.quantity ELSE -t.quantity END) AS net_volume,
            sum(CASE WHEN t.buyer_user_id = u.id THEN t.buyer_fee ELSE t.seller_fee END) AS fees_paid,
            count(DISTINCT date_trunc('day', t.executed_at AT TIME ZONE 'UTC')) AS active_days
        FROM users u JOIN trades t ON u.id IN (t.buyer_user_id, t.seller_user_id)
        WHERE (t.executed_at AT TIME ZONE 'UTC')::date >= CURRENT_DATE - 30
        GROUP BY u.id, t.symbol
        ORDER BY u.id, t.symbol
        """,
    )
    assert expected
    assert found == expected


def test_the_order_flow_holds_what_a_plain_query_finds(trading_system):
    with trading_system.transaction():
        trading_system.execute("REFRESH MATERIALIZED VIEW monitoring.mv_order_flow_metrics")
        found = rows(
            trading_system,
            "SELECT symbol, buy_orders, sell_orders, best_bid, best_ask, spread, bid_depth, ask_depth"
            " FROM monitoring.mv_order_flow_metrics ORDER BY symbol",
        )
        expected = rows(
            trading_system,
            """
            WITH book AS (SELECT * FROM orders WHERE status NOT IN ('filled', 'cancelled'))
            SELECT s.symbol,
                (SELECT count(*) FROM orders o WHERE o.symbol = s.symbol AND side = 'buy'
                    AND now() - created_at <= '24:00:00') AS buy_orders,
                (SELECT count(*) FROM orders o WHERE o.symbol = s.symbol AND side = 'sell'
                    AND now() - created_at <= '24:00:00') AS sell_orders,
                (SELECT max(price) FROM book o WHERE o.symbol = s.symbol AND side = 'buy') AS best_bid,
                (SELECT min(price) FROM book o WHERE o.symbol = s.symbol AND side = 'sell') AS best_ask,
                (SELECT min(price) FROM book o WHERE o.symbol = s.symbol AND side = 'sell')
                    - (SELECT max(price) FROM book o WHERE o.symbol = s.symbol AND side = 'buy') AS spread,
                (SELECT sum(quantity) - sum(filled_quantity) FROM book o WHERE o.symbol = s.symbol
                    AND side = 'buy') AS bid_depth,
                (SELECT sum(quantity) - sum(filled_quantity) FROM book o WHERE o.symbol = s.symbol
                    AND side = 'sell') AS ask_depth
            FROM symbols s ORDER BY symbol
            """,
        )
    assert found == expected
    assert all(row["best_bid"] < row["best_ask"] for row in found)


def test_a_symbol_that_nobody_trades_is_listed_with_zeros(empty):
    empty.execute("REFRESH MATERIALIZED VIEW monitoring.mv_trading_summary_24h")
    found = rows(empty, "SELECT * FROM monitoring.mv_trading_summary_24h")
    assert len(found) == 20
    assert {(row["trade_count"], row["volume"], row["close_price"]) for row in found} == {(0, 0, None)}
    empty.execute("REFRESH MATERIALIZED VIEW monitoring.mv_order_flow_metrics")
    found = rows(empty, "SELECT * FROM monitoring.mv_order_flow_metrics")
    assert {(row["buy_orders"], row["best_bid"], row["buy_pressure_pct"]) for row in found} == {
        (0, None, None)
    }


def test_the_summary_of_known_trades(empty):
    now = datetime.now(UTC)
    for price, quantity, hours in (
        ("90", "5", 25),
        ("100", "1", 23),
        ("120", "2", 12),
        ("80", "1", 6),
        ("110", "1", 1),
    ):
        trade(empty, "BTC/USDT", price, quantity, executed_at=now - timedelta(hours=hours))
    empty.execute("REFRESH MATERIALIZED VIEW monitoring.mv_trading_summary_24h")
    (row,) = rows(empty, "SELECT * FROM monitoring.mv_trading_summary_24h WHERE symbol = 'BTC/USDT'")
    prices = [row[name] for name in ("open_price", "high_price", "low_price", "close_price", "price_change")]
    assert prices == [100, 120, 80, 110, 10]
    assert (row["trade_count"], row["volume"], row["vwap"], row["price_change_pct"]) == (4, 5, 106, 10)


def test_profit_is_realized_on_what_was_both_bought_and_sold(empty):
    trade(empty, "BTC/USDT", "100", "3", buyer_fee=1)
    trade(empty, "BTC/USDT", "110", "2", buyer_user_id=3, seller_user_id=1, seller_fee=2)
    empty.execute("REFRESH MATERIALIZED VIEW monitoring.mv_user_trading_stats")
    profits = {row["user_id"]: row for row in rows(empty, "SELECT * FROM monitoring.mv_user_trading_stats")}
    assert profits[1]["realized_pnl"] == 2 * 10 - 3
    assert profits[2]["realized_pnl"] is None
    assert (profits[1]["net_volume"], profits[1]["taker_share_pct"]) == (1, 50)


def test_windows_read_only_the_partitions_inside_them(trading_system):
    plan = "\n".join(
        line
        for (line,) in trading_system.execute(
            "EXPLAIN SELECT count(*) FROM trades WHERE executed_at >= now() - interval '24 hours'"
        )
    )
    assert "Subplans Removed" in plan


def test_there_is_a_partition_for_every_day_of_the_window_and_some_ahead(trading_system):
    (today,) = trading_system.execute("SELECT (now() AT TIME ZONE 'UTC')::date").fetchone()
    for table in ("orders", "trades"):
        names = {name for (name,) in trading_system.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass", [table]
        )}  # fmt: skip
        for offset in range(-31, 7):
            assert f"{table}_p{today + timedelta(days=offset):%Y%m%d}" in names


def test_bursts_do_not_cross_the_book(clone: Installed):
    connection = clone(trading).connect()
    rng = Random(11)
    for _ in range(20):
        trading.write(connection, rng)
    connection.execute("REFRESH MATERIALIZED VIEW monitoring.mv_order_flow_metrics")
    books = rows(connection, "SELECT symbol, best_bid, best_ask FROM monitoring.mv_order_flow_metrics")
    assert all(row["best_bid"] < row["best_ask"] for row in books)


@pytest.mark.parametrize(
    "moment", ["2026-03-01T00:00:00", "2026-02-28T23:59:59.999999", "2024-02-29T12:00:00"]
)
def test_any_moment_may_be_the_last(moment):
    as_of = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    volume = generate.Volume.at(0.001)
    market = generate.Market(volume, seed=2, as_of=as_of)
    limit = as_of.strftime("%Y-%m-%d %H:%M:%S.%f")
    for day in [*market.days(), *market.book()]:
        moments = [
            row.rstrip("\n").rsplit("\t", 1)[1]
            for rows in day.orders + day.trades
            for row in rows.splitlines()
        ]
        assert all(stamp.startswith(day.day.isoformat()) for stamp in moments)
        assert all(stamp < limit for stamp in moments)


def test_a_moment_without_a_time_zone_is_refused(database: Database):
    with pytest.raises(ValueError, match="time zone"):
        trading.install(database.connect(), scale=0.001, as_of=datetime(2026, 1, 1))  # noqa: DTZ001


class TestJobs:
    """What pg_cron ran beside the views."""

    def alerts(self, connection: psycopg.Connection) -> dict[str, tuple[str, Decimal]]:
        found = rows(connection, "SELECT * FROM monitoring.check_performance_alerts()")
        return {row["metric"]: (row["severity"], row["threshold"]) for row in found}

    def test_the_configuration_declares_those_that_refresh_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "upkeep.toml"
        path.write_text(trading.CONFIG, encoding="utf-8")
        report = check(path, {"UPKEEP_TRADING_URL": "postgresql://localhost/x"})
        assert (report.errors, report.warnings) == ((), ())
        assert report.settings is not None
        jobs = {name: (job.cron, job.database) for name, job in report.settings.jobs.items()}
        assert jobs == {
            "check_alerts": ("*/15 * * * *", "trading"),
            "hourly_report": ("0 * * * *", "trading"),
        }

    def test_every_baseline_has_its_figure(self, trading_system: psycopg.Connection) -> None:
        figures = rows(trading_system, "SELECT metric, value FROM monitoring.performance_metrics()")
        baselines = rows(trading_system, "SELECT metric FROM monitoring.performance_baselines")
        assert {row["metric"] for row in figures} == {row["metric"] for row in baselines}
        found = {row["metric"]: row["value"] for row in figures}
        assert 0 < found["connections_pct"] <= 100
        assert found["orders_dead_pct"] is None or 0 <= found["orders_dead_pct"] <= 100

    def test_a_threshold_that_is_passed_is_an_alert_and_the_worse_one_counts(
        self, trading_system: psycopg.Connection
    ) -> None:
        def threshold(warning: int, critical: int) -> None:
            trading_system.execute(
                "UPDATE monitoring.performance_baselines SET warning = %s, critical = %s"
                " WHERE metric = 'partitions_days_left'",
                [warning, critical],
            )

        # Partitions are made for a week.
        assert "partitions_days_left" not in self.alerts(trading_system)
        threshold(30, 1)
        assert self.alerts(trading_system)["partitions_days_left"] == ("WARNING", 30)
        threshold(60, 30)
        assert self.alerts(trading_system)["partitions_days_left"] == ("CRITICAL", 30)

    def test_a_table_that_runs_out_of_partitions_is_noticed(self, trading_system: psycopg.Connection) -> None:
        (today,) = trading_system.execute("SELECT (now() AT TIME ZONE 'UTC')::date").fetchone()
        for ahead in range(1, trading.DAYS_AHEAD + 1):
            name = psycopg.sql.Identifier(f"trades_p{today + timedelta(days=ahead):%Y%m%d}")
            trading_system.execute(psycopg.sql.SQL("DROP TABLE IF EXISTS {}").format(name))
        assert self.alerts(trading_system)["partitions_days_left"] == ("CRITICAL", 1)

    def test_a_report_keeps_the_figures_and_the_alerts(self, trading_system: psycopg.Connection) -> None:
        trading_system.execute("UPDATE monitoring.performance_baselines SET warning = -1, critical = -1")
        (number,) = trading_system.execute("SELECT monitoring.generate_daily_performance_report()").fetchone()
        (report,) = rows(trading_system, "SELECT * FROM monitoring.performance_reports")
        assert report["id"] == number
        assert "connections_pct" in report["metrics"]
        assert {alert["severity"] for alert in report["alerts"]} == {"CRITICAL"}
