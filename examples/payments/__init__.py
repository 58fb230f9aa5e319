"""A payments platform whose pending transactions a declared job takes on, 1,000 at a time, until none is left.

At scale 1 it has some 200,000 transactions over three months of one partition each, 12,500 of them pending for longer
than five minutes, drawn from a seed: the same seed, scale and `as_of` give the same rows. It has no views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg import sql

from examples import copy_rows, cursor, run_script
from examples.payments import generate

__all__ = ["CONFIG", "JOBS", "TIERS", "VIEWS", "Written", "install", "write"]

VIEWS: tuple[str, ...] = ()
TIERS: Mapping[str, str] = MappingProxyType({})
JOBS: tuple[str, ...] = ("process_pending",)

CONFIG = (Path(__file__).parent / "upkeep.toml").read_text(encoding="utf-8")

MONTHS_AHEAD = 3  # partitions for what `write` will write while the system runs

_HERE = Path(__file__).parent
_COLUMNS = [
    "transaction_id",
    "reference_number",
    "transaction_type",
    "status",
    "amount",
    "currency_code",
    "source_account_id",
    "destination_account_id",
    "created_at",
    "updated_at",
    "completed_at",
    "version",
    "partition_date",
]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one burst committed, in rows."""

    transactions: int = 0


def install(
    conn: psycopg.Connection[Any], *, scale: float, seed: int = 1, as_of: datetime | None = None
) -> None:
    """Make the whole system in one committed transaction: table, function, rows, indexes, statistics.

    The rows end at `as_of`, by default now: what has been pending for five minutes depends on the moment.

    Raises:
        ValueError: `scale` is not above zero, or `as_of` has no time zone.
        psycopg.errors.DuplicateTable: the database has such a table already; nothing was changed.

    """
    volume = generate.Volume.at(scale)
    as_of = as_of or datetime.now(UTC)
    if as_of.tzinfo is None:
        raise ValueError("as_of must have a time zone: datetime(…, tzinfo=UTC)")
    with conn.transaction():
        run_script(conn, _HERE / "schema.sql")
        _create_partitions(conn, as_of)
        for month in generate.transactions(volume, seed=seed, as_of=as_of):
            copy_rows(conn, _partition(month.first), _COLUMNS, month.rows)
        cursor(conn).execute(
            "SELECT setval('public.transactions_id_seq', (SELECT max(transaction_id) FROM public.transactions))"
        )
        run_script(conn, _HERE / "indexes.sql")
        cursor(conn).execute("ANALYZE")
    conn.commit()


def write(conn: psycopg.Connection[Any], rng: Random, *, transactions: int = 20) -> Written:
    """One committed burst of the application: new transactions, all of them pending; the time is the server's."""
    with conn.transaction():
        cursor(conn).executemany(
            "INSERT INTO public.transactions (reference_number, transaction_type, amount, currency_code,"
            " source_account_id, destination_account_id) VALUES (%s, %s, %s, %s, %s, %s)",
            [
                (
                    f"W{rng.getrandbits(48):012x}",
                    rng.choice(generate.TYPES),
                    round(0.5 + 5000 * rng.random() ** 3, 2),
                    rng.choice(generate.CURRENCIES),
                    *rng.sample(range(1, generate.ACCOUNTS + 1), 2),
                )
                for _ in range(transactions)
            ],
        )
    conn.commit()
    return Written(transactions=transactions)


def _create_partitions(conn: psycopg.Connection[Any], as_of: datetime) -> None:
    """One partition per month, from the first of the history to some after the last."""
    firsts = generate.months(as_of)
    for _ in range(MONTHS_AHEAD):
        firsts.append(generate.following(firsts[-1]))
    for first in firsts:
        cursor(conn).execute(
            sql.SQL(
                "CREATE TABLE {partition} PARTITION OF {parent} FOR VALUES FROM ({start}) TO ({end})"
            ).format(
                partition=_partition(first),
                parent=sql.Identifier("public", "transactions"),
                start=sql.Literal(f"{first}"),
                end=sql.Literal(f"{generate.following(first)}"),
            )
        )


def _partition(first: date) -> sql.Identifier:
    return sql.Identifier("public", f"transactions_y{first:%Y}m{first:%m}")
