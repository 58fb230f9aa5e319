"""`upkeep schedule list`: who leads, and for every entry what was, what comes, and what is paused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import class_row
from rich.table import Table
from rich.text import Text

from fleet import durations
from fleet.errors import UpkeepError
from fleet.ledger import NewRun, Run
from fleet.postgres.migrations import refuse_unless_current
from fleet.postgres.queries import load
from fleet.settings import Problem, Settings
from schedules import state
from schedules.entries import Entry, entries
from schedules.runs import Runs
from schedules.slots import latest_slot, next_slot
from schedules.state import EntryState
from worker.app import app
from worker.cli import options, output, pausing, runs
from worker.doctor import session

_sql = load("worker.cli", "schedule.sql")

# From here on a line has room for a date and its time beside each other, in each of its columns.
WIDE = 92


@dataclass(frozen=True, kw_only=True)
class Home:
    """What the home database says of the schedule; `error` is why it says nothing."""

    clock: datetime
    leader: Mapping[str, Any] | None = None
    standby: bool = False
    """Who leads has its lock on the primary: a standby shows nobody."""
    states: Mapping[str, EntryState] = field(default_factory=dict)
    error: UpkeepError | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One entry; `run` is what a slot of it makes, None where `problem` says why it cannot be made."""

    entry: Entry
    run: NewRun | None
    problem: Problem | None
    known: EntryState | None
    last: Run | None
    next_slot: datetime

    @property
    def paused(self) -> bool:
        """Whether its slots go by."""
        return self.known is not None and self.known.paused_at is not None

    @property
    def agreed(self) -> bool:
        """Whether the scheduler works by the definition that this upkeep.toml has."""
        return self.known is not None and self.known.definition == self.entry.definition


def show(config: Path | None, *, everything: bool, as_json: bool) -> int:
    """Read and print; 1 if a database cannot be read."""
    settings = options.load(config)
    declared = entries(settings)
    home = read_home(settings)
    with app.judging_by(settings):
        made = Runs(app.tasks, settings)
        wanted = {name: _made(made, entry, home.clock) for name, entry in declared.items()}
    last: dict[str, Run] = {}
    errors: dict[str, UpkeepError] = {settings.home.name: home.error} if home.error else {}
    for name in settings.databases:
        if name not in errors:
            mine = {e.name: wanted[e.name][0] for e in declared.values() if e.database == name}
            try:
                last |= _read_last(settings, name, mine)
            except UpkeepError as exc:
                errors[name] = exc
    lines = [
        _line(entry, *wanted[name], known=home.states.get(name), last=last.get(name), now=home.clock)
        for name, entry in declared.items()
    ]
    strays = [each for name, each in sorted(home.states.items()) if name not in declared]
    if as_json:
        output.emit(_document(settings, home, lines, strays if everything else None, errors))
    else:
        _show(settings, home, lines, strays if everything else [], errors)
    return int(bool(errors))


def upcoming(entry: Entry, last_slot: datetime | None, now: datetime) -> datetime:
    """The slot that is run next: the latest while its jitter lasts, else the one after it and after the last one."""
    latest = latest_slot(entry.cron, entry.timezone, now)
    if last_slot is not None and latest > last_slot and entry.due_at(latest) > now:
        return latest
    return next_slot(entry.cron, entry.timezone, max(now, last_slot or now))


def read_home(settings: Settings) -> Home:
    """Ask the home database; where it is away the time is this machine's."""
    name = settings.home.name
    try:
        with options.connection(settings.home, doing="Reading the schedule", read_only=True) as connection:
            refuse_unless_current(connection, name)
            state.refuse_newer(connection)
            beat = state.heartbeat(connection)
            return Home(
                clock=beat.clock,
                standby=beat.in_recovery,
                leader=state.leader(connection),
                states=state.read_states(connection, removed=True),
            )
    except UpkeepError as exc:
        return Home(clock=datetime.now(UTC), error=exc)


