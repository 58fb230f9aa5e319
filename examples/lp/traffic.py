"""What the fund administration writes while the portal's views are kept: activities, calls, payouts, figures.

Each function writes in the transaction that its caller has opened and says whom it concerns; `write` and
`touch_all` are whole transactions of an application that knows nothing of Upkeep. portal.py is one that does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from random import Random
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from examples import cursor

# Of the bursts of writing, how many also bring …
FUND_WIDE_SHARE = 0.3  # a call or a payout of a whole fund
MEASURED_SHARE = 0.3  # new figures of a whole fund

LARGEST_SHARE = 20_000  # millionths of a commitment in one activity


class Concerned(NamedTuple):
    """A partner and a fund that an activity was booked between."""

    lp_id: int
    fund_id: int


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one burst committed, in rows."""

    activities: int = 0
    performance_snapshots: int = 0


def write(conn: psycopg.Connection[Any], rng: Random, *, activities: int = 5) -> Written:
    """One committed burst: single activities, now and then a whole fund's call or payout, or its new figures.

    What is written depends on `rng` and on the commitments there are; the time is the server's.
    """
    with conn.transaction():
        booked = len(book(conn, rng, activities))
        if rng.random() < FUND_WIDE_SHARE:
            booked += len(book_fund(conn, rng))
        measured = measure(conn, rng, _draw_funds(conn, rng, 1)) if rng.random() < MEASURED_SHARE else 0
    conn.commit()
    return Written(activities=booked, performance_snapshots=measured)


def touch_all(conn: psycopg.Connection[Any], rng: Random, *, share: float = 0.01) -> Written:
    """Change something under every view, and commit: `share` of the activities is added, of the funds measured."""
    activities = ceil(_newest_id(conn, "capital_activities") * share)
    funds = ceil(_newest_fund(conn) * share)
    with conn.transaction():
        booked = len(book(conn, rng, activities))
        measured = measure(conn, rng, _draw_funds(conn, rng, funds))
    conn.commit()
    return Written(activities=booked, performance_snapshots=measured)


def book(conn: psycopg.Connection[Any], rng: Random, count: int) -> list[Concerned]:
    """Book up to `count` activities, each on another active commitment."""
    chosen = sorted(set(_draw_active(conn, rng, count)))
    kinds = [rng.choice(("capital_call", "management_fee", "distribution")) for _ in chosen]
    shares = [1 + int(LARGEST_SHARE * rng.random()) for _ in chosen]
    return _book(conn, chosen, kinds, shares)


def book_fund(
    conn: psycopg.Connection[Any], rng: Random, *, fund_id: int | None = None, kind: str | None = None
) -> list[Concerned]:
    """Call from, or pay out to, every partner of a fund by its share; a drawn fund if none is named."""
    funds = _draw_funds(conn, rng, 1) if fund_id is None else [fund_id]
    cur = cursor(conn)
    cur.execute(
        "SELECT id FROM public.lp_fund_commitments"
        " WHERE fund_id = ANY(%s) AND commitment_status = 'active' ORDER BY id",
        [funds],
    )
    pledged = [number for (number,) in cur]
    drawn = rng.choice(("capital_call", "distribution"))
    share = 1 + int(LARGEST_SHARE * rng.random())
    return _book(conn, pledged, [kind or drawn] * len(pledged), [share] * len(pledged))


def measure(conn: psycopg.Connection[Any], rng: Random, funds: Sequence[int]) -> int:
    """Give every commitment of the funds today's figures, drawn around its last ones; returns how many."""
    rate = rng.choice((-1, 1)) * (0.01 + 0.5 * rng.random())
    multiple = rng.choice((-1, 1)) * (0.001 + 0.02 * rng.random())
    cur = cursor(conn)
    cur.execute(
        """
        INSERT INTO public.lp_performance_snapshots
            (commitment_id, snapshot_date, net_irr_percent, gross_irr_percent, moic, dpi, rvpi, tvpi)
        SELECT c.id, (now() AT TIME ZONE 'UTC')::date, n.net_irr_percent, n.gross_irr_percent,
               n.moic, n.dpi, n.rvpi, n.dpi + n.rvpi
        FROM public.lp_fund_commitments c
        CROSS JOIN LATERAL (
            SELECT greatest(s.net_irr_percent + round(%(rate)s::numeric, 4), -99) AS net_irr_percent,
                   greatest(s.gross_irr_percent + round(%(rate)s::numeric, 4), -99) AS gross_irr_percent,
                   greatest(s.moic + round(%(multiple)s::numeric, 4), s.dpi) AS moic,
                   s.dpi,
                   greatest(s.rvpi + round(%(multiple)s::numeric, 4), 0) AS rvpi
            FROM public.lp_performance_snapshots s
            WHERE s.commitment_id = c.id
            ORDER BY s.snapshot_date DESC
            LIMIT 1
        ) n
        WHERE c.fund_id = ANY(%(funds)s)
        ORDER BY c.id
        ON CONFLICT (commitment_id, snapshot_date) DO UPDATE
        SET (net_irr_percent, gross_irr_percent, moic, dpi, rvpi, tvpi) =
            (excluded.net_irr_percent, excluded.gross_irr_percent, excluded.moic, excluded.dpi, excluded.rvpi,
             excluded.tvpi)
        """,
        {"rate": rate, "multiple": multiple, "funds": list(funds)},
    )
    return cur.rowcount


