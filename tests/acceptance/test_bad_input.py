"""Requests that make no sense, through Flower's HTTP API: refused before anything is sent, recorded, survived."""

from __future__ import annotations

import base64
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.ledger import Run, State
from tests.processes import TIER, VIEW, Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY);
INSERT INTO public.t VALUES (1);
CREATE VIEW public.plain AS SELECT id FROM public.t;
CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t;
CREATE UNIQUE INDEX v_key ON public.v (id);
CREATE MATERIALIZED VIEW public.unmanaged AS SELECT id FROM public.t;
"""
CONFIG = "".join(
    f'[databases.kept.views."public.{name}"]\ntier = "daily"\n' for name in ("v", "t", "plain", "gone")
)
USER, PASSWORD = "operator", "let-me-in"
MARK = "zzz_marked"

GOOD = {"database": "kept", "view": "public.v"}
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "unknown view": (VIEW, {"database": "kept", "view": f"public.{MARK}"}),
    "managed but missing": (VIEW, {"database": "kept", "view": "public.gone"}),
    "a table": (VIEW, {"database": "kept", "view": "public.t"}),
    "a plain view": (VIEW, {"database": "kept", "view": "public.plain"}),
    "not managed": (VIEW, {"database": "kept", "view": "public.unmanaged"}),
    "unknown database": (VIEW, {"database": MARK, "view": "public.v"}),
    "unknown tier": (TIER, {"database": "kept", "tier": MARK}),
    "an SQL fragment": (VIEW, {"database": "kept", "view": f"public.v; DROP TABLE public.t; -- {MARK}"}),
    "a fragment as the tier": (TIER, {"database": "kept", "tier": f"daily'; DROP TABLE public.t; -- {MARK}"}),
    "a quote": (VIEW, {"database": "kept", "view": f'public."v"; {MARK}'}),
    "an open quote": (VIEW, {"database": "kept", "view": f'public."{MARK}'}),
    "a single quote": (VIEW, {"database": "kept", "view": f"public.v' OR '{MARK}"}),
    "no schema": (VIEW, {"database": "kept", "view": MARK}),
    "an empty name": (VIEW, {"database": "kept", "view": ""}),
    "a number": (VIEW, {"database": "kept", "view": 42}),
    "a list": (VIEW, {"database": "kept", "view": ["public.v"]}),
    "null": (VIEW, {"database": "kept", "view": None}),
    "a nested object": (VIEW, {"database": {"name": {"$ne": 1}}, "view": "public.v"}),
    "a truth value": (TIER, {"database": "kept", "tier": "daily", "scheduled": "yes"}),
    "nothing": (VIEW, {}),
    "an extra keyword": (VIEW, {**GOOD, "sql": f"DROP TABLE {MARK}"}),
    "a keyword with a strange name": (VIEW, {**GOOD, "a\x00b\ud800; DROP": 1}),
    "a NUL": (VIEW, {"database": "kept", "view": f"public.{MARK}\x00"}),
    "half a character": (VIEW, {"database": "kept", "view": f"public.{MARK}\ud800"}),
    "10 kB": (VIEW, {"database": "kept", "view": "public." + MARK * 1024}),
    "10 kB of quotes": (VIEW, {"database": "kept", "view": "public." + '"' * 10_240}),
    "a run's number out of range": (VIEW, {"database": "kept", "run": 10**30}),
    "a negative run": (VIEW, {"database": "kept", "run": -1}),
}


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def worker(upkeep: Fleet) -> Process:
    return upkeep.worker()


class Flower:
    """Flower's API as an operator's script uses it."""

    def __init__(self, upkeep: Fleet) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = upkeep.start(
            "flower",
            "flower",
            "--address=127.0.0.1",
            f"--port={self.port}",
            environment={"FLOWER_BASIC_AUTH": f"{USER}:{PASSWORD}"},
        )
        wait_until(self._answers, 60, lambda: f"Flower:\n{self.process.tail()}")

    def call(self, path: str, body: object = None) -> tuple[int, str]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def ask(self, way: str, task: str, body: dict[str, Any]) -> str:
        status, text = self.call(f"/api/task/{way}/{task}", body)
        assert status == 200, text
        return str(json.loads(text)["task-id"])

    def _answers(self) -> bool:
        try:
            return self.call("/healthcheck")[0] == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def flower(upkeep: Fleet, worker: Process) -> Flower:
    started = Flower(upkeep)
    worker.wait_ready()
    return started


def refused(kept: Kept, task_id: str) -> Run:
    run = kept.final(task_id, timeout=10)
    assert run.state == State.FAILED, run
    assert run.error is not None
    assert run.error["kind"] == "permanent", run.error
    assert run.error["remedy"], run.error
    assert run.reason
    assert run.attempt <= 1
    assert run.not_before is None
    return run


@pytest.mark.parametrize("way", ["async-apply", "send-task"])
@pytest.mark.parametrize("what", WRONG)
def test_a_request_that_makes_no_sense(
    flower: Flower, worker: Process, kept: Kept, server: EmbeddedPostgres, what: str, way: str
) -> None:
    task, kwargs = WRONG[what]
    said_before = server.log_path.stat().st_size
    pool = worker.pool()
    task_id = flower.ask(way, task, {"kwargs": kwargs})
    run = refused(kept, task_id)
    assert run.task == task
    assert len(json.dumps(kept.rows("SELECT * FROM upkeep.run WHERE id = %s", run.id), default=str)) < 4_000
    # What was sent to the server: no REFRESH, no DROP, and the stranger's words as parameters only.
    with server.log_path.open("rb") as log:
        log.seek(said_before)
        said = log.read().decode(errors="replace").splitlines()
    statements = [line for line in said if "DETAIL:" not in line and "arameters: $1" not in line]
    assert any("INSERT INTO upkeep.run" in line for line in said)
    for line in statements:
        assert MARK not in line
        assert "DROP" not in line
        assert "REFRESH MATERIALIZED" not in line
    # The worker lives on, in the same processes, and nothing is tried again.
    assert worker.popen.poll() is None
    assert worker.pool() == pool
    assert kept.scalar("SELECT count(*) FROM upkeep.run WHERE request_id = %s", task_id) == 1
    assert kept.run(run.id) == run


@pytest.mark.parametrize("way", ["async-apply", "send-task"])
def test_positional_arguments(flower: Flower, worker: Process, kept: Kept, way: str) -> None:
    run = refused(kept, flower.ask(way, VIEW, {"args": ["kept", "public.v"]}))
    assert run.reason is not None
    assert "keywords, not positional" in run.reason


def test_a_good_request_after_all_of_them(flower: Flower, worker: Process, kept: Kept) -> None:
    for way in ("async-apply", "send-task"):
        run = kept.final(flower.ask(way, VIEW, {"kwargs": GOOD}))
        assert run.state == State.SUCCEEDED
    assert kept.scalar("SELECT to_regclass('public.t') IS NOT NULL")
    assert not [line for line in worker.lines() if line.get("level") == "critical" or "exception" in line]


def test_a_task_that_does_not_exist(flower: Flower, worker: Process, kept: Kept) -> None:
    # Not registered in Flower's app: refused there. Sent all the same, the worker says so and lives on.
    assert flower.call("/api/task/async-apply/upkeep.refresh.nothing", {"kwargs": {}})[0] == 404
    flower.ask("send-task", "upkeep.refresh.nothing", {"kwargs": {}})
    run = kept.final(flower.ask("send-task", VIEW, {"kwargs": GOOD}))
    assert run.state == State.SUCCEEDED
    assert worker.popen.poll() is None
