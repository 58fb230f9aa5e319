"""The demo: a sample system on embedded servers, kept fresh by a real fleet while an application keeps writing to it.

Real processes, as they would run anywhere: a worker, the scheduler, Flower. They end with this one, however
it ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

import psycopg
from celery import Celery
from rich.console import Console

from fleet import settings
from fleet.errors import UpkeepError
from fleet.postgres.migrations import migrate
from worker.demo.live import Board, Row, read_rows
from worker.demo.processes import Fleet, wait_for_worker
from worker.demo.sample import (
    DEFAULT_SCALES,
    EXAMPLES,
    Example,
    Writer,
    application,
    let_request,
    prepare,
)
from worker.demo.verdict import Verdict, judge
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

REDRAW_S = 1.0
# A terminal gets a live table, a file gets one in this time.
REPORT_S = 15.0
# After DURATION every view must have been refreshed; a slow machine gets this much longer for it.
OVERTIME_S = 120.0


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
                scale=DEFAULT_SCALES[example] if scale is None else scale,
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
        owner_url, fleet_url = prepare(postgres, name, example, scale)
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
        let_request(fleet_url)
        flower_port = _free_port()
        fleet = Fleet(folder=folder, environment=environment)
        writer = Writer(application(name, example), owner_url, redis.url())
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
            fleet.start("beat", "beat", "--pidfile=")
            fleet.start("flower", "flower", "--address=127.0.0.1", f"--port={flower_port}")
            wait_for_worker(fleet, environment, stopped)
            _ask_for_everything(environment, database)
            writer.start()
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
            rows = read_rows(connection, database, writer.seen_after)
            elapsed = time.monotonic() - began
            caption = (
                f"{elapsed:.0f} s"
                + (f" of {duration:.0f} s" if duration else "")
                + f", {writer.bursts} bursts of writes"
                + (f", {writer.told}" if writer.told else "")
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
    return judge(console, rows, fleet, writer, dead=dead, interrupted=stopped.is_set() and duration is None)


def _ask_for_everything(environment: Mapping[str, str], database: settings.Database) -> None:
    with Celery(broker=environment["UPKEEP_REDIS_URL"]) as app:
        app.send_task("upkeep.refresh.all", kwargs={"database": database.name}, queue="refresh")
        if any(view.on_write for view in database.views.values()):
            app.send_task("upkeep.refresh.triggers", kwargs={"database": database.name}, queue="maintenance")


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
