"""The cache of asyncio applications: the same keys and rules, and the event loop never blocked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import redis
import redis.asyncio
import redis.asyncio.cluster

from upkeep_client.cache import invalidation, statistics
from upkeep_client.cache.cache import LOCK_S, TIMEOUT_S, WAIT_S, Caching, Dumps, Loads, raised
from upkeep_client.cache.layout import PREFIX, Tag
from upkeep_client.cache.statistics import PatternStats
from upkeep_client.cache.steps import (
    Ask,
    CacheUnavailable,
    Command,
    Compute,
    Entry,
    Pause,
    Step,
    dumps_json,
    get_or_compute,
)
from upkeep_client.connections import close_async, connect_async, connect_async_cluster
from upkeep_client.failing import ERRORS

T = TypeVar("T")


class AsyncCache(Caching):
    """`Cache` for asyncio; it belongs to the event loop that first uses it. `timeout` bounds each round trip."""

    def __init__(
        self,
        url: str | redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster,
        *,
        prefix: str = PREFIX,
        timeout: float = TIMEOUT_S,
        wait: float = WAIT_S,
        lock: float = LOCK_S,
        dumps: Dumps = dumps_json,
        loads: Loads = json.loads,
    ) -> None:
        super().__init__(url, prefix=prefix, timeout=timeout, wait=wait, lock=lock, dumps=dumps, loads=loads)
        self._text = url if isinstance(url, str) else ""
        self._client: Any = None if isinstance(url, str) else url

    async def get_or_compute(
        self,
        key: str,
        compute: Callable[[], Awaitable[T]],
        tags: Sequence[Tag],
        pattern: str | None = None,
    ) -> T:
        """Return the result that is kept under `key`, or await `compute()` and keep that: see `Cache.get_or_compute`.

        Raises:
            InvalidRequest: a wrong type or value.
            TypeError: the result is none that the cache can keep.

        """
        entry = Entry.check(key, tags, pattern)
        lookup = get_or_compute(self._rules, entry, self._counters.count)
        result: T = await self._drive(lookup, compute)
        if commands := self._counters.take():
            await self._write(commands)
        return result

    async def invalidate(
        self, tags: Iterable[str], parameters: Iterable[Mapping[str, object]] | None = None
    ) -> int:
        """Delete what is filed under some tags: see `Cache.invalidate`.

        Raises:
            InvalidRequest: no tags.
            redis.RedisError: Redis did not answer, or refused.

        """
        cluster = isinstance(self._connected(), redis.asyncio.cluster.RedisCluster)
        walk = invalidation.invalidate(self._layout, tags, parameters, cluster=cluster)
        try:
            commands = next(walk)
            while True:
                commands = walk.send(await self._execute(commands))
        except StopIteration as done:
            return int(done.value)

    async def stats(self, days: int = 1) -> dict[str, PatternStats]:
        """Read hits and misses by pattern: see `Cache.stats`.

        Raises:
            redis.RedisError: Redis did not answer.

        """
        await self._execute(self._counters.take(now=True))
        (found,) = raised(await self._execute([statistics.patterns_command(self._layout)]))
        patterns = [each.decode() if isinstance(each, bytes) else each for each in found]
        replies = raised(await self._execute(statistics.stats_commands(self._layout, patterns, days)))
        return statistics.collect(patterns, days, replies)

    async def flush(self) -> None:
        """Write what was counted; done once a second by itself, but not at the end of the process: close() does."""
        if commands := self._counters.take(now=True):
            await self._write(commands)

    async def close(self) -> None:
        """Write what was counted, and close the connections (not those of a client that was given)."""
        await self.flush()
        self._reporter.flush()
        if self._url is not None and self._client is not None:
            await close_async(self._client)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _drive(self, lookup: Generator[Step, Any, Any], compute: Callable[[], Awaitable[Any]]) -> Any:
        try:
            step = next(lookup)
            while True:
                try:
                    answer = await self._perform(step, compute)
                except BaseException as exc:  # noqa: BLE001  (a cancelled task gives its lock back, too)
                    step = lookup.throw(exc)
                else:
                    step = lookup.send(answer)
        except StopIteration as done:
            return done.value

    async def _perform(self, step: Step, compute: Callable[[], Awaitable[Any]]) -> Any:
        match step:
            case Compute():
                return await compute()
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return None
            case Ask(commands):
                return await self._ask(commands)

    async def _ask(self, commands: Sequence[Command]) -> list[Any]:
        if self._blocked():
            raise CacheUnavailable
        try:
            async with asyncio.timeout(self._timeout if self._url is not None else None):
                replies = raised(await self._execute(commands))
        except ERRORS as exc:
            raise self._failed(exc) from None
        self._breaker.succeeded()
        return replies

    async def _write(self, commands: Sequence[Command]) -> None:
        try:
            await self._ask(commands)
        except CacheUnavailable:
            return  # figures, and Redis is away: there is nothing to be said that was not

    async def _execute(self, commands: Sequence[Command]) -> list[Any]:
        client = self._connected()
        if not commands:
            return []
        if len(commands) == 1:
            try:
                return [await client.execute_command(*commands[0])]
            except redis.ResponseError as exc:
                return [exc]
        async with client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return list(await pipeline.execute(raise_on_error=False))

    def _connected(self) -> Any:
        if self._client is None:
            assert self._url is not None
            make = connect_async_cluster if self._url.kind == "cluster" else connect_async
            self._client = make(self._text, timeout=self._timeout)
        return self._client
