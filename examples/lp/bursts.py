"""The portal as the demo runs it: bursts of bookings, each followed to the moment when the views have it.

Between them partners look at their pages, which come from the cache unless a booking concerned them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from random import Random
from statistics import median
from typing import Any

import psycopg

from examples import cursor
from examples.lp.cached import SUMMARY_PATTERN, CachedPages
from examples.lp.portal import DASHBOARD, FUNDS, PERFORMANCE, Portal
from upkeep_client import Upkeep
from upkeep_client.cache import Cache

ACTIVITIES = 5
# Of the bursts, how many also bring …
FUND_WIDE_SHARE = 0.3  # a call or a payout of a whole fund
MEASURED_SHARE = 0.3  # a fund's new figures

READ = 40  # pages after each burst
POPULAR = 50  # partners that look at theirs again and again

LOOK_S = 0.01
# The next burst is not kept waiting for longer. A view that does not have this one by then counts as this late: if it
# were left out, the slowest would make the median better.
PATIENCE_S = 8.0


class Bursts:
    """Books, and looks how long it takes until it can be read."""

    def __init__(self, connection: psycopg.Connection[Any], portal: Portal, cache: Cache) -> None:
        self._connection = connection
        self._portal = portal
        self._cache = cache
        self._pages = CachedPages(connection, cache)
        self._seen_after: dict[str, list[float]] = {DASHBOARD: [], FUNDS: [], PERFORMANCE: []}

    def burst(self, rng: Random) -> None:
        """Some bookings, now and then a whole fund's or its figures; then wait for the views."""
        concerned = self._portal.book(rng, count=ACTIVITIES)
        if rng.random() < FUND_WIDE_SHARE:
            concerned += self._portal.book_fund(rng)
        views = [DASHBOARD, FUNDS]
        if concerned and rng.random() < MEASURED_SHARE:
            self._portal.measure(rng, concerned[0].fund_id)
            views.append(PERFORMANCE)
        if concerned:
            self._follow(views)
        for lp_id in {each.lp_id for each in concerned[:ACTIVITIES]}:
            self._pages.summary(lp_id)
        for _ in range(READ):
            self._pages.summary(1 + rng.randrange(POPULAR))

    def seen_after(self) -> Mapping[str, float]:
        """By view, the median of the seconds from a burst's last commit until the view had it."""
        return {view: median(found) for view, found in self._seen_after.items() if found}

    def told(self) -> str:
        """How many of the dashboards came from the cache."""
        lookups = self._cache.stats().get(SUMMARY_PATTERN)
        if lookups is None or lookups.ratio is None:
            return ""
        return f"{lookups.ratio:.0%} of {lookups.hits + lookups.misses:,} dashboards from the cache"

    def _follow(self, views: list[str]) -> None:
        cur = cursor(self._connection)
        began = time.monotonic()
        # The server's clock, which is the one that upkeep.view_freshness has.
        row = cur.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        waiting = set(views)
        while waiting and time.monotonic() - began < PATIENCE_S:
            time.sleep(LOOK_S)
            fresh = cur.execute(
                "SELECT view FROM upkeep.view_freshness WHERE view = ANY(%s) AND last_updated >= %s",
                [sorted(waiting), row[0]],
            ).fetchall()
            for (view,) in fresh:
                waiting.discard(view)
                self._seen_after[view].append(time.monotonic() - began)
        for view in waiting:
            self._seen_after[view].append(PATIENCE_S)


@contextmanager
def application(connection: psycopg.Connection[Any], redis_url: str) -> Iterator[Bursts]:
    """The portal on a connection in autocommit, with its own connection to the fleet's Redis."""
    with Upkeep(redis_url, database="lp") as upkeep, Cache(redis_url) as cache:
        yield Bursts(connection, Portal(connection, upkeep), cache)
