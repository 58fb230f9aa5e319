"""What happens when Redis does not take a request: who is told, how often, and when it is asked again.

A Redis that hangs costs a caller the timeout once; whoever comes within the next moments is not made to wait for
the same answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Literal

import redis

from upkeep_client.errors import RequestNotSent

log = logging.getLogger("upkeep_client")

PAUSE_S = 1.0
"""For so long after a failed connection nobody asks Redis again."""

LOG_INTERVAL_S = 60.0
"""One line in the log for so long, with the number of what it stands for."""

OnError = Literal["warn", "raise"] | Callable[[RequestNotSent], object]

# An answer, if a bad one, came at once: asking again costs nobody anything, and may succeed at any moment.
UNREACHABLE = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.RedisClusterException,
    OSError,
    TimeoutError,
)
ERRORS = (redis.RedisError, redis.exceptions.RedisClusterException, OSError, TimeoutError)


class Breaker:
    """Remembers that Redis could not be reached, so that not every caller finds out in its own time.

    It has no lock, so that neither threads nor a fork can be stopped by it: the worst of a race is one caller more.
    """

    def __init__(self, pause_s: float = PAUSE_S) -> None:
        self._pause_s = pause_s
        self._until = 0.0

    def blocks(self) -> bool:
        """Whether to leave Redis alone for now; when the pause is over, the first who asks is the one who tries."""
        if not self._until:
            return False
        now = time.monotonic()
        if now < self._until:
            return True
        self._until = now + self._pause_s
        return False

    def failed(self, error: BaseException) -> None:
        """Redis did not take something."""
        if isinstance(error, UNREACHABLE):
            self._until = time.monotonic() + self._pause_s

    def succeeded(self) -> None:
        """Redis answered."""
        self._until = 0.0


class Reporter:
    """One line in the log a minute, however many requests fail."""

    def __init__(self, what: str, interval_s: float = LOG_INTERVAL_S) -> None:
        self._what = what
        self._interval_s = interval_s
        self._said_at: float | None = None
        self._unsaid = 0
        self._reason = ""

    def failed(self, reason: str, count: int = 1) -> None:
        """Count, and say so if the last line is old enough."""
        self._unsaid += count
        self._reason = reason
        if self._said_at is None or time.monotonic() - self._said_at >= self._interval_s:
            self.flush()

    def flush(self) -> None:
        """Say what was counted since the last line."""
        count, self._unsaid = self._unsaid, 0
        if count:
            self._said_at = time.monotonic()
            log.warning("%s (%d since the last such line): %s", self._what, count, self._reason)


def reason(error: BaseException, secrets: Iterable[str] = ()) -> str:
    """An error of redis-py in words, without anything that is secret."""
    text = str(error) or type(error).__name__
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
