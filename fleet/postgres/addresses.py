"""Where a connection string leads: to one server, or to several of which one is the primary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_PORT = "5432"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One server that a connection string names; `hostaddr` is where its name leads, if that is given too."""

    host: str
    hostaddr: str
    port: str

    def __str__(self) -> str:
        return f"{self.host or self.hostaddr or 'the local socket'}:{self.port}"

    @property
    def parameters(self) -> dict[str, str]:
        """What takes the place of the list in a connection string, to reach this one alone."""
        return {"host": self.host, "hostaddr": self.hostaddr, "port": self.port}


def addresses(parameters: Mapping[str, Any]) -> tuple[Address, ...]:
    """The servers of a parsed connection string, in the order in which they are tried.

    Raises:
        ValueError: there are not as many ports, or addresses, as hosts.

    """
    hosts, hostaddrs, ports = (_listed(parameters, key) for key in ("host", "hostaddr", "port"))
    count = max(len(hosts), len(hostaddrs), 1)
    if len(ports) not in {0, 1, count}:
        raise ValueError(f"it names {len(ports)} ports for {count} hosts")
    if hosts and hostaddrs and len(hosts) != len(hostaddrs):
        raise ValueError(f"it names {len(hostaddrs)} addresses for {len(hosts)} hosts")
    ports = ports * count if len(ports) == 1 else ports or [""] * count
    return tuple(
        Address(host=host, hostaddr=hostaddr, port=port or DEFAULT_PORT)
        for host, hostaddr, port in zip(hosts or [""] * count, hostaddrs or [""] * count, ports, strict=True)
    )


def _listed(parameters: Mapping[str, Any], key: str) -> list[str]:
    value = str(parameters.get(key) or "")
    return value.split(",") if value else []
