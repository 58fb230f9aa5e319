"""Real processes of the fleet: started as anybody would start them, watched through their logs, ended by signals.

None of them outlives the test run, however that ends.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
from celery import Celery
from psycopg import sql
from psycopg.rows import dict_row

from fleet import ledger
from fleet.ledger import Run
from fleet.postgres.migrations import migrate
from tests import servers
from tests.servers import Database
from tests.waiting import wait_until
from worker.embedded.launcher import bound_to_us
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

# Two noisy cores, and Celery takes two seconds of one of them to start.
START_TIMEOUT_S = 60.0
QUEUES = "refresh,refresh.slow,maintenance"
# The test run finds the packages by pytest's `pythonpath`, which its child processes know nothing of.
ROOT = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "client"), os.environ.get("PYTHONPATH")]))
VIEW, TIER, ALL = "upkeep.refresh.view", "upkeep.refresh.tier", "upkeep.refresh.all"


def new_redis_with_password() -> EmbeddedRedis:
    """A Redis of the run's kind that asks for a password, not started."""
    wanted = os.environ.get("UPKEEP_TEST_REDIS")
    return EmbeddedRedis(
        Path(wanted).absolute() if wanted else None, password=f"redis-{secrets.token_urlsafe(12)}"
    )


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A database of the fleet's, with a role of its own that is no superuser."""

    database: Database
    url: str
    password: str

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """A query on a connection of its own: the server may have been restarted since the last one."""
        with psycopg.connect(self.database.url, autocommit=True, row_factory=dict_row) as connection:
            return connection.execute(query, values).fetchall()

    def scalar(self, query: str, *values: Any) -> Any:
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            row = connection.execute(query, values).fetchone()
        assert row is not None
        return row[0]

    def change(self, statement: str, *values: Any) -> None:
        """Change what is in the ledger, past the fleet."""
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            connection.execute(statement, values)

    def execute(self, statements: str) -> None:
        """As the fleet's role, which owns what it makes."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statements)

    # The ledger

    def request(self, task_id: str) -> Run | None:
        """The run that a message asked for."""
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            return ledger.get_request(connection, task_id)

    def run(self, run_id: int) -> Run:
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            found = ledger.get(connection, run_id)
        assert found is not None
        return found

    def final(self, task_id: str, timeout: float = 30) -> Run:
        """Wait for the end of the run that a message asked for."""

        def ended() -> Run | None:
            run = self.request(task_id)
            return run if run is not None and run.final else None

        return wait_until(ended, timeout, lambda: f"the end of {self.request(task_id) or task_id}")

    def ended(self, run_id: int, timeout: float = 30) -> Run:
        """Wait for the end of a run."""

        def look() -> Run | None:
            run = self.run(run_id)
            return run if run.final else None

        return wait_until(look, timeout, lambda: f"the end of {self.run(run_id)}")

    def children(self, run_id: int) -> list[Run]:
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            return ledger.children(connection, run_id)

    # What the fleet does at this moment

    def refreshing(self, view: str = "") -> list[int]:
        """The sessions that execute a REFRESH of the view (of any view) now."""
        found = self.rows(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
            " AND query LIKE 'REFRESH%%' AND strpos(query, %s) > 0",
            quoted(view) if view else "REFRESH",
        )
        return [row["pid"] for row in found]

    def wait_refreshing(self, view: str, timeout: float = 20) -> int:
        """Wait until somebody refreshes the view; returns the session."""
        return wait_until(lambda: self.refreshing(view), timeout, f"a REFRESH of {view}")[0]

    def sessions(self) -> list[dict[str, Any]]:
        """The fleet's sessions that work: the reapers' are there for as long as their workers."""
        return self.rows(
            "SELECT pid, application_name, state, query FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'upkeep%%' AND application_name NOT IN ('upkeep/reaper', 'upkeep/dispatch')"
        )

    def advisory_locks(self) -> int:
        """How many advisory locks are held in this database."""
        return int(
            self.scalar(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        )


def quoted(view: str) -> str:
    """A plain schema.view as it stands in a statement that quotes every identifier."""
    return ".".join(f'"{part}"' for part in view.split("."))


def keep(server: EmbeddedPostgres, schema: str = "", *, migrated: bool = True) -> Kept:
    """A new database with a role that owns what `schema` makes, and Upkeep's own schema."""
    database = servers.create_database(server)
    role = f"fleet_{database.name}"
    password = f"postgres-{secrets.token_urlsafe(12)}"
    with servers.admin(server) as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), sql.Literal(password))
        )
        connection.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
                sql.Identifier(database.name), sql.Identifier(role)
            )
        )
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(role)))
    kept = Kept(database=database, url=database.url_for(role, password), password=password)
    if schema:
        kept.execute(schema)
    if migrated:
        migrate(kept.url)
    return kept


