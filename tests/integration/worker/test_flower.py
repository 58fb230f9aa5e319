"""Flower as the fleet starts it: nobody without the password sees a page, asks for a run, or reads a secret."""

from __future__ import annotations

import base64
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import VIEW, Fleet, fleet
from tests.waiting import wait_until
from worker.embedded.redis import EmbeddedRedis

USER, PASSWORD = "operator", "only-operators-know"
CONFIG = '[databases.kept.views."public.v"]\ntier = "daily"\n'
URL = "postgresql://fleet:database-secret@127.0.0.1:1/kept"

PAGES = ("/", "/workers", "/tasks", "/broker", "/worker/nobody", "/task/nothing")
API = ("/api/workers", "/api/tasks", "/api/task/types", "/api/queues/length", "/api/task/info/nothing")
# Upstream's, open whatever is set (Flower 2.2): figures and a heartbeat, for scrapers.
OPEN = ("/metrics", "/healthcheck")


@pytest.fixture(scope="module")
def upkeep(tmp_path_factory: pytest.TempPathFactory, redis_server: EmbeddedRedis) -> Iterator[Fleet]:
    # The last of Redis's databases: the fixtures of single tests begin with the first.
    with fleet(tmp_path_factory.mktemp("flower"), CONFIG, {"kept": URL}, redis_server.url(15)) as made:
        yield made


@pytest.fixture(scope="module")
def base(upkeep: Fleet) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = upkeep.start(
        "flower",
        "flower",
        "--address=127.0.0.1",
        f"--port={port}",
        environment={"FLOWER_BASIC_AUTH": f"{USER}:{PASSWORD}"},
    )
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.popen.poll() is None, process.tail()
        try:
            return get(f"{address}/healthcheck")[0] == 200
        except OSError:
            return False

    wait_until(answers, 60, process.tail)
    return address


def get(url: str, credentials: str | None = None, body: object = None) -> tuple[int, str]:
    headers = (
        {"Authorization": "Basic " + base64.b64encode(credentials.encode()).decode()} if credentials else {}
    )
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data=data, headers=headers), timeout=20
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("path", [*PAGES, *API])
@pytest.mark.parametrize("credentials", [None, f"{USER}:wrong", f"nobody:{PASSWORD}", ":"])
def test_without_the_password_nothing_is_shown(base: str, path: str, credentials: str | None) -> None:
    assert get(base + path, credentials)[0] == 401


@pytest.mark.parametrize(
    "path", ["/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/queues/length"]
)
def test_with_it_everything_is(base: str, path: str) -> None:
    status, text = get(base + path, f"{USER}:{PASSWORD}")
    assert status == 200
    for secret in ("database-secret", PASSWORD):
        assert secret not in text


@pytest.mark.parametrize("way", ["apply", "async-apply", "send-task"])
def test_nobody_asks_for_a_run_without_it(base: str, upkeep: Fleet, way: str) -> None:
    body = {"kwargs": {"database": "kept", "view": "public.v"}}
    assert get(f"{base}/api/task/{way}/{VIEW}", None, body)[0] == 401
    assert get(f"{base}/api/task/{way}/{VIEW}", f"{USER}:wrong", body)[0] == 401
    with upkeep.producer.connection_for_read() as connection:
        assert connection.default_channel.client.llen("refresh") == 0


def test_who_has_it_does(base: str, upkeep: Fleet) -> None:
    status, text = get(
        f"{base}/api/task/async-apply/{VIEW}",
        f"{USER}:{PASSWORD}",
        {"kwargs": {"database": "kept", "view": "public.v"}},
    )
    assert (status, json.loads(text)["state"]) == (200, "PENDING")
    with upkeep.producer.connection_for_read() as connection:
        # In the queue that the route names, before any worker has been there.
        assert connection.default_channel.client.llen("refresh") == 1
        connection.default_channel.client.delete("refresh")


@pytest.mark.parametrize("path", OPEN)
def test_what_is_open_tells_no_secret(base: str, path: str) -> None:
    status, text = get(base + path)
    assert status == 200
    for secret in ("database-secret", PASSWORD, "127.0.0.1"):
        assert secret not in text


def test_no_secret_is_in_its_log_or_its_command_line(base: str, upkeep: Fleet) -> None:
    process = upkeep.processes[0]
    command = Path(f"/proc/{process.pid}/cmdline").read_text()
    for text in (process.stdout, process.stderr, command):
        assert "database-secret" not in text
        assert PASSWORD not in text
