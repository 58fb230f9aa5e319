"""What only networks do: a connection that is cut, refused or silent, in the middle of a claim, a refresh, a commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from fleet.ledger import OPERATOR, NewRun, Run, State, insert
from tests.faults.aftermath import assert_nothing_is_left, assert_nothing_is_lost
from tests.faults.conftest import SLOW_S
from tests.processes import ALL, VIEW, Fleet, Kept, Process, fleet, keep
from tests.proxy import Cut, Proxy, Way
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

SCHEMA = f"""
CREATE TABLE public.t (id int PRIMARY KEY);
INSERT INTO public.t SELECT generate_series(1, 5);
CREATE MATERIALIZED VIEW public.quick AS SELECT id FROM public.t WITH NO DATA;
CREATE UNIQUE INDEX quick_key ON public.quick (id);
CREATE MATERIALIZED VIEW public.slow AS
    SELECT id, pg_sleep(CASE id WHEN 1 THEN {SLOW_S} ELSE 0 END)::text AS slept FROM public.t WITH NO DATA;
CREATE UNIQUE INDEX slow_key ON public.slow (id);
"""
CONFIG = """
[databases.kept.views."public.quick"]
tier = "daily"
retries = ["200ms", "500ms", "2s", "5s"]
[databases.kept.views."public.slow"]
tier = "daily"
retries = ["200ms", "500ms", "2s", "5s"]
"""
STALL_S = 10.0
FINE = {State.SUCCEEDED, State.SKIPPED}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture(scope="module")
def postgres(server: EmbeddedPostgres) -> Iterator[Proxy]:
    """Between the fleet and PostgreSQL; the tests' own connections do not lead through it."""
    with Proxy(server.port) as made:
        yield made


@pytest.fixture(scope="module")
def redis_link(broker: EmbeddedRedis) -> Iterator[Proxy]:
    """Between the workers and Redis; the producer of the tests has its own connection."""
    with Proxy(broker.port) as made:
        yield made


@pytest.fixture(autouse=True)
def _mended(postgres: Proxy, redis_link: Proxy) -> Iterator[None]:
    yield
    postgres.flow()
    redis_link.flow()


@pytest.fixture
def slow_commit(kept: Kept) -> Iterator[None]:
    """The commit that ends a run takes long enough to be caught in."""
    kept.change(
        "CREATE FUNCTION public.linger() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$"
    )
    kept.change(
        "CREATE CONSTRAINT TRIGGER linger AFTER UPDATE ON upkeep.run DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW WHEN (NEW.state = 'succeeded') EXECUTE FUNCTION public.linger()"
    )
    yield
    kept.change("DROP TRIGGER linger ON upkeep.run")


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, postgres: Proxy, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": postgres.url(kept.url)}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def worker(upkeep: Fleet, kept: Kept, redis_link: Proxy, broker: EmbeddedRedis) -> Process:
    """With everything refreshed once, and a pooled session in each of its children."""
    made = upkeep.worker(environment={"UPKEEP_REDIS_URL": redis_link.url(broker.url())}).wait_ready()
    first = kept.final(upkeep.send(ALL, database="kept"))
    for child in kept.children(first.id):
        assert kept.ended(child.id).state == State.SUCCEEDED
    return made


def changed(kept: Kept) -> None:
    kept.execute("INSERT INTO public.t SELECT max(id) + 1 FROM public.t")


def begin(upkeep: Fleet, kept: Kept) -> str:
    """Ask for the slow view; returns the request once the refresh is under way."""
    changed(kept)
    task_id = upkeep.send(VIEW, database="kept", view="public.slow")
    kept.wait_refreshing("public.slow")
    return task_id


def ask(upkeep: Fleet, kept: Kept) -> str:
    """As `upkeep run` does, by a message and a row: what Redis has handed out when the link breaks is gone."""
    task_id = upkeep.send(VIEW, database="kept", view="public.quick")
    new = NewRun(
        task=VIEW, target="public.quick", entry=OPERATOR, queue="refresh", max_attempts=5, request_id=task_id
    )
    with psycopg.connect(kept.database.url, autocommit=True) as connection:
        insert(connection, new)
    return task_id