@dataclass(kw_only=True)
class Process:
    """One process of the fleet; what it says is in two files, because JSON goes to stderr alone."""

    name: str
    folder: Path
    popen: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def stderr(self) -> str:
        return (self.folder / f"{self.name}.err").read_text(encoding="utf-8", errors="replace")

    @property
    def stdout(self) -> str:
        return (self.folder / f"{self.name}.out").read_text(encoding="utf-8", errors="replace")

    def lines(self, **fields: Any) -> list[dict[str, Any]]:
        """The log lines that have these fields; what is no JSON is under `text`."""
        found = [_parsed(line) for line in self.stderr.splitlines() if line.strip()]
        return [line for line in found if all(line.get(key) == value for key, value in fields.items())]

    def wait_line(self, timeout: float = 20, **fields: Any) -> dict[str, Any]:
        """Wait for a log line with these fields."""
        return wait_until(
            lambda: self.lines(**fields),
            timeout,
            lambda: f"{fields} in the log of {self.name}:\n{self.tail()}",
        )[-1]

    def wait_ready(self) -> Process:
        """Wait until a worker takes messages."""
        return self.wait_text(" ready.")

    def wait_text(self, text: str, timeout: float = START_TIMEOUT_S) -> Process:
        """Wait for some words in the log."""

        def said() -> bool:
            assert self.popen.poll() is None, f"{self.name} ended with {self.popen.poll()}:\n{self.tail()}"
            return text in self.stderr

        wait_until(said, timeout, lambda: f"{text!r} in the log of {self.name}:\n{self.tail()}")
        return self

    def tail(self, lines: int = 30) -> str:
        """The end of the log, for a test that failed."""
        return "\n".join(self.stderr.splitlines()[-lines:])

    def pool(self) -> list[int]:
        """The pool children of a worker."""
        return [child.pid for child in psutil.Process(self.pid).children()]

    def kill(self) -> None:
        """SIGKILL for the process alone."""
        self.popen.kill()
        self.popen.wait()

    def end(self, how: signal.Signals = signal.SIGTERM, timeout: float = 45) -> int:
        """Ask it to end; returns its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(how)
        return self.popen.wait(timeout)


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {"text": line}
    return found if isinstance(found, dict) else {"text": line}


@dataclass(kw_only=True)
class Fleet:
    """Processes that share a configuration, and a producer that sends them messages without knowing Upkeep's code."""

    folder: Path
    config: str
    databases: Mapping[str, str]
    redis_url: str
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config_path.write_text(self.config, encoding="utf-8")
        self.producer = Celery(broker=self.redis_url, backend=self.redis_url, set_as_current=False)
        # A producer must not wait for results on a connection that a test kills.
        self.producer.conf.update(
            broker_connection_retry=False, broker_transport_options={"socket_timeout": 5}
        )

    @property
    def config_path(self) -> Path:
        return self.folder / "upkeep.toml"

    @property
    def environment(self) -> dict[str, str]:
        """The test run's own, which conftest has cleaned of UPKEEP_* and PG*."""
        urls = {f"UPKEEP_{name.upper()}_URL": url for name, url in self.databases.items()}
        return {
            **os.environ,
            "UPKEEP_CONFIG": str(self.config_path),
            "UPKEEP_REDIS_URL": self.redis_url,
            "PYTHONPATH": PYTHONPATH,
            **urls,
        }

    def start(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Process:
        """Start `celery -A worker.app …`, in a directory where no upkeep.toml lies around."""
        command = [sys.executable, "-m", "celery", "-A", "worker.app", *arguments]
        return self.start_command(name, command, environment=environment)

    def start_command(
        self, name: str, command: list[str], *, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start any command with the fleet's environment."""
        with (self.folder / f"{name}.out").open("wb") as out, (self.folder / f"{name}.err").open("wb") as err:
            popen = subprocess.Popen(
                bound_to_us(command, signal.SIGKILL),
                cwd=self.folder,
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.processes.append(Process(name=name, folder=self.folder, popen=popen))
        return self.processes[-1]

    def worker(
        self,
        name: str = "worker",
        *arguments: str,
        concurrency: int = 2,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a worker; it is not ready yet."""
        return self.start(
            name,
            "worker",
            "--queues",
            QUEUES,
            "--hostname",
            f"{name}@test",
            "--concurrency",
            str(concurrency),
            *arguments,
            environment=environment,
        )

    def send(
        self,
        task: str,
        *,
        task_id: str | None = None,
        queue: str = "refresh",
        result: bool = False,
        **kwargs: Any,
    ) -> str:
        """Send a message as an application would, which may want Celery's result; returns the task's id."""
        sent = self.producer.send_task(
            task, kwargs=kwargs, task_id=task_id, queue=queue, ignore_result=not result
        )
        return str(sent.id)

    def result(self, task_id: str) -> Any:
        """What Celery's result backend has of a task."""
        return self.producer.backend.get_task_meta(task_id)

    def close(self) -> None:
        """End everything; a test that wanted an orderly end has asked for one."""
        for process in self.processes:
            if process.popen.poll() is None:
                process.kill()
        self.producer.close()


@contextmanager
def fleet(folder: Path, config: str, databases: Mapping[str, str], redis_url: str) -> Iterator[Fleet]:
    """A fleet without processes yet; all of them are gone afterwards."""
    made = Fleet(folder=folder, config=config, databases=databases, redis_url=redis_url)
    try:
        yield made
    finally:
        made.close()


def descendants(pid: int) -> list[psutil.Process]:
    """A process and everything below it."""
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


def alive(process: psutil.Process) -> bool:
    """Whether it is the same process still, and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_gone(processes: list[psutil.Process], timeout: float) -> None:
    """Wait until none of them is there."""

    def left() -> list[psutil.Process]:
        return [process for process in processes if alive(process)]

    wait_until(lambda: not left(), timeout, lambda: f"the end of {left()}")
