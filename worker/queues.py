"""What waits in the broker's queues: a bell that is there need not be rung again, one that is not is lost.

Read straight from kombu's lists in Redis, which have no other way to be asked.
"""

from __future__ import annotations

import base64
import json
from typing import Any

# More are not looked through: a queue of this length is slow, whatever is in it.
MOST_MESSAGES = 10_000


def waiting_bells(client: Any, queue: str, database: str) -> set[int] | None:
    """The runs of a database for which a bell waits in a queue; None where the queue is too long to be looked through.

    Raises:
        redis.RedisError: Redis did not answer.
    """
    messages = client.lrange(queue, 0, MOST_MESSAGES)
    if len(messages) > MOST_MESSAGES:
        return None
    return {run for run in (_run(message, database) for message in messages) if run is not None}


def _run(message: bytes, database: str) -> int | None:
    """The run that a message is the bell of; None for anything else, a stranger's included."""
    try:
        body = json.loads(message)["body"]
        _, kwargs, _ = json.loads(base64.b64decode(body))
        return int(kwargs["run"]) if kwargs["database"] == database else None
    except (ValueError, TypeError, KeyError):
        return None
