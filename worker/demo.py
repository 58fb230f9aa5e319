"""The demo: a sample system on embedded servers, kept fresh by a real fleet while an application keeps writing to it.

Real processes, as they would run anywhere: a worker, the scheduler, Flower. They end with this one, however
it ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import psycopg
from celery import Celery
from psycopg import sql
from rich.console import Console

from fleet import settings
from fleet.errors import UpkeepError
from fleet.postgres.migrations import migrate
from worker.embedded.launcher import bound_to_us
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis
from worker.live import Board, Row, read_rows

# Up in under a minute after installation, on two cores.
DEFAULT_SCALE = 0.05
# The application's pace: a handful of payments and collections events in each burst.
WRITE_PAUSE_S = 1.0
REDRAW_S = 1.0
# A terminal gets a live table, a file gets one in this time.
REPORT_S = 15.0
WORKER_START_S = 60.0
# After DURATION every view must have been refreshed; a slow machine gets this much longer for it.
OVERTIME_S = 120.0
STOP_S = 45.0
LOG_TAIL_LINES = 30

EXAMPLES = ("lending", "trading")
OWNER = "app_owner"
ROLE = "upkeep"


class Example(Protocol):
    """What a module under examples/ offers."""

    CONFIG: str
    VIEWS: tuple[str, ...]

    def install(self, conn: psycopg.Connection[Any], *, scale: float, seed: int = 1) -> None:
        """Make the system."""

    def write(self, conn: psycopg.Connection[Any], rng: random.Random) -> Any:
        """One burst of application writes."""


@dataclass
class Fleet:
    """The processes of the fleet, each with a log of its own."""

    folder: Path
    environment: Mapping[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> None:
        """Start `celery -A worker.app …` in a session of its own: Ctrl-C is for us, and we stop them in order."""
        command = [sys.executable, "-m", "celery", "-A", "worker.app", *arguments]
        with self.log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                bound_to_us(command, signal.SIGKILL),
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self.folder / f"{name}.log"

    def dead(self) -> str | None:
        """The first process that ended without being asked to."""
        return next((n for n, p in self.processes.items() if p.poll() is not None), None)

    def tail(self, name: str) -> str:
        """The end of a process's log."""
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    def stop(self) -> list[str]:
        """The scheduler first, then who works; returns the names of those that had to be killed."""
        for process in reversed(list(self.processes.values())):
            if process.poll() is None:
                process.terminate()
        killed = []
        deadline = time.monotonic() + STOP_S
        for name, process in self.processes.items():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed.append(name)
        self.processes.clear()
        return killed


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the demo went."""

    problems: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    bursts: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.problems

    def document(self) -> dict[str, Any]:
        """As --json prints it."""
        return {
            "ok": self.ok,
            "problems": list(self.problems),
            "bursts_written": self.bursts,
            "views": [
                {
                    "view": row.view,
                    "tier": row.tier,
                    "age_s": row.age.total_seconds() if row.age is not None else None,
                    "last_run": row.run.state if row.run else None,
                    "duration_s": row.duration.total_seconds() if row.duration is not None else None,
                    "rows_changed": row.rows_changed,
                    "next_slot": row.next_slot.isoformat(),
                    "refreshed": row.succeeded,
                }
                for row in self.rows
            ],
        }


class Writer(threading.Thread):
    """The application: it knows nothing of Upkeep and writes until it is stopped."""

    def __init__(self, example: Example, url: str) -> None:
        super().__init__(name="application", daemon=True)
        self._example = example
        self._url = url
        self._stopped = threading.Event()
        self.bursts = 0
        self.error: str | None = None

    def run(self) -> None:
        """Write a burst, pause, again."""
        rng = random.Random(7)  # noqa: S311 - sample data
        try:
            with psycopg.connect(
                self._url, autocommit=True, application_name="the application"
            ) as connection:
                while not self._stopped.wait(WRITE_PAUSE_S):
                    self._example.write(connection, rng)
                    self.bursts += 1
        except psycopg.Error as exc:
            if not self._stopped.is_set():
                self.error = str(exc).strip()

    def stop(self) -> None:
        """Finish the burst and end."""
        self._stopped.set()
        self.join(timeout=10)


def run(
    *,
    example: str = "lending",
    scale: float | None = None,
    duration: float | None = None,
    interactive: bool | None = None,
    as_json: bool = False,
) -> int:
    """Run the demo until Ctrl-C, or for `duration` seconds; returns the exit code.

    0: every view was refreshed at least once and no refresh failed. With `as_json` stdout gets one document at the end,
    everything else goes to stderr.

    Raises:
        UpkeepError: no such example, or no such scale.
    """
    if example not in EXAMPLES:
        raise UpkeepError(f"There is no example {example!r}", remedy=f"Use one of: {', '.join(EXAMPLES)}")
    if scale is not None and scale <= 0:
        raise UpkeepError(f"The scale must be above 0, not {scale:g}", remedy="1 is the documented scale")
    terminal = sys.stderr if as_json else sys.stdout
    # A pipe or a file has no width of its own; a table needs some.
    console = Console(file=terminal, width=None if terminal.isatty() else 120)
    live = (console.is_terminal and not as_json) if interactive is None else interactive
    chosen: Example = importlib.import_module(f"examples.{example}")
    with _interruptible() as stopped, _folder() as folder:
        try:
            verdict = _run(
                console,
                chosen,
                example,
                folder,
                scale=DEFAULT_SCALE if scale is None else scale,
                duration=duration,
                live=live,
                stopped=stopped,
            )
        except UpkeepError as exc:
            verdict = Verdict(problems=(str(exc),))
            console.print(f"[bold red]error:[/] {exc}")
    if as_json:
        print(json.dumps(verdict.document()))
    return 0 if verdict.ok else 1


def _run(
    console: Console,
    example: Example,
    name: str,
    folder: Path,
    *,
    scale: float,
    duration: float | None,
    live: bool,
    stopped: threading.Event,
) -> Verdict:
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:6.1f} s[/]  {text}", highlight=False)

    say("starting PostgreSQL and Redis …")
    with EmbeddedPostgres() as postgres, EmbeddedRedis() as redis:
        say(f"building the sample system {name!r} at scale {scale:g} …")
        owner_url, fleet_url = _prepare(postgres, name, example, scale)
        password = secrets.token_urlsafe(12)
        config = folder / "upkeep.toml"
        config.write_text(example.CONFIG, encoding="utf-8")
        environment = os.environ | {
            "UPKEEP_CONFIG": str(config),
            f"UPKEEP_{name.upper()}_URL": fleet_url,
            "UPKEEP_REDIS_URL": redis.url(),
            "FLOWER_BASIC_AUTH": f"upkeep:{password}",
        }
        database = settings.load(config, environment).database(name)
        migrate(fleet_url)
        flower_port = _free_port()
        fleet = Fleet(folder=folder, environment=environment)
        writer = Writer(example, owner_url)
        try:
            say("starting a worker, the scheduler and Flower …")
            fleet.start(
                "worker",
                "worker",
                "--queues",
                "refresh,refresh.slow,maintenance,archive,watch",
                "--hostname",
                f"demo@{name}",
            )
            fleet.start("beat", "beat", "--schedule", str(folder / "beat"), "--pidfile=")
            fleet.start("flower", "flower", "--address=127.0.0.1", f"--port={flower_port}")
            _wait_for_worker(fleet, environment, stopped)
            writer.start()
            _ask_for_everything(environment, name)
            say("running")
            board = Board(
                title=f"{name}: kept fresh by Upkeep",
                notes=[
                    f"Flower: http://127.0.0.1:{flower_port}, user upkeep, password {password}",
                    "In another terminal, for .venv/bin/upkeep status, plan, run, history:",
                    f"export UPKEEP_CONFIG={config}",
                    f"export UPKEEP_REDIS_URL='{redis.url()}'",
                    f"export UPKEEP_{name.upper()}_URL='{fleet_url}'",
                    "" if duration else "Ctrl-C stops everything.",
                ],
            )
            verdict = _watch(
                console,
                board,
                fleet,
                writer,
                database=database,
                url=fleet_url,
                duration=duration,
                live=live,
                stopped=stopped,
            )
        finally:
            say("stopping …")
            writer.stop()
            killed = fleet.stop()
            if killed:
                say(f"[red]had to kill {', '.join(killed)}[/]")
        say("stopped")
    return verdict


def _watch(
    console: Console,
    board: Board,
    fleet: Fleet,
    writer: Writer,
    *,
    database: settings.Database,
    url: str,
    duration: float | None,
    live: bool,
    stopped: threading.Event,
) -> Verdict:
    """Show the table until it is time."""
    began = time.monotonic()
    rows: list[Row] = []
    reported: float | None = None
    with (
        psycopg.connect(url, autocommit=True, application_name="upkeep/demo") as connection,
        board.shown(console, live=live) as draw,
    ):
        while True:
            rows = read_rows(connection, database)
            elapsed = time.monotonic() - began
            caption = (
                f"{elapsed:.0f} s"
                + (f" of {duration:.0f} s" if duration else "")
                + f", {writer.bursts} bursts of writes"
            )
            if live or reported is None or elapsed - reported >= REPORT_S:
                draw(rows, caption)
                reported = elapsed
            dead = fleet.dead()
            if dead or writer.error:
                break
            # A view that has failed for good is not waited for.
            done = all(row.succeeded or row.problem for row in rows)
            if duration is not None and elapsed >= duration and (done or elapsed >= duration + OVERTIME_S):
                break
            if stopped.wait(REDRAW_S):
                break
        if reported != elapsed:
            draw(rows, caption)
    return _verdict(
        console, rows, fleet, writer, dead=dead, interrupted=stopped.is_set() and duration is None
    )


def _verdict(
    console: Console, rows: list[Row], fleet: Fleet, writer: Writer, *, dead: str | None, interrupted: bool
) -> Verdict:
    problems = [f"{row.view}: {row.problem}" for row in rows if row.problem]
    if not interrupted:
        problems += [f"{row.view} was never refreshed" for row in rows if not row.succeeded]
    if writer.error:
        problems.append(f"the application could not write: {writer.error}")
    if dead:
        problems.append(f"{dead} ended by itself; its log ends with\n{fleet.tail(dead)}")
    for problem in problems:
        console.print(f"[bold red]failed:[/] {problem}", highlight=False)
    if not problems and not interrupted:
        said = f"{len(rows)} views refreshed, none failed, {writer.bursts} bursts of writes"
        console.print(f"[bold green]ok:[/] {said}")
    return Verdict(problems=tuple(problems), rows=tuple(rows), bursts=writer.bursts)


def _prepare(postgres: EmbeddedPostgres, name: str, example: Example, scale: float) -> tuple[str, str]:
    """Roles as they should be anywhere: an owner of the data, and the fleet's own role, which is no superuser."""
    passwords = {role: secrets.token_urlsafe(16) for role in (OWNER, ROLE)}
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        for role, password in passwords.items():
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                    sql.Identifier(role), sql.Literal(password)
                )
            )
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(OWNER))
        )
        connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(OWNER), sql.Identifier(ROLE)))
        connection.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(name), sql.Identifier(ROLE))
        )
    owner, fleet = (postgres.url(name, role, password) for role, password in passwords.items())
    with psycopg.connect(owner) as connection:
        example.install(connection, scale=scale)
    return owner, fleet


def _wait_for_worker(fleet: Fleet, environment: Mapping[str, str], stopped: threading.Event) -> None:
    with Celery(broker=environment["UPKEEP_REDIS_URL"]) as app:
        deadline = time.monotonic() + WORKER_START_S
        while not stopped.is_set():
            dead = fleet.dead()
            if dead:
                raise UpkeepError(f"{dead} did not start; its log ends with\n{fleet.tail(dead)}")
            if app.control.ping(timeout=0.5):
                return
            if time.monotonic() >= deadline:
                raise UpkeepError(
                    f"No worker answered in {WORKER_START_S:.0f} s; its log ends with\n{fleet.tail('worker')}"
                )


def _ask_for_everything(environment: Mapping[str, str], name: str) -> None:
    with Celery(broker=environment["UPKEEP_REDIS_URL"]) as app:
        app.send_task("upkeep.refresh.all", kwargs={"database": name}, queue="refresh")


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM ask for an orderly end; a second Ctrl-C does not wait for it."""
    stopped = threading.Event()

    def handle(signum: int, _: FrameType | None) -> None:
        if stopped.is_set() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="upkeep-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
