"""How Celery reaches Redis, and how a worker outlives its death.

Celery has its own ways to write what stands in one URL of ours: Sentinels are several URLs and transport options,
TLS is a dictionary, a socket has another scheme.

kombu 5.7 closes the channel of a lost connection twice. The second time the channel still has the running task's
message to put back, makes itself a new client for that, and asks its transport for an address that the first
closing took away: an AttributeError, which Celery takes for a mistake in the program, and ends ("Unrecoverable
error"). Seen with one running task and nothing behind it in the queue, every time. What it wanted to say is that
the connection is gone.
"""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import quote, urlencode

from kombu.transport import redis as transport
from redis.exceptions import ConnectionError as RedisConnectionError

from upkeep_client.connections import SENTINEL_OPTIONS
from upkeep_client.urls import RedisUrl, parse

# As a URL's options are called by redis-py, and in Celery's dictionary.
_SSL_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
_CERT_REQS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def celery_settings(url: str, transport_options: dict[str, Any]) -> dict[str, Any]:
    """Celery's settings for the broker and the result backend at a URL of Redis."""
    parsed = parse(url)
    where = _celery_url(parsed)
    found: dict[str, Any] = {
        "broker_url": where,
        "result_backend": where,
        "broker_transport_options": transport_options,
    }
    if parsed.service is not None:
        own: dict[str, Any] = {
            key.removeprefix("sentinel_"): value for key, value in parsed.options if key in SENTINEL_OPTIONS
        }
        by_sentinel = {"master_name": parsed.service, "sentinel_kwargs": own}
        found["broker_transport_options"] = {**transport_options, **by_sentinel}
        found["result_backend_transport_options"] = by_sentinel
        if parsed.tls:
            own |= {"ssl": True, **_ssl(parsed)}
    if parsed.tls:
        found["broker_use_ssl"] = found["redis_backend_use_ssl"] = _ssl(parsed)
    return found


def _celery_url(parsed: RedisUrl) -> str:
    credentials = ""
    if parsed.username or parsed.password:
        credentials = f"{quote(parsed.username or '', safe='')}:{quote(parsed.password or '', safe='')}@"
    if parsed.kind == "socket":
        return f"redis+socket://{credentials}{parsed.path}?virtual_host={parsed.db}"
    scheme = "sentinel" if parsed.service is not None else "rediss" if parsed.tls else "redis"
    options = [each for each in parsed.options if each[0] not in (*SENTINEL_OPTIONS, *_SSL_OPTIONS)]
    query = f"?{urlencode(options)}" if options else ""
    return ";".join(
        f"{scheme}://{credentials}{f'[{host}]' if ':' in host else host}:{port}/{parsed.db}{query}"
        for host, port in parsed.hosts
    )


def _ssl(parsed: RedisUrl) -> dict[str, Any]:
    """redis-py's defaults: the server's certificate is asked for and must be good."""
    given: dict[str, Any] = {key: value for key, value in parsed.options if key in _SSL_OPTIONS}
    given["ssl_cert_reqs"] = _CERT_REQS.get(str(given.get("ssl_cert_reqs", "")).lower(), ssl.CERT_REQUIRED)
    if "ssl_check_hostname" in given:
        given["ssl_check_hostname"] = str(given["ssl_check_hostname"]).lower() not in (
            "0",
            "false",
            "no",
            "n",
        )
    return given


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
