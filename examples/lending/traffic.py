"""What the lending application writes while its views are kept: payments, collections events, decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from random import Random
from typing import Any

import psycopg
from psycopg import sql

from examples import cursor
from examples.lending.generate import COMPONENTS, RISK_LEVELS

# Of the bursts of writing, how many also bring …
RECLASSIFIED_SHARE = 0.25  # a loan's new risk level
DECIDED_SHARE = 0.1  # a loan's start, end or write-off

EVENT_TYPES = ("reminder_sent", "call_attempt", "call_successful", "legal_notice")


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one burst committed, in rows."""

    payments: int = 0
    allocations: int = 0
    collections_events: int = 0
    reclassified_loans: int = 0
    changed_loans: int = 0


def write(
    conn: psycopg.Connection[Any], rng: Random, *, payments: int = 20, collections_events: int = 5
) -> Written:
    """One committed burst of the application: payments, collections events, now and then a decision.

    What is written depends on `rng` and on the loans there are; the time is the server's.
    """
    with conn.transaction():
        allocations = _pay(conn, rng, payments)
        _chase(conn, rng, collections_events)
        reclassified = _reclassify(conn, rng, 1) if rng.random() < RECLASSIFIED_SHARE else 0
        changed = _decide(conn, rng) if rng.random() < DECIDED_SHARE else 0
    conn.commit()
    return Written(
        payments=payments,
        allocations=allocations,
        collections_events=collections_events,
        reclassified_loans=reclassified,
        changed_loans=changed,
    )


def touch_all(conn: psycopg.Connection[Any], rng: Random, *, share: float = 0.01) -> Written:
    """Change something under every view, and commit.

    `share` of the payments and of the events is added; as many of the loans are reclassified and repriced,
    which is what reaches the portfolio summary: it reads nothing but loans.
    """
    payments = ceil(_newest_id(conn, "payment") * share)
    events = ceil(_newest_id(conn, "collections_event") * share)
    loans = ceil(_newest_id(conn, "loan") * share)
    with conn.transaction():
        allocations = _pay(conn, rng, payments)
        _chase(conn, rng, events)
        repriced = _reprice(conn, rng, loans)
        reclassified = _reclassify(conn, rng, loans)
    conn.commit()
    return Written(
        payments=payments,
        allocations=allocations,
        collections_events=events,
        reclassified_loans=reclassified,
        changed_loans=repriced,
    )


def _pay(conn: psycopg.Connection[Any], rng: Random, count: int) -> int:
    """Pay the next instalment of `count` active loans; returns the number of allocations."""
    loans = _draw_active(conn, rng, count)
    if not loans:
        return 0
    cur = cursor(conn)
    cur.execute(
        """
        SELECT ap.loan_id, al.id, al.currency_code, al.amount_principal, al.amount_rc_fee, al.amount_other
        FROM public.amortisation_plan ap
        CROSS JOIN LATERAL (
            SELECT *
            FROM public.amortisation_line
            WHERE plan_id = ap.id
            ORDER BY due_date < CURRENT_DATE, line_number
            LIMIT 1
        ) al
        WHERE ap.loan_id = ANY(%s)
        """,
        [loans],
    )
    instalments = {loan: instalment for loan, *instalment in cur}
    cur.execute(
        "SELECT nextval(pg_get_serial_sequence('public.payment', 'id')) FROM generate_series(1, %s)", [count]
    )
    ids = [number for (number,) in cur.fetchall()]
    payments = []
    allocations = []
    for payment, loan in zip(ids, loans, strict=True):
        line, currency, *amounts = instalments[loan]
        split = rng.choice((1, 1, 1, 2, 3))
        # Everything goes somewhere: the first component takes what the others do not name.
        parts = [sum(amounts[:1] + amounts[split:]), *amounts[1:split]]
        payments.append((payment, currency, sum(parts)))
        allocations += [
            (payment, loan, line, component, part) for component, part in zip(COMPONENTS, parts, strict=False)
        ]
    cur.executemany(
        "INSERT INTO public.payment (id, direction, status, currency_code, amount)"
        " VALUES (%s, 'inbound', 'completed', %s, %s)",
        payments,
    )
    cur.executemany(
        "INSERT INTO public.payment_allocation (payment_id, loan_id, line_id, component, allocated_amount)"
        " VALUES (%s, %s, %s, %s, %s)",
        allocations,
    )
    return len(allocations)


