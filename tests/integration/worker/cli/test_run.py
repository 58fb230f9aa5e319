"""run: a real worker does it, and the command follows it in the ledger."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import redis

from fleet import ledger
from tests.conftest import NewDatabase
from tests.integration.worker.cli.conftest import COMMAND, Upkeep
from tests.servers import Database
from tests.waiting import wait_until
from worker import cli

pytestmark = pytest.mark.any_server

ALL = ("run", "upkeep.refresh.all")
VIEW = ("run", "upkeep.refresh.view")


def messages(upkeep: Upkeep, queue: str = "refresh") -> int:
    with redis.Redis.from_url(upkeep.environment["UPKEEP_REDIS_URL"]) as client:
        return int(client.llen(queue))  # type: ignore[arg-type]


def test_a_task_is_sent_and_its_id_printed(upkeep: Upkeep) -> None:
    said = upkeep(*VIEW, "view=public.base", "--json")
    assert said.code == 0
    assert said.json | {"task_id": ""} == {
        "task": "upkeep.refresh.view",
        "task_id": "",
        "database": "kept",
        "target": "public.base",
        "queue": "refresh",
    }
    text = upkeep(*ALL, "database=kept").out
    assert "Sent upkeep.refresh.all for kept" in text
    assert upkeep("run", "upkeep.ledger.prune").code == 0
    assert (messages(upkeep), messages(upkeep, "maintenance")) == (2, 1)


def test_a_request_that_redis_forgets_is_in_the_ledger(upkeep: Upkeep, system: Database) -> None:
    said = upkeep(*VIEW, "view=public.base", "requested_by=somebody", "--json").json
    with redis.Redis.from_url(upkeep.environment["UPKEEP_REDIS_URL"]) as client:
        client.delete("refresh")
    with system.connect() as connection:
        run = ledger.get_request(connection, said["task_id"])
    assert run is not None
    assert (run.state, run.target, run.entry, run.requested_by) == (
        "queued",
        "public.base",
        "operator",
        "somebody",
    )


def test_a_view_goes_to_its_own_queue(upkeep: Upkeep) -> None:
    upkeep.write(upkeep.config.read_text(encoding="utf-8") + 'queue = "refresh.slow"\n')
    assert upkeep(*VIEW, "view=public.top", "--json").json["queue"] == "refresh.slow"
    assert (messages(upkeep), messages(upkeep, "refresh.slow")) == (0, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["upkeep.refresh.vew"], 'Did you mean "upkeep.refresh.view"?'),
        (["celery.backend_cleanup"], "no task named"),
        (["upkeep.refresh.view"], "name the view"),
        (["upkeep.refresh.view", "viw=x"], 'Did you mean "view"?'),
        (["upkeep.refresh.view", "run=3"], "no argument 'run'"),
        (["upkeep.refresh.view", "view"], "not KEY=VALUE"),
        (["upkeep.refresh.view", "=x"], "not KEY=VALUE"),
        (["upkeep.refresh.view", "view=a.b", "view=a.c"], "given twice"),
        (["upkeep.refresh.view", "view=public.nope"], "not managed"),
        (["upkeep.refresh.view", "view=base"], "not a schema-qualified name"),
        (["upkeep.refresh.view", "view=public.base; DROP TABLE t"], "not a schema-qualified name"),
        (["upkeep.refresh.view", "view=public.base", "database=nope"], "nope"),
        (["upkeep.refresh.tier", "tier=hourly"], "hourly"),
        (["upkeep.refresh.tier", "tier=daily", "scheduled=maybe"], "true or false"),
        (["upkeep.refresh.all", "--timeout", "3"], "--timeout is for --wait"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_here(upkeep: Upkeep, words: list[str], said: str) -> None:
    done = upkeep("run", *words)
    assert (done.code, said in done.err) == (2, True), done.err
    assert done.out == ""
    assert said in str(upkeep("run", *words, "--json").json["error"])
    assert messages(upkeep) == 0


def test_redis_that_is_away_is_an_error_without_its_password(
    upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPKEEP_REDIS_URL", "redis://:geheim@127.0.0.1:1/0")
    for words in (ALL, (*ALL, "--wait"), (*ALL, "--json")):
        said = upkeep(*words)
        assert said.code == 1
        assert "127.0.0.1:1" in said.out + said.err
        assert "geheim" not in said.out + said.err
        assert "Traceback" not in said.err


def test_without_a_worker_it_says_so_and_stops_in_time(
    upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.cli.following.PATIENCE_S", 0.3)
    said = upkeep(*ALL, "--wait", "--timeout", "1")
    assert said.code == 1
    assert "no worker has picked it up yet (queue refresh; is one running?" in said.err
    assert "The time to wait is over" in said.err
    said = upkeep(*ALL, "--wait", "--timeout", "0.5", "--json")
    assert (said.code, said.json["timed_out"], said.json["run"]["state"]) == (1, True, "queued")


def test_a_ledger_that_is_not_there_stops_a_wait_before_anything_is_sent(
    new_database: NewDatabase, upkeep_with: Callable[..., Upkeep]
) -> None:
    upkeep = upkeep_with(new_database().url)
    said = upkeep(*ALL, "--wait")
    assert (said.code, "upkeep migrate" in said.err) == (1, True)
    assert messages(upkeep) == 0


def test_ctrl_c_ends_a_wait_quietly(upkeep: Upkeep) -> None:
    process = subprocess.Popen(
        [*COMMAND, *ALL, "--wait"],
        env={**os.environ, **upkeep.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: messages(upkeep) == 1, timeout=30, message="the message")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == cli.INTERRUPTED
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_worker_does_what_is_asked_for(upkeep: Upkeep, system: Database, worker: Any) -> None:
    # Everything, with the runs that it makes.
    said = upkeep(*ALL, "--wait", "--timeout", "60", "--json")
    assert said.code == 0, said.err
    document = said.json
    assert document["run"]["state"] == "succeeded"
    assert {each["target"]: each["state"] for each in document["children"]} == {
        "public.base": "succeeded",
        "public.top": "succeeded",
    }
    # One view, for people, with progress on stderr only.
    said = upkeep(*VIEW, "view=public.base", "--wait", "--timeout", "60")
    assert said.code == 0
    assert "succeeded" in said.out
    assert "public.base" in said.err
    run = ledger.history(system.connect(), task="upkeep.refresh.view", limit=1)[0]
    assert run.requested_by is not None
    assert run.requested_by.startswith("cli:")
    # A slot that has been done already is found by the run that did it.
    for _ in range(2):
        said = upkeep("run", "upkeep.refresh.tier", "tier=five_minutes", "scheduled=true", "--wait", "--json")
        assert said.code == 0
        assert said.json["run"]["entry"] == "five_minutes"
    # Status and the plan know of all this.
    views = upkeep("status", "--json").json["databases"][0]["views"]
    assert all(each["age_s"] < 120 for each in views)
    ticks = upkeep("plan", "refresh", "--as", "tick", "--json").json["databases"][0]["plan"]
    assert {each["action"] for each in ticks} == {"skip"}
    # A failure is exit code 1 with its remedy.
    system.connect().execute("DROP MATERIALIZED VIEW public.top")
    said = upkeep(*VIEW, "view=public.top", "--wait", "--timeout", "60")
    assert said.code == 1
    assert "does not exist" in said.err
    assert "remedy: " in said.err
    said = upkeep(*ALL, "--wait", "--timeout", "60", "--json")
    assert (said.code, said.json["run"]["state"]) == (1, "succeeded")


@pytest.mark.slow
def test_what_a_worker_refuses_is_found_in_the_home_database(upkeep: Upkeep, worker: Any) -> None:
    # This command's configuration has a view that the worker's has not.
    upkeep.write(
        upkeep.config.read_text(encoding="utf-8") + '[databases.kept.views."public.later"]\ntier = "daily"\n'
    )
    said = upkeep(*VIEW, "view=public.later", "--wait", "--timeout", "60")
    assert said.code == 1
    assert "not managed" in said.err


def test_a_log_gets_plain_lines(upkeep: Upkeep) -> None:
    done = upkeep.process(*ALL, "--wait", "--timeout", "0.5")
    assert done.returncode == 1
    assert "\x1b" not in done.stdout + done.stderr
