"""What somebody asks for is done once, written down, explained in the logs, and no secret goes with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from fleet.errors import PermanentError
from fleet.ledger import State
from tests.processes import ALL, TIER, VIEW, Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO public.t SELECT i, i FROM generate_series(1, 20) i;
CREATE MATERIALIZED VIEW public.base AS SELECT id, n FROM public.t;
CREATE UNIQUE INDEX base_key ON public.base (id);
CREATE MATERIALIZED VIEW public.top AS SELECT 1 AS one, sum(n) AS total FROM public.base;
CREATE UNIQUE INDEX top_key ON public.top (one);
CREATE MATERIALIZED VIEW public.other AS SELECT id FROM public.t WHERE id < 10;
CREATE UNIQUE INDEX other_key ON public.other (id);
"""
CONFIG = """
[databases.kept.views."public.base"]
tier = "daily"
[databases.kept.views."public.top"]
tier = "daily"
[databases.kept.views."public.other"]
tier = "fifteen_minutes"
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
    """As anybody would start it, who has read no manual: no log level, no options but the name."""
    return upkeep.worker().wait_ready()


def views_runs(kept: Kept) -> int:
    return int(kept.scalar("SELECT count(*) FROM upkeep.run WHERE task = %s", VIEW))


def test_a_message_refreshes_a_view(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    kept.execute("INSERT INTO public.t VALUES (21, 21)")
    task_id = upkeep.send(VIEW, database="kept", view="public.base", result=True)
    run = kept.final(task_id)
    assert (run.state, run.target, run.entry, run.attempt) == (State.SUCCEEDED, "public.base", "operator", 1)
    assert run.result is not None
    assert (run.result["strategy"], run.result["rows_changed"]) == ("concurrently", 1)
    assert run.worker is not None
    assert run.worker.startswith("worker@test/")
    assert (
        kept.rows("(TABLE public.base EXCEPT TABLE public.t) UNION (TABLE public.t EXCEPT TABLE public.base)")
        == []
    )
    # Celery's result says the same, and does not stay for ever.
    meta = wait_until(lambda: (m := upkeep.result(task_id))["status"] == "SUCCESS" and m)
    assert meta["result"] == {"run": run.id, "state": "succeeded", **run.result}
    with redis.Redis.from_url(upkeep.redis_url) as client:
        assert 0 < client.ttl(f"celery-task-meta-{task_id}") <= 86_400


def test_every_line_of_a_run_says_which(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    task_id = upkeep.send(VIEW, database="kept", view="public.top")
    run = kept.final(task_id)
    worker.wait_line(event="view.refresh.succeeded", task_id=task_id, view="public.top")
    of_run = [line for line in worker.lines() if task_id in json.dumps(line)]
    assert of_run
    for line in of_run:
        assert {"run_id", "task_id", "database", "view", "task"} <= line.keys(), line
        assert (line["task_id"], line["database"], line["task"]) == (task_id, "kept", VIEW)
    # Its upstream view was refreshed under a run of its own, which its lines name.
    upstream = kept.rows("SELECT id FROM upkeep.run WHERE requested_by = %s", f"run {run.id}")
    assert [(line["view"], line["run_id"]) for line in of_run] == [
        ("public.base", upstream[0]["id"]),
        ("public.top", run.id),
    ]


def test_the_log_is_json_on_stderr_and_nothing_else(worker: Process) -> None:
    # As root Celery warns before anything of ours has been loaded.
    lines = worker.lines()
    first = next(number for number, line in enumerate(lines) if "text" not in line)
    assert all("event" in line and "level" in line and "timestamp" in line for line in lines[first:]), (
        worker.stderr
    )
    assert worker.lines(event="database.kept", database="kept", views=3)
    assert "database.kept" not in worker.stdout


def test_an_error_reaches_celerys_client_as_it_was_raised(upkeep: Fleet, worker: Process) -> None:
    task_id = upkeep.send(VIEW, database="kept", view="public.bse", result=True)
    meta = wait_until(lambda: (m := upkeep.result(task_id))["status"] == "FAILURE" and m)
    assert isinstance(meta["result"], PermanentError)
    assert meta["result"].remedy.startswith("Did you mean public.base?")


@pytest.mark.parametrize(
    ("task", "arguments", "views"),
    [
        (TIER, {"tier": "daily"}, {"public.base", "public.top"}),
        (ALL, {}, {"public.base", "public.top", "public.other"}),
    ],
)
def test_a_fan_out_asks_for_each_view_once_however_often_it_comes(
    upkeep: Fleet, worker: Process, kept: Kept, task: str, arguments: dict[str, Any], views: set[str]
) -> None:
    task_id = upkeep.send(task, database="kept", **arguments)
    run = kept.final(task_id)
    assert (run.state, run.result) == (
        State.SUCCEEDED,
        {"runs": len(views), "skipped": 0, "views": len(views)},
    )
    # A worker that dies while it fans out must not take the tick with it.
    assert run.max_attempts > 1
    made = kept.children(run.id)
    assert {child.target for child in made} == views
    assert len(made) == len(views)
    for child in made:
        assert kept.ended(child.id).state in {State.SUCCEEDED, State.SKIPPED}
    before = views_runs(kept)
    # The same message again: Redis delivered it twice, or somebody pressed twice.
    upkeep.send(task, task_id=task_id, database="kept", **arguments)
    worker.wait_line(event="run.left_alone", task_id=task_id, run_id=run.id)
    assert views_runs(kept) == before


def test_a_tick_that_comes_twice_in_a_slot_makes_one_set_of_runs(
    upkeep: Fleet, worker: Process, kept: Kept
) -> None:
    # Two schedulers: two messages, two ids, one slot (a daily one, so that it does not end meanwhile).
    first, second = (upkeep.send(TIER, database="kept", tier="daily", scheduled=True) for _ in range(2))
    for task_id in (first, second):
        wait_until(
            lambda task_id=task_id: (
                worker.lines(event="run.left_alone", task_id=task_id)
                or worker.lines(event="tier.refresh.succeeded", task_id=task_id)
            )
        )
    ticks = kept.rows("SELECT id, state FROM upkeep.run WHERE task = %s AND entry = 'daily'", TIER)
    assert [tick["state"] for tick in ticks] == ["succeeded"]
    made = kept.children(ticks[0]["id"])
    assert sorted(child.target for child in made) == ["public.base", "public.top"]
    assert {child.slot for child in made} == {made[0].slot}
    for child in made:
        assert kept.ended(child.id).final
    assert kept.scalar("SELECT count(*) FROM upkeep.run WHERE task = %s AND entry = 'daily'", VIEW) == 2


def test_a_view_request_that_comes_twice_is_one_run(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    task_id = upkeep.send(VIEW, database="kept", view="public.other")
    run = kept.final(task_id)
    upkeep.send(VIEW, task_id=task_id, database="kept", view="public.other")
    worker.wait_line(event="run.left_alone", task_id=task_id, run_id=run.id)
    assert kept.scalar("SELECT count(*) FROM upkeep.run WHERE request_id = %s", task_id) == 1
    assert kept.run(run.id) == run


def test_a_bell_for_another_tasks_run_changes_nothing(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    run_id = kept.scalar(
        "INSERT INTO upkeep.run (task, target, entry, queue, max_attempts, state, not_before)"
        " VALUES (%s, 'public.other', 'operator', 'refresh', 1, 'waiting', now() + '1 hour') RETURNING id",
        VIEW,
    )
    before = kept.run(run_id)
    task_id = upkeep.send(TIER, database="kept", run=run_id)
    worker.wait_line(event="run.left_alone", task_id=task_id)
    assert kept.run(run_id) == before


def test_no_secret_is_anywhere(upkeep: Fleet, worker: Process, kept: Kept, broker: EmbeddedRedis) -> None:
    secrets = [kept.password, broker.url().split("@", maxsplit=1)[0].rpartition(":")[2]]
    assert all(len(secret) > 15 for secret in secrets)
    # Somebody writes the URL where the database's name is wanted.
    misled = upkeep.send(VIEW, database=kept.url, view="public.base", result=True)
    run = kept.final(misled)
    assert run.error is not None
    assert run.error["kind"] == "permanent"
    wait_until(lambda: upkeep.result(misled)["status"] == "FAILURE")
    with redis.Redis.from_url(upkeep.redis_url) as client:
        results = [
            client.get(key)
            for key in client.scan_iter(match="celery-task-meta-*")
            if client.type(key) == b"string"
        ]
    replies = upkeep.producer.control.inspect(timeout=3).conf(with_defaults=True)
    assert replies
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    titles = [process.name() for process in psutil.Process(worker.pid).children(recursive=True)]
    shown = {
        "log": worker.stderr,
        "output": worker.stdout,
        "ledger": json.dumps(kept.rows("SELECT * FROM upkeep.run"), default=str),
        "results": repr(results),
        "configuration as Flower shows it": json.dumps(replies, default=str),
        "ps": "\n".join(commands + titles),
        "sessions": json.dumps(kept.rows("SELECT * FROM pg_stat_activity"), default=str),
    }
    assert {place for place, text in shown.items() for secret in secrets if secret in text} == set()
