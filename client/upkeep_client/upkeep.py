"""The client of applications without asyncio: one round trip after a write, and never an error in its way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, cast

import redis

from upkeep_client.connections import close, connect
from upkeep_client.errors import InvalidRequest, RequestNotSent
from upkeep_client.failing import ERRORS, Breaker, OnError, Reporter, reason
from upkeep_client.marking import MARK_SCRIPT, MARK_SHA
from upkeep_client.requests import Key, Parameters, Request, bodies, plain_body, prepare
from upkeep_client.urls import parse

TIMEOUT_S = 0.5
"""How long a write may wait for Redis: a healthy one answers in a hundredth of that, under load too."""


class Requester:
    """What the two clients have in common: their settings, and what they do when Redis does not take a request."""

    def __init__(self, url: object, *, database: str | None, on_error: OnError, timeout: float) -> None:
        if on_error not in ("warn", "raise") and not callable(on_error):
            raise InvalidRequest('on_error must be "warn", "raise" or a function that takes the error.')
        if timeout <= 0:
            raise InvalidRequest("timeout is in seconds and must be more than 0.")
        prepare("checked.here", database=database)
        self.database = database
        self._on_error = on_error
        self._timeout = timeout
        self._breaker = Breaker()
        self._reporter = Reporter("A refresh was not requested; its view's tier will bring it up to date")
        parsed = parse(url) if isinstance(url, str) else None
        self._secrets = [parsed.password] if parsed and parsed.password else []

    def prepare(
        self,
        view: str | Iterable[str],
        *,
        database: str | None = None,
        keys: Iterable[Key] | None = None,
        parameters: Parameters | None = None,
    ) -> list[Request]:
        """Check a call of `request_refresh` without sending anything; `send()` takes what comes of it.

        Raises:
            InvalidRequest: a wrong type or value.

        """
        database = self.database if database is None else database
        return prepare(view, database=database, keys=keys, parameters=parameters)

    def _body(
        self,
        view: str | Iterable[str],
        database: str | None,
        keys: Iterable[Key] | None,
        parameters: Parameters | None,
    ) -> Sequence[bytes]:
        if keys is None and parameters is None and type(view) is str:
            return (plain_body(view, self.database if database is None else database),)
        return bodies(self.prepare(view, database=database, keys=keys, parameters=parameters))

    def _not_sent(self, error: BaseException | None) -> bool:
        if error is None:
            text = "Redis could not be reached a moment ago"
        else:
            self._breaker.failed(error)
            text = reason(error, self._secrets)
        if self._on_error == "warn":
            self._reporter.failed(text)
            return False
        failure = RequestNotSent(f"The refresh was not requested: {text}")
        failure.__cause__ = error
        if self._on_error == "raise":
            raise failure
        cast(Any, self._on_error)(failure)
        return False


class Upkeep(Requester):
    """Asks the fleet to refresh views. One instance serves all threads of a process, and survives a fork.

    Args:
        url: the broker's URL (see `upkeep_client.urls`), or a `redis.Redis` of your own, which is used as it is:
            with its timeouts and its retries.
        database: the database's name in upkeep.toml, where a call names none. A fleet that keeps only one
            database needs none.
        on_error: what to do when Redis does not take a request. "warn" logs to `upkeep_client`, one line a
            minute; "raise" raises `RequestNotSent`; a function is called with it.
        timeout: seconds that connecting and waiting for the answer may each take.

    """

    def __init__(
        self,
        url: str | redis.Redis,
        *,
        database: str | None = None,
        on_error: OnError = "warn",
        timeout: float = TIMEOUT_S,
        **options: Any,
    ) -> None:
        super().__init__(url, database=database, on_error=on_error, timeout=timeout)
        self._owned = isinstance(url, str)
        self._redis: redis.Redis = connect(url, timeout=timeout, **options) if isinstance(url, str) else url
        self._execute: Callable[..., object] = self._redis.execute_command

    def request_refresh(
        self,
        view: str | Iterable[str],
        *,
        database: str | None = None,
        keys: Iterable[Key] | None = None,
        parameters: Parameters | None = None,
    ) -> bool:
        """Ask for a refresh of one view or several, in one round trip; call it after the commit.

        Args:
            view: "schema.view", or several of them.
            database: its name in upkeep.toml; the instance's by default.
            keys: which rows changed, for views that can refresh a part of themselves.
            parameters: what the tags of `invalidates` are filled with, such as {"id": 42}.

        Returns:
            Whether Redis has the request.

        Raises:
            InvalidRequest: a wrong type or value; nothing was sent.
            RequestNotSent: Redis did not take it, and `on_error` is "raise".

        """
        return self._send(self._body(view, database, keys, parameters))

    def send(self, requests: Sequence[Request]) -> bool:
        """Send requests that were prepared before the commit that they waited for, in one round trip."""
        return self._send(bodies(requests)) if requests else True

    def _send(self, sent: Sequence[bytes]) -> bool:
        if self._breaker.blocks():
            return self._not_sent(None)
        started = time.monotonic()
        try:
            self._mark(sent)
        except ERRORS as exc:
            error: BaseException = exc
        else:
            self._breaker.succeeded()
            return True
        # A connection that the server closed fails at once, and a new one may work. Marking twice does no harm.
        if (
            self._owned
            and isinstance(error, redis.ConnectionError | redis.ReadOnlyError)
            and time.monotonic() - started < self._timeout / 2
        ):
            try:
                self._redis.connection_pool.disconnect(inuse_connections=False)
                self._mark(sent)
            except ERRORS as exc:
                error = exc
            else:
                self._breaker.succeeded()
                return True
        return self._not_sent(error)

    def _mark(self, sent: Sequence[bytes]) -> None:
        try:
            self._execute("EVALSHA", MARK_SHA, 0, *sent)
        except redis.exceptions.NoScriptError:
            # A restart, a failover, SCRIPT FLUSH or an eviction; EVAL puts it back.
            self._execute("EVAL", MARK_SCRIPT, 0, *sent)

    def close(self) -> None:
        """Close the connections (not those of a client that was given), and log what was not logged yet."""
        self._reporter.flush()
        if self._owned:
            close(self._redis)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
