"""The fleet's own connections to Redis, beside those of Celery: marks of writers, messages about refreshes."""

from __future__ import annotations

from redis import Redis

from upkeep_client import connections

# A Redis that does not answer must not keep a worker's place: whatever is in it can be had in another way.
TIMEOUT_S = 2.0


def connect(url: str) -> Redis:
    """A client for a URL of upkeep.toml, of a server, a socket or Sentinels; it connects when it is first used."""
    return connections.connect(url, timeout=TIMEOUT_S, socket_keepalive=True)