def _made(made: Runs, entry: Entry, now: datetime) -> tuple[NewRun | None, Problem | None]:
    wrong = made.problems([entry], now)
    return (None, wrong[0]) if wrong else (made.of(entry, now), None)


def _line(
    entry: Entry,
    run: NewRun | None,
    problem: Problem | None,
    *,
    known: EntryState | None,
    last: Run | None,
    now: datetime,
) -> Line:
    if known is not None and known.removed_at is not None:
        known = None  # it has come back, and no scheduler has noticed yet: that will begin anew
    return Line(
        entry=entry,
        run=run,
        problem=problem,
        known=known,
        last=last,
        next_slot=upcoming(entry, known.last_slot if known else None, now),
    )


def _read_last(settings: Settings, database: str, wanted: Mapping[str, NewRun | None]) -> dict[str, Run]:
    """The newest slot's run of entries of one database, by the entries' names."""
    asked = [run for run in wanted.values() if run is not None]
    with options.connection(
        settings.databases[database], doing="Reading the ledger", read_only=True
    ) as connection:
        refuse_unless_current(connection, database)
        found = _last_runs(connection, asked)
    return {f"{database}/{run.entry}": run for run in found}


def _last_runs(connection: psycopg.Connection[Any], asked: list[NewRun]) -> list[Run]:
    with connection.cursor(row_factory=class_row(Run)) as cursor:
        return cursor.execute(
            _sql.read_last_runs.sql,
            {
                "labels": [each.entry for each in asked],
                "tasks": [each.task for each in asked],
                "targets": [each.target for each in asked],
            },
        ).fetchall()


def problems(home: Home, lines: list[Line]) -> Iterator[tuple[str, str, str]]:
    """Level, message and remedy of what somebody should know of these entries."""
    for each in lines:
        name = each.entry.name
        if each.known is not None and each.paused:
            yield (
                "paused",
                f"{name} {pausing.described(each.known, now=home.clock)}",
                f"upkeep schedule resume {name}",
            )
        if each.problem is not None:
            yield "error", f"{name}: {each.problem.message}", each.problem.remedy
        elif home.leader is not None and not each.agreed:
            how = "does not know it" if each.known is None else "has another definition of it"
            yield (
                "warning",
                f"{name}: the scheduler that leads {how}",
                "Restart the schedulers with this upkeep.toml",
            )


def _document(
    settings: Settings,
    home: Home,
    lines: list[Line],
    strays: list[EntryState] | None,
    errors: Mapping[str, UpkeepError],
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "home": settings.home.name,
        "clock": home.clock,
        "standby": home.standby,
        "leader": dict(home.leader) if home.leader else None,
        "entries": [_entry(each) for each in lines],
        "errors": [
            {"database": name, "message": error.message, "remedy": error.remedy}
            for name, error in errors.items()
        ],
    }
    if strays is not None:
        document["undeclared"] = [
            {
                "entry": each.entry,
                "definition": each.definition,
                "last_slot": each.last_slot,
                "removed_at": each.removed_at,
                "paused": pausing.document(each),
            }
            for each in strays
        ]
    return document


def _entry(each: Line) -> dict[str, Any]:
    entry, problem = each.entry, each.problem
    return {
        "entry": entry.name,
        "database": entry.database,
        "label": entry.label,
        "task": entry.task,
        "target": each.run.target if each.run else None,
        "arguments": dict(entry.arguments),
        "cron": entry.cron,
        "timezone": entry.timezone,
        "jitter_s": entry.jitter,
        "catch_up": entry.catch_up,
        "last_slot": each.known.last_slot if each.known else None,
        "last_run": runs.document(each.last) if each.last else None,
        "next_slot": each.next_slot,
        "next_due": entry.due_at(each.next_slot),
        "paused": pausing.document(each.known),
        "known": each.agreed,
        "problem": output.problem(problem) if problem else None,
    }


