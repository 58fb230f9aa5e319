"""Where the databases and Redis are: URLs checked before anybody connects, no password ever quoted.

libpq's and Redis's own messages quote their input, so they are cut down to what cannot hold a secret.
"""

from __future__ import annotations

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict

from fleet.errors import ConfigurationError
from fleet.postgres.addresses import addresses
from upkeep_client.errors import InvalidUrl
from upkeep_client.urls import parse

# Connection parameters that are secrets themselves.
_SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
_EXAMPLE = 'Write "postgresql://user@host:5432/dbname" or "host=... dbname=... user=..."'
# Which of several servers will do. The fleet writes; "any" is for one server, or an address that moves.
_SESSION_ATTRS = ("read-write", "primary", "any")


def postgres(url: str) -> dict[str, str]:
    """The parameters of a connection string, a URI or keywords.

    Raises:
        ConfigurationError: libpq would not take it; the message quotes nothing of it.

    """
    if not url.strip():
        raise ConfigurationError("it is empty", remedy=_EXAMPLE)
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", url)
    if scheme is not None and scheme[1] not in ("postgresql", "postgres"):
        raise ConfigurationError(
            f"libpq does not know the scheme {scheme[1]}://",
            remedy="A PostgreSQL URL starts with postgresql://",
        )
    try:
        parameters = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    except psycopg.Error as exc:
        # Between its first and its last quotation mark a message of libpq repeats what it was given.
        said = re.sub(r'".*"', "(hidden)", str(exc), flags=re.DOTALL).strip()
        raise ConfigurationError(f"it is not a connection string: {said}", remedy=_EXAMPLE) from None
    for port in parameters.get("port", "").split(","):
        if port and not (port.isdecimal() and 0 < int(port) < 65_536):
            raise ConfigurationError("its port is not a number from 1 to 65535", remedy=_EXAMPLE)
    try:
        addresses(parameters)
    except ValueError as exc:
        raise ConfigurationError(str(exc), remedy="Give one port for all hosts, or one for each") from None
    if parameters.get("target_session_attrs", "any") not in _SESSION_ATTRS:
        raise ConfigurationError(
            "its target_session_attrs leads away from the primary, and the fleet writes",
            remedy="Use target_session_attrs=read-write",
        )
    return parameters


def has_secret(parameters: dict[str, str]) -> bool:
    """Whether a parsed connection string holds a password or the like."""
    return any(parameters.get(key) for key in _SECRETS)


def places(parameters: dict[str, str]) -> frozenset[tuple[str, str, str]]:
    """Hosts, ports and database: two connection strings that share one of these mean the same database."""
    database = parameters.get("dbname") or parameters.get("user") or ""
    return frozenset(
        (each.hostaddr or each.host or "localhost", each.port, database) for each in addresses(parameters)
    )


def shown(parameters: dict[str, str]) -> str:
    """A connection string for people, without secrets."""
    return " ".join(f"{key}={'***' if key in _SECRETS else value}" for key, value in parameters.items())


def redis(url: str, *, cluster: bool = False) -> tuple[bool, str]:
    """Whether a URL of Redis holds a password, and the URL for people, without it.

    `cluster`: whether it may be one of a Redis Cluster.

    Raises:
        ConfigurationError: it is not a URL of Redis; the message quotes nothing of it.

    """
    try:
        parsed = parse(url)
    except InvalidUrl as exc:
        raise ConfigurationError("it is not a URL of Redis", remedy=str(exc)) from None
    if parsed.kind == "cluster" and not cluster:
        raise ConfigurationError(
            "the broker cannot be a Redis Cluster, only the cache can",
            remedy="Write the URL of one server, or of Sentinels: redis+sentinel://host,host2/mymaster/0",
        )
    return parsed.has_secret, parsed.shown
