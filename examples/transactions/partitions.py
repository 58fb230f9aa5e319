"""The partitions that the history needs, one a month and no more: those of the months to come are the fleet's work.

Named as the platform names them: transactions_y2026m01, split by hash into transactions_y2026m01_0 to _7.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any

import psycopg
from psycopg import sql

from examples import cursor
from examples.transactions.generate import following

HASH_PARTITIONS = 8
BY_MONTH = ("transactions", "transaction_audit_log", "transaction_metadata", "session_logs")

# A transaction is updated twice in its first hours: room for it on its page, and its dead versions cleared soon. On the
# partitions that have rows, because a partitioned table takes no storage parameters.
_STORAGE = sql.SQL(
    "(fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_limit = 3000)"
)


def create(conn: psycopg.Connection[Any], firsts: Iterable[date]) -> None:
    """Make those of the months given, and the default partition of the one table that has one."""
    cur = cursor(conn)
    for first in firsts:
        for table in BY_MONTH:
            cur.execute(
                sql.SQL(
                    "CREATE TABLE {partition} PARTITION OF {parent} FOR VALUES FROM ({start}) TO ({end}) {split}"
                ).format(
                    partition=sql.Identifier("public", name(table, first)),
                    parent=sql.Identifier("public", table),
                    start=_bound(table, first),
                    end=_bound(table, following(first)),
                    split=sql.SQL("PARTITION BY HASH (transaction_id)" if table == "transactions" else ""),
                )
            )
        for remainder in range(HASH_PARTITIONS):
            cur.execute(
                sql.SQL(
                    "CREATE TABLE {partition} PARTITION OF {month}"
                    " FOR VALUES WITH (MODULUS {modulus}, REMAINDER {remainder}) WITH {storage}"
                ).format(
                    partition=sql.Identifier("public", f"{name('transactions', first)}_{remainder}"),
                    month=sql.Identifier("public", name("transactions", first)),
                    modulus=sql.Literal(HASH_PARTITIONS),
                    remainder=sql.Literal(remainder),
                    storage=_STORAGE,
                )
            )
    cur.execute("CREATE TABLE public.session_logs_default PARTITION OF public.session_logs DEFAULT")


def reference(conn: psycopg.Connection[Any], firsts: Iterable[date]) -> None:
    """The metadata's foreign key, from each month's partition to the transactions' of the same month.

    The key always contains partition_date, so that together they promise what one between the parents would. With
    that one, DETACH looks for rows that reference the month by joining the whole referencing table with it, under
    ACCESS EXCLUSIVE: 1.25 s were measured with 1.5 million rows, and there is no way around it but to drop the
    constraint. With these, a month meets none but its own.
    """
    for first in firsts:
        cursor(conn).execute(
            sql.SQL(
                "ALTER TABLE {metadata} ADD CONSTRAINT fk_metadata_transaction"
                " FOREIGN KEY (transaction_id, partition_date)"
                " REFERENCES {transactions} (transaction_id, partition_date)"
                " DEFERRABLE INITIALLY DEFERRED"
            ).format(
                metadata=sql.Identifier("public", name("transaction_metadata", first)),
                transactions=sql.Identifier("public", name("transactions", first)),
            )
        )


def name(table: str, first: date) -> str:
    """A month's partition of a table."""
    return f"{table}_y{first:%Y}m{first:%m}"


def _bound(table: str, first: date) -> sql.Literal:
    """The sessions are partitioned by a moment: UTC has to be named, or the bound would be the session's midnight."""
    return sql.Literal(f"{first} 00:00:00+00" if table == "session_logs" else f"{first}")
