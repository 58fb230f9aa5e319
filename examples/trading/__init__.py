"""A trade engine whose dashboards read three materialized views, every five minutes and daily at 02:00.

Beside them two declared jobs, which pg_cron used to run: alerts every fifteen minutes, a report every hour.

At scale 1 it has 20 symbols, 10,000 users and, over 37 days of one partition each, some 360,000 trades and
870,000 orders, drawn from a seed: the same seed, scale and `as_of` give the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg import sql

from examples import copy_rows, cursor, refresh, run_script
from examples.trading import generate
from examples.trading.traffic import Written, touch_all, write

__all__ = ["CONFIG", "TIERS", "VIEWS", "Written", "install", "touch_all", "write"]

VIEWS: tuple[str, ...] = (
    "monitoring.mv_trading_summary_24h",
    "monitoring.mv_order_flow_metrics",
    "monitoring.mv_user_trading_stats",
)

TIERS: Mapping[str, str] = MappingProxyType(
    {
        "monitoring.mv_trading_summary_24h": "five_minutes",
        "monitoring.mv_order_flow_metrics": "five_minutes",
        "monitoring.mv_user_trading_stats": "daily",
    }
)

CONFIG = (Path(__file__).parent / "upkeep.toml").read_text(encoding="utf-8")

DAYS_AHEAD = 7  # partitions for what `write` will write while the system runs

_HERE = Path(__file__).parent
_ORDERS = [
    "id",
    "user_id",
    "symbol",
    "side",
    "order_type",
    "price",
    "quantity",
    "filled_quantity",
    "status",
    "client_order_id",
    "created_at",
]
_TRADES = [
    "id",
    "symbol",
    "price",
    "quantity",
    "buy_order_id",
    "sell_order_id",
    "buyer_user_id",
    "seller_user_id",
    "taker_side",
    "buyer_fee",
    "seller_fee",
    "executed_at",
]


def install(
    conn: psycopg.Connection[Any],
    *,
    scale: float,
    seed: int = 1,
    populate: bool = False,
    as_of: datetime | None = None,
) -> None:
    """Make the whole system in one committed transaction: tables, rows, indexes, views, statistics.

    The rows end at `as_of`, by default the start of the current hour: a moment and not a date, because two
    of the views look at the last 24 hours. The views are left WITH NO DATA unless `populate`.

    Raises:
        ValueError: `scale` is not above zero, or `as_of` has no time zone.
        psycopg.errors.DuplicateTable: the database has such tables already; nothing was changed.

    """
    volume = generate.Volume.at(scale)
    as_of = as_of or datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    if as_of.tzinfo is None:
        raise ValueError("as_of must have a time zone: datetime(…, tzinfo=UTC)")
    with conn.transaction():
        run_script(conn, _HERE / "schema.sql")
        _create_partitions(conn, as_of)
        _load(conn, generate.Market(volume, seed=seed, as_of=as_of))
        run_script(conn, _HERE / "indexes.sql")
        run_script(conn, _HERE / "views.sql")
        run_script(conn, _HERE / "monitoring.sql")
        cursor(conn).execute("ANALYZE")
        if populate:
            refresh(conn, VIEWS)
    conn.commit()


def _create_partitions(conn: psycopg.Connection[Any], as_of: datetime) -> None:
    """One partition per day and table, from the first day of the history to some days after the last."""
    days = generate.history_days(as_of)
    ahead = [days[-1] + timedelta(days=number) for number in range(1, DAYS_AHEAD + 1)]
    for day in [*days, *ahead]:
        for table in ("orders", "trades"):
            cursor(conn).execute(
                sql.SQL(
                    "CREATE TABLE {partition} PARTITION OF {parent} FOR VALUES FROM ({start}) TO ({end})"
                ).format(
                    partition=_partition(table, day),
                    parent=sql.Identifier("public", table),
                    start=sql.Literal(f"{day} 00:00:00+00"),
                    end=sql.Literal(f"{day + timedelta(days=1)} 00:00:00+00"),
                )
            )


def _load(conn: psycopg.Connection[Any], market: generate.Market) -> None:
    copy_rows(
        conn, sql.Identifier("public", "symbols"), ["symbol", "base_asset", "quote_asset"], generate.symbols()
    )
    copy_rows(conn, sql.Identifier("public", "users"), ["id", "display_name"], generate.users(market.volume))
    for day in market.days():
        copy_rows(conn, _partition("orders", day.day), _ORDERS, day.orders)
        copy_rows(conn, _partition("trades", day.day), _TRADES, day.trades)
    for day in market.book():
        copy_rows(conn, _partition("orders", day.day), _ORDERS, day.orders)
    cursor(conn).execute(
        "SELECT setval('public.orders_id_seq', %s), setval('public.trades_id_seq', %s)",
        [market.orders, market.trades],
    )


def _partition(table: str, day: date) -> sql.Identifier:
    return sql.Identifier("public", f"{table}_p{day:%Y%m%d}")
