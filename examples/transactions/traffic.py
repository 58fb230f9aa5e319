"""What the payments platform writes while its months are kept: all of it into the current month.

That month's partition has to be there: `install` makes it, and the fleet those that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from examples import cursor
from examples.transactions.generate import CURRENCIES, REGIONS, TYPES

SETTLED_AFTER = timedelta(days=2)
TWO_SIDED = ("payment", "transfer", "refund")

_INSERT = """
INSERT INTO public.transactions (
    transaction_id, reference_number, transaction_type, amount, currency_code, source_account_id,
    destination_account_id, risk_score, regulatory_region, partition_date, settlement_date, created_by, updated_by
) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 'api', 'api')
"""

_METADATA = """
INSERT INTO public.transaction_metadata (transaction_id, partition_date, merchant_data, customer_data, custom_fields)
VALUES (%s, %s, %s, %s, %s)
"""

_SESSION = """
INSERT INTO public.session_logs (session_id, account_id, ip_address, user_agent)
VALUES (gen_random_uuid()::text, %s, inet '10.0.0.0' + %s::integer, 'bank-app/4.2')
"""

# The oldest that wait in this month are settled, their sources' balances moved, each change written down. The
# month is a value, and stands beside the join too: otherwise the whole history is planned, opened and locked.
_SETTLE = """
WITH due AS MATERIALIZED (
    SELECT transaction_id, partition_date, status, version
      FROM public.transactions
     WHERE partition_date >= %(month)s
       AND status IN ('pending', 'processing')
     ORDER BY created_at, transaction_id
     LIMIT %(count)s
       FOR UPDATE SKIP LOCKED
), settled AS (
    UPDATE public.transactions t
       SET status = CASE WHEN t.transaction_id %% 25 = 0 THEN 'failed' ELSE 'completed' END,
           completed_at = now(), updated_at = now(), updated_by = 'settlement', version = t.version + 1
      FROM due d
     WHERE t.transaction_id = d.transaction_id AND t.partition_date = d.partition_date
       AND t.partition_date >= %(month)s
    RETURNING t.transaction_id, t.partition_date, t.status, t.version, t.source_account_id, t.amount
), audited AS (
    INSERT INTO public.transaction_audit_log
        (transaction_id, partition_date, action, old_values, new_values, changed_by)
    SELECT s.transaction_id, s.partition_date, 'UPDATE',
           jsonb_build_object('status', d.status, 'version', d.version),
           jsonb_build_object('status', s.status, 'version', s.version), 'settlement'
      FROM settled s
      JOIN due d USING (transaction_id, partition_date)
), paid AS (
    UPDATE public.account_balances b
       SET available_balance = b.available_balance - p.amount, last_transaction_id = p.transaction_id,
           last_transaction_at = now(), updated_at = now(), version = b.version + 1
      FROM (SELECT source_account_id, sum(amount) AS amount, max(transaction_id) AS transaction_id
              FROM settled WHERE status = 'completed' GROUP BY source_account_id) p
     WHERE b.account_id = p.source_account_id
)
SELECT count(*) FROM settled
"""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one burst committed, in rows."""

    transactions: int = 0
    settled: int = 0
    sessions: int = 0


def write(
    conn: psycopg.Connection[Any], rng: Random, *, transactions: int = 20, sessions: int = 4
) -> Written:
    """One committed burst of the application: new transactions and sessions, and as many older ones settled.

    What is written depends on `rng` and on what waits; the time is the server's.
    """
    with conn.transaction():
        today, accounts = _today(conn), _accounts(conn)
        drawn = [(rng.choice(TYPES), 1 + int(accounts * rng.random() ** 2)) for _ in range(transactions)]
        _insert(conn, rng, drawn, today, accounts)
        settled = _settle(conn, today, transactions)
        cursor(conn).executemany(
            _SESSION, [(1 + int(accounts * rng.random()), rng.getrandbits(24)) for _ in range(sessions)]
        )
    conn.commit()
    return Written(transactions=transactions, settled=settled, sessions=sessions)


def touch_all(conn: psycopg.Connection[Any], rng: Random) -> Written:
    """Change every row that the summary has of today, and commit: one transaction of each type in each region."""
    with conn.transaction():
        # The accounts 1 to 10 are in all regions.
        drawn = [(kind, 1 + number) for kind in TYPES for number in range(len(REGIONS))]
        _insert(conn, rng, drawn, _today(conn), _accounts(conn))
    conn.commit()
    return Written(transactions=len(drawn))


def _insert(
    conn: psycopg.Connection[Any],
    rng: Random,
    drawn: Sequence[tuple[str, int]],
    today: date,
    accounts: int,
) -> None:
    """Pending transactions, by type and source; every fifth came through a shop."""
    cur = cursor(conn)
    cur.execute(
        "SELECT nextval('public.transactions_transaction_id_seq') FROM generate_series(1, %s)", [len(drawn)]
    )
    ids = [number for (number,) in cur]
    rows: list[tuple[object, ...]] = []
    metadata: list[tuple[object, ...]] = []
    for number, (kind, source) in zip(ids, drawn, strict=True):
        region = REGIONS[source % len(REGIONS)]
        destination = 1 + int(accounts * rng.random()) if kind in TWO_SIDED else None
        amount = round(0.5 + 5000 * rng.random() ** 3, 2)
        risk = round(rng.random() ** 2, 2)
        details = (kind, amount, CURRENCIES[region], source, destination, risk, region)
        rows.append((number, f"TX{number}", *details, today, today + SETTLED_AFTER))
        if number % 5 == 0:
            shop = Jsonb({"merchant_id": rng.getrandbits(10), "category": "online"})
            metadata.append((number, today, shop, Jsonb({"customer_id": source}), Jsonb({"channel": "app"})))
    cur.executemany(_INSERT, rows)
    cur.executemany(_METADATA, metadata)


def _settle(conn: psycopg.Connection[Any], today: date, count: int) -> int:
    cur = cursor(conn)
    cur.execute(_SETTLE, {"month": today.replace(day=1), "count": count})
    row = cur.fetchone()
    return int(row[0]) if row else 0


def _today(conn: psycopg.Connection[Any]) -> date:
    """The server's, in UTC: that of now(), which is one for the whole burst, also around midnight."""
    cur = cursor(conn)
    cur.execute("SELECT (now() AT TIME ZONE 'UTC')::date")
    row = cur.fetchone()
    assert row is not None
    today: date = row[0]
    return today


def _accounts(conn: psycopg.Connection[Any]) -> int:
    cur = cursor(conn)
    cur.execute("SELECT max(account_id) FROM public.account_balances")
    row = cur.fetchone()
    return int(row[0]) if row and row[0] else 0
