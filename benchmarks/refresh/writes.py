"""What the lending application writes between two refreshes, the same rows in both databases."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from benchmarks.kept import flush_counters
from examples import lending

# Of the payments that there are, how many are new.
SHARE = 0.01

# One statement, because examples.lending.write also reclassifies a loan now and then, and then other views
# change too. Which loans pay follows from the round alone: both databases must stay alike.
_PAY = """
WITH paying AS (
    SELECT l.id
      FROM public.loan AS l
     WHERE l.status = 'active'
     ORDER BY hashint8extended(l.id, %(round)s)
     LIMIT (SELECT ceil(max(id) * %(share)s) FROM public.payment)
), due AS MATERIALIZED (
    SELECT nextval('public.payment_id_seq') AS payment_id, p.id AS loan_id, a.*
      FROM paying AS p
     CROSS JOIN LATERAL (
         SELECT al.id AS line_id, al.currency_code, al.amount_principal, al.amount_rc_fee
           FROM public.amortisation_plan AS ap
           JOIN public.amortisation_line AS al ON al.plan_id = ap.id
          WHERE ap.loan_id = p.id
          ORDER BY al.due_date < CURRENT_DATE, al.line_number
          LIMIT 1) AS a
), paid AS (
    INSERT INTO public.payment (id, direction, status, currency_code, amount)
    SELECT payment_id, 'inbound', 'completed', currency_code, amount_principal + amount_rc_fee FROM due
)
INSERT INTO public.payment_allocation (payment_id, loan_id, line_id, component, allocated_amount)
SELECT payment_id, loan_id, line_id, 'principal', amount_principal FROM due WHERE amount_principal > 0
 UNION ALL
SELECT payment_id, loan_id, line_id, 'rc_fee', amount_rc_fee FROM due WHERE amount_rc_fee > 0
"""


def pay(connection: psycopg.Connection[Any], number: int) -> None:
    """1 % new payments, and nothing else."""
    connection.execute(_PAY, {"round": number, "share": SHARE})
    flush_counters(connection)


def touch_all(connection: psycopg.Connection[Any], number: int) -> None:
    """Something under every view."""
    lending.touch_all(connection, random.Random(number), share=SHARE)
    flush_counters(connection)


def nothing(_connection: psycopg.Connection[Any], _number: int) -> None:
    """Nothing at all."""


WRITES: Mapping[str, Callable[[psycopg.Connection[Any], int], None]] = {
    "payments": pay,
    "everything": touch_all,
    "nothing": nothing,
}
