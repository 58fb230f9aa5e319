"""Clients of redis-py for a URL, with limits that suit somebody who writes to a database meanwhile.

redis-py's own waits and retries are made for an application that cannot go on without Redis. Here one attempt is
made, each step of it within `timeout`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from upkeep_client.errors import InvalidUrl
from upkeep_client.urls import RedisUrl, parse

SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")


def connect(url: str, *, timeout: float | None = None, **options: Any) -> redis.Redis:
    """Make a client for a URL of a server, a socket or Sentinels; it connects when it is first used.

    `options` are redis-py's; what the URL says wins.

    Raises:
        InvalidUrl: the URL is none, or one of a cluster.

    """
    parsed = _without_cluster(parse(url))
    options = {**_limits(timeout), "retry": Retry(NoBackoff(), 0), **options}
    if parsed.service is None:
        return redis.Redis.from_url(url, **options)
    arguments, own = _sentinel_arguments(parsed, options)
    sentinel = redis.sentinel.Sentinel(  # type: ignore[no-untyped-call]
        list(parsed.hosts), sentinel_kwargs=own, **arguments
    )
    found: redis.Redis = sentinel.master_for(parsed.service)  # type: ignore[no-untyped-call]
    return found


def connect_async(url: str, *, timeout: float | None = None, **options: Any) -> redis.asyncio.Redis:
    """Make the asyncio client for a URL; it belongs to the event loop that first uses it.

    Raises:
        InvalidUrl: the URL is none, or one of a cluster.

    """
    parsed = _without_cluster(parse(url))
    options = {**_limits(timeout), "retry": redis.asyncio.retry.Retry(NoBackoff(), 0), **options}
    if parsed.service is None:
        return redis.asyncio.Redis.from_url(url, **options)
    arguments, own = _sentinel_arguments(parsed, options)
    sentinel = redis.asyncio.sentinel.Sentinel(  # type: ignore[no-untyped-call]
        list(parsed.hosts), sentinel_kwargs=own, **arguments
    )
    found: redis.asyncio.Redis = sentinel.master_for(parsed.service)
    return found


def close(client: Any) -> None:
    """Close a client of `connect` or `connect_cluster`, and those of the Sentinels that it asked."""
    client.close()
    for sentinel in _sentinels(client):
        sentinel.close()


async def close_async(client: Any) -> None:
    """Close a client of `connect_async` or `connect_async_cluster`, and those of the Sentinels that it asked."""
    await client.aclose()
    for sentinel in _sentinels(client):
        await sentinel.aclose()


def _sentinels(client: Any) -> list[Any]:
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return list(manager.sentinels) if manager else []


def connect_cluster(url: str, *, timeout: float | None = None, **options: Any) -> redis.cluster.RedisCluster:
    """Make a client for a URL of a cluster. It connects at once, and raises what redis-py does if it cannot.

    Raises:
        InvalidUrl: the URL is none, or not one of a cluster.

    """
    parsed, arguments = _cluster_arguments(url, timeout, options)
    nodes = [
        redis.cluster.ClusterNode(host, port)  # type: ignore[no-untyped-call]
        for host, port in parsed.hosts
    ]
    return redis.cluster.RedisCluster(
        startup_nodes=nodes, retry=Retry(NoBackoff(), 1), require_full_coverage=False, **arguments
    )


def connect_async_cluster(
    url: str, *, timeout: float | None = None, **options: Any
) -> redis.asyncio.cluster.RedisCluster:
    """Make the asyncio client for a URL of a cluster; it connects when it is first used.

    Raises:
        InvalidUrl: the URL is none, or not one of a cluster.

    """
    parsed, arguments = _cluster_arguments(url, timeout, options)
    nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in parsed.hosts]
    return redis.asyncio.cluster.RedisCluster(
        startup_nodes=nodes,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 1),
        require_full_coverage=False,
        **arguments,
    )


def _cluster_arguments(
    url: str, timeout: float | None, options: dict[str, Any]
) -> tuple[RedisUrl, dict[str, Any]]:
    parsed = parse(url)
    if parsed.kind != "cluster":
        raise InvalidUrl("The URL is not one of a cluster: it would begin with redis+cluster://.")
    arguments = {**_limits(timeout), **options, **_credentials(parsed), **_typed(parsed)}
    arguments.pop("db", None)
    return parsed, arguments


def _credentials(parsed: RedisUrl) -> dict[str, Any]:
    named = {"username": parsed.username, "password": parsed.password}
    return {**named, **({"ssl": True} if parsed.tls else {})}


def _typed(parsed: RedisUrl) -> dict[str, Any]:
    """The options of a URL, with the types that redis-py gives them."""
    query = urlencode([option for option in parsed.options if option[0] not in SENTINEL_OPTIONS])
    typed = dict(parse_url(f"redis://localhost?{query}"))  # type: ignore[no-untyped-call]
    typed.pop("host", None)
    return typed


def _limits(timeout: float | None) -> dict[str, Any]:
    # RESP2: no HELLO, which older servers and proxies refuse, and a connection that the server closed is noticed
    # before it is used.
    limits: dict[str, Any] = {"protocol": 2, "max_connections": 10_000}
    if timeout is not None:
        limits |= {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    return limits


def _without_cluster(parsed: RedisUrl) -> RedisUrl:
    if parsed.kind == "cluster":
        raise InvalidUrl("The broker cannot be a Redis Cluster; only the cache can (cache_url).")
    return parsed


def _sentinel_arguments(parsed: RedisUrl, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the primary's connections are made with, and what the Sentinels'."""
    own = {key: value for key, value in parsed.options if key in SENTINEL_OPTIONS}
    arguments = {**options, **_credentials(parsed), "db": parsed.db, **_typed(parsed)}
    kept = {
        key: value
        for key, value in arguments.items()
        if key.startswith(("ssl", "socket_")) or key in ("retry", "protocol")
    }
    return arguments, {**kept, **{key.removeprefix("sentinel_"): value for key, value in own.items()}}
