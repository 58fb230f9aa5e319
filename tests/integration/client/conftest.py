"""What the client's tests read back from Redis, and the servers that they break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from tests import servers
from worker.embedded.redis import EmbeddedRedis


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A mark as the dispatcher will read it."""

    sequence: int
    first_ms: int
    last_ms: int


class Marks:
    """All that requests have left in a Redis."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url, decode_responses=True)

    def of(self, database: str = "") -> dict[str, Mark]:
        """The marks of a database by their view."""
        found: dict[str, str] = self.redis.hgetall(f"upkeep:marks:{database}")  # type: ignore[assignment]
        return {
            view: Mark(**dict(zip(("sequence", "first_ms", "last_ms"), map(int, text.split()), strict=True)))
            for view, text in found.items()
        }

    def keys(self, view: str, database: str = "") -> Any:
        return self.redis.smembers(f"upkeep:marks:{database}:keys:{view}")

    def parameters(self, view: str, database: str = "") -> Any:
        return self.redis.smembers(f"upkeep:marks:{database}:parameters:{view}")

    def marked(self) -> Any:
        return self.redis.smembers("upkeep:marked")

    def calls(self, command: str) -> int:
        """How often the server has executed a command, since it was last told to forget that."""
        found: Any = self.redis.info("commandstats")
        return int(found.get(f"cmdstat_{command}", {}).get("calls", 0))


@pytest.fixture
def marks(redis_url: str) -> Iterator[Marks]:
    found = Marks(redis_url)
    yield found
    found.redis.close()


@pytest.fixture
def own_redis() -> Iterator[EmbeddedRedis]:
    """A Redis that the test may stop, hang or configure."""
    with servers.new_redis() as server:
        yield server


@pytest.fixture
def new_redis() -> Iterator[Callable[..., EmbeddedRedis]]:
    """Starts more of them, with settings; they end with the test."""
    started: list[EmbeddedRedis] = []

    def new(**settings: str) -> EmbeddedRedis:
        started.append(servers.new_redis(**settings).start())
        return started[-1]

    yield new
    for server in reversed(started):
        server.close()