def _show(
    settings: Settings,
    home: Home,
    lines: list[Line],
    strays: list[EntryState],
    errors: Mapping[str, UpkeepError],
) -> None:
    out = output.console()
    if home.error is None:
        out.print(_leading(home), soft_wrap=True)
    else:
        said = "Which scheduler leads, how far it is and what is paused are not known; times by this machine"
        out.print(Text(said, style="red"), soft_wrap=True)
    out.print()
    for database in settings.databases:
        mine = [each for each in lines if each.entry.database == database]
        out.print(Text.assemble((database, "bold"), f"  {output.moment(home.clock)} UTC"))
        out.print()
        out.print(_table(home, mine, read=database not in errors, narrow=out.width < WIDE))
        out.print()
        if database in errors:
            output.report(errors[database], as_json=False)
        said_of = list(problems(home, mine))
        if said_of:
            out.print(output.listing(said_of))
            out.print()
    if strays:
        out.print(Text("not declared here", style="bold"))
        out.print()
        out.print(_strays(home, strays))
        out.print()


def _leading(home: Home) -> Text:
    leader = home.leader
    if home.standby:
        return Text(
            "Which scheduler leads is not seen on a standby, which the home database is.", style="red"
        )
    if leader is None:
        said = "No scheduler leads: nothing becomes due.\n"
        return Text.assemble((said, "bold red"), ("→ celery -A worker.app beat", "cyan"))
    return Text.assemble(("A scheduler leads", "green"), f": {session(leader)}")


def _table(home: Home, lines: list[Line], *, read: bool, narrow: bool) -> Table:
    now = home.clock
    table = output.table("entry", "cron", "dealt with\nup to", "last run", "next slot")

    def at(moment: datetime | None) -> str:
        shown = output.moment(moment, now=now)
        return shown.replace(" ", "\n") if narrow else shown

    for each in lines:
        entry = each.entry
        last_slot = each.known.last_slot if each.known else None
        table.add_row(
            Text.assemble(entry.name, "\n", (_what(entry), "dim")),
            Text.assemble(entry.cron, "\n", (_how(entry), "dim")),
            at(last_slot) if home.error is None else _unknown(),
            _last(each.last, at) if read else _unknown(),
            _next(each, now, at),
        )
    return table


def _what(entry: Entry) -> str:
    given = (f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in entry.arguments.items())
    return " ".join([entry.task, *given])


def _how(entry: Entry) -> str:
    said = [entry.timezone]
    if entry.jitter:
        said.append(f"jitter {durations.format(entry.jitter)}")
    if entry.catch_up != "latest":
        said.append(f"catch_up {entry.catch_up}")
    return "\n".join(said)


def _last(run: Run | None, at: Callable[[datetime | None], str]) -> Text:
    if run is None:
        return Text("never", style="dim")
    ended = run.finished_at or run.started_at or run.created_at
    return Text.assemble(output.styled(run.state), f"\n{at(ended)}")


def _next(each: Line, now: datetime, at: Callable[[datetime | None], str]) -> Text:
    if each.paused:
        return output.styled("paused")
    due = each.entry.due_at(each.next_slot)
    jittered = f"\ndue {at(due)}" if due - each.next_slot >= timedelta(seconds=1) else ""
    return Text.assemble(at(each.next_slot), (f"{jittered}\nin {output.span(due - now)}", "dim"))


def _strays(home: Home, strays: list[EntryState]) -> Table:
    table = output.table("entry", "last slot", "declared", "paused")
    for each in strays:
        removed = (
            f"until {output.moment(each.removed_at)}" if each.removed_at else "by the scheduler's upkeep.toml"
        )
        paused = pausing.described(each, now=home.clock) if each.paused_at else ""
        table.add_row(each.entry, output.moment(each.last_slot), removed, paused)
    return table


def _unknown() -> Text:
    return Text("unknown", style="dim")
