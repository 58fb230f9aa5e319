"""What the LP portal reads and what it asks for, against the marks and rows that the fleet would find."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from random import Random

import psycopg
import pytest
import redis

from examples import lp
from examples.lp import pages
from examples.lp.cached import CachedPages
from examples.lp.portal import DASHBOARD, FUNDS, PERFORMANCE, Portal
from fleet import settings
from fleet.postgres.migrations import migrate
from tests.integration.examples.conftest import Installed
from tests.servers import Database
from upkeep_client import Upkeep
from upkeep_client.cache import Cache

pytestmark = pytest.mark.any_server

EVER = {"since": date(1990, 1, 1), "until": date(2100, 1, 1)}


@pytest.fixture
def kept(clone: Installed) -> Database:
    database = clone(lp)
    migrate(database.url)
    return database


@pytest.fixture
def connection(kept: Database) -> psycopg.Connection:
    return kept.connect()


@pytest.fixture
def portal(connection: psycopg.Connection, redis_url: str) -> Iterator[Portal]:
    with Upkeep(redis_url, database="lp") as upkeep:
        yield Portal(connection, upkeep)


@pytest.fixture
def marks(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def requests(connection: psycopg.Connection) -> list[tuple]:
    return connection.execute("SELECT view, parameters FROM upkeep.refresh_request ORDER BY id").fetchall()


def asked_for(marks: redis.Redis) -> set[int]:
    members = marks.smembers(f"upkeep:marks:lp:parameters:{DASHBOARD}")
    return {json.loads(each)["lp_id"] for each in members}


class TestRequests:
    def test_a_call_asks_for_its_fund_in_sql_and_for_every_partner_through_redis(
        self, portal: Portal, connection: psycopg.Connection, marks: redis.Redis
    ) -> None:
        (fund,) = connection.execute(
            "SELECT max(fund_id) FROM lp_fund_commitments WHERE commitment_status = 'active'"
        ).fetchone()
        concerned = portal.book_fund(Random(1), fund_id=fund, kind="capital_call")
        assert len(concerned) > 5
        assert requests(connection) == [(FUNDS, [{"fund_id": fund}])]
        assert list(marks.hgetall("upkeep:marks:lp")) == [DASHBOARD]
        assert asked_for(marks) == {each.lp_id for each in concerned}

    def test_a_booking_that_fails_asks_for_nothing(
        self, portal: Portal, connection: psycopg.Connection, marks: redis.Redis
    ) -> None:
        connection.execute("ALTER TABLE capital_activities ADD CHECK (amount_cents < 0) NOT VALID")
        with pytest.raises(psycopg.errors.CheckViolation):
            portal.book(Random(1), count=3)
        assert requests(connection) == []
        assert marks.exists("upkeep:marks:lp") == 0

    def test_a_redis_that_is_away_costs_a_warning_and_no_booking(
        self, connection: psycopg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        with Upkeep("redis://127.0.0.1:1/0", database="lp") as upkeep:
            concerned = Portal(connection, upkeep).book(Random(1), count=2)
        assert len(concerned) == 2
        assert requests(connection) != []
        assert any(record.name == "upkeep_client" for record in caplog.records)

    def test_new_figures_ask_for_nothing_by_themselves(
        self, portal: Portal, connection: psycopg.Connection, marks: redis.Redis
    ) -> None:
        # That is what the triggers of on_write are for: PERFORMANCE is named nowhere in the portal's code.
        assert portal.measure(Random(1), 7) > 0
        assert requests(connection) == []
        assert marks.exists("upkeep:marks:lp") == 0
        assert PERFORMANCE in lp.VIEWS


class TestCache:
    @pytest.fixture
    def cache(self, redis_url: str) -> Iterator[Cache]:
        with Cache(redis_url) as made:
            yield made

    def read_all(self, cached: CachedPages) -> list[object]:
        return [
            cached.summary(1),
            cached.transactions(1, **EVER),
            cached.fund_performance(1, 1),
            cached.holdings(1, 1),
            cached.performance_timeseries(1, **EVER, granularity="quarter"),
        ]

    def test_pages_are_kept_as_long_as_the_document_says(
        self, connection: psycopg.Connection, cache: Cache, marks: redis.Redis
    ) -> None:
        self.read_all(CachedPages(connection, cache))
        ttls = {
            key.removeprefix("upkeep:cache:value:"): timedelta(milliseconds=marks.pttl(key))
            for key in marks.scan_iter(match="upkeep:cache:value:*")
        }
        longest = {
            "lp:1:summary": timedelta(minutes=5),
            "lp:1:capital-activity:all:1990-01-01:2100-01-01": timedelta(minutes=5),
            "lp:1:fund:1:performance": timedelta(minutes=10),
            "lp:1:fund:1:holdings": timedelta(hours=1),
            "commitment:1:timeseries:quarter:1990-01-01..2100-01-01": timedelta(hours=1),
        }
        assert ttls.keys() == longest.keys()
        for key, ttl in ttls.items():
            assert longest[key] - timedelta(minutes=1) < ttl <= longest[key], key

    def test_a_page_from_the_cache_is_the_page(self, connection: psycopg.Connection, cache: Cache) -> None:
        cached = CachedPages(connection, cache)
        first = self.read_all(cached)
        connection.execute(
            "DROP MATERIALIZED VIEW lp_dashboard_summary, fund_lp_summary, lp_performance_latest"
        )
        assert self.read_all(cached) == first
        found = cache.stats()
        assert {(each.hits, each.misses) for each in found.values()} == {(1, 1)}
        assert len(found) == 5

    def test_a_cache_that_is_away_costs_a_query(self, connection: psycopg.Connection) -> None:
        with Cache("redis://127.0.0.1:1/0") as cache:
            assert CachedPages(connection, cache).summary(1) == pages.summary(connection, 1)

    def test_what_the_views_invalidate_is_what_pages_are_filed_under(
        self, connection: psycopg.Connection, cache: Cache, marks: redis.Redis, tmp_path: Path
    ) -> None:
        path = tmp_path / "upkeep.toml"
        path.write_text(lp.CONFIG, encoding="utf-8")
        views = settings.load(path, {"UPKEEP_LP_URL": "postgresql://localhost/x"}).databases["lp"].views
        gone = {}
        for view in views.values():
            self.read_all(CachedPages(connection, cache))
            before = set(marks.scan_iter(match="upkeep:cache:value:*"))
            cache.invalidate(view.invalidates, [{"lp_id": 1, "fund_id": 1}, {"lp_id": 2, "fund_id": 2}])
            left = set(marks.scan_iter(match="upkeep:cache:value:*"))
            gone[str(view.name)] = {
                key.removeprefix("upkeep:cache:value:").split(":")[-1] for key in before - left
            }
        assert gone == {
            DASHBOARD: {"summary", "2100-01-01"},
            FUNDS: {"holdings"},
            PERFORMANCE: {"performance", "1990-01-01..2100-01-01"},
        }


class TestPages:
    def test_a_summary_is_the_views_row(self, connection: psycopg.Connection) -> None:
        found = pages.summary(connection, 1)
        assert found is not None
        assert found["fund_count"] > 0
        assert found["tvpi"] == pytest.approx(found["dpi"] + found["rvpi"])
        assert pages.summary(connection, 0) is None
        json.dumps(found)

    def test_pages_of_a_timeline_neither_skip_nor_repeat(self, connection: psycopg.Connection) -> None:
        whole = pages.transactions(connection, 1, **EVER, limit=10_000)
        (count,) = connection.execute(
            "SELECT count(*) FROM capital_activities a JOIN lp_fund_commitments c ON c.id = a.commitment_id"
            " WHERE c.lp_id = 1"
        ).fetchone()
        assert len(whole) == count > 50
        assert whole == sorted(whole, key=lambda row: (row["activity_date"], row["id"]), reverse=True)
        read: list[pages.Row] = []
        before = None
        while page := pages.transactions(connection, 1, **EVER, before=before, limit=17):
            read += page
            before = (date.fromisoformat(page[-1]["activity_date"]), page[-1]["id"])
        assert read == whole

    def test_a_timeline_of_some_funds_and_days(self, connection: psycopg.Connection) -> None:
        whole = pages.transactions(connection, 1, **EVER, limit=10_000)
        fund, day = whole[20]["fund_id"], date.fromisoformat(whole[20]["activity_date"])
        found = pages.transactions(connection, 1, since=day, until=day, fund_ids=[fund])
        assert found == [
            row for row in whole if row["fund_id"] == fund and row["activity_date"] == day.isoformat()
        ]

    def test_a_partners_fund(self, connection: psycopg.Connection) -> None:
        lp_id, fund_id, commitment = connection.execute(
            "SELECT lp_id, fund_id, id FROM lp_fund_commitments ORDER BY id DESC LIMIT 1"
        ).fetchone()
        performance = pages.fund_performance(connection, lp_id, fund_id)
        assert performance is not None
        assert performance["commitment_id"] == commitment
        shares = [
            pages.holdings(connection, each, fund_id)
            for (each,) in connection.execute(
                "SELECT lp_id FROM lp_fund_commitments WHERE fund_id = %s", [fund_id]
            ).fetchall()
        ]
        assert sum(each["share"] for each in shares if each) == pytest.approx(1)
        series = pages.performance_timeseries(connection, commitment, **EVER, granularity="quarter")
        assert len(series) == 5
        assert series[-1]["snapshot_date"] == performance["snapshot_date"]
        assert series[-1]["tvpi"] == performance["tvpi"]
