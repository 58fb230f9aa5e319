"""A payments platform with transactions to keep for seven years, one partition a month, and a daily summary of them.

At scale 1 it has 2,000,000 transactions a month over 26 months, the last one up to `as_of`, metadata for a fifth
of them and an audit row for a tenth, drawn from a seed: the same seed, scale and `as_of` give the same rows. No
partition of a month to come is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg import sql

from examples import copy_rows, cursor, refresh, run_script
from examples.transactions import generate, partitions
from examples.transactions.traffic import Written, touch_all, write

__all__ = ["CONFIG", "TIERS", "VIEWS", "Written", "install", "touch_all", "write"]

VIEWS: tuple[str, ...] = ("public.daily_transaction_summary",)

TIERS: Mapping[str, str] = MappingProxyType({"public.daily_transaction_summary": "daily"})

CONFIG = (Path(__file__).parent / "upkeep.toml").read_text(encoding="utf-8")

_HERE = Path(__file__).parent
_PLAN = "first_id rows starts_on starts_at step_us age_us held_from has_open accounts seed"


def install(
    conn: psycopg.Connection[Any],
    *,
    scale: float,
    seed: int = 1,
    populate: bool = False,
    as_of: datetime | None = None,
    months: int = generate.MONTHS,
) -> None:
    """Make the whole system in one committed transaction: tables, partitions, rows, indexes, view, statistics.

    The rows end at `as_of`, by default now: what is still pending depends on the moment. The view is left WITH NO
    DATA unless `populate`. A history of fewer `months` takes less: each has 8 leaves with 14 indexes, however few
    its rows are.

    Raises:
        ValueError: `scale` is not above zero, `as_of` has no time zone, or `months` are too few.
        psycopg.errors.DuplicateTable: the database has such tables already; nothing was changed.

    """
    volume = generate.Volume.at(scale)
    as_of = as_of or datetime.now(UTC)
    if as_of.tzinfo is None:
        raise ValueError("as_of must have a time zone: datetime(…, tzinfo=UTC)")
    if months < generate.LEAST_MONTHS:
        raise ValueError(f"months must be {generate.LEAST_MONTHS} or more, not {months}")
    firsts = generate.months(as_of, months)
    with conn.transaction():
        run_script(conn, _HERE / "schema.sql")
        partitions.create(conn, firsts)
        _load(conn, generate.history(volume, as_of=as_of, count=months), volume.accounts, seed)
        run_script(conn, _HERE / "indexes.sql")
        partitions.reference(conn, firsts)
        run_script(conn, _HERE / "views.sql")
        cursor(conn).execute("ANALYZE")
        if populate:
            refresh(conn, VIEWS)
    conn.commit()


def _load(conn: psycopg.Connection[Any], history: Sequence[generate.Month], accounts: int, seed: int) -> None:
    """COPY the plan of the months; load.sql makes the rows of it on the server."""
    run_script(conn, _HERE / "staging.sql")
    hashed = generate.hash_seed(seed)
    copy_rows(
        conn,
        sql.Identifier("pg_temp", "transactions_month"),
        _PLAN.split(),
        [month.line(accounts=accounts, seed=hashed) for month in history],
    )
    run_script(conn, _HERE / "load.sql")
