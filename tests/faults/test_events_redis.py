"""What Redis does to requests: it restarts, forgets, is away, takes no writes, tells another time."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet.ledger import State
from tests import servers
from tests.faults.aftermath import assert_nothing_is_left
from tests.faults.events import SCHEMA, Overlaps, Writers, view
from tests.processes import TIER, Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from upkeep_client import MARK_SCRIPT, RequestNotSent, Upkeep
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

pytestmark = pytest.mark.slow

VIEWS = """
SELECT public.make('quick', 'other', 'tags');
CREATE TABLE public.t_later (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
INSERT INTO public.t_later DEFAULT VALUES;
CREATE MATERIALIZED VIEW public.later AS
    SELECT id, pg_sleep(CASE id WHEN 1 THEN 0.2 ELSE 0 END)::text AS slept FROM public.t_later;
CREATE UNIQUE INDEX ON public.later (id);
"""
CONFIG = "\n".join(
    [
        view("quick"),
        view("other"),
        # Long enough for a test to do something to a mark that is not due yet.
        view("later", 'delay = "3s"', 'max_wait = "3s"'),
        view("tags", 'invalidates = ["page:{id}"]'),
    ]
)
HOUR_MS = 3_600_000
BACK_S = 60.0


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedRedis]:
    """What it has acknowledged is on disk."""
    with servers.new_redis(appendfsync="always") as started:
        yield started


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA + VIEWS)


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def worker(upkeep: Fleet) -> Process:
    return upkeep.worker().wait_ready()


@pytest.fixture(autouse=True)
def _one_refresh_of_a_view_at_a_time(overlaps: Overlaps, worker: Process) -> Iterator[None]:
    yield
    overlaps.assert_none()


def test_marks_survive_a_crash_of_redis(worker: Process, writers: Writers, broker: EmbeddedRedis) -> None:
    writers.mark("later")
    writers.redis.config_resetstat()
    broker.kill()
    broker.start()
    assert writers.redis.hkeys("upkeep:marks:kept") == [b"public.later"]
    assert not writers.fresh("later")
    writers.wait_fresh("later", BACK_S, hurried=True)
    writers.assert_all_is_done()
    assert len(writers.refreshes("later")) == 1


def test_what_flushall_forgets_the_tier_brings_and_a_row_is_not_forgotten(
    upkeep: Fleet, worker: Process, writers: Writers
) -> None:
    writers.mark("later")
    before = int(writers.redis.get("upkeep:mark-seq"))
    writers.row("quick")
    writers.row("later")
    writers.redis.flushall()
    # The rows' runs are in PostgreSQL; one bell may be among what was forgotten.
    writers.wait_fresh("quick", BACK_S, hurried=True)
    writers.wait_fresh("later", BACK_S, hurried=True)
    writers.mark("later")
    assert int(writers.redis.get("upkeep:mark-seq")) > before
    writers.mark("other")
    writers.redis.flushall()
    run_id = writers.kept.scalar(
        "INSERT INTO upkeep.run (task, target, entry, slot, as_of, queue, max_attempts, rung_at)"
        " SELECT %s, 'daily', 'daily', s, s, 'refresh', 4, s - '1 min'::interval"
        " FROM clock_timestamp() AS s RETURNING id",
        TIER,
    )
    writers.wait_fresh("later", BACK_S, hurried=True)
    writers.wait_fresh("other", BACK_S, hurried=True)
    assert writers.kept.ended(run_id).state == State.SUCCEEDED
    writers.assert_all_is_done()


def test_redis_is_away(
    worker: Process, writers: Writers, broker: EmbeddedRedis, caplog: pytest.LogCaptureFixture
) -> None:
    broker.stop()
    with (
        Upkeep(writers.redis_url, database="kept") as client,
        caplog.at_level(logging.WARNING, "upkeep_client"),
    ):
        assert [client.request_refresh("public.other") for _ in range(5)] == [False] * 5
    said = [record.getMessage() for record in caplog.records if record.name == "upkeep_client"]
    # One line at once, one for the rest when it is closed: not one a request.
    assert 1 <= len(said) <= 2
    assert "A refresh was not requested" in said[0]
    with Upkeep(writers.redis_url, on_error="raise") as client, pytest.raises(RequestNotSent):
        client.request_refresh("public.other")
    before = len(writers.events("quick"))
    writers.row("quick")
    # The run is made without Redis, once; its bell is rung when there is one again.
    wait_until(lambda: len(writers.events("quick")) > before, 20, worker.tail)
    assert writers.events("quick")[-1].state == State.QUEUED
    writers.row("quick")
    broker.start()
    writers.wait_fresh("quick", BACK_S, hurried=True)
    writers.assert_all_is_done()
    assert len(writers.events("quick")) <= before + 2
    assert len(worker.lines(event="dispatch.away", what="Redis")) <= 3
    wait_until(lambda: worker.lines(event="dispatch.back", what="Redis"), 20, worker.tail)


def test_redis_takes_no_writes(worker: Process, writers: Writers, caplog: pytest.LogCaptureFixture) -> None:
    before = len(writers.refreshes("later"))
    writers.mark("later")
    # A replica of nobody: it answers what it knows, and takes nothing.
    writers.redis.replicaof("127.0.0.1", "1")
    try:
        with (
            Upkeep(writers.redis_url, database="kept") as client,
            caplog.at_level(logging.WARNING, "upkeep_client"),
        ):
            assert client.request_refresh("public.quick") is False
        assert "read only" in caplog.text
        writers.row("other")
        # Marks that are due and cannot be cleared become one run, not one a look.
        wait_until(lambda: len(writers.events("later")) > before, 20, worker.tail)
        wait_until(lambda: writers.events("other")[-1].state == State.QUEUED, 20)
        later = datetime.now(UTC) + timedelta(seconds=5)
        wait_until(lambda: datetime.now(UTC) > later, 10)
        assert len([run for run in writers.events("later") if not run.final]) == 1
    finally:
        writers.redis.replicaof("NO", "ONE")
    for name in ("later", "other"):
        writers.wait_fresh(name, BACK_S, hurried=True)
    writers.assert_all_is_done()
    assert len(writers.refreshes("later")) <= before + 2
    # Celery takes an answer that is an error for its own mistake, and ends, unless it is told otherwise.
    assert worker.popen.poll() is None


@pytest.mark.parametrize("hours", [-1, 1])
def test_the_clock_of_redis_was_wrong_by_an_hour(worker: Process, writers: Writers, hours: int) -> None:
    # As a server leaves it that was asked before its clock was set.
    writers.write("later")
    seconds, _ = writers.redis.time()
    then = seconds * 1000 + hours * HOUR_MS
    writers.redis.sadd("upkeep:marked", "kept")
    writers.redis.hset("upkeep:marks:kept", "public.later", f"1 {then} {then}")
    writers.wait_fresh("later", 20)
    writers.assert_all_is_done()


def test_ten_megabytes_of_keys(worker: Process, writers: Writers) -> None:
    long = [secrets.token_hex(512) for _ in range(9_990)]
    # The client says that it is too much, and asks for all of them.
    writers.mark("quick", keys=long)
    writers.wait_fresh("quick", 20)
    assert writers.events("quick")[-1].arguments == {}
    # Whoever does not use the client may send them all the same.
    writers.write("tags")
    body = {
        "database": "kept",
        "requests": [
            {
                "view": "public.tags",
                "keys": [json.dumps(each) for each in long],
                "parameters": [json.dumps({"id": each}) for each in long],
            }
        ],
    }
    writers.redis.eval(MARK_SCRIPT, 0, json.dumps(body))
    writers.wait_fresh("tags", 20)
    writers.assert_all_is_done()
    assert writers.refreshes("tags")[-1].arguments == {}


def test_a_stranger_in_the_marks_stops_nobody(worker: Process, writers: Writers) -> None:
    writers.redis.hset(
        "upkeep:marks:kept", mapping={b"\xff\xfe": b"\xff", "public.other": "no mark", "": "1 1 1"}
    )
    writers.redis.hset("upkeep:marks:kept", "public.a\0b", "1 1 1")
    writers.mark("quick")
    writers.wait_fresh("quick", 20)
    assert worker.lines(event="dispatch.failed") == []
    # What names a view that there is not is reported, and old enough to be forgotten; the rest is not ours.
    wait_until(lambda: writers.redis.hlen("upkeep:marks:kept") == 2, 10)
    writers.redis.delete("upkeep:marks:kept")
    writers.assert_all_is_done()


def test_nothing_is_left_after_all_that(
    upkeep: Fleet, kept: Kept, worker: Process, overlaps: Overlaps
) -> None:
    """The last one: it ends the worker."""
    assert overlaps.seen, "whoever looked has seen no refresh at all"
    assert_nothing_is_left(upkeep, kept)
