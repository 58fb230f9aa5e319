"""`upkeep status`: how fresh every view is, what is under way, what went wrong and what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from fleet import ledger
from fleet.errors import UpkeepError
from fleet.ledger import Run, State
from fleet.postgres.connect import is_standby
from fleet.postgres.migrations import refuse_unless_current
from fleet.postgres.queries import load
from fleet.settings import Database, Tier
from schedules.slots import latest_slot, next_slot
from schedules.state import EntryState
from tasks.partitions.checks import Severity
from tasks.partitions.watch import Standing, stand
from tasks.refresh.execute import REFRESH_VIEW
from worker.cli import options, output, pausing, runs
from worker.cli.partitions import DUE

_sql = load("worker.cli", "freshness.sql")

# More than these are a flood that `upkeep history` is for.
MOST_OPEN = 1000
# From here on a line has room for all columns beside a name of forty characters.
WIDE = 92


@dataclass(frozen=True, kw_only=True)
class ViewStatus:
    """One view: `tier` None is one that this configuration does not have, but a worker's does."""

    view: str
    tier_name: str
    tier: Tier | None
    last_updated: datetime | None
    age: timedelta | None
    last: Run | None
    under_way: Run | None
    next_slot: datetime | None
    late: bool
    paused: EntryState | None


@dataclass(frozen=True, kw_only=True)
class DatabaseStatus:
    """One database, or why nothing is known of it."""

    name: str
    clock: datetime
    views: tuple[ViewStatus, ...] = ()
    open_runs: tuple[dict[str, Any], ...] = ()
    requests: tuple[dict[str, Any], ...] = ()
    """What writers have asked for in the database and no refresh has seen yet: view, requests, oldest."""
    partitions: tuple[Standing, ...] = ()
    standby: bool = False
    error: UpkeepError | None = None
    pauses_error: UpkeepError | None = None
    """Why it is not known what is paused: that is in the home database."""


def status(config: Path | None, *, database: str | None, as_json: bool) -> int:
    """Read and print; 1 if a database cannot be read."""
    settings = options.load(config)
    chosen = options.chosen(settings, database)
    pauses: Mapping[str, EntryState] = {}
    pauses_error: UpkeepError | None = None
    try:
        pauses = pausing.read(settings)
    except UpkeepError as exc:
        pauses_error = exc
    found = []
    for each in chosen:
        try:
            found.append(replace(read(each, pauses), pauses_error=pauses_error))
        except UpkeepError as exc:
            found.append(DatabaseStatus(name=each.name, clock=datetime.now(UTC), error=exc))
    if as_json:
        output.emit({"databases": [_document(one) for one in found]})
    else:
        for one in found:
            _show(one)
    return int(any(one.error is not None for one in found))


def read(database: Database, pauses: Mapping[str, EntryState]) -> DatabaseStatus:
    """Everything that is shown of one database; `pauses` by the name of the entry."""
    with options.connection(database, doing="Reading the status", read_only=True) as connection:
        refuse_unless_current(connection, database.name)
        clock: datetime = _sql.read_clock(connection)
        fresh = {row["view"]: row for row in _sql.read_freshness(connection)}
        latest = ledger.latest(connection, REFRESH_VIEW)
        waiting = {
            run.target: run
            for state in (State.QUEUED, State.WAITING, State.RUNNING)  # the last one wins
            for run in ledger.history(connection, task=REFRESH_VIEW, state=state, limit=MOST_OPEN)
        }
        open_runs = ledger.open_runs(connection)
        requests = tuple(_sql.read_requests(connection))
        partitions = tuple(stand(connection, database))
        standby = is_standby(connection)
    declared = {str(view.name): view.tier for view in database.views.values()}
    tiers = declared | {view: row["tier"] for view, row in fresh.items() if view not in declared}
    views = []
    for view, tier_name in sorted(tiers.items(), key=lambda pair: (pair[1], pair[0])):
        row, tier = fresh.get(view, {}), database.tiers.get(tier_name) if view in declared else None
        last_updated = row.get("last_updated")
        views.append(
            ViewStatus(
                view=view,
                tier_name=tier_name,
                tier=tier,
                last_updated=last_updated,
                age=row.get("age"),
                last=latest.get(view),
                under_way=waiting.get(view),
                next_slot=next_slot(tier.cron, tier.timezone, clock) if tier else None,
                late=tier is not None and last_updated is not None and late(tier, last_updated, clock),
                paused=pauses.get(f"{database.name}/{tier_name}") if tier else None,
            )
        )
    views.sort(key=lambda v: (v.next_slot or clock, v.tier_name, v.view))
    return DatabaseStatus(
        name=database.name,
        clock=clock,
        views=tuple(views),
        open_runs=tuple(open_runs),
        requests=requests,
        partitions=partitions,
        standby=standby,
    )


