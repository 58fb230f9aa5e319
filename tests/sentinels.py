"""A primary, a replica and three Sentinels that promote the replica when the primary is gone."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from tests import servers
from tests.waiting import wait_until
from worker.embedded.launcher import bound_to_us
from worker.embedded.redis import EmbeddedRedis
from worker.embedded.server import free_port

PASSWORD = "s3cr3t"
SENTINELS = 3


@dataclass(kw_only=True)
class Watched:
    """A primary that Sentinels watch."""

    primary: EmbeddedRedis
    replica: EmbeddedRedis
    ports: list[int]

    def url(self, password: str = PASSWORD, service: str = "main") -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://:{password}@{hosts}/{service}/0"

    def sentinel(self, number: int = 0) -> redis.Redis:
        return redis.Redis(port=self.ports[number], decode_responses=True)

    def named(self) -> int:
        with self.sentinel() as sentinel:
            return int(sentinel.sentinel_get_master_addr_by_name("main")[1])


def config(port: int, primary: EmbeddedRedis) -> str:
    return f"""
port {port}
bind 127.0.0.1
sentinel monitor main 127.0.0.1 {primary.port} 2
sentinel auth-pass main {PASSWORD}
sentinel down-after-milliseconds main 500
sentinel failover-timeout main 3000
"""


@contextmanager
def watched_primary(folder: Path) -> Iterator[Watched]:
    """All of them, once they know each other."""
    with ExitStack() as stack:
        primary = EmbeddedRedis(
            servers.new_redis().binary, password=PASSWORD, settings={"masterauth": PASSWORD}
        )
        stack.enter_context(primary)
        replica = EmbeddedRedis(
            servers.new_redis().binary,
            password=PASSWORD,
            settings={"masterauth": PASSWORD, "replicaof": f"127.0.0.1 {primary.port}"},
        )
        stack.enter_context(replica)
        ports = []
        for number in range(SENTINELS):
            ports.append(free_port())
            path = folder / f"sentinel{number}.conf"
            path.write_text(config(ports[-1], primary))
            process = subprocess.Popen(
                bound_to_us([str(primary.binary), str(path), "--sentinel"], signal.SIGKILL),
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
        found = Watched(primary=primary, replica=replica, ports=ports)

        def ready() -> bool:
            try:
                for number in range(SENTINELS):
                    with found.sentinel(number) as sentinel:
                        seen = sentinel.sentinel_master("main")
                        if seen["num-slaves"] < 1 or seen["num-other-sentinels"] < SENTINELS - 1:
                            return False
            except redis.RedisError:
                return False
            return True

        wait_until(ready, 60, "three Sentinels that know each other and the replica")
        yield found
