"""The client of asyncio applications: the same requests, the same failures, and the event loop never blocked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import redis
import redis.asyncio

from upkeep_client.connections import close_async, connect_async
from upkeep_client.failing import ERRORS, OnError
from upkeep_client.marking import MARK_SCRIPT, MARK_SHA
from upkeep_client.requests import Key, Parameters, Request, bodies
from upkeep_client.upkeep import TIMEOUT_S, Requester

CONNECTIONS = 16
"""As many requests are under way at once; a thousand tasks that write need not be a thousand connections."""


class AsyncUpkeep(Requester):
    """Asks the fleet to refresh views, from asyncio. One instance serves a process; its settings are `Upkeep`'s.

    `timeout` bounds the whole request. A `redis.asyncio.Redis` that was given is used as it is, and belongs to
    its event loop; with a URL the instance makes new connections for a new loop.
    """

    def __init__(
        self,
        url: str | redis.asyncio.Redis,
        *,
        database: str | None = None,
        on_error: OnError = "warn",
        timeout: float = TIMEOUT_S,
        **options: Any,
    ) -> None:
        super().__init__(url, database=database, on_error=on_error, timeout=timeout)
        self._url = url if isinstance(url, str) else None
        self._options = options
        self._loop: asyncio.AbstractEventLoop | None = None
        # No timeouts of its own: one timer bounds the whole request, and each costs a tenth of a round trip.
        self._redis: Any = url if not isinstance(url, str) else connect_async(url, **options)
        self._turns = asyncio.Semaphore(CONNECTIONS)

    async def request_refresh(
        self,
        view: str | Iterable[str],
        *,
        database: str | None = None,
        keys: Iterable[Key] | None = None,
        parameters: Parameters | None = None,
    ) -> bool:
        """Ask for a refresh of one view or several, in one round trip: see `Upkeep.request_refresh`.

        Raises:
            InvalidRequest: a wrong type or value; nothing was sent.
            RequestNotSent: Redis did not take it, and `on_error` is "raise".

        """
        return await self._send(self._body(view, database, keys, parameters))

    async def send(self, requests: Sequence[Request]) -> bool:
        """Send requests that were prepared before the commit that they waited for, in one round trip."""
        return await self._send(bodies(requests)) if requests else True

    async def _send(self, sent: Sequence[bytes]) -> bool:
        if self._breaker.blocks():
            return self._not_sent(None)
        try:
            if self._url is None:
                await self._mark(sent)
            else:
                self._belong_to_this_loop()
                async with asyncio.timeout(self._timeout), self._turns:
                    await self._mark_again(sent)
        except ERRORS as exc:
            return self._not_sent(exc)
        self._breaker.succeeded()
        return True

    async def _mark_again(self, sent: Sequence[bytes]) -> None:
        """Mark, and once more if the connection was one that the server had closed: twice does no harm."""
        started = time.monotonic()
        try:
            await self._mark(sent)
        except (redis.ConnectionError, redis.exceptions.ReadOnlyError):
            if time.monotonic() - started > self._timeout / 2:
                raise
            await self._redis.connection_pool.disconnect(inuse_connections=False)
            await self._mark(sent)

    async def _mark(self, sent: Sequence[bytes]) -> None:
        try:
            await self._redis.execute_command("EVALSHA", MARK_SHA, 0, *sent)
        except redis.exceptions.NoScriptError:
            # A restart, a failover, SCRIPT FLUSH or an eviction; EVAL puts it back.
            await self._redis.execute_command("EVAL", MARK_SCRIPT, 0, *sent)

    def _belong_to_this_loop(self) -> None:
        """Leave the connections of a loop that has ended: they cannot be used, nor closed, from another."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and self._url is not None:
            self._redis = connect_async(self._url, **self._options)
            self._turns = asyncio.Semaphore(CONNECTIONS)
        self._loop = loop

    async def close(self) -> None:
        """Close the connections (not those of a client that was given), and log what was not logged yet."""
        self._reporter.flush()
        if self._url is not None:
            self._belong_to_this_loop()
            await close_async(self._redis)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
