"""Failovers for tests: a primary and a standby that follows it, asynchronously and over a link that can be cut."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from psycopg.conninfo import make_conninfo

from tests import servers
from tests.proxy import Proxy
from tests.waiting import wait_until
from worker.embedded.errors import ServerError
from worker.embedded.installation import reachable_installation
from worker.embedded.launcher import server_environment
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.server import write_private
from worker.embedded.wheels import postgres_bin_dir

# A standby that lost its link comes back soon; what the primary wrote meanwhile is still there.
SETTINGS = {"wal_keep_size": "512MB", "wal_retrieve_retry_interval": "100ms"}
PROMOTED_S = 30


class Standby(EmbeddedPostgres):
    """A server that begins as a copy of another one, through `port`, and follows it until it is promoted."""

    def __init__(self, primary: EmbeddedPostgres, *, through: int, port: int | None = None) -> None:
        # Not by pg_basebackup -R: a newer one writes options that an older server does not know.
        source = make_conninfo(host="127.0.0.1", port=through, user="postgres", password=primary.password)
        super().__init__(primary.bin_dir, settings={**primary.settings, "primary_conninfo": source})
        self._primary = primary
        self._through = through
        self._port = port

    def promote(self) -> float:
        """Make it a primary; returns the moment (time.monotonic) at which it took its first write."""
        with servers.admin(self) as connection:
            row = connection.execute("SELECT pg_promote(true, %s)", (PROMOTED_S,)).fetchone()
            assert row == (True,), "it was not promoted"
            connection.execute("CREATE TABLE promoted (); DROP TABLE promoted")
        return time.monotonic()

    def in_recovery(self) -> bool:
        with servers.admin(self) as connection:
            return bool(connection.execute("SELECT pg_is_in_recovery()").fetchone()[0])

    def _prepare(self) -> None:
        folder = self._make_data_dir()
        if not (folder / "PG_VERSION").exists():
            self._copy()
            write_private(folder / "standby.signal", "", self._account())
        super()._prepare()

    def _pg_basebackup(self) -> Path:
        """The server's own, or, where it brings none, a newer one's: that copies older servers too."""
        own = self.bin_dir / "pg_basebackup"
        if own.exists():
            return own
        return reachable_installation(postgres_bin_dir(18), self._account())[0] / "pg_basebackup"

    def _copy(self) -> None:
        account = self._account()
        if account:
            os.chown(self.data_dir, account.pw_uid, account.pw_gid)
        done = subprocess.run(
            [
                self._pg_basebackup(),
                f"--pgdata={self.data_dir}",
                "--host=127.0.0.1",
                f"--port={self._through}",
                "--username=postgres",
                "--no-password",
                "--wal-method=stream",
                "--checkpoint=fast",
                "--no-sync",
            ],
            cwd=self.data_dir,
            env={**server_environment(), "PGPASSWORD": self._primary.password},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            start_new_session=True,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )
        if done.returncode != 0:
            raise ServerError(f"pg_basebackup failed in {self.data_dir}", remedy=done.stdout)


@dataclass(kw_only=True)
class Pair:
    """Who is the primary, who follows it, and the link between them."""

    primary: EmbeddedPostgres
    standby: Standby
    link: Proxy

    def url(self, url: str, **parameters: str) -> str:
        """A URL of the primary as one of both servers, the primary first, as a fleet should have it."""
        parts = urlsplit(url)
        login, _, server = parts.netloc.rpartition("@")
        assert server == f"127.0.0.1:{self.primary.port}", server
        hosts = f"{login}@{server},127.0.0.1:{self.standby.port}"
        query = "&".join(
            f"{k}={v}" for k, v in ({"target_session_attrs": "read-write"} | parameters).items() if v
        )
        return urlunsplit(parts._replace(netloc=hosts, query=query))

    def alone(self, url: str) -> str:
        """A URL of the primary, as one of the standby."""
        return url.replace(f"127.0.0.1:{self.primary.port}", f"127.0.0.1:{self.standby.port}")

    def wait_caught_up(self, timeout: float = 30) -> None:
        """Wait until the standby shows all that the primary has written so far."""
        with servers.admin(self.primary) as connection:
            # Only what is on disk is sent: a commit that waits for the disk takes all before it along.
            written = connection.execute(
                "SELECT pg_logical_emit_message(true, 'test', 'caught up')"
            ).fetchone()[0]

        def there() -> bool:
            with servers.admin(self.standby) as connection:
                row = connection.execute(
                    "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (written,)
                ).fetchone()
                return bool(row[0])

        wait_until(there, timeout, f"the standby's replay of {written}")

    def part(self) -> None:
        """Let nothing more reach the standby: what is written from now on is the tail that a failover loses."""
        self.link.refuse()
        self.link.cut()

    def fail_over(self) -> float:
        """The primary dies as in a power cut, the standby takes over; returns the moment of its first write."""
        self.primary.kill()
        return self.standby.promote()

    def follow(self) -> Standby:
        """After a failover: where the primary was, a new standby of the server that took over, on the old port."""
        port = self.primary.port
        self.primary.close()
        self.link.aim(self.standby.port)
        self.link.flow()
        made = Standby(self.standby, through=self.link.port, port=port)
        return made.start()


@contextmanager
def streaming_pair(**settings: str) -> Iterator[Pair]:
    """A durable primary and its standby, both running."""
    with (
        servers.new_postgres(**{**servers.DURABLE, **SETTINGS, **settings}) as primary,
        Proxy(primary.port) as link,
        Standby(primary, through=link.port) as standby,
    ):
        pair = Pair(primary=primary, standby=standby, link=link)
        pair.wait_caught_up()
        yield pair


def timeline(server: EmbeddedPostgres) -> int:
    """The timeline that a primary writes on, whether or not it has made a checkpoint there."""
    with servers.admin(server) as connection:
        name = connection.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone()[0]
    return int(name[:8], 16)