def late(tier: Tier, last_updated: datetime, now: datetime) -> bool:
    """Whether a whole interval went by without a refresh: in the middle of its own slot no view is late."""
    latest = latest_slot(tier.cron, tier.timezone, now)
    return last_updated < latest_slot(tier.cron, tier.timezone, latest - timedelta(seconds=1))


def problems(found: DatabaseStatus) -> Iterator[tuple[str, str, str]]:
    """Level, message and remedy of what somebody should look at."""
    if found.standby:
        yield "warning", *options.ON_A_STANDBY
    if found.pauses_error is not None:
        error = found.pauses_error
        yield "warning", f"whether tiers are paused is not known: {error.message}", error.remedy
    for tier_name, paused in {each.tier_name: each.paused for each in found.views if each.paused}.items():
        yield (
            "info",
            f"{tier_name} is paused {pausing.described(paused, now=found.clock)}",
            f"upkeep schedule resume {paused.entry}",
        )
    for standing in found.partitions:
        for wrong in (said for said in standing.looked.contradictions if not said.warning):
            yield "error", f"{standing.name}: {wrong.message}", wrong.remedy
        for finding in standing.findings:
            level = "error" if finding.severity is Severity.CRITICAL else "warning"
            yield level, finding.message, finding.remedy
    for each in found.views:
        last, going = each.last, each.under_way
        if last is not None and last.state in {State.FAILED, State.LOST, State.MISSED}:
            said = (last.error or {}).get("message") or last.reason or last.state
            yield (
                "error",
                f"{each.view}: {said} (run {last.id})",
                (last.error or {}).get("remedy") or f"upkeep history --run {last.id}",
            )
        if going is not None and going.error:
            yield "warning", f"{each.view}: {going.reason} (run {going.id})", going.error.get("remedy") or ""
        if each.tier is None:
            yield (
                "warning",
                f"{each.view}: a worker keeps it in {each.tier_name}, but this upkeep.toml does not have it",
                "Use the workers' upkeep.toml, or start them anew",
            )
        elif each.late and going is None and each.paused is None:
            yield (
                "warning",
                f"{each.view}: it missed a slot of {each.tier_name}",
                "Are a worker and the scheduler running?",
            )
        elif each.last_updated is None and last is None and going is None:
            yield (
                "info",
                f"{each.view}: never refreshed by Upkeep",
                f"upkeep run upkeep.refresh.view database={found.name} {shlex.quote(f'view={each.view}')}",
            )


def _document(found: DatabaseStatus) -> dict[str, Any]:
    if found.error is not None:
        return {
            "database": found.name,
            "error": {"message": found.error.message, "remedy": found.error.remedy},
        }
    return {
        "database": found.name,
        "clock": found.clock,
        "views": [
            {
                "view": each.view,
                "tier": each.tier_name,
                "fresh_as_of": each.last_updated,
                "age_s": each.age.total_seconds() if each.age is not None else None,
                "late": each.late,
                "next_slot": each.next_slot,
                "paused": pausing.document(each.paused),
                "last_run": runs.document(each.last) if each.last else None,
                "open_run": runs.document(each.under_way) if each.under_way else None,
            }
            for each in found.views
        ],
        "open_runs": list(found.open_runs),
        "requests": list(found.requests),
        "partitions": [_partitions_document(each) for each in found.partitions],
        "problems": [
            {"level": level, "message": message, "remedy": remedy}
            for level, message, remedy in problems(found)
        ],
    }


