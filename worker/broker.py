"""Keeps a worker alive when its Redis dies under a task that runs.

kombu 5.7 closes the channel of a lost connection twice. The second time the channel still has the running task's
message to put back, makes itself a new client for that, and asks its transport for an address that the first
closing took away: an AttributeError, which Celery takes for a mistake in the program, and ends ("Unrecoverable
error"). Seen with one running task and nothing behind it in the queue, every time. What it wanted to say is that
the connection is gone.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as transport
from redis.exceptions import ConnectionError as RedisConnectionError


def outlive_a_lost_connection() -> None:
    """Let a channel whose connection is closed say so, in the way that kombu and Celery expect; once per process."""
    original: Any = transport.Channel._connparams
    if getattr(original, "tells_closed", False):
        return

    def _connparams(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the broker's connection has been closed")
        return original(self, *args, **kwargs)

    _connparams.tells_closed = True  # type: ignore[attr-defined]
    transport.Channel._connparams = _connparams  # type: ignore[method-assign]
