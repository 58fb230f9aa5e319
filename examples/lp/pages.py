"""What the portal's pages ask the database: the dashboard, a partner's timeline, a fund's figures, charts.

Each is one short query, answered from a view or along one index; rows come as dictionaries that JSON can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Any, Literal

import psycopg
from psycopg.rows import dict_row

Row = dict[str, Any]
Granularity = Literal["month", "quarter"]


def summary(conn: psycopg.Connection[Any], lp_id: int) -> Row | None:
    """A partner's first page: one row of the view, by its unique index."""
    found = _rows(
        conn,
        """
        SELECT lp_id, legal_name, fund_count, active_fund_count, total_commitment_cents, total_contributed_cents,
               total_distributed_cents, total_unfunded_cents, total_nav_cents,
               dpi, rvpi, tvpi,
               latest_valuation_date, last_activity_date
        FROM public.lp_dashboard_summary
        WHERE lp_id = %(lp_id)s
        """,
        lp_id=lp_id,
    )
    return found[0] if found else None


def transactions(
    conn: psycopg.Connection[Any],
    lp_id: int,
    *,
    since: date,
    until: date,
    fund_ids: Sequence[int] | None = None,
    before: tuple[date, int] | None = None,
    limit: int = 50,
) -> list[Row]:
    """A page of a partner's activities, newest first; the next one is `before` this one's last row.

    A cursor and no OFFSET: a page costs what it shows, however deep it is, and rows that come meanwhile move none.
    """
    return _rows(
        conn,
        """
        SELECT a.id, a.fund_id, a.activity_type, a.activity_date, a.amount_cents
        FROM public.lp_fund_commitments c
        CROSS JOIN LATERAL (
            SELECT each.id, each.fund_id, each.activity_type, each.activity_date, each.amount_cents
            FROM public.capital_activities each
            WHERE each.commitment_id = c.id
              AND each.activity_date BETWEEN %(since)s AND %(until)s
              AND (%(day)s::date IS NULL OR (each.activity_date, each.id) < (%(day)s::date, %(id)s::bigint))
            ORDER BY each.activity_date DESC, each.id DESC
            LIMIT %(limit)s
        ) a
        WHERE c.lp_id = %(lp_id)s AND (%(funds)s::integer[] IS NULL OR c.fund_id = ANY(%(funds)s))
        ORDER BY a.activity_date DESC, a.id DESC
        LIMIT %(limit)s
        """,
        lp_id=lp_id,
        since=since,
        until=until,
        funds=None if fund_ids is None else list(fund_ids),
        day=before[0] if before else None,
        id=before[1] if before else None,
        limit=limit,
    )


def fund_performance(conn: psycopg.Connection[Any], lp_id: int, fund_id: int) -> Row | None:
    """The latest figures of a partner's commitment to a fund."""
    found = _rows(
        conn,
        """
        SELECT commitment_id, snapshot_date, net_irr_percent, gross_irr_percent,
               moic, dpi, rvpi, tvpi
        FROM public.lp_performance_latest
        WHERE lp_id = %(lp_id)s AND fund_id = %(fund_id)s
        """,
        lp_id=lp_id,
        fund_id=fund_id,
    )
    return found[0] if found else None


def holdings(conn: psycopg.Connection[Any], lp_id: int, fund_id: int) -> Row | None:
    """What of a fund is a partner's, by its share of the commitments; its companies are not kept here."""
    found = _rows(
        conn,
        """
        SELECT f.fund_id, f.lp_count,
               (c.commitment_amount_cents::numeric / f.total_commitment_cents) AS share,
               (f.latest_nav_cents * c.commitment_amount_cents::numeric / f.total_commitment_cents)::bigint
                   AS nav_cents,
               f.latest_valuation_date
        FROM public.fund_lp_summary f
        JOIN public.lp_fund_commitments c ON c.fund_id = f.fund_id
        WHERE c.lp_id = %(lp_id)s AND f.fund_id = %(fund_id)s
        """,
        lp_id=lp_id,
        fund_id=fund_id,
    )
    return found[0] if found else None


def performance_timeseries(
    conn: psycopg.Connection[Any], commitment_id: int, *, since: date, until: date, granularity: Granularity
) -> list[Row]:
    """A chart of a commitment's figures: the last ones of each month or quarter."""
    return _rows(
        conn,
        """
        SELECT DISTINCT ON (date_trunc(%(granularity)s, snapshot_date::timestamp))
               snapshot_date, net_irr_percent, moic, tvpi
        FROM public.lp_performance_snapshots
        WHERE commitment_id = %(commitment_id)s AND snapshot_date BETWEEN %(since)s AND %(until)s
        ORDER BY date_trunc(%(granularity)s, snapshot_date::timestamp), lp_performance_snapshots.snapshot_date DESC
        """,
        commitment_id=commitment_id,
        since=since,
        until=until,
        granularity=granularity,
    )


def _rows(conn: psycopg.Connection[Any], query: str, **values: object) -> list[Row]:
    found = conn.cursor(row_factory=dict_row).execute(query, values).fetchall()
    return [{column: _plain(value) for column, value in row.items()} for row in found]


def _plain(value: object) -> object:
    """As JSON can hold it: cents are whole numbers already, what is a ratio may be a float."""
    if isinstance(value, date):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value
