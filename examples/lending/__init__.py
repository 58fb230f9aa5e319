"""A lending platform whose dashboards read five materialized views in three tiers.

At scale 1 it has 50,000 loans, 1,500,000 amortisation lines, 500,000 payments in 800,000 allocations and
100,000 collections events, drawn from a seed: the same seed, scale and `as_of` give the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg
from psycopg import sql

from examples import continue_numbering, copy_rows, cursor, refresh, run_script
from examples.lending import generate
from examples.lending.traffic import Written, touch_all, write

__all__ = ["CONFIG", "TIERS", "VIEWS", "Written", "install", "touch_all", "write"]

# Upstream first: the features read three of the others.
VIEWS: tuple[str, ...] = (
    "public.mv_current_loan_status_realtime",
    "public.mv_portfolio_summary_realtime",
    "public.mv_payment_summary_detailed",
    "public.mv_collections_summary_detailed",
    "public.mv_ml_features_cache",
)

TIERS: Mapping[str, str] = MappingProxyType(
    {
        "public.mv_current_loan_status_realtime": "five_minutes",
        "public.mv_portfolio_summary_realtime": "five_minutes",
        "public.mv_payment_summary_detailed": "fifteen_minutes",
        "public.mv_collections_summary_detailed": "fifteen_minutes",
        "public.mv_ml_features_cache": "daily",
    }
)

CONFIG = (Path(__file__).parent / "upkeep.toml").read_text(encoding="utf-8")

_HERE = Path(__file__).parent


def install(
    conn: psycopg.Connection[Any],
    *,
    scale: float,
    seed: int = 1,
    populate: bool = False,
    as_of: date | None = None,
) -> None:
    """Make the whole system in one committed transaction: tables, rows, keys and indexes, views, statistics.

    The rows end the day before `as_of`, today (UTC) if not given, so that active loans look alive. The views
    are left WITH NO DATA unless `populate`: their first refresh belongs to the fleet.

    Raises:
        ValueError: `scale` is not above zero.
        psycopg.errors.DuplicateTable: the database has such tables already; nothing was changed.

    """
    volume = generate.Volume.at(scale)
    as_of = as_of or datetime.now(UTC).date()
    with conn.transaction():
        run_script(conn, _HERE / "schema.sql")
        _load(conn, volume, seed=seed, as_of=as_of)
        run_script(conn, _HERE / "indexes.sql")
        run_script(conn, _HERE / "views.sql")
        cursor(conn).execute("ANALYZE")
        if populate:
            refresh(conn, VIEWS)
    conn.commit()


def _load(conn: psycopg.Connection[Any], volume: generate.Volume, *, seed: int, as_of: date) -> None:
    book = generate.portfolio(volume, seed=seed, as_of=as_of)
    tables: tuple[tuple[str, str, Iterable[str]], ...] = (
        ("legal_entity", "id name country_code", generate.legal_entities()),
        ("product", "id name category business_unit", generate.products()),
        ("party", "id kind display_name", generate.parties(volume, seed=seed)),
        (
            "loan",
            "id loan_number legal_entity_id product_id borrower_party_id currency_code principal_amount"
            " interest_rate rc_fee_rate start_date end_date status",
            generate.loans(book),
        ),
        (
            "loan_status_history",
            "id loan_id status_type status_value effective_from effective_through",
            generate.status_history(book, seed=seed, as_of=as_of),
        ),
        ("amortisation_plan", "id loan_id status", generate.amortisation_plans(book)),
        (
            "amortisation_line",
            "id plan_id line_number due_date currency_code"
            " amount_principal amount_rc_fee amount_penalty amount_other",
            generate.amortisation_lines(book),
        ),
        (
            "payment",
            "id direction status currency_code amount received_at",
            generate.payment_rows(generate.payments(book, seed=seed, as_of=as_of)),
        ),
        (
            "payment_allocation",
            "id payment_id loan_id line_id component allocated_amount created_at",
            generate.allocation_rows(generate.payments(book, seed=seed, as_of=as_of)),
        ),
        (
            "collections_event",
            "id loan_id event_type event_at dpd_snapshot resolution_status",
            generate.collections_events(book, seed=seed, as_of=as_of),
        ),
    )
    for name, columns, rows in tables:
        copy_rows(conn, sql.Identifier("public", name), columns.split(), rows)
        continue_numbering(conn, sql.Identifier("public", name))
