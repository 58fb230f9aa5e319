"""An LP reporting portal whose pages read three materialized views, at midnight and after each write.

At scale 1 it has 10,000 limited partners with 100,000 commitments to 500 funds, 5,000,000 capital activities,
500,000 capital accounts, as many performance snapshots, 1,000,000 reports and 50,000 NAV snapshots, drawn from a
seed: the same seed, scale and `as_of` give the same rows.
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
from examples.lp import generate
from examples.lp.traffic import Written, touch_all, write

__all__ = ["CONFIG", "TIERS", "VIEWS", "Written", "install", "touch_all", "write"]

# Upstream first: the funds' summary reads the latest performance.
VIEWS: tuple[str, ...] = (
    "public.lp_performance_latest",
    "public.lp_dashboard_summary",
    "public.fund_lp_summary",
)

TIERS: Mapping[str, str] = MappingProxyType(dict.fromkeys(VIEWS, "midnight"))

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

    The rows end with the last whole month before `as_of`, today (UTC) if not given. The views are left WITH NO
    DATA unless `populate`: their first refresh belongs to the fleet.

    Raises:
        ValueError: `scale` is not above zero.
        psycopg.errors.DuplicateTable: the database has such tables already; nothing was changed.

    """
    volume = generate.Volume.at(scale)
    as_of = as_of or datetime.now(UTC).date()
    with conn.transaction():
        run_script(conn, _HERE / "schema.sql")
        _load(conn, generate.book(volume, seed=seed, as_of=as_of))
        run_script(conn, _HERE / "indexes.sql")
        run_script(conn, _HERE / "views.sql")
        cursor(conn).execute("ANALYZE")
        if populate:
            refresh(conn, VIEWS)
    conn.commit()


def _load(conn: psycopg.Connection[Any], book: generate.Book) -> None:
    """COPY what was drawn; load.sql makes the large tables of it on the server."""
    run_script(conn, _HERE / "staging.sql")
    tables: tuple[tuple[str, str, str, Iterable[str]], ...] = (
        (
            "public",
            "limited_partners",
            "id legal_name entity_type country_code contact_email metadata created_at updated_at",
            generate.partners(book),
        ),
        (
            "public",
            "lp_fund_commitments",
            "id lp_id fund_id commitment_amount_cents commitment_date commitment_status metadata"
            " created_at updated_at",
            generate.commitments(book),
        ),
        (
            "public",
            "fund_nav_snapshots",
            "id fund_id snapshot_date nav_cents contributed_cents distributed_cents created_at updated_at",
            generate.nav_snapshots(book),
        ),
        (
            "pg_temp",
            "lp_event",
            "fund_id first_commitment last_commitment kind happened_on share first_id",
            generate.events(book),
        ),
        (
            "pg_temp",
            "lp_quarter",
            "fund_id number ends_on beginning_nav contributions distributions"
            " ending_nav contributed distributed net_irr_percent gross_irr_percent moic dpi rvpi",
            generate.quarters(book),
        ),
    )
    for schema, name, columns, rows in tables:
        copy_rows(conn, sql.Identifier(schema, name), columns.split(), rows)
    run_script(conn, _HERE / "load.sql")
    for name in (
        "limited_partners",
        "lp_fund_commitments",
        "capital_activities",
        "lp_capital_accounts",
        "lp_performance_snapshots",
        "lp_reports",
        "fund_nav_snapshots",
    ):
        continue_numbering(conn, sql.Identifier("public", name))
