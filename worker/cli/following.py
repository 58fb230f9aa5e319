"""Follows a request in the ledger until it has ended: a message may be lost or doubled, the row may not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, Self

import psycopg
import redis
from celery import Celery
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from fleet import ledger
from fleet.errors import PermanentError, TransientError, UpkeepError
from fleet.ledger import NewRun, Run, State
from fleet.postgres.connect import connect, is_standby
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import Database, Settings
from worker.cli import output, runs
from worker.cli.options import ON_A_STANDBY

POLL_S = 0.2
# A worker with a free place takes a message in milliseconds.
PATIENCE_S = 5.0
_FINE = {State.SUCCEEDED, State.SKIPPED}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A request as it stands: its run once a worker has made one, and the runs that this one made."""

    run: Run | None = None
    children: tuple[Run, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen: children are inserted together with their parent's end."""
        return self.run is not None and self.run.final and all(child.final for child in self.children)

    @property
    def alone(self) -> bool:
        """Whether no worker has begun with it yet."""
        return self.run is None or self.run.state == State.QUEUED


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of waiting."""

    snapshot: Snapshot
    timed_out: bool

    @property
    def fine(self) -> bool:
        """Whether everything was done, or did not have to be."""
        run = self.snapshot.run
        return (
            not self.timed_out
            and run is not None
            and all(each.state in _FINE for each in (run, *self.snapshot.children))
        )


def note(database: Database, new: NewRun) -> UpkeepError | None:
    """Write a request that has been sent into its ledger, as its delivery would, which then finds it there.

    A message that the network swallows on its way out of Redis is lost; a row is found again. Returns why it has
    to wait in Redis alone, where that can be told from here.
    """
    try:
        with connect(database.url.get_secret_value(), application_name="upkeep/cli") as connection:
            ledger.insert(connection, new)
    except TransientError as exc:
        return exc
    except (UpkeepError, psycopg.Error):
        pass  # a matter between this machine and the server; the workers have their own
    return None


class Watch:
    """Reads a request's rows, on connections that it opens again when they break."""

    def __init__(self, settings: Settings, database: Database, task_id: str, producer: Celery) -> None:
        self._databases = list({each.name: each for each in (database, settings.home)}.values())
        self._task_id = task_id
        self._producer = producer
        self._open: dict[str, psycopg.Connection[Any]] = {}
        self._run: Run | None = None
        self._gone: Run | None = None
        self._where = database
        self.waits_for_a_primary = False

    def __enter__(self) -> Self:
        try:
            connection = self._connection(self._where)
            refuse_unless_current(connection, self._where.name)
            self.waits_for_a_primary = is_standby(connection)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        while self._open:
            self._open.popitem()[1].close()

    def look(self) -> Snapshot:
        """The request now.

        Raises:
            TransientError: the ledger cannot be read at the moment.
            PermanentError: the run is gone, and nobody will make it again.

        """
        try:
            run = self._find()
            if run is None:
                return Snapshot()
            return Snapshot(run=run, children=tuple(ledger.children(self._connection(self._where), run.id)))
        except psycopg.Error as exc:
            self.close()
            raise TransientError(f"The ledger cannot be read: {' '.join(str(exc).split())}") from exc

    def _find(self) -> Run | None:
        if self._run is not None:
            connection = self._connection(self._where)
            run = ledger.get(connection, self._run.id)
            if run is not None and run.created_at == self._run.created_at:
                return run
            if is_standby(connection):  # it may be behind
                return self._run
            self._gone, self._run = self._run, None
        self._run = self._search()
        if self._run is None and self._gone is not None and self._acknowledged():
            raise PermanentError(
                f"Run {self._gone.id} of {self._gone.target} is gone: the database failed over to a server that "
                "had not got it",
                remedy="After a failover every managed view is refreshed once by itself; `upkeep status` shows it",
            )
        return self._run

    def _search(self) -> Run | None:
        for database in self._databases:
            try:
                run = ledger.get_request(self._connection(database), self._task_id)
            except psycopg.errors.UndefinedTable:
                continue  # a home that is not migrated keeps no rejections
            if run is not None:
                self._where = database
                return run
        # A tick that was there already has the row of the first request: only the answer names it.
        answered = self._answered() if self._gone is None else None
        return None if answered is None else ledger.get(self._connection(self._where), answered)

    def _acknowledged(self) -> bool:
        """Whether a worker is done with the message; one that was interrupted gives it back."""
        try:
            return bool(self._producer.AsyncResult(self._task_id).ready())
        except (redis.RedisError, OSError):
            return False

    def _answered(self) -> int | None:
        try:
            result = self._producer.AsyncResult(self._task_id).result
        except (redis.RedisError, OSError):
            return None  # the ledger will say
        found = result.get("run") if isinstance(result, Mapping) else None
        return found if isinstance(found, int) else None

    def _connection(self, database: Database) -> psycopg.Connection[Any]:
        if database.name not in self._open:
            self._open[database.name] = connect(
                database.url.get_secret_value(), application_name="upkeep/cli", to_read=True
            )
        return self._open[database.name]


class Display(Protocol):
    """Where progress is shown."""

    def update(self, snapshot: Snapshot) -> None:
        """Show how it stands."""

    def say(self, text: str) -> None:
        """Say something once."""


def follow(watch: Watch, queue: str, *, timeout_s: float | None) -> Outcome:
    """Poll until the request has ended or the time is over; progress goes to stderr."""
    began = time.monotonic()
    snapshot, said_alone, said_away = Snapshot(), False, False
    with _display() as display:
        if watch.waits_for_a_primary:
            display.say(f"{ON_A_STANDBY[0]}; the request waits until then")
        while True:
            try:
                snapshot = watch.look()
                said_away = False
            except TransientError as exc:
                if not said_away:
                    display.say(f"{exc.message}; still trying")
                said_away = True
            display.update(snapshot)
            waited = time.monotonic() - began
            if snapshot.ended:
                return Outcome(snapshot=snapshot, timed_out=False)
            if timeout_s is not None and waited >= timeout_s:
                return Outcome(snapshot=snapshot, timed_out=True)
            if snapshot.alone and not said_alone and waited >= PATIENCE_S:
                said_alone = True
                display.say(
                    f"no worker has picked it up yet (queue {queue}; is one running? celery -A worker.app "
                    f"worker -Q {queue})"
                )
            left = POLL_S if timeout_s is None else min(POLL_S, max(timeout_s - waited, 0.01))
            time.sleep(left)


def show(outcome: Outcome, sent: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what came of it."""
    run, children = outcome.snapshot.run, outcome.snapshot.children
    if as_json:
        output.emit(
            {
                **sent,
                "timed_out": outcome.timed_out,
                "run": runs.document(run) if run else None,
                "children": [runs.document(child) for child in children],
            }
        )
        return
    if run is not None:
        output.console().print(runs.results([*([run] if not children else []), *children]))
    for each in (run, *children):
        if each is not None and each.state not in _FINE and each.final:
            error = each.error or {}
            said = error.get("message") or each.reason or each.state
            output.report(
                UpkeepError(f"run {each.id}, {each.target}: {said}", remedy=error.get("remedy") or ""),
                as_json=False,
            )
    if outcome.timed_out:
        what = (
            "no worker has picked it up"
            if run is None or outcome.snapshot.alone
            else f"run {run.id} goes on; upkeep history --run {run.id} shows it"
        )
        output.report(UpkeepError(f"The time to wait is over: {what}"), as_json=False)


@contextmanager
def _display() -> Iterator[Display]:
    console = output.console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    with ExitStack() as stack:
        yield _Bars(
            stack.enter_context(
                Progress(
                    SpinnerColumn(),
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=20),
                    TextColumn("{task.fields[time]}"),
                    console=console,
                    transient=True,
                )
            )
        )


class _Lines:
    """For a log: one line per change of a run's state or phase."""

    def __init__(self) -> None:
        self._said: dict[int, str] = {}

    def update(self, snapshot: Snapshot) -> None:
        for run in (snapshot.run, *snapshot.children):
            if run is not None:
                line = f"run {run.id} {run.target}: {run.state}" + (
                    f" ({runs.why(run)})" if runs.why(run) else ""
                )
                if self._said.get(run.id) != line:
                    self._said[run.id] = line
                    self.say(line)

    def say(self, text: str) -> None:
        output.console(stderr=True).print(text, soft_wrap=True)


class _Bars:
    """For a terminal: a bar per run that is not over, filling up to what its last refresh took."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[int, TaskID] = {}
        self._since: dict[int, float] = {}
        self._first = progress.add_task("waiting for a worker", total=None, time="")

    def update(self, snapshot: Snapshot) -> None:
        run = snapshot.run
        if run is None:
            return
        if snapshot.children:
            over = sum(child.final for child in snapshot.children)
            self._progress.update(
                self._first,
                description=run.target,
                total=len(snapshot.children),
                completed=over,
                time=f"{over} of {len(snapshot.children)} runs",
            )
        else:
            self._show(self._first, run)
        for child in snapshot.children:
            if child.final:
                bar = self._bars.pop(child.id, None)
                if bar is not None:
                    self._progress.remove_task(bar)
                continue
            if child.id not in self._bars:
                self._bars[child.id] = self._progress.add_task(child.target, total=None, time="")
            self._show(self._bars[child.id], child)

    def say(self, text: str) -> None:
        self._progress.console.print(text)

    def _show(self, bar: TaskID, run: Run) -> None:
        progress = run.progress or {}
        # By our own clock since we saw it: the server's may be another.
        began = (
            self._since.setdefault(run.id, time.monotonic())
            if run.state == State.RUNNING
            else time.monotonic()
        )
        elapsed, expected = time.monotonic() - began, progress.get("expected_s")
        doing = [run.state, *(str(progress[key]) for key in ("phase", "strategy") if progress.get(key))]
        times = output.span(timedelta(seconds=elapsed)) + (
            f" of about {output.span(timedelta(seconds=expected))}" if expected else ""
        )
        self._progress.update(
            bar,
            description=f"{run.target}  {', '.join(doing)}",
            total=expected,
            completed=min(elapsed, expected or 0),
            time=times if run.state == State.RUNNING else run.reason or "",
        )