def wait_stalled(since: float, and_then: Callable[[], object] = lambda: True) -> None:
    """The stall is what is tested: let it last, and until something is seen in it."""
    wait_until(
        lambda: time.monotonic() - since >= STALL_S and and_then(), STALL_S + 10, "the end of the stall"
    )


def final(kept: Kept, task_id: str, *, attempts: int | None = None, timeout: float = 40) -> Run:
    run = kept.final(task_id, timeout=timeout)
    assert run.state in FINE, run
    if attempts is not None:
        assert run.attempt == attempts, run
    return run


@pytest.mark.parametrize("how", list(Cut))
def test_every_session_is_cut_in_the_middle_of_a_refresh(
    upkeep: Fleet, worker: Process, kept: Kept, postgres: Proxy, how: Cut
) -> None:
    task_id = begin(upkeep, kept)
    behind = upkeep.send(VIEW, database="kept", view="public.quick")
    assert postgres.cut(how) >= 2  # the refresh's and the reaper's
    run = final(kept, task_id, attempts=2)
    assert run.error is None or run.error["kind"] == "transient"
    worker.wait_line(event="view.refresh.retrying", task_id=task_id)
    assert_nothing_is_lost(kept, requests=[task_id, behind])


def test_the_answer_to_a_commit_is_lost(
    upkeep: Fleet, worker: Process, kept: Kept, postgres: Proxy, slow_commit: None
) -> None:
    changed(kept)
    task_id = upkeep.send(VIEW, database="kept", view="public.quick", result=True)
    wait_until(
        lambda: kept.rows("SELECT FROM pg_stat_activity WHERE state = 'active' AND query = 'COMMIT'"), 10
    )
    postgres.stall(Way.TO_CLIENT)
    # Recorded with its effect, in one transaction: it succeeded, and its worker never hears of it.
    run = final(kept, task_id, attempts=1)
    assert run.state == State.SUCCEEDED
    postgres.cut()
    postgres.flow()
    # It looks, and finds its own end.
    answer = wait_until(
        lambda: (meta := upkeep.result(task_id))["status"] == "SUCCESS" and meta["result"],
        20,
        lambda: str(upkeep.result(task_id)),
    )
    assert (answer["run"], answer["state"]) == (run.id, "succeeded")
    assert_nothing_is_lost(kept, requests=[task_id], stale=["public.slow"])
    assert kept.run(run.id) == run, "what was committed stays as it was"


def test_an_answer_that_never_comes_in_a_claim(
    upkeep: Fleet, worker: Process, kept: Kept, postgres: Proxy
) -> None:
    changed(kept)
    # Nothing of the answers passes: the claim may be in the ledger, and its worker never hears of it.
    postgres.stall(Way.TO_CLIENT)
    task_id = upkeep.send(VIEW, database="kept", view="public.quick")
    wait_until(lambda: postgres.held(Way.TO_CLIENT) > 0, 10)
    postgres.cut()
    postgres.flow()
    final(kept, task_id)
    assert_nothing_is_lost(kept, requests=[task_id], stale=["public.slow"])


def test_postgresql_is_silent_in_the_middle_of_a_refresh(
    upkeep: Fleet, worker: Process, kept: Kept, postgres: Proxy
) -> None:
    before = len(worker.lines(event="reaper.database_away"))
    task_id = begin(upkeep, kept)
    began = time.monotonic()
    postgres.stall()
    # The server goes on: the refresh has ended long before its worker hears of it.
    wait_stalled(began, lambda: kept.refreshing("public.slow") == [])
    behind = upkeep.send(VIEW, database="kept", view="public.quick")
    postgres.flow()
    final(kept, task_id, attempts=1)
    assert_nothing_is_lost(kept, requests=[task_id, behind])
    assert len(worker.lines(event="reaper.database_away")) == before, "a silence of ten seconds is no loss"


