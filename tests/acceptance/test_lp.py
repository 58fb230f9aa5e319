"""The LP document's worker had seven operations; here each of them is what docs/lp.md says it is, on a real fleet."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest

from examples import lp
from examples.lp import pages
from examples.lp.cached import SUMMARY_PATTERN, CachedPages
from examples.lp.portal import DASHBOARD, FUNDS, PERFORMANCE, Portal
from fleet.ledger import State
from tests.faults.aftermath import assert_nothing_is_lost, open_runs, wrong
from tests.processes import TIER, VIEW, Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from upkeep_client import Upkeep
from upkeep_client.cache import Cache
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

SCALE = 0.005
EVENT = "event"


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    made = keep(server)
    with psycopg.connect(made.url) as connection:
        lp.install(connection, scale=SCALE)
    return made


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, lp.CONFIG, {"lp": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def worker(upkeep: Fleet) -> Process:
    """start(): a worker. Everything that is in the ledger is found by it."""
    return upkeep.worker().wait_ready()


@pytest.fixture(scope="module")
def scheduler(upkeep: Fleet) -> Process:
    """start(): the clock."""
    beat = upkeep.start("beat", "beat", "--pidfile=")
    beat.wait_line(event="scheduler.leads", timeout=60)
    return beat


@pytest.fixture(scope="module")
def ready(upkeep: Fleet, worker: Process, kept: Kept) -> Process:
    """Every view populated, and the triggers of the one that has on_write."""
    assert command(upkeep, "run", "upkeep.refresh.all", "--wait")["run"]["state"] == State.SUCCEEDED
    assert command(upkeep, "triggers", "install")
    return worker


@pytest.fixture
def portal(kept: Kept, broker: EmbeddedRedis) -> Iterator[Portal]:
    with (
        psycopg.connect(kept.url, autocommit=True) as connection,
        Upkeep(broker.url(), database="lp") as client,
    ):
        yield Portal(connection, client)


def command(upkeep: Fleet, *words: str) -> dict[str, Any]:
    """What an upkeep command prints with --json."""
    done = subprocess.run(
        [sys.executable, "-c", "from worker.cli import main; main()", *words, "--json"],
        cwd=upkeep.folder,
        env=upkeep.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def events(kept: Kept, view: str) -> list[dict[str, Any]]:
    return kept.rows(
        "SELECT * FROM upkeep.run WHERE task = %s AND target = %s AND entry = %s ORDER BY id",
        VIEW,
        view,
        EVENT,
    )


def now(kept: Kept) -> datetime:
    found = kept.scalar("SELECT clock_timestamp()")
    assert isinstance(found, datetime)
    return found


def fresh(kept: Kept, since: datetime, *views: str) -> bool:
    """Whether all of the views hold what was there at that moment."""
    found = kept.rows("SELECT view FROM upkeep.view_freshness WHERE last_updated >= %s", since)
    return set(views) <= {row["view"] for row in found}


def wait_fresh(kept: Kept, since: datetime, *views: str) -> None:
    wait_until(
        lambda: fresh(kept, since, *views),
        20,
        lambda: f"{views} as of {since}: {kept.rows('SELECT * FROM upkeep.view_freshness')}",
    )


def test_schedule_refresh(upkeep: Fleet, ready: Process, scheduler: Process, kept: Kept) -> None:
    (entry,) = (
        each for each in command(upkeep, "schedule", "list")["entries"] if each["entry"] == "lp/midnight"
    )
    assert (entry["cron"], entry["timezone"]) == ("0 0 * * *", "UTC")
    slot = datetime.fromisoformat(entry["next_slot"])
    assert (slot.hour, slot.minute, slot.utcoffset()) == (0, 0, timedelta(0))
    # What the slot would do, now.
    made = command(upkeep, "schedule", "run-now", "lp/midnight", "--wait")
    assert made["run"]["task"] == TIER
    assert made["run"]["state"] == State.SUCCEEDED
    assert {each["target"] for each in made["children"]} == set(lp.VIEWS)


def test_refresh_immediately(upkeep: Fleet, ready: Process, kept: Kept) -> None:
    before = now(kept)
    made = command(upkeep, "run", "upkeep.refresh.view", f"view={DASHBOARD}", "--wait")
    assert made["run"]["state"] == State.SUCCEEDED
    assert made["run"]["result"]["strategy"] == "concurrently"
    assert fresh(kept, before, DASHBOARD)
    # All of them, where no view is named.
    made = command(upkeep, "run", "upkeep.refresh.all", "--wait")
    assert {each["target"] for each in made["children"]} == set(lp.VIEWS)


def test_trigger_after_capital_activity(ready: Process, portal: Portal, kept: Kept) -> None:
    before = {view: len(events(kept, view)) for view in lp.VIEWS}
    concerned = portal.book(Random(1), count=3)
    assert concerned
    since = now(kept)
    wait_fresh(kept, since, DASHBOARD, FUNDS)
    # New figures, which the portal's code asks no view to be refreshed for.
    portal.measure(Random(1), concerned[0].fund_id)
    wait_fresh(kept, now(kept), PERFORMANCE)
    # fund_lp_summary reads those: it follows.
    wait_until(
        lambda: not open_runs(kept) and not wrong(kept), 20, lambda: str((open_runs(kept), wrong(kept)))
    )
    assert all(len(events(kept, view)) > count for view, count in before.items())


def test_a_booking_takes_its_partners_pages_from_the_cache_and_no_others(
    ready: Process, portal: Portal, kept: Kept, broker: EmbeddedRedis
) -> None:
    with psycopg.connect(kept.url, autocommit=True) as connection, Cache(broker.url()) as cache:
        cached = CachedPages(connection, cache)
        partners = [row["id"] for row in kept.rows("SELECT id FROM limited_partners ORDER BY id")]
        before = {lp_id: cached.summary(lp_id) for lp_id in partners}
        concerned = {each.lp_id for each in portal.book(Random(5), count=3)}
        assert 0 < len(concerned) < len(partners)
        wait_until(
            lambda: all(cached.summary(lp_id) != before[lp_id] for lp_id in concerned),
            20,
            lambda: f"the new summaries of {concerned}",
        )
        assert all(cached.summary(lp_id) == pages.summary(connection, lp_id) for lp_id in partners)
        lookups = cache.stats()[SUMMARY_PATTERN]
    # Each was asked for once at first, and once more by those whose booking took it.
    assert lookups.misses <= len(partners) + len(concerned)


def test_a_burst_is_few_refreshes_and_the_last_write_is_in_them(
    ready: Process, portal: Portal, kept: Kept
) -> None:
    before = len(events(kept, DASHBOARD))
    rng = Random(2)
    began = now(kept)
    for _ in range(50):
        portal.book(rng, count=1)
    last = now(kept)
    wait_fresh(kept, last, DASHBOARD, FUNDS)
    assert_nothing_is_lost(kept)
    # One for each pause of more than 100 ms, and one at the end: no more than there was room for.
    made = len(events(kept, DASHBOARD)) - before
    assert 1 <= made <= 2 + (last - began) / timedelta(milliseconds=100)
    assert made < 25


def test_one_refresh_at_a_time(ready: Process, portal: Portal, kept: Kept) -> None:
    portal.book_fund(Random(3))
    wait_fresh(kept, now(kept), DASHBOARD, FUNDS)
    assert_nothing_is_lost(kept)
    overlapping = kept.scalar(
        "SELECT count(*) FROM upkeep.view_state a JOIN upkeep.view_state b ON a.view < b.view"
        " WHERE a.snapshot_at < b.snapshot_at + b.duration AND b.snapshot_at < a.snapshot_at + a.duration"
    )
    assert overlapping == 0


def test_get_metrics(upkeep: Fleet, ready: Process, kept: Kept) -> None:
    found = command(upkeep, "history", "--view", DASHBOARD, "--limit", "100")["runs"]
    assert {run["target"] for run in found} == {DASHBOARD}
    done = [run for run in found if run["state"] == State.SUCCEEDED]
    assert done
    for run in done:
        assert run["result"]["duration_s"] > 0
        assert run["result"]["rows_changed"] >= 0
        assert run["error"] is None
    (database,) = command(upkeep, "status")["databases"]
    views = {each["view"]: each for each in database["views"]}
    assert set(views) == set(lp.VIEWS)
    assert all(each["next_slot"].endswith("T00:00:00+00:00") for each in views.values())


def test_get_queue_stats(upkeep: Fleet, ready: Process, kept: Kept) -> None:
    (database,) = command(upkeep, "status")["databases"]
    assert database["open_runs"] == []
    counts = {
        row["state"]: row["count"]
        for row in kept.rows("SELECT state, count(*) FROM upkeep.run GROUP BY state")
    }
    assert counts[State.SUCCEEDED] > 0
    for state in (State.QUEUED, State.RUNNING, State.WAITING, State.FAILED):
        assert len(command(upkeep, "history", "--state", state)["runs"]) == counts.get(state, 0)


def test_stop_and_start(
    upkeep: Fleet, ready: Process, scheduler: Process, portal: Portal, kept: Kept
) -> None:
    """The last one: it stops what the others share."""
    assert scheduler.end(signal.SIGTERM) == 0
    assert ready.end(signal.SIGTERM) == 0
    wait_until(lambda: kept.sessions() == [], 10, lambda: str(kept.sessions()))
    # What is written while nobody works is kept: a mark in Redis, a row in the database.
    portal.book(Random(4), count=3)
    since = now(kept)
    assert kept.scalar("SELECT count(*) FROM upkeep.refresh_request") > 0
    upkeep.worker("again").wait_ready()
    wait_fresh(kept, since, DASHBOARD, FUNDS)
    assert_nothing_is_lost(kept)
    assert kept.scalar("SELECT count(*) FROM upkeep.refresh_request") == 0
