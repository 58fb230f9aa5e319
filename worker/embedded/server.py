"""What both servers share: a data directory, a free port, a start that waits for an answer, and an orderly end."""

from __future__ import annotations

import atexit
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from worker.embedded.errors import ServerError
from worker.embedded.launcher import bound_to_us, server_environment
from worker.embedded.processes import POLL_S, descendants, send_signal, wait_gone

START_TIMEOUT_S = 60.0  # crash recovery on a busy machine counts into a start
STOP_TIMEOUT_S = 30.0  # a fast shutdown writes a checkpoint; after this the server is killed

# Below Linux's ephemeral range (32768 and up): a port there can be taken as the source of some outgoing
# connection while our server restarts, and then its clients would wait for a port that does not come back.
PORTS = range(15_000, 32_000)

LOG_TAIL_LINES = 25


class _PortTakenError(ServerError):
    """Somebody was faster with the port; the next attempt takes another."""


@dataclass(frozen=True, kw_only=True)
class _Child:
    """A started server; `ended` is set when it has been reaped."""

    process: subprocess.Popen[bytes]
    ended: threading.Event


class EmbeddedServer(ABC):
    """What both servers share: a data directory, a port, and a process that never outlives its owner."""

    name: ClassVar[str]
    death_signal: ClassVar[signal.Signals]  # sent by the kernel when our process is gone
    discard_signal: ClassVar[signal.Signals]  # the quickest orderly end, for data that nobody needs any more

    def __init__(self, *, data_dir: Path | None, port: int | None = None) -> None:
        self._temporary = data_dir is None
        self._data_dir = data_dir.absolute() if data_dir else None
        self._port = port
        self._child: _Child | None = None
        self._owner_pid = os.getpid()

    @property
    def data_dir(self) -> Path:
        """Where the server keeps its data: the directory asked for, or a temporary one once started."""
        if self._data_dir is None:
            raise ServerError(f"{self.name} has no data directory yet", remedy="call start() first")
        return self._data_dir

    @property
    def port(self) -> int:
        """The port on 127.0.0.1; it stays the same over restarts."""
        if self._port is None:
            raise ServerError(f"{self.name} has no port yet", remedy="call start() first")
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process, None while it is down."""
        return self._child.process.pid if self._child and not self._child.ended.is_set() else None

    @property
    def log_path(self) -> Path:
        """What the server says, over all its restarts."""
        return self.data_dir / "server.log"

    def start(self) -> Self:
        """Return when the server answers.

        Raises:
            ServerError: it did not within `START_TIMEOUT_S`, or ended; with the tail of its log.

        """
        if self.pid is not None:
            raise ServerError(f"{self.name} is running already on port {self.port}")
        self._owner_pid = os.getpid()
        atexit.register(self.close)
        try:
            self._prepare()
            self._launch_on_free_port()
        except BaseException:
            self.close()
            raise
        return self

    def kill(self) -> None:
        """SIGKILL, for the server and every process it has: what a power cut leaves behind."""
        if self._child is None:
            return
        pid = self._child.process.pid
        if not self._child.ended.is_set():
            os.kill(pid, signal.SIGSTOP)  # so that it makes no new child while we count them
            victims = [*descendants(pid), pid]
            for victim in victims:
                send_signal(victim, signal.SIGKILL)
            self._child.ended.wait()
            wait_gone(victims, STOP_TIMEOUT_S)
        self._child = None

    def close(self) -> None:
        """Stop, and delete the data directory if we made it. Safe to call twice."""
        if os.getpid() != self._owner_pid:  # a fork of our process runs its atexit hooks too
            return
        atexit.unregister(self.close)
        if self._temporary:
            self._end(self.discard_signal)
            if self._data_dir is not None:
                shutil.rmtree(self._data_dir)
                self._data_dir = None
        else:
            self._end(self.death_signal)

    def __enter__(self) -> Self:
        return self if self.pid is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, how: signal.Signals) -> None:
        if self._child is None:
            return
        if not self._child.ended.is_set():
            self._child.process.send_signal(how)
        if not self._child.ended.wait(STOP_TIMEOUT_S):
            self.kill()
        self._child = None

    def _launch_on_free_port(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        wanted = self._port
        while True:
            self._port = wanted or free_port()
            try:
                self._launch(deadline)
            except _PortTakenError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)
            else:
                return

    def _launch(self, deadline: float) -> None:
        with self.log_path.open("ab") as log:
            log_start = log.tell()
            self._child = self._spawn(log.fileno())
        child = self._child
        while not self._ready(child.process.pid):
            if child.ended.wait(POLL_S):
                self._child = None
                said = _tail(self.log_path, log_start)
                kind = _PortTakenError if "Address already in use" in said else ServerError
                status = child.process.returncode
                raise kind(
                    f"{self.name} ended with status {status} instead of answering on port {self.port}",
                    remedy=f"its log ends:\n{said}",
                )
            if time.monotonic() > deadline:
                said = _tail(self.log_path, log_start)
                self.kill()
                raise ServerError(
                    f"{self.name} did not answer on port {self.port} within {START_TIMEOUT_S:.0f} s",
                    remedy=f"its log ends:\n{said}",
                )

    def _spawn(self, log: int) -> _Child:
        """Start the server from a thread that stays until the server ends, for `bound_to_us`."""
        command = bound_to_us(self._command(), self.death_signal, self._account())
        ended = threading.Event()
        started = threading.Event()
        children: list[_Child] = []
        errors: list[OSError] = []

        def keep() -> None:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self.data_dir,
                    env=server_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as error:
                errors.append(error)
                return
            else:
                children.append(_Child(process=process, ended=ended))
            finally:
                started.set()
            process.wait()
            ended.set()

        threading.Thread(target=keep, name=f"keeper of {self.name}", daemon=True).start()
        started.wait()
        if errors:
            raise ServerError(f"{self.name} could not be started") from errors[0]
        return children[0]

    def _make_data_dir(self) -> Path:
        if self._data_dir is None:
            self._data_dir = Path(tempfile.mkdtemp(prefix=f"upkeep-{self.name.lower()}-"))
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._data_dir

    def _account(self) -> pwd.struct_passwd | None:
        """The user to run as, None for the one we are."""
        return None

    @abstractmethod
    def _prepare(self) -> None:
        """Make the data directory and the configuration, whatever of it is not there yet."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _ready(self, pid: int) -> bool:
        """Whether process `pid`, and no other server on its port, answers."""


def write_private(path: Path, text: str, account: pwd.struct_passwd | None) -> None:
    """Write a file that may hold a password: nobody else can read it at any moment."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    if account:
        os.chown(path, account.pw_uid, account.pw_gid)


def free_port() -> int:
    """A port nobody listens on right now; whoever is faster makes the caller try again."""
    while True:
        port = PORTS.start + secrets.randbelow(len(PORTS))
        with socket.socket() as probe:
            # As the servers do it: a port whose last connections linger in TIME_WAIT is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _tail(path: Path, start: int) -> str:
    with path.open("rb") as log:
        log.seek(start)
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:])