@pytest.mark.parametrize("way", list(Way))
def test_postgresql_is_silent_during_a_claim(
    upkeep: Fleet, worker: Process, kept: Kept, postgres: Proxy, way: Way
) -> None:
    changed(kept)
    began = time.monotonic()
    postgres.stall(way)
    asked = [upkeep.send(VIEW, database="kept", view=view) for view in ("public.quick", "public.slow")]
    wait_stalled(began, lambda: postgres.held(way) > 0)
    assert [each for each in map(kept.request, asked) if each is not None and each.final] == []
    postgres.flow()
    for task_id in asked:
        final(kept, task_id, attempts=1)
    assert_nothing_is_lost(kept, requests=asked)


def test_postgresql_refuses_for_some_seconds(
    upkeep: Fleet, worker: Process, kept: Kept, postgres: Proxy
) -> None:
    before = len(worker.lines(event="reaper.database_away"))
    running = begin(upkeep, kept)
    postgres.refuse()
    postgres.cut()
    asked = [upkeep.send(VIEW, database="kept", view="public.quick") for _ in range(3)]
    for task_id in asked:
        line = worker.wait_line(event="request.database_unreachable", task_id=task_id, timeout=40)
        assert "refused" in line["error"] or "closed the connection" in line["error"]
    wait_until(lambda: len(worker.lines(event="reaper.database_away")) == before + 1)
    postgres.flow()
    mended = time.monotonic()
    for task_id in (running, *asked):
        final(kept, task_id)
    assert time.monotonic() - mended < 20
    assert_nothing_is_lost(kept, requests=[running, *asked])


@pytest.mark.parametrize("how", list(Cut))
def test_redis_is_cut_in_the_middle_of_a_refresh(
    upkeep: Fleet, worker: Process, kept: Kept, redis_link: Proxy, how: Cut
) -> None:
    task_id = begin(upkeep, kept)
    queued = [ask(upkeep, kept) for _ in range(4)]
    assert redis_link.cut(how) >= 1
    # What runs goes on, whatever becomes of its message.
    final(kept, task_id, attempts=1)
    for each in queued:
        final(kept, each)
    assert_nothing_is_lost(kept, requests=[task_id, *queued])
    assert worker.popen.poll() is None


def test_redis_is_silent(upkeep: Fleet, worker: Process, kept: Kept, redis_link: Proxy) -> None:
    task_id = begin(upkeep, kept)
    began = time.monotonic()
    redis_link.stall()
    queued = [ask(upkeep, kept) for _ in range(4)]
    final(kept, task_id, attempts=1)
    wait_stalled(began)
    redis_link.flow()
    for each in queued:
        final(kept, each)
    assert_nothing_is_lost(kept, requests=[task_id, *queued])


def test_redis_refuses_for_some_seconds(
    upkeep: Fleet, worker: Process, kept: Kept, redis_link: Proxy
) -> None:
    task_id = begin(upkeep, kept)
    redis_link.refuse()
    redis_link.cut()
    queued = [ask(upkeep, kept) for _ in range(4)]
    final(kept, task_id, attempts=1)
    wait_until(lambda: any("Connection to broker lost" in line for line in worker.stderr.splitlines()), 20)
    redis_link.flow()
    for each in queued:
        final(kept, each)
    assert_nothing_is_lost(kept, requests=[task_id, *queued])


def test_a_slow_link_only_takes_longer(upkeep: Fleet, worker: Process, kept: Kept, postgres: Proxy) -> None:
    changed(kept)
    postgres.delay(0.05)
    asked = [upkeep.send(VIEW, database="kept", view=view) for view in ("public.quick", "public.slow")]
    for task_id in asked:
        final(kept, task_id, attempts=1)
    assert_nothing_is_lost(kept, requests=asked)


def test_nothing_is_left_after_all_that(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    """The last one: it ends the worker."""
    assert psutil.pid_exists(worker.pid)
    assert_nothing_is_left(upkeep, kept)
