"""A declared job through a real worker: by its name alone, in its own database, once for each request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.ledger import State
from tests.processes import Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

JOB = "upkeep.job.run"
SCHEMA = """
CREATE TABLE public.todo (id int PRIMARY KEY, done int NOT NULL DEFAULT 0, session text);
CREATE FUNCTION public.do_some() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    n integer;
BEGIN
    UPDATE public.todo SET done = done + 1, session = current_setting('application_name')
     WHERE id IN (SELECT id FROM public.todo WHERE done = 0 ORDER BY id LIMIT 10 FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
"""
CONFIG = """
[fleet]
home = "other"
[databases.kept]
[databases.other]

[jobs.settle]
database = "kept"
sql = "SELECT public.do_some()"
repeat_until_zero = true

[jobs.makes_a_table]
database = "kept"
sql = "CREATE TEMPORARY TABLE left_behind AS SELECT 1 AS id"

[jobs.broken]
database = "kept"
sql = "SELECT public.no_such_function()"
"""


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture(scope="module")
def other(server: EmbeddedPostgres) -> Kept:
    return keep(server)


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, other: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": kept.url, "other": other.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def worker(upkeep: Fleet) -> Process:
    """One place: every job works in the session that the one before it had."""
    return upkeep.worker(concurrency=1).wait_ready()


def test_a_message_with_a_name_runs_the_job_where_it_is_declared(
    upkeep: Fleet, worker: Process, kept: Kept
) -> None:
    kept.execute("INSERT INTO public.todo SELECT generate_series(1, 25)")
    task_id = upkeep.send(JOB, queue="maintenance", job="settle", result=True)
    run = kept.final(task_id)
    assert (run.state, run.target, run.entry, run.queue) == (
        State.SUCCEEDED,
        "settle",
        "operator",
        "maintenance",
    )
    assert run.result is not None
    assert (run.result["batches"], run.result["rows"]) == (3, 25)
    assert (run.attempt, run.max_attempts) == (1, 4)
    assert kept.rows("SELECT done, session, count(*) FROM public.todo GROUP BY 1, 2") == [
        {"done": 1, "session": "upkeep/job.run/settle", "count": 25}
    ]
    said = worker.wait_line(event="job.run.succeeded", task_id=task_id)
    assert (said["job"], said["database"], said["run_id"]) == ("settle", "kept", run.id)
    assert (said["batches"], said["rows"]) == (3, 25)
    meta = wait_until(lambda: (m := upkeep.result(task_id))["status"] == "SUCCESS" and m)
    assert meta["result"] == {"run": run.id, "state": "succeeded", **run.result}
    # The same message again: it was delivered twice, or somebody pressed twice.
    kept.execute("INSERT INTO public.todo SELECT generate_series(26, 30)")
    upkeep.send(JOB, queue="maintenance", task_id=task_id, job="settle")
    worker.wait_line(event="run.left_alone", task_id=task_id)
    assert kept.scalar("SELECT count(*) FROM public.todo WHERE done = 0") == 5


def test_nothing_to_do_is_told(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    kept.execute("UPDATE public.todo SET done = 1")
    run = kept.final(upkeep.send(JOB, queue="maintenance", database="kept", job="settle"))
    assert (run.state, run.reason) == (State.SKIPPED, "nothing was left to do")


def test_a_sessions_leavings_are_not_the_next_jobs(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    for _ in range(2):
        run = kept.final(upkeep.send(JOB, queue="maintenance", job="makes_a_table"))
        assert run.state == State.SUCCEEDED, run.error


def test_a_job_that_fails_says_why_and_what_to_do(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    run = kept.final(upkeep.send(JOB, queue="maintenance", job="broken"))
    assert (run.state, run.attempt) == (State.FAILED, 1)
    assert run.error is not None
    assert (run.error["kind"], run.error["sqlstate"]) == ("permanent", "42883")
    assert "no_such_function" in run.error["message"]
    assert "Create the function" in run.error["remedy"]


@pytest.mark.parametrize(
    ("arguments", "where", "target", "said"),
    [
        # Another database than the job's: refused there.
        (
            {"job": "settle", "database": "other"},
            "other",
            "settle",
            "runs in the database kept, not in other",
        ),
        # Of the others nobody knows where they belong: at home.
        ({"job": "setle"}, "other", "setle", "no job named 'setle'"),
        ({"job": "settle", "database": "nope"}, "other", "settle", "no database named 'nope'"),
        ({}, "other", "", "name the job"),
        ({"job": "settle", "sql": "DROP TABLE public.todo"}, "other", "settle", "sql: Extra inputs"),
        ({"job": "SELECT public.do_some()"}, "other", "SELECT public.do_some()", "no job named"),
        ({"job": ["settle"]}, "other", "['settle']", "job: Input should be a valid string"),
    ],
)
def test_what_makes_no_sense_is_recorded_and_not_done(
    upkeep: Fleet,
    worker: Process,
    kept: Kept,
    other: Kept,
    arguments: dict,
    where: str,
    target: str,
    said: str,
) -> None:
    before = kept.scalar("SELECT count(*) FROM upkeep.run")
    run = {"kept": kept, "other": other}[where].final(upkeep.send(JOB, queue="maintenance", **arguments))
    assert (run.state, run.attempt) == (State.FAILED, 0)
    assert run.target == target
    assert run.error is not None
    assert run.error["kind"] == "permanent"
    assert said in run.error["message"]
    assert run.error["remedy"]
    assert kept.scalar("SELECT count(*) FROM public.todo") == 30
    assert kept.scalar("SELECT count(*) FROM upkeep.run") == before
