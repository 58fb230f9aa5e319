"""The cache of applications without asyncio.

Redis may be away, hang or lose everything: the result is right, and only slower.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import redis
import redis.cluster

from upkeep_client.cache import invalidation, statistics
from upkeep_client.cache.layout import PREFIX, Layout, Tag
from upkeep_client.cache.statistics import Counters, PatternStats
from upkeep_client.cache.steps import (
    Ask,
    CacheUnavailable,
    Command,
    Compute,
    Entry,
    Pause,
    Rules,
    Step,
    dumps_json,
    get_or_compute,
)
from upkeep_client.connections import close, connect, connect_cluster
from upkeep_client.errors import InvalidRequest
from upkeep_client.failing import ERRORS, Breaker, Reporter, reason
from upkeep_client.urls import parse

T = TypeVar("T")

TIMEOUT_S = 0.5
WAIT_S = 5.0
LOCK_S = 30.0

Loads = Callable[[Any], Any]
Dumps = Callable[[Any], str | bytes]


class Caching:
    """What the two caches have in common: their settings, and what they do when Redis fails."""

    def __init__(
        self,
        url: object,
        *,
        prefix: str,
        timeout: float,
        wait: float,
        lock: float,
        dumps: Dumps,
        loads: Loads,
    ) -> None:
        if timeout <= 0 or wait < 0 or lock <= 0:
            raise InvalidRequest("timeout, wait and lock are in seconds and must be more than 0.")
        self._url = parse(url) if isinstance(url, str) else None
        self._timeout = timeout
        self._layout = Layout(prefix)
        self._rules = Rules(
            layout=self._layout, dumps=dumps, loads=loads, wait_s=wait, lock_ms=round(lock * 1000)
        )
        self._breaker = Breaker()
        self._reporter = Reporter("The cache did not answer; results come from their functions")
        self._counters = Counters(self._layout)

    def _failed(self, error: BaseException) -> CacheUnavailable:
        self._breaker.failed(error)
        secrets = [self._url.password] if self._url and self._url.password else []
        self._reporter.failed(reason(error, secrets))
        return CacheUnavailable()

    def _blocked(self) -> bool:
        if self._breaker.blocks():
            self._reporter.failed("Redis could not be reached a moment ago")
            return True
        return False


class Cache(Caching):
    """Keeps results of queries in Redis until the fleet has refreshed what they came from, or their time is over.

    One instance serves all threads of a process, and survives a fork.

    Args:
        url: of the Redis in `cache_url` (see `upkeep_client.urls`; clusters too), or a client of redis-py of your own.
        prefix: what the keys begin with; the fleet deletes under "upkeep:cache".
        timeout: seconds that connecting and waiting for an answer may each take.
        wait: seconds to wait for a result that another process is computing, before computing it too.
        lock: seconds after which a computation counts as dead.
        dumps: makes text or bytes of a result; JSON by default, which refuses datetimes and Decimals.
        loads: the way back.

    """

    def __init__(
        self,
        url: str | redis.Redis | redis.cluster.RedisCluster,
        *,
        prefix: str = PREFIX,
        timeout: float = TIMEOUT_S,
        wait: float = WAIT_S,
        lock: float = LOCK_S,
        dumps: Dumps = dumps_json,
        loads: Loads = json.loads,
    ) -> None:
        super().__init__(
            url,
            prefix=prefix,
            timeout=timeout,
            wait=wait,
            lock=lock,
            dumps=dumps,
            loads=loads,
        )
        self._text = url if isinstance(url, str) else ""
        self._client: Any = None if isinstance(url, str) else url
        self._counters.at_exit = self.flush

    def get_or_compute(
        self, key: str, compute: Callable[[], T], tags: Sequence[Tag], pattern: str | None = None
    ) -> T:
        """Return the result that is kept under `key`, or compute and keep it.

        Args:
            key: what tells this result from every other, such as "lp:42:summary".
            compute: makes the result; called if there is none, by one caller at a time where that can be helped.
            tags: what the result came from; it is kept for the shortest of their ttls.
            pattern: the kind of keys that this one counts under, such as "lp:{id}:summary".

        Raises:
            InvalidRequest: a wrong type or value.
            TypeError: the result is none that the cache can keep.

        """
        entry = Entry.check(key, tags, pattern)
        lookup = get_or_compute(self._rules, entry, self._counters.count)
        result: T = self._drive(lookup, compute)
        if commands := self._counters.take():
            self._write(commands)
        return result

    def invalidate(
        self, tags: Iterable[str], parameters: Iterable[Mapping[str, object]] | None = None
    ) -> int:
        """Delete what is filed under some tags; the fleet calls this after a refresh.

        A template such as "lp:{id}" means the tags that the parameters fill it to, and every one that ever came of it
        where there are none or one of them does not name all that it needs. Calling it again after an error
        finishes what is left.

        Returns:
            The number of keys that were deleted.

        Raises:
            InvalidRequest: no tags.
            redis.RedisError: Redis did not answer, or refused.

        """
        client = self._connected()
        walk = invalidation.invalidate(
            self._layout, tags, parameters, cluster=isinstance(client, redis.cluster.RedisCluster)
        )
        deleted: int = _walk(walk, lambda commands: _execute(client, commands))
        return deleted

    def stats(self, days: int = 1) -> dict[str, PatternStats]:
        """Read hits and misses by pattern, of today (in UTC) and the days before it.

        Raises:
            redis.RedisError: Redis did not answer.

        """
        client = self._connected()
        _execute(client, self._counters.take(now=True))
        (found,) = raised(_execute(client, [statistics.patterns_command(self._layout)]))
        patterns = [each.decode() if isinstance(each, bytes) else each for each in found]
        replies = raised(_execute(client, statistics.stats_commands(self._layout, patterns, days)))
        return statistics.collect(patterns, days, replies)

    def flush(self) -> None:
        """Write what was counted; done once a second by itself, and at the end of the process."""
        if commands := self._counters.take(now=True):
            self._write(commands)

    def close(self) -> None:
        """Write what was counted, and close the connections (not those of a client that was given)."""
        self.flush()
        self._counters.at_exit = None
        self._reporter.flush()
        if self._url is not None and self._client is not None:
            close(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drive(self, lookup: Generator[Step, Any, Any], compute: Callable[[], Any]) -> Any:
        try:
            step = next(lookup)
            while True:
                try:
                    answer = self._perform(step, compute)
                except BaseException as exc:  # noqa: BLE001  (a cancelled task gives its lock back, too)
                    step = lookup.throw(exc)
                else:
                    step = lookup.send(answer)
        except StopIteration as done:
            return done.value

    def _perform(self, step: Step, compute: Callable[[], Any]) -> Any:
        match step:
            case Compute():
                return compute()
            case Pause(seconds):
                time.sleep(seconds)
                return None
            case Ask(commands):
                return self._ask(commands)

    def _ask(self, commands: Sequence[Command]) -> list[Any]:
        if self._blocked():
            raise CacheUnavailable
        try:
            replies = raised(_execute(self._connected(), commands))
        except ERRORS as exc:
            raise self._failed(exc) from None
        self._breaker.succeeded()
        return replies

    def _write(self, commands: Sequence[Command]) -> None:
        try:
            self._ask(commands)
        except CacheUnavailable:
            return  # figures, and Redis is away: there is nothing to be said that was not

    def _connected(self) -> Any:
        if self._client is None:
            assert self._url is not None
            make = connect_cluster if self._url.kind == "cluster" else connect
            self._client = make(self._text, timeout=self._timeout)
        return self._client


def invalidate(
    client: redis.Redis | redis.cluster.RedisCluster,
    tags: Iterable[str],
    parameters: Iterable[Mapping[str, object]] | None = None,
    *,
    prefix: str = PREFIX,
) -> int:
    """Delete what is filed under some tags: `Cache.invalidate` for somebody who has a client of redis-py already."""
    cluster = isinstance(client, redis.cluster.RedisCluster)
    walk = invalidation.invalidate(Layout(prefix), tags, parameters, cluster=cluster)
    return int(_walk(walk, lambda commands: _execute(client, commands)))


def _walk(walk: invalidation.Walk, ask: Callable[[Sequence[Command]], list[Any]]) -> Any:
    try:
        commands = next(walk)
        while True:
            commands = walk.send(ask(commands))
    except StopIteration as done:
        return done.value


def _execute(client: Any, commands: Sequence[Command]) -> list[Any]:
    """Ask in one round trip (in a cluster one per node); an error that Redis answers stands among the replies."""
    if not commands:
        return []
    if len(commands) == 1:
        try:
            return [client.execute_command(*commands[0])]
        except redis.ResponseError as exc:
            return [exc]
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command)
        return list(pipeline.execute(raise_on_error=False))


def raised(replies: list[Any]) -> list[Any]:
    """Raise the first error among some replies, for whoever can do nothing with the others then."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
