"""1,000 views marked at once: when the last of their runs is inserted and its bell in Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
import redis
from celery import Celery

from benchmarks.events.bench import UNATTENDED, UNATTENDED_QUEUE, Bench, unattended_views
from benchmarks.parts import Part
from benchmarks.report import at_most
from benchmarks.timing import Deadline, Stopwatch, interleave
from upkeep_client import Upkeep

BOUND = at_most("dispatch", 2, "s", "the runs and bells of 1,000 views marked at once, from the mark")
ROUNDS = 9
QUICK_ROUNDS = 5
POLL_S = 0.005
PATIENCE_S = 60.0


def measure(bench: Bench, deadline: Deadline) -> None:
    """Marks and, in turn, rows; the delay of 100 ms included. Nobody works on what is rung for."""
    report = bench.report
    place, broker = bench.places[UNATTENDED], bench.broker
    views = list(unattended_views())
    inserted: list[float] = []
    app = Celery(broker=bench.stage.broker(), set_as_current=False)
    with (
        place.fleet() as looking,
        place.owner() as application,
        Upkeep(bench.broker_url, database=UNATTENDED, on_error="raise") as client,
    ):

        def marked(number: int) -> float:
            seconds, last = _dispatched(broker, looking, lambda: client.request_refresh(views))
            if number >= 0:
                inserted.append(last)
            return seconds

        def in_sql(_: int) -> float:
            return _dispatched(broker, looking, lambda: _request_all(application, views))[0]

        def delayed(_: int) -> float:
            with Stopwatch() as watch:
                for view in views:
                    app.send_task("peer.refresh", kwargs={"view": view}, queue="peer")
            return watch.seconds

        timings = interleave(
            {"marked": marked, "in_sql": in_sql} if not bench.quick else {"marked": marked},
            {"delayed": delayed},
            rounds=QUICK_ROUNDS if bench.quick else ROUNDS,
            deadline=deadline,
            warm_up=0 if bench.quick else 1,
        )
    app.close()
    report.add_median("dispatch.inserted", inserted, "s", note="… until the last run was inserted")
    if not bench.quick:
        report.add_median(
            "dispatch.sql", timings.of("in_sql"), "s", note="1,000 rows of one transaction instead; no bound"
        )
    report.add_median(
        "dispatch.delay", timings.of("delayed"), "s", note="Celery: 1,000 messages of one process"
    )
    value = report.add_median(BOUND.metric, timings.of("marked"), "s", note="its delay of 0.1 s included")
    report.hold(BOUND, value, floor=bench.stage.floor.worst_ms / 1000, rounds=timings.rounds)


def _dispatched(
    broker: redis.Redis, looking: psycopg.Connection[Any], ask: Callable[[], object]
) -> tuple[float, float]:
    """Ask; returns the seconds until every bell was in the broker, and until the last run was made."""
    looking.execute("TRUNCATE upkeep.run, upkeep.refresh_request")
    broker.delete(UNATTENDED_QUEUE)
    expected = len(unattended_views())
    began = datetime.now(UTC)
    with Stopwatch() as watch:
        ask()
        give_up = time.monotonic() + PATIENCE_S
        while (rung := int(broker.llen(UNATTENDED_QUEUE))) < expected:
            if time.monotonic() > give_up:
                raise TimeoutError(f"{rung} of {expected} bells after {PATIENCE_S:.0f} s")
            time.sleep(POLL_S)
    row = looking.execute("SELECT count(*), max(created_at) FROM upkeep.run").fetchone()
    assert row is not None  # an aggregate
    if row[0] != expected:
        raise ValueError(f"{row[0]} runs instead of {expected}")
    return watch.seconds, (row[1] - began).total_seconds()


def _request_all(application: psycopg.Connection[Any], views: list[str]) -> None:
    application.execute(
        "SELECT upkeep.request_refresh(v.view) FROM pg_catalog.unnest(%s::text[]) AS v (view)", (views,)
    )


PART = Part(name="dispatch", title="1,000 views marked at once", share=6, bounds=(BOUND,), measure=measure)
