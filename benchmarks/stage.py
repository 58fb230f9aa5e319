"""The servers, databases and worker processes that a benchmark runs on, gone when it ends.

The servers have ordinary settings, fsync included, the same for us and for the peer: both are databases of
one server.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg import sql

from benchmarks.report import Machine, Report
from benchmarks.timing import Stopwatch, median_of
from fleet import logs, settings
from fleet.errors import UpkeepError
from fleet.postgres.connect import Pools
from fleet.postgres.migrations import migrate
from worker.demo.processes import Fleet
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

# What anybody would set on a small server; everything else is PostgreSQL's default: durability above all, and work_mem,
# which is meant for many dashboard queries at once.
POSTGRES_SETTINGS: Mapping[str, str] = {"shared_buffers": "512MB", "max_wal_size": "4GB"}
POSTGRES_VERSION = 18

# What a worker takes from unless a part wants to see what nobody works on.
ALL_QUEUES = "refresh,refresh.slow,maintenance,archive,watch"

# As in any deployment: an owner of the data, and the fleet's own role, which is no superuser.
OWNER = "app_owner"
ROLE = "upkeep"

WORKER_START_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """One database of the stage: its owner is the application (and the peer), its fleet role is us."""

    name: str
    owner_url: str
    fleet_url: str

    def owner(self) -> psycopg.Connection[Any]:
        """A connection as the application, in autocommit mode."""
        return psycopg.connect(self.owner_url, autocommit=True, application_name="the application")

    def fleet(self) -> psycopg.Connection[Any]:
        """A connection as the fleet's role, for looking on."""
        return psycopg.connect(self.fleet_url, autocommit=True, application_name="upkeep/benchmark")


@dataclass(frozen=True, kw_only=True)
class Floor:
    """What the machine needs for next to nothing, in ms: medians of a round trip and of a durable commit."""

    select_ms: float
    commit_ms: float

    @property
    def worst_ms(self) -> float:
        """The larger one, which absolute bounds are compared with."""
        return max(self.select_ms, self.commit_ms)