def _chase(conn: psycopg.Connection[Any], rng: Random, count: int) -> None:
    events = [
        (
            loan,
            rng.choice(EVENT_TYPES),
            1 + int(120 * rng.random() ** 2),
            rng.choice((None, None, "resolved")),
        )
        for loan in _draw_active(conn, rng, count)
    ]
    cursor(conn).executemany(
        "INSERT INTO public.collections_event (loan_id, event_type, dpd_snapshot, resolution_status)"
        " VALUES (%s, %s, %s, %s)",
        events,
    )


def _reclassify(conn: psycopg.Connection[Any], rng: Random, count: int) -> int:
    """Give loans a risk level other than the one they have; the old one ends where the new one begins."""
    loans = _lock(conn, _draw_active(conn, rng, count))
    cur = cursor(conn)
    cur.execute(
        "SELECT loan_id, status_value FROM public.current_loan_status"
        " WHERE status_type = 'risk_level' AND loan_id = ANY(%s) ORDER BY loan_id",
        [loans],
    )
    changes = [(loan, rng.choice([v for v in RISK_LEVELS if v != current])) for loan, current in cur]
    # greatest: now() is when this transaction began, and the open row may be from one that began later.
    cur.executemany(
        """
        WITH ended AS (
            UPDATE public.loan_status_history
            SET effective_through = greatest(now(), effective_from)
            WHERE loan_id = %s AND status_type = 'risk_level' AND effective_through IS NULL
            RETURNING loan_id, status_type, effective_through
        )
        INSERT INTO public.loan_status_history (loan_id, status_type, status_value, effective_from)
        SELECT loan_id, status_type, %s, effective_through FROM ended
        """,
        changes,
    )
    return len(changes)


def _reprice(conn: psycopg.Connection[Any], rng: Random, count: int) -> int:
    loans = _lock(conn, _draw_active(conn, rng, count))
    cur = cursor(conn)
    cur.execute("UPDATE public.loan SET interest_rate = interest_rate + 0.01 WHERE id = ANY(%s)", [loans])
    return cur.rowcount


def _decide(conn: psycopg.Connection[Any], rng: Random) -> int:
    """Pay out a pending loan, if there is one; else close or write off an active one."""
    cur = cursor(conn)
    cur.execute(
        """
        UPDATE public.loan SET status = 'active'
        WHERE id = (
            SELECT id FROM public.loan
            WHERE status = 'pending' ORDER BY id LIMIT 1
            FOR NO KEY UPDATE SKIP LOCKED
        )
        """
    )
    if cur.rowcount:
        return 1
    cur.execute(
        "UPDATE public.loan SET status = %s WHERE id = ANY(%s)",
        [rng.choice(("closed", "closed", "written_off")), _draw_active(conn, rng, 1)],
    )
    return cur.rowcount


def _draw_active(conn: psycopg.Connection[Any], rng: Random, count: int) -> list[int]:
    """`count` ids of active loans, with repetition; fewer only where no loan is active.

    Ids are drawn first and looked up then, so that a burst costs the same however many loans there are.
    """
    if not count:
        return []
    cur = cursor(conn)
    newest = _newest_id(conn, "loan")
    drawn = [1 + int(rng.random() * newest) for _ in range(2 * count + 20)]
    cur.execute("SELECT id FROM public.loan WHERE status = 'active' AND id = ANY(%s)", [drawn])
    active = {number for (number,) in cur}
    chosen = [number for number in drawn if number in active]
    if not chosen:
        cur.execute("SELECT id FROM public.loan WHERE status = 'active' ORDER BY id LIMIT 100")
        chosen = [number for (number,) in cur]
    return [chosen[position % len(chosen)] for position in range(count)] if chosen else []


def _lock(conn: psycopg.Connection[Any], loans: Sequence[int]) -> list[int]:
    """Lock loans in the order of their ids, so that two bursts wait for each other instead of deadlocking."""
    cur = cursor(conn)
    cur.execute("SELECT id FROM public.loan WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE", [list(loans)])
    return [number for (number,) in cur]


def _newest_id(conn: psycopg.Connection[Any], table: str) -> int:
    cur = cursor(conn)
    cur.execute(
        sql.SQL("SELECT coalesce(max(id), 0) FROM {table}").format(table=sql.Identifier("public", table))
    )
    row = cur.fetchone()
    assert row is not None
    return int(row[0])
