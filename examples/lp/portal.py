"""The LP portal's server, which knows Upkeep: it asks for refreshes in three ways.

- After the commit, by the client: `lp_dashboard_summary`, with the partners concerned. One round trip to
  Redis; a Redis that is away costs a warning, and the view is brought up to date at midnight.
- In the transaction, in SQL: `fund_lp_summary`, with the fund. Rolled back with the booking, never lost.
- Not at all: `lp_performance_latest` has `on_write = true`, and triggers ask.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from examples import cursor
from examples.lp import traffic
from examples.lp.traffic import Concerned
from upkeep_client import Upkeep

DASHBOARD = "public.lp_dashboard_summary"
FUNDS = "public.fund_lp_summary"
PERFORMANCE = "public.lp_performance_latest"


class Portal:
    """One process of the portal. Its connection is in autocommit: each booking is a transaction of its own."""

    def __init__(self, connection: psycopg.Connection[Any], upkeep: Upkeep) -> None:
        self._connection = connection
        self._upkeep = upkeep

    def book(self, rng: Random, *, count: int = 1) -> list[Concerned]:
        """Book single activities, each on a commitment of its own, as they come in by wire."""
        return self._booked(lambda: traffic.book(self._connection, rng, count))

    def book_fund(
        self, rng: Random, *, fund_id: int | None = None, kind: str | None = None
    ) -> list[Concerned]:
        """Call from, or pay out to, all partners of a fund."""
        return self._booked(lambda: traffic.book_fund(self._connection, rng, fund_id=fund_id, kind=kind))

    def measure(self, rng: Random, fund_id: int) -> int:
        """Take over a fund's new figures; the triggers ask for what is built on them."""
        with self._connection.transaction():
            return traffic.measure(self._connection, rng, [fund_id])

    def _booked(self, book: Callable[[], list[Concerned]]) -> list[Concerned]:
        with self._connection.transaction():
            concerned = book()
            if concerned:
                self._ask_for_funds({each.fund_id for each in concerned})
        # Not before the commit: a refresh that comes in between would not have it, and nobody would ask again.
        self._ask_for_dashboard({each.lp_id for each in concerned})
        return concerned

    def _ask_for_funds(self, fund_ids: set[int]) -> None:
        cursor(self._connection).execute(
            "SELECT upkeep.request_refresh(%s, %s)",
            [FUNDS, Jsonb([{"fund_id": each} for each in sorted(fund_ids)])],
        )

    def _ask_for_dashboard(self, lp_ids: set[int]) -> None:
        """One round trip, however many partners: two hundred of them are one capital call."""
        self._upkeep.request_refresh(DASHBOARD, parameters=[{"lp_id": each} for each in sorted(lp_ids)])
