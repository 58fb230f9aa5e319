"""The portal's pages through the cache: kept as long as the document says, or until a view has a newer answer.

Each result is filed under the tag that upkeep.toml lets the view behind it invalidate. A booking for one partner
takes that partner's pages and no others; new figures take all figures, which change together.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import psycopg

from examples.lp import pages
from examples.lp.pages import Granularity, Row
from upkeep_client.cache import Cache, Tag

SUMMARY_TTL = timedelta(minutes=5)
ACTIVITY_TTL = timedelta(minutes=5)
PERFORMANCE_TTL = timedelta(minutes=10)
HOLDINGS_TTL = timedelta(hours=1)
TIMESERIES_TTL = timedelta(hours=1)

# What hits and misses are counted by.
SUMMARY_PATTERN = "lp:{lpId}:summary"


class CachedPages:
    """Reads pages; what goes wrong with the cache costs a query and no page."""

    def __init__(self, connection: psycopg.Connection[Any], cache: Cache) -> None:
        self._connection = connection
        self._cache = cache

    def summary(self, lp_id: int) -> Row | None:
        """A partner's first page."""
        return self._cache.get_or_compute(
            f"lp:{lp_id}:summary",
            lambda: pages.summary(self._connection, lp_id),
            tags=[_partner(lp_id, SUMMARY_TTL)],
            pattern=SUMMARY_PATTERN,
        )

    def transactions(
        self, lp_id: int, *, since: date, until: date, fund_ids: Sequence[int] | None = None
    ) -> list[Row]:
        """The first page of a partner's activities; those behind it are seldom looked at twice."""
        funds = "all" if fund_ids is None else ",".join(map(str, sorted(fund_ids)))
        return self._cache.get_or_compute(
            f"lp:{lp_id}:capital-activity:{funds}:{since}:{until}",
            lambda: pages.transactions(self._connection, lp_id, since=since, until=until, fund_ids=fund_ids),
            tags=[_partner(lp_id, ACTIVITY_TTL)],
            pattern="lp:{lpId}:capital-activity:{fundIds}:{startDate}:{endDate}",
        )

    def fund_performance(self, lp_id: int, fund_id: int) -> Row | None:
        """The latest figures of a commitment."""
        return self._cache.get_or_compute(
            f"lp:{lp_id}:fund:{fund_id}:performance",
            lambda: pages.fund_performance(self._connection, lp_id, fund_id),
            tags=[Tag("performance", ttl=PERFORMANCE_TTL)],
            pattern="lp:{lpId}:fund:{fundId}:performance",
        )

    def holdings(self, lp_id: int, fund_id: int) -> Row | None:
        """What of a fund is a partner's."""
        return self._cache.get_or_compute(
            f"lp:{lp_id}:fund:{fund_id}:holdings",
            lambda: pages.holdings(self._connection, lp_id, fund_id),
            tags=[Tag("fund:{fund_id}", ttl=HOLDINGS_TTL, fund_id=fund_id)],
            pattern="lp:{lpId}:fund:{fundId}:holdings",
        )

    def performance_timeseries(
        self, commitment_id: int, *, since: date, until: date, granularity: Granularity
    ) -> list[Row]:
        """A chart of a commitment's figures."""
        return self._cache.get_or_compute(
            f"commitment:{commitment_id}:timeseries:{granularity}:{since}..{until}",
            lambda: pages.performance_timeseries(
                self._connection, commitment_id, since=since, until=until, granularity=granularity
            ),
            tags=[Tag("performance", ttl=TIMESERIES_TTL)],
            pattern="commitment:{commitmentId}:timeseries:{granularity}:{dateRange}",
        )


def _partner(lp_id: int, ttl: timedelta) -> Tag:
    return Tag("lp:{lp_id}", ttl=ttl, lp_id=lp_id)