class Stage:
    """Embedded PostgreSQL and Valkey, and what is set up on them; a context manager."""

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        postgres_settings: Mapping[str, str] | None = None,
        postgres_bin: Path | None = None,
    ) -> None:
        self.say = say
        self._postgres_bin = postgres_bin
        self._postgres_settings = {**POSTGRES_SETTINGS, **(postgres_settings or {})}
        self._exits = contextlib.ExitStack()
        self._passwords = {role: secrets.token_urlsafe(16) for role in (OWNER, ROLE)}
        self._brokers = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @cached_property
    def folder(self) -> Path:
        """For configurations and logs."""
        folder = Path(tempfile.mkdtemp(prefix="upkeep-benchmark-"))
        self._exits.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    @cached_property
    def postgres(self) -> EmbeddedPostgres:
        """The server of us and of the peer."""
        server = self._exits.enter_context(
            EmbeddedPostgres(self._postgres_bin, version=POSTGRES_VERSION, settings=self._postgres_settings)
        )
        with psycopg.connect(server.url(), autocommit=True) as connection:
            for role, password in self._passwords.items():
                connection.execute(
                    sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                        sql.Identifier(role), sql.Literal(password)
                    )
                )
            connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(OWNER), sql.Identifier(ROLE)))
        return server

    @cached_property
    def redis(self) -> EmbeddedRedis:
        """The broker."""
        return self._exits.enter_context(EmbeddedRedis())

    def place(self, name: str, *, like: Place | None = None) -> Place:
        """A new database of the owner's; if asked, a copy of another one that nobody is connected to."""
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            template = sql.SQL(" TEMPLATE {}").format(sql.Identifier(like.name)) if like else sql.SQL("")
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(OWNER))
                + template
            )
            connection.execute(
                sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
                    sql.Identifier(name), sql.Identifier(ROLE)
                )
            )
        owner, fleet = (self.postgres.url(name, role, self._passwords[role]) for role in (OWNER, ROLE))
        return Place(name=name, owner_url=owner, fleet_url=fleet)

    def migrate(self, place: Place) -> None:
        """Install the schema `upkeep` in a database."""
        with _logging_to(self.folder / "migrate.log"):
            migrate(place.fleet_url)

    def superuser(self, place: Place) -> psycopg.Connection[Any]:
        """A connection for what no role of ours may do, in autocommit mode."""
        return psycopg.connect(self.postgres.url(place.name), autocommit=True)

    def checkpoint(self) -> None:
        """Write out what loading left behind, so that no measurement pays for it."""
        with psycopg.connect(self.postgres.url(), autocommit=True) as connection:
            connection.execute("CHECKPOINT")

    @cached_property
    def floor(self) -> Floor:
        """Measured once, before anything else runs."""
        place = self.place("floor")
        with place.owner() as connection:
            connection.execute("CREATE TABLE public.floor (n int)")
            select_s = median_of(lambda: connection.execute("SELECT 1"), times=200)
            commit_s = median_of(lambda: connection.execute("INSERT INTO public.floor VALUES (1)"), times=50)
        return Floor(select_ms=1000 * select_s, commit_ms=1000 * commit_s)

    @contextlib.contextmanager
    def in_process(
        self, databases: Sequence[settings.Database], tasks: Sequence[type] | None = None
    ) -> Iterator[Mapping[str, Any]]:
        """The fleet's tasks by name, to be called in this process: everything of a delivery but the broker.

        Those of views, unless others are given. Logs go to a file as a worker's do: what they cost is part of a task.
        """
        # Celery: only who needs it pays for its import.
        from celery import Celery  # noqa: PLC0415

        from tasks.base import Runtime  # noqa: PLC0415
        from tasks.refresh.tasks import TASKS  # noqa: PLC0415

        fleet = settings.Fleet(home=databases[0].name)
        pools = Pools()
        # Not worker.app: it reads its configuration while it is imported, from the environment.
        app: Any = Celery("benchmarks", set_as_current=False)
        app.runtime = Runtime(
            settings=settings.Settings(fleet=fleet, databases={d.name: d for d in databases}), pools=pools
        )
        for task in TASKS if tasks is None else tasks:
            app.register_task(task())
        with _logging_to(self.folder / "tasks.log"):
            try:
                yield app.tasks
            finally:
                pools.close()

    def broker(self) -> str:
        """The URL of a broker that nobody has used yet."""
        self._brokers += 1
        return self.redis.url(self._brokers - 1)

    def environment(self, name: str, config: str, places: Sequence[Place]) -> dict[str, str]:
        """What the processes of a fleet find in their environment; the configuration has a folder for them."""
        folder = self.folder / name
        folder.mkdir()
        path = folder / "upkeep.toml"
        path.write_text(config, encoding="utf-8")
        urls = {f"UPKEEP_{place.name.upper()}_URL": place.fleet_url for place in places}
        return clean_environment() | urls | {"UPKEEP_CONFIG": str(path), "UPKEEP_REDIS_URL": self.broker()}

    @contextlib.contextmanager
    def worker(
        self,
        name: str,
        config: str,
        places: Sequence[Place],
        *,
        concurrency: int,
        queues: str = ALL_QUEUES,
    ) -> Iterator[WorkerProcess]:
        """A real worker on the configuration given, with a broker of its own; killed when the block ends."""
        environment = self.environment(name, config, places)
        path = Path(environment["UPKEEP_CONFIG"])
        fleet = Fleet(folder=path.parent, environment=environment)
        try:
            with Stopwatch() as watch:
                fleet.start(
                    "worker",
                    "worker",
                    f"--concurrency={concurrency}",
                    f"--queues={queues}",
                    f"--hostname={name}@benchmark",
                    # It has nobody to talk to, and looking for others takes a second of its start.
                    "--without-mingle",
                    "--without-gossip",
                )
                started = WorkerProcess(fleet=fleet, settings=settings.load(path, environment))
                started.wait()
            self.say(f"worker {name} answers after {watch.seconds:.1f} s")
            yield started
        finally:
            # What it still had to do is of no interest, and an orderly end takes seconds.
            for process in fleet.processes.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def report(self, benchmark: str, *, quick: bool) -> Report:
        """An empty report of this stage: the machine and its floor, before anything else runs on it."""
        report = Report(benchmark=benchmark, quick=quick, machine=self.machine())
        report.add("floor.select", self.floor.select_ms, "ms", note="one round trip")
        report.add("floor.commit", self.floor.commit_ms, "ms", note="one durable commit")
        return report

    def machine(self) -> Machine:
        """The machine with the versions of the servers."""
        here = Machine.here()
        with psycopg.connect(self.postgres.url()) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        with redis.Redis.from_url(self.redis.url()) as client:
            info = client.info("server")
        versions = {"postgresql": str(row[0]) if row else "?"}
        if "valkey_version" in info:
            versions["valkey"] = str(info["valkey_version"])
        else:
            versions["redis"] = str(info["redis_version"])
        here.servers.update(versions)
        return here


class WorkerProcess:
    """A started worker, and a way to ring its bell."""

    def __init__(self, *, fleet: Fleet, settings: settings.Settings) -> None:
        from celery import Celery  # noqa: PLC0415

        self._fleet = fleet
        self._app = Celery(broker=settings.fleet.redis_url.get_secret_value(), set_as_current=False)
        self.settings = settings

    def send(self, task: str, **arguments: Any) -> None:
        """Ring for a task."""
        self._app.send_task(task, kwargs=arguments, queue="refresh")

    def wait(self) -> None:
        """Until it answers.

        Raises:
            UpkeepError: it ended, or does not answer in a minute; with the end of its log.

        """
        deadline = time.monotonic() + WORKER_START_S
        while not self._app.control.ping(timeout=0.2):
            self.check()
            if time.monotonic() >= deadline:
                raise UpkeepError(
                    f"The worker does not answer; its log ends with\n{self._fleet.tail('worker')}"
                )

    def check(self) -> None:
        """Raise if it ended."""
        if self._fleet.dead():
            raise UpkeepError(f"The worker ended; its log ends with\n{self._fleet.tail('worker')}")


def clean_environment() -> dict[str, str]:
    """Ours without what somebody has set for psql, Celery or a fleet of their own."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("UPKEEP_", "PG", "CELERY"))}


@contextlib.contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Send this process's logs to a file: stdout is for the report, stderr for people."""
    import logging  # noqa: PLC0415

    root = logging.getLogger()
    before = list(root.handlers), root.level
    with path.open("a", encoding="utf-8") as file:
        with contextlib.redirect_stderr(file):
            logs.configure("INFO", json=True)
        try:
            yield
        finally:
            root.handlers[:], level = before
            root.setLevel(level)
