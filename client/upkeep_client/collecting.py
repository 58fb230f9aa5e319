"""What a transaction has asked for so far, and the one round trip per client after its commit.

Nothing here raises: the commit has happened, and whoever waits for it must not be told otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from upkeep_client.aio import AsyncUpkeep
from upkeep_client.errors import RequestNotSent
from upkeep_client.requests import Request, merge
from upkeep_client.upkeep import Upkeep

log = logging.getLogger("upkeep_client")

Collected = tuple[Upkeep | AsyncUpkeep, Request]


def send(
    collected: Iterable[Collected], run: Callable[[AsyncUpkeep, list[Request]], object] | None = None
) -> None:
    """Send what was collected, each view once; `run` sends what an asyncio client is to send."""
    by_client: dict[Upkeep | AsyncUpkeep, list[Request]] = {}
    for client, request in collected:
        by_client.setdefault(client, []).append(request)
    for client, requests in by_client.items():
        try:
            if isinstance(client, AsyncUpkeep):
                assert run is not None, "whoever collects for an asyncio client can wait for it"
                run(client, merge(requests))
            else:
                client.send(merge(requests))
        except RequestNotSent as exc:
            log.warning("%s", exc)
        except Exception:  # the application's own on_error, say
            log.exception("A refresh was not requested after the commit")
