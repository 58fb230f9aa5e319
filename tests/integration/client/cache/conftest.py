"""The Redis that the cache's tests run on: one server, and a cluster of one node, which refuses what crosses slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from tests import servers
from tests.waiting import wait_until
from worker.embedded.redis import EmbeddedRedis


@pytest.fixture(scope="session")
def cluster_server() -> Iterator[EmbeddedRedis]:
    with servers.new_redis(cluster_enabled="yes") as server:
        with redis.Redis.from_url(server.url()) as admin:
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_until(lambda: b"cluster_state:ok" in raw(admin, "CLUSTER", "INFO"), 30)
        yield server


def raw(client: redis.Redis, *command: str) -> bytes:
    """What a command answers, without redis-py's reading of it."""
    found: Any = client.execute_command(*command, NEVER_DECODE=True)
    return found if isinstance(found, bytes) else str(found).replace("': '", ":").encode()


@pytest.fixture(params=["server", "cluster"])
def cache_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "server":
        yield request.getfixturevalue("redis_url")
        return
    server = request.getfixturevalue("cluster_server")
    with redis.Redis.from_url(server.url()) as admin:
        admin.flushall()
    yield f"redis+cluster://127.0.0.1:{server.port}"


@pytest.fixture
def reader(cache_url: str) -> Iterator[redis.Redis]:
    """Reads what is in the cache's Redis; a cluster of one node answers for all slots."""
    with redis.Redis.from_url(cache_url.replace("+cluster", ""), decode_responses=True) as client:
        yield client


class Counted:
    """A function whose calls are counted."""

    def __init__(self, make: Callable[[int], Any] = lambda n: {"call": n}) -> None:
        self.calls = 0
        self._make = make

    def __call__(self) -> Any:
        self.calls += 1
        return self._make(self.calls)


@pytest.fixture
def compute() -> Counted:
    return Counted()
