"""SIGKILL at each step of a refresh, of a pool child and of a worker's main process: nothing is lost, whatever it held.

Somebody's lock keeps the run at the step that it is to be killed at, and is given back before the next attempt.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fleet.ledger import Run, State
from tests.faults.aftermath import assert_nothing_is_left, assert_nothing_is_lost
from tests.processes import VIEW, Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

# The bound that the issue of the clock promises, and the time that the other worker then needs.
RECOVERY_S = 35.0

SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY);
INSERT INTO public.t SELECT generate_series(1, 5);
CREATE MATERIALIZED VIEW public.upper AS SELECT id FROM public.t;
CREATE UNIQUE INDEX upper_key ON public.upper (id);
CREATE MATERIALIZED VIEW public.lower AS SELECT id FROM public.upper;
CREATE UNIQUE INDEX lower_key ON public.lower (id);
CREATE TABLE public.pace (seconds int);
CREATE FUNCTION public.rest() RETURNS text LANGUAGE sql VOLATILE AS
    'SELECT pg_sleep(coalesce(max(seconds), 0))::text FROM public.pace';
CREATE MATERIALIZED VIEW public.long AS SELECT id, CASE id WHEN 1 THEN public.rest() END AS rested FROM public.t;
CREATE UNIQUE INDEX long_key ON public.long (id);
"""
# Waits for a lock may last, so that a busy machine finds the run where it is meant to be.
CONFIG = """
[databases.kept]
lock_timeout = "30s"
[databases.kept.views."public.upper"]
tier = "daily"
retries = ["200ms", "500ms", "2s", "5s"]
[databases.kept.views."public.lower"]
tier = "daily"
retries = ["200ms", "500ms", "2s", "5s"]
[databases.kept.views."public.long"]
tier = "fifteen_minutes"
retries = ["200ms", "500ms", "2s", "5s"]
"""
# Each step: a statement that keeps a run there for as long as its transaction lasts, and what then waits for that.
STEPS = {
    "before its upstream is refreshed": (
        "COMMENT ON MATERIALIZED VIEW public.upper IS 'SHARE UPDATE EXCLUSIVE'",
        'REFRESH MATERIALIZED VIEW CONCURRENTLY "public"."upper"',
    ),
    "its upstream is refreshed and not noted": (
        "SELECT FROM upkeep.view_state WHERE view = 'public.upper' FOR UPDATE",
        "INSERT INTO upkeep.view_state",
    ),
    "before it is refreshed": (
        "COMMENT ON MATERIALIZED VIEW public.lower IS 'SHARE UPDATE EXCLUSIVE'",
        'REFRESH MATERIALIZED VIEW CONCURRENTLY "public"."lower"',
    ),
    "refreshed and not noted": (
        "SELECT FROM upkeep.view_state WHERE view = 'public.lower' FOR UPDATE",
        "INSERT INTO upkeep.view_state",
    ),
}


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def stays(upkeep: Fleet) -> Process:
    """Takes over what the killed ones leave."""
    return upkeep.worker("stays").wait_ready()


def waiting(kept: Kept) -> list[dict[str, Any]]:
    """The fleet's sessions that wait for somebody's lock."""
    return kept.rows(
        "SELECT pid, application_name, query FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name LIKE 'upkeep/refresh.view/%%' AND wait_event_type = 'Lock'"
    )


def kept_at(kept: Kept, step: str, holder: psycopg.Connection[Any]) -> None:
    """Change what both views read, and hold what the step waits for."""
    kept.execute("INSERT INTO public.t SELECT max(id) + 1 FROM public.t")
    holder.execute(STEPS[step][0])


def reached(kept: Kept, task_id: str, step: str) -> tuple[Run, int]:
    """The run and its session, when it waits at its step."""
    (session,) = wait_until(lambda: waiting(kept), 20, "a refresh that waits at its step")
    assert session["query"].startswith(STEPS[step][1])
    run = kept.request(task_id)
    assert run is not None
    assert run.state == State.RUNNING
    return run, session["pid"]


def assert_taken_over(
    kept: Kept, task_id: str, run: Run, session: int, stale: Collection[str] = ("public.long",)
) -> None:
    ended = kept.final(task_id, timeout=RECOVERY_S)
    assert (ended.id, ended.state, ended.attempt) == (run.id, State.SUCCEEDED, 2)
    assert ended.worker != run.worker
    # The session of the dead is gone, and with it every lock that it had.
    wait_until(
        lambda: kept.scalar("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", session) == 0,
        5,
        "the end of the dead one's session",
    )
    assert_nothing_is_lost(kept, requests=[task_id], stale=stale)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_pool_child_is_killed(upkeep: Fleet, stays: Process, kept: Kept, step: str) -> None:
    with psycopg.connect(kept.database.url) as holder:
        kept_at(kept, step, holder)
        task_id = upkeep.send(VIEW, database="kept", view="public.lower")
        run, session = reached(kept, task_id, step)
        child = int(str(run.worker).rpartition("/")[2])
        assert child in stays.pool()
        os.kill(child, signal.SIGKILL)
        holder.rollback()
    assert_taken_over(kept, task_id, run, session)
    assert stays.popen.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_worker_is_killed(upkeep: Fleet, stays: Process, kept: Kept, step: str) -> None:
    # It alone listens to a queue where nothing of a view's should be, so that it gets the request.
    victim = upkeep.worker("dies", "--queues", "archive").wait_ready()
    with psycopg.connect(kept.database.url) as holder:
        kept_at(kept, step, holder)
        task_id = upkeep.send(VIEW, queue="archive", database="kept", view="public.lower")
        run, session = reached(kept, task_id, step)
        assert str(run.worker).startswith("dies@")
        victim.kill()
        holder.rollback()
    assert_taken_over(kept, task_id, run, session)


@pytest.mark.slow
def test_a_worker_is_killed_in_the_middle_of_ten_minutes(upkeep: Fleet, stays: Process, kept: Kept) -> None:
    """Its session would go on for ten minutes, and keep the run's lock: the server looks whether anybody waits."""
    kept.execute("INSERT INTO public.pace VALUES (600)")
    victim = upkeep.worker("dies", "--queues", "archive").wait_ready()
    task_id = upkeep.send(VIEW, queue="archive", database="kept", view="public.long")
    session = kept.wait_refreshing("public.long")
    wait_until(
        lambda: kept.scalar("SELECT wait_event FROM pg_stat_activity WHERE pid = %s", session) == "PgSleep"
    )
    run = kept.request(task_id)
    assert run is not None
    kept.execute("DELETE FROM public.pace")  # for the next attempt; this one sleeps already
    victim.kill()
    assert_taken_over(kept, task_id, run, session, stale=["public.upper", "public.lower"])


def test_nothing_is_left_of_all_this(upkeep: Fleet, stays: Process, kept: Kept) -> None:
    """The last one: it ends the worker."""
    assert_nothing_is_left(upkeep, kept)
