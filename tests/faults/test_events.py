"""Writers ask while whoever refreshes for them is killed, stopped, woken: no write is lost, none done twice at once."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from fleet.ledger import State
from tests.faults.aftermath import assert_nothing_is_left
from tests.faults.events import (
    SCHEMA,
    SLOW_S,
    WRITER,
    Overlaps,
    Stops,
    Writers,
    asleep,
    command,
    view,
)
from tests.processes import TIER, VIEW, Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from upkeep_client.cache import Cache, Tag
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

pytestmark = pytest.mark.slow

VIEWS = f"""
SELECT public.make('burst', 'endless', 'spelled', 'begun', 'taken', 'ended', 'committed', 'queued', 'marked', 'rung');
CREATE TABLE public.t_slow (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
INSERT INTO public.t_slow DEFAULT VALUES;
CREATE MATERIALIZED VIEW public.slow AS
    SELECT id, pg_sleep(CASE id WHEN 1 THEN {SLOW_S} ELSE 0 END)::text AS slept FROM public.t_slow;
CREATE UNIQUE INDEX ON public.slow (id);
CREATE MATERIALIZED VIEW public.follows AS SELECT count(*) AS rows, 1 AS one FROM public.ended;
CREATE UNIQUE INDEX ON public.follows (one);
CREATE TABLE public.t_failing (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
CREATE TABLE public.divisor (n int NOT NULL);
INSERT INTO public.divisor VALUES (1);
CREATE MATERIALIZED VIEW public.failing AS SELECT id, 1 / n AS share FROM public.t_failing, public.divisor;
CREATE UNIQUE INDEX ON public.failing (id);
"""
CONFIG = "\n".join(
    [
        "[databases.kept]\nmax_parallel_refreshes = 8",
        view("burst", 'delay = "1s"', 'max_wait = "60s"'),
        view("endless", 'delay = "800ms"', 'max_wait = "1s"'),
        *map(view, ["slow", "spelled", "failing", "taken", "ended", "queued", "marked", "rung"]),
        view("begun", "on_write = true"),
        view("committed", 'invalidates = ["page:{id}"]'),
        view("follows", "cascade = true"),
    ]
)
# A bell that was lost, a worker that died: seconds, on two busy cores.
RECOVERY_S = 60.0
STEPS = ["begun", "taken", "ended", "committed"]


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    made = keep(server, SCHEMA + VIEWS)
    made.change("GRANT USAGE ON SCHEMA upkeep TO PUBLIC")
    return made


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def stops(folder: Path) -> Stops:
    return Stops(folder / "stops")


@pytest.fixture(scope="module")
def workers(upkeep: Fleet, stops: Stops) -> list[Process]:
    """Three of them, each of which dispatches."""
    started = [
        upkeep.worker(name, environment=stops.environment(name, upkeep.environment["PYTHONPATH"]))
        for name in ("one", "two", "three")
    ]
    return [each.wait_ready() for each in started]


@pytest.fixture(autouse=True)
def _one_refresh_of_a_view_at_a_time(overlaps: Overlaps, workers: list[Process]) -> Iterator[None]:
    yield
    overlaps.assert_none()


def rung(workers: list[Process], writers: Writers, name: str) -> int:
    """How many messages were sent for a view's event runs."""
    ids = {run.id for run in writers.events(name)}
    lines = [line for worker in workers for event in RANG for line in worker.lines(event=event)]
    return sum(run_id in ids for line in lines for run_id in line["runs"])


RANG = ("dispatch.rang", "reaper.rang")


def test_two_thousand_requests_of_four_writers_whose_clocks_are_wrong(
    upkeep: Fleet, workers: list[Process], writers: Writers, folder: Path
) -> None:
    gate = folder / "gate"
    started = [
        upkeep.start_command(
            f"writer-{n}",
            [
                sys.executable,
                "-c",
                WRITER,
                writers.kept.url,
                writers.redis_url,
                str(gate),
                "500",
                str(hours * 3600),
            ],
        )
        for n, hours in enumerate((-1, 0, 0, 1))
    ]
    for writer in started:
        wait_until(lambda: "ready" in writer.stderr, 30, writer.tail)  # noqa: B023
    gate.touch()
    for writer in started:
        assert writer.popen.wait(60) == 0, writer.tail()
    writers.wait_fresh("burst")
    writers.assert_all_is_done()
    assert writers.kept.scalar("SELECT count(*) FROM public.burst") == 2000
    assert 1 <= len(writers.refreshes("burst")) <= 2
    assert rung(workers, writers, "burst") <= 2


def test_a_burst_over_a_running_refresh_is_one_more(workers: list[Process], writers: Writers) -> None:
    writers.mark("slow")
    writers.kept.wait_refreshing("public.slow")
    began = time.monotonic()
    for _ in range(100):
        writers.mark("slow")
    took_s = time.monotonic() - began
    writers.wait_fresh("slow")
    writers.assert_all_is_done()
    first, *more = writers.refreshes("slow")
    assert first.result is not None
    # One over all that came while it ran, and one more for each refresh, of a second, that the burst itself took.
    assert 1 <= len(more) <= 1 + math.ceil(took_s)
    # A dispatcher that had read the mark when another one's run was begun makes one that finds nothing to do.
    rest = [run for run in writers.events("slow") if run.state != State.SUCCEEDED]
    assert all(run.state == State.SKIPPED for run in rest), rest
    assert len(rest) <= len(more) * (len(workers) - 1)


def test_writes_that_never_end_are_refreshed_all_the_same(workers: list[Process], writers: Writers) -> None:
    until = datetime.now(UTC) + timedelta(seconds=6)
    began = writers.kept.scalar("SELECT clock_timestamp()")

    def written() -> bool:
        writers.mark("endless")
        return datetime.now(UTC) > until

    # Never quiet for the delay of 800 ms: it is max_wait that is seen.
    wait_until(written, 10)
    ended = writers.kept.scalar("SELECT clock_timestamp()")
    writers.wait_fresh("endless")
    writers.assert_all_is_done()
    runs = writers.refreshes("endless")
    seen = [datetime.fromisoformat(run.result["snapshot_at"]) for run in runs if run.result]
    assert len(seen) >= 3
    # max_wait, the refresh itself, and what two busy cores take for a message.
    assert max(later - earlier for earlier, later in pairwise([began, *seen, ended])) < timedelta(seconds=3)
    # One more after the last write, and none besides.
    assert len(seen) <= 9


def test_two_spellings_are_one_view(workers: list[Process], writers: Writers) -> None:
    with asleep(*workers):
        writers.write("spelled")
        spellings = ["public.spelled", '"public"."spelled"', 'PUBLIC."spelled"', "Public.Spelled"]
        writers.client.request_refresh(spellings)
        for each in spellings:
            writers.kept.change("SELECT upkeep.request_refresh(%s)", each)
    writers.wait_fresh("spelled")
    writers.assert_all_is_done()
    assert len(writers.refreshes("spelled")) <= 2
    assert writers.kept.rows("SELECT FROM upkeep.run WHERE state = 'failed'") == []


def test_what_nobody_manages_is_reported_once_by_all_of_them(
    workers: list[Process], writers: Writers
) -> None:
    for _ in range(3):
        writers.client.request_refresh("public.nobody")
        writers.client.request_refresh("public.burst", database="nowhere")
        writers.kept.change("SELECT upkeep.request_refresh('public.nothing')")

    def told() -> list[dict[str, object]]:
        return [line for worker in workers for line in worker.lines(event="request.unknown")]

    wait_until(lambda: len(told()) >= 3, 20, lambda: str(told()))
    # Each of them has looked at everything again.
    later = datetime.now(UTC) + timedelta(seconds=6)
    wait_until(lambda: datetime.now(UTC) > later, 10)
    assert sorted((line["database"], line["view"]) for line in told()) == [
        ("kept", "public.nobody"),
        ("kept", "public.nothing"),
        ("nowhere", "public.burst"),
    ]
    assert all(line["remedy"] for line in told())
    found = writers.kept.rows("SELECT target, reason FROM upkeep.run WHERE state = 'failed' ORDER BY target")
    assert [row["target"] for row in found] == ["nowhere/public.burst", "public.nobody", "public.nothing"]
    assert "no database named 'nowhere'" in found[0]["reason"]
    # They are kept for a worker with a newer configuration; here that is nobody.
    writers.redis.delete("upkeep:marks:nowhere", "upkeep:marks:kept", *writers.marks())
    writers.kept.change("DELETE FROM upkeep.refresh_request")
    writers.assert_all_is_done()


def test_a_view_that_fails_is_left_alone_and_comes_back(
    upkeep: Fleet, workers: list[Process], writers: Writers
) -> None:
    writers.mark("failing")
    writers.wait_fresh("failing")
    writers.kept.change("UPDATE public.divisor SET n = 0")
    until = datetime.now(UTC) + timedelta(seconds=4)

    def written() -> bool:
        writers.mark("failing")
        writers.row("failing")
        return datetime.now(UTC) > until

    wait_until(written, 10)
    failed = [run for run in writers.events("failing") if run.state == State.FAILED]
    waiting = wait_until(
        lambda: [run for run in writers.events("failing") if run.state == State.WAITING],
        10,
        lambda: str(writers.events("failing")),
    )
    assert len(failed) == 1
    assert [line for worker in workers for line in worker.lines(event="view.refresh.failed")] != []
    assert len(waiting) == 1
    assert waiting[0].not_before is not None
    left = waiting[0].not_before - writers.kept.scalar("SELECT clock_timestamp()")
    assert timedelta(minutes=4) < left < timedelta(minutes=5)
    # Mended: an operator's refresh shows it, and what waited is done at once.
    writers.kept.change("UPDATE public.divisor SET n = 1")
    task_id = upkeep.send(VIEW, database="kept", view="public.failing")
    assert writers.kept.final(task_id).state == State.SUCCEEDED
    assert writers.kept.ended(waiting[0].id).state in {State.SUCCEEDED, State.SKIPPED}
    writers.assert_all_is_done()


def test_a_write_whose_counters_were_not_flushed_when_a_tick_verified_the_view(
    workers: list[Process], writers: Writers
) -> None:
    writers.mark("spelled")
    writers.wait_fresh("spelled")
    writers.assert_all_is_done()
    with psycopg.connect(writers.kept.url, autocommit=True) as writer:
        # In one message: the session reports its counters when it is idle, and then it is in a transaction again.
        writer.execute("BEGIN; INSERT INTO public.t_spelled DEFAULT VALUES; COMMIT; BEGIN; SELECT 1")
        run_id = writers.kept.scalar(
            "INSERT INTO upkeep.run (task, target, entry, slot, as_of, queue, max_attempts)"
            " SELECT %s, 'daily', 'daily', s, s, 'refresh', 4 FROM clock_timestamp() AS s RETURNING id",
            TIER,
        )
        writers.kept.change("UPDATE upkeep.run SET rung_at = now() - '1 min'::interval WHERE id = %s", run_id)
        assert writers.kept.ended(run_id).state == State.SUCCEEDED
        verified = writers.kept.rows(
            "SELECT reason FROM upkeep.run WHERE target = 'public.spelled' AND entry = 'daily' ORDER BY id"
        )
        assert verified[-1]["reason"] == "its sources have not changed"
        assert not writers.fresh("spelled")
        writers.client.request_refresh("public.spelled")
        writers.wait_fresh("spelled")
    writers.assert_all_is_done()


def test_pool_children_killed_at_every_step_of_a_refresh(
    upkeep: Fleet, workers: list[Process], writers: Writers, stops: Stops, broker: EmbeddedRedis
) -> None:
    command(upkeep, "triggers", "install", "public.begun")
    cache = Cache(broker.url())

    def page(number: int, rendered: str) -> object:
        tag = Tag("page:{id}", ttl=timedelta(hours=1), id=number)
        return cache.get_or_compute(f"page {number}", lambda: rendered, [tag])

    assert [page(1, "old"), page(2, "old")] == ["old", "old"]
    for step in STEPS:
        stops.at(step, f"public.{step}")
    # The trigger asks for the first; the others in each of the two ways.
    writers.write("begun")
    writers.row("taken")
    writers.row("ended")
    writers.mark("committed", parameters={"id": 1})
    writers.mark("slow")
    stopped = [stops.wait(step, f"public.{step}") for step in STEPS]
    session = writers.kept.wait_refreshing("public.slow")
    worker_of = {str(run.worker): run for run in writers.events("slow") if run.state == State.RUNNING}
    [inside] = [int(name.rpartition("/")[2]) for name in worker_of]
    assert writers.fresh("committed")
    assert not any(writers.fresh(name) for name in ("begun", "taken", "ended"))
    assert page(1, "new") == "old"
    os.kill(inside, signal.SIGKILL)
    for child in stopped:
        child.kill()
    wait_until(lambda: session not in writers.kept.refreshing(), 10, "the end of the dead child's REFRESH")
    for name in ("begun", "taken", "ended", "committed", "slow"):
        writers.wait_fresh(name, RECOVERY_S, hurried=True)
    writers.assert_all_is_done()
    wait_until(lambda: page(1, "new") == "new", 20, "the end of the page that is wrong")
    assert page(2, "new") == "old"
    # The killed attempt was rolled back with what it would have set off; the second set it off once.
    assert len(writers.refreshes("follows")) == 1
    assert all(worker.popen.poll() is None for worker in workers)
    cache.close()
    command(upkeep, "triggers", "remove", "public.begun")


@pytest.mark.parametrize("step", ["due", "inserted"])
def test_a_worker_that_wakes_up_in_the_middle_of_a_dispatch(
    workers: list[Process], writers: Writers, stops: Stops, step: str
) -> None:
    one, two, three = workers
    before = len(writers.refreshes("marked"))
    stops.at(step, "one")
    with asleep(two, three):
        writers.mark("marked")
        stopped = stops.wait(step, "one")
        assert stopped.pid == one.pid
    # The others do everything meanwhile, the mark included.
    wait_until(lambda: writers.redis.hlen("upkeep:marks:kept") == 0, 20, "the end of the mark")
    # The one that is stopped may have got the bell's message.
    writers.wait_fresh("marked", hurried=True)
    writers.assert_all_is_done()
    assert len(writers.refreshes("marked")) == before + 1
    with asleep(two, three):
        # This mark is another one: whoever clears what it knows of must leave it.
        writers.mark("marked")
        stopped.resume()
        writers.wait_fresh("marked", hurried=True)
    writers.assert_all_is_done()
    assert len(writers.refreshes("marked")) <= before + 3


def test_workers_killed_between_the_insert_and_the_bell(
    upkeep: Fleet, workers: list[Process], writers: Writers, stops: Stops
) -> None:
    """It ends the three."""
    _, two, three = workers
    stops.at("inserted", "one")
    with asleep(two, three):
        writers.mark("queued")
        stops.wait("inserted", "one")
    with asleep(three):
        # It joins the run of the first one's mark, which is there still, and makes one for the other.
        stops.at("cleared", "two")
        writers.mark("marked")
        stops.wait("cleared", "two")
    stops.at("inserted", "three")
    writers.row("rung")
    stops.wait("inserted", "three")
    for worker in workers:
        worker.kill()
    assert not any(writers.fresh(name) for name in ("queued", "marked", "rung"))
    upkeep.worker("four").wait_ready()
    for name in ("queued", "marked", "rung"):
        writers.wait_fresh(name, RECOVERY_S, hurried=True)
    writers.assert_all_is_done(timeout=RECOVERY_S)


def test_nothing_is_left_after_all_that(
    upkeep: Fleet, kept: Kept, workers: list[Process], overlaps: Overlaps
) -> None:
    """The last one: it ends the worker."""
    assert overlaps.seen, "whoever looked has seen no refresh at all"
    assert_nothing_is_left(upkeep, kept)
