"""URLs of Redis: where it is and who we are there, from one line of configuration.

| URL | |
|---|---|
| `redis://[user:password@]host[:6379][/db]` | one server; `rediss://` is with TLS |
| `unix://[user:password@]/path/to/socket[?db=0]` | the same through a socket |
| `redis+sentinel://[user:password@]host[:26379],host2[:26379]/service[/db]` | the primary that the Sentinels name |
| `redis+cluster://[user:password@]host[:6379],host2[:6379]` | a cluster: for the cache only |

`rediss+sentinel://` and `rediss+cluster://` are with TLS. User and password are percent-encoded. What follows the
question mark are options of redis-py (`ssl_ca_certs=/etc/ca.pem`); Sentinels that ask for a password of their own
take `sentinel_username` and `sentinel_password` there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote

from upkeep_client.errors import InvalidUrl

Kind = Literal["server", "socket", "sentinel", "cluster"]

_SCHEMES: dict[str, tuple[Kind, bool]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("socket", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_PORTS: dict[Kind, int] = {"server": 6379, "socket": 0, "sentinel": 26379, "cluster": 6379}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%[\w.]+)?\]|[^\s:\[\]/]+)(?::([0-9]{1,5}))?")
_SECRETS = ("password", "sentinel_password")


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisUrl:
    """A URL of Redis in its parts; `repr()` and `shown` hold no password."""

    kind: Kind
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    """The server, the Sentinels, or some nodes of the cluster; nothing for a socket."""
    path: str | None = None
    service: str | None = None
    """What the Sentinels call the primary."""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    @property
    def has_secret(self) -> bool:
        """Whether the URL holds a password."""
        return bool(self.password) or any(key in _SECRETS for key, _ in self.options)

    @property
    def place(self) -> str:
        """The servers alone, for a message that says which one does not answer."""
        return self.path or ",".join(
            f"{f'[{host}]' if ':' in host else host}:{port}" for host, port in self.hosts
        )

    @property
    def shown(self) -> str:
        """The URL for people, without secrets and options."""
        scheme = next(name for name, kind in _SCHEMES.items() if kind == (self.kind, self.tls))
        secret = "***@" if self.has_secret else ""
        if self.kind == "socket":
            return f"{scheme}://{secret}{self.path}?db={self.db}"
        hosts = ",".join(f"{f'[{host}]' if ':' in host else host}:{port}" for host, port in self.hosts)
        service = f"/{self.service}" if self.service else ""
        return f"{scheme}://{secret}{hosts}{service}{'' if self.kind == 'cluster' else f'/{self.db}'}"


def parse(url: str) -> RedisUrl:
    """Take a URL of Redis apart.

    Raises:
        InvalidUrl: it is none; the message says what is wrong and quotes nothing of it.

    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise InvalidUrl(f'The URL of Redis must begin with one of {known}. Write "redis://host:6379/0".')
    kind, tls = _SCHEMES[scheme]
    rest, _, query = rest.partition("?")
    options = tuple(parse_qsl(query))
    # Up to the last @: a password that is not percent-encoded may have one.
    credentials, at, place = rest.rpartition("@")
    username, _, password = credentials.partition(":") if at else ("", "", "")
    named = {"username": unquote(username) or None, "password": unquote(password) or None}
    if kind == "socket":
        db = dict(options).get("db", "0")
        if not place.startswith("/"):
            raise InvalidUrl('The URL names no path of a socket. Write "unix:///run/redis.sock?db=0".')
        return RedisUrl(
            kind=kind, tls=tls, hosts=(), path=unquote(place), db=_db(db), **named, options=options
        )
    hosts, _, path = place.partition("/")
    found = tuple(_host(each, _PORTS[kind]) for each in hosts.split(","))
    if kind == "server" and len(found) > 1:
        raise InvalidUrl("The URL names several hosts. With Sentinels it begins with redis+sentinel://.")
    service = None
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise InvalidUrl(
                "The URL does not say what the Sentinels call the primary. "
                'Write "redis+sentinel://host:26379,host2:26379/mymaster/0".'
            )
        service = unquote(service)
    if kind == "cluster" and path.strip("/0"):
        raise InvalidUrl("A Redis Cluster has no databases but 0: leave the number out.")
    return RedisUrl(
        kind=kind, tls=tls, hosts=found, service=service, db=_db(path or "0"), **named, options=options
    )


def _host(text: str, port: int) -> tuple[str, int]:
    match = _HOST.fullmatch(text)
    if match is None or not 0 < int(match[2] or port) < 65536:
        raise InvalidUrl('The URL has a host or port that is none. Write "redis://host:6379/0".')
    return unquote(match[1].strip("[]")), int(match[2] or port)


def _db(text: str) -> int:
    text = text.strip("/") or "0"
    if not re.fullmatch("[0-9]{1,9}", text):
        raise InvalidUrl("What follows the host in the URL must be the number of a Redis database.")
    return int(text)
