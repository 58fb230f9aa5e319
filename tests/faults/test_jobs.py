"""A job's worker or its session is lost between two batches or inside one: what was committed stays, each row once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.ledger import Run, State
from tests.faults.aftermath import assert_nothing_is_left, assert_nothing_is_lost
from tests.processes import Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

JOB = "upkeep.job.run"
ROWS, AT_A_TIME = 50, 10
# Each row says how often it was done, and by which session. A batch takes as long as public.pace says.
SCHEMA = """
CREATE TABLE public.pace (seconds float8 NOT NULL);
INSERT INTO public.pace VALUES (0);
CREATE TABLE public.todo (id int PRIMARY KEY, done int NOT NULL DEFAULT 0, by int);
CREATE FUNCTION public.do_some() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    n integer;
BEGIN
    UPDATE public.todo SET done = done + 1, by = pg_backend_pid()
     WHERE id IN (SELECT id FROM public.todo WHERE done = 0 ORDER BY id LIMIT 10 FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS n = ROW_COUNT;
    PERFORM pg_sleep(seconds) FROM public.pace WHERE seconds > 0;
    RETURN n;
END $$;
CREATE MATERIALIZED VIEW public.v AS SELECT 1 AS id;
CREATE UNIQUE INDEX v_key ON public.v (id);
"""
CONFIG = """
[databases.kept.views."public.v"]
tier = "daily"
[jobs.unhurried]
sql = "SELECT public.do_some()"
repeat_until_zero = true
batch_pause = "2s"
retries = ["200ms", "500ms", "2s"]
[jobs.slow]
sql = "SELECT public.do_some()"
repeat_until_zero = true
retries = ["200ms", "500ms", "2s"]
"""


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def worker(upkeep: Fleet) -> Process:
    """The worker that stays."""
    return upkeep.worker("stays").wait_ready()


@pytest.fixture(autouse=True)
def _todo(kept: Kept) -> None:
    kept.change("TRUNCATE public.todo")
    kept.change("INSERT INTO public.todo SELECT generate_series(1, %s)", ROWS)
    pace(kept, 0)


def pace(kept: Kept, seconds: float) -> None:
    kept.change("UPDATE public.pace SET seconds = %s", seconds)


def session(kept: Kept, job: str, condition: str) -> int | None:
    """The session that runs the job, if it is idle or waits for this."""
    found = kept.rows(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
        " AND %s IN (state, wait_event)",
        f"upkeep/job.run/{job}",
        condition,
    )
    return found[0]["pid"] if found else None


def between_batches(upkeep: Fleet, kept: Kept, queue: str = "maintenance") -> tuple[str, Run, int]:
    """Ask for the unhurried job; returns once two batches are committed and the third has not begun."""
    task_id = upkeep.send(JOB, queue=queue, job="unhurried")

    def found() -> tuple[str, Run, int] | None:
        run, pid = kept.request(task_id), session(kept, "unhurried", "idle")
        two = run is not None and run.progress is not None and run.progress["batches"] == 2
        return (task_id, run, pid) if run is not None and two and pid is not None else None

    return wait_until(found, 30, lambda: f"two batches of {kept.request(task_id)}")


def inside_a_batch(upkeep: Fleet, kept: Kept) -> tuple[str, Run, int]:
    """Ask for the slow job; returns in the middle of its first batch after some."""
    kept.change("UPDATE public.todo SET done = 1, by = 0 WHERE id <= %s", 2 * AT_A_TIME)
    pace(kept, 30)
    task_id = upkeep.send(JOB, queue="maintenance", job="slow")
    pid = wait_until(lambda: session(kept, "slow", "PgSleep"), 20, "a batch of the slow job")
    run = kept.request(task_id)
    assert run is not None
    return task_id, run, pid


def assert_each_row_once(kept: Kept, first: int, committed: int) -> None:
    """What was committed before the fault stays as that session left it; the rest was done by another, once."""
    assert kept.rows("SELECT done, count(*) FROM public.todo GROUP BY done") == [{"done": 1, "count": ROWS}]
    before = kept.rows("SELECT id FROM public.todo WHERE by = %s ORDER BY id", first)
    assert [row["id"] for row in before] == list(range(1, committed + 1))


def assert_the_end(kept: Kept, task_id: str, *, attempt: int, rows: int) -> Run:
    ended = kept.final(task_id, timeout=60)
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, attempt), ended
    assert ended.result is not None
    assert (ended.result["batches"], ended.result["rows"]) == (rows // AT_A_TIME, rows)
    assert_nothing_is_lost(kept, requests=[task_id])
    wait_until(lambda: kept.advisory_locks() == 0, 10, lambda: f"{kept.advisory_locks()} advisory locks")
    return ended


@pytest.mark.slow
def test_a_worker_killed_between_two_batches(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    # It alone listens to this queue, so that it gets the request; what is rung for later goes to the other one.
    victim = upkeep.worker("dies", "--queues", "archive").wait_ready()
    task_id, run, pid = between_batches(upkeep, kept, queue="archive")
    assert str(run.worker).startswith("dies@")
    victim.kill()
    # Nothing of the third batch has begun, and what the ledger says of the first two is what is in the table.
    assert run.result is not None
    assert (run.result["batches"], run.result["rows"]) == (2, 20)
    ended = assert_the_end(kept, task_id, attempt=2, rows=ROWS)
    assert str(ended.worker).startswith("stays@")
    assert_each_row_once(kept, pid, 2 * AT_A_TIME)


@pytest.mark.slow
def test_a_pool_child_killed_inside_a_batch(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    task_id, run, pid = inside_a_batch(upkeep, kept)
    pace(kept, 0)
    os.kill(int(str(run.worker).rpartition("/")[2]), signal.SIGKILL)
    assert_the_end(kept, task_id, attempt=2, rows=ROWS - 2 * AT_A_TIME)
    # The batch that was under way is another session's altogether.
    assert_each_row_once(kept, 0, 2 * AT_A_TIME)
    assert kept.scalar("SELECT count(*) FROM public.todo WHERE by = %s", pid) == 0


def test_a_session_lost_between_two_batches(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    task_id, _, pid = between_batches(upkeep, kept)
    kept.change("SELECT pg_terminate_backend(%s)", pid)
    assert_the_end(kept, task_id, attempt=2, rows=ROWS)
    assert_each_row_once(kept, pid, 2 * AT_A_TIME)
    (said,) = worker.lines(event="job.run.retrying", task_id=task_id)
    assert said["error"]["kind"] == "transient"
    assert "before that 20 rows in 2 batches were committed, and stay" in said["error"]["message"]


def test_a_session_lost_inside_a_batch(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    task_id, _, pid = inside_a_batch(upkeep, kept)
    pace(kept, 0)
    kept.change("SELECT pg_terminate_backend(%s)", pid)
    assert_the_end(kept, task_id, attempt=2, rows=ROWS - 2 * AT_A_TIME)
    assert_each_row_once(kept, 0, 2 * AT_A_TIME)
    (said,) = worker.lines(event="job.run.retrying", task_id=task_id)
    assert (said["error"]["kind"], said["error"]["sqlstate"]) == ("transient", "57P01")


def test_nothing_is_left_in_the_end(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    """The last one: it ends the worker."""
    assert_nothing_is_left(upkeep, kept)