def _book(
    conn: psycopg.Connection[Any], commitments: Sequence[int], kinds: Sequence[str], shares: Sequence[int]
) -> list[Concerned]:
    """Book one activity on each of the commitments, which are named once and in the order of their ids.

    No more is called than was committed. The commitments are locked for that by a statement of their own: the
    next one sees what whoever held them has booked.
    """
    cur = cursor(conn)
    cur.execute(
        "SELECT FROM public.lp_fund_commitments WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE",
        [list(commitments)],
    )
    cur.execute(
        """
        WITH wanted AS (
            SELECT c.id, c.lp_id, c.fund_id, w.kind,
                   CASE WHEN w.kind = 'distribution' THEN c.commitment_amount_cents / 1000000 * w.share
                        ELSE least(c.commitment_amount_cents / 1000000 * w.share,
                                   c.commitment_amount_cents - paid.cents)
                   END AS cents
            FROM unnest(%s::bigint[], %s::text[], %s::bigint[]) AS w (id, kind, share)
            JOIN public.lp_fund_commitments c USING (id)
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(a.amount_cents), 0)::bigint AS cents
                FROM public.capital_activities a
                WHERE a.commitment_id = c.id AND a.activity_type <> 'distribution'
            ) paid
        ), booked AS (
            INSERT INTO public.capital_activities
                (commitment_id, fund_id, activity_type, activity_date, amount_cents)
            SELECT id, fund_id, kind, (now() AT TIME ZONE 'UTC')::date, cents FROM wanted WHERE cents > 0
            RETURNING commitment_id
        )
        SELECT lp_id, fund_id FROM wanted JOIN booked ON commitment_id = id ORDER BY id
        """,
        [list(commitments), list(kinds), list(shares)],
    )
    return [Concerned(*row) for row in cur]


def _draw_funds(conn: psycopg.Connection[Any], rng: Random, count: int) -> list[int]:
    """The funds of drawn active commitments: the larger a fund, the more often."""
    cur = cursor(conn)
    cur.execute(
        "SELECT DISTINCT fund_id FROM public.lp_fund_commitments WHERE id = ANY(%s) ORDER BY fund_id",
        [_draw_active(conn, rng, count)],
    )
    return [number for (number,) in cur]


def _draw_active(conn: psycopg.Connection[Any], rng: Random, count: int) -> list[int]:
    """`count` ids of active commitments, with repetition; fewer only where none is active.

    Ids are drawn first and looked up then, so that a burst costs the same however many commitments there are.
    """
    if not count:
        return []
    cur = cursor(conn)
    newest = _newest_id(conn, "lp_fund_commitments")
    drawn = [1 + int(rng.random() * newest) for _ in range(2 * count + 20)]
    cur.execute(
        "SELECT id FROM public.lp_fund_commitments WHERE commitment_status = 'active' AND id = ANY(%s)",
        [drawn],
    )
    active = {number for (number,) in cur}
    chosen = [number for number in drawn if number in active]
    if not chosen:
        cur.execute(
            "SELECT id FROM public.lp_fund_commitments WHERE commitment_status = 'active' ORDER BY id LIMIT 100"
        )
        chosen = [number for (number,) in cur]
    return [chosen[position % len(chosen)] for position in range(count)] if chosen else []


def _newest_fund(conn: psycopg.Connection[Any]) -> int:
    cur = cursor(conn)
    cur.execute("SELECT coalesce(max(fund_id), 0) FROM public.lp_fund_commitments")
    row = cur.fetchone()
    assert row is not None
    return int(row[0])


def _newest_id(conn: psycopg.Connection[Any], table: str) -> int:
    cur = cursor(conn)
    cur.execute(
        sql.SQL("SELECT coalesce(max(id), 0) FROM {table}").format(table=sql.Identifier("public", table))
    )
    row = cur.fetchone()
    assert row is not None
    return int(row[0])