def _partitions_document(each: Standing) -> dict[str, Any]:
    return {
        "table": str(each.name),
        "days_ahead": None if each.days_ahead is None else round(each.days_ahead, 2),
        "default_rows": each.default_rows,
        "due": {action.value: count for action, count in each.due.items()},
    }


def _partitions_line(each: Standing) -> str:
    """Days ahead, rows where none should be, what is to be done."""
    said = []
    if each.days_ahead is not None:
        said.append(f"partitions for {each.days_ahead:.0f} days")
    elif each.looked.table is not None and not _wrong(each):
        said.append("partitions without an end")
    if each.default_rows is not None:
        said.append(f"{output.count(each.default_rows, 'row')} in the default")
    said += [f"{count:,} {DUE[action]}" for action, count in each.due.items()]
    return f"{each.name}: {', '.join(said) or 'nothing is known'}"


def _wrong(each: Standing) -> bool:
    return any(not said.warning for said in each.looked.contradictions)


def _show(found: DatabaseStatus) -> None:
    out = output.console()
    out.print(Text.assemble((found.name, "bold"), f"  {output.moment(found.clock)} UTC"))
    if found.error is not None:
        output.report(found.error, as_json=False)
        out.print()
        return
    out.print()
    out.print(_table(found, narrow=out.width < WIDE))
    out.print()
    for row in found.open_runs:
        oldest = output.span(found.clock - row["oldest"])
        out.print(
            f"{output.count(row['runs'], 'run')} {row['state']} in the queue {row['queue']}, the oldest "
            f"for {oldest}"
        )
    for row in found.requests:
        oldest = output.span(found.clock - row["oldest"])
        out.print(
            f"{output.count(row['requests'], 'request')} of writers for {row['view']}, the oldest for {oldest}"
        )
    for each in found.partitions:
        out.print(_partitions_line(each))
    said = list(problems(found))
    if said:
        out.print(output.listing(said))
    if said or found.open_runs or found.requests or found.partitions:
        out.print()


def _table(found: DatabaseStatus, *, narrow: bool) -> Table:
    took = () if narrow else ("took",)
    table = output.table(
        "view", "fresh\nas of", "age", "last run", *took, "rows", right=("age", "took", "rows")
    )
    for (tier_name, tier), group in groupby(found.views, key=lambda each: (each.tier_name, each.tier)):
        line, views = Text(tier_name, style="bold"), list(group)
        if any(each.paused for each in views):
            line.append("  paused", style="not bold yellow")
        elif tier is not None:
            due = next_slot(tier.cron, tier.timezone, found.clock)
            shown = f"  next {output.moment(due, now=found.clock)}, in {output.span(due - found.clock)}"
            line.append(shown, style="not bold")
        table.add_row(line)
        for each in views:
            last = each.last
            table.add_row(
                each.view,
                output.moment(each.last_updated, now=found.clock) or "unknown",
                output.span(each.age),
                _last(each, found.clock, narrow=narrow),
                *((output.span(last.duration if last else None),) if took else ()),
                output.number(runs.rows_changed(last) if last else None),
            )
        table.add_section()
    return table


def _last(each: ViewStatus, now: datetime, *, narrow: bool) -> Text:
    shown = each.under_way or each.last
    if shown is None:
        return Text("never", style="dim")
    at = shown.finished_at or shown.started_at or shown.created_at
    return Text.assemble(output.styled(shown.state), "" if narrow else f" {output.moment(at, now=now)}")
