"""`upkeep check`: all that is wrong with the configuration, alone and against the databases, at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from rich.text import Text

from fleet import settings
from fleet.errors import PermanentError, UpkeepError
from fleet.names import RelationName
from fleet.postgres.catalog.server import read_server
from fleet.postgres.catalog.sources import read_sources, upstream
from fleet.postgres.catalog.views import MaterializedView, read_views
from fleet.postgres.connect import is_standby
from fleet.postgres.failures import is_transient
from fleet.settings import Database, Job, Problem, Report, Settings
from schedules.entries import entries
from schedules.runs import Runs
from tasks.jobs.failure import unparsed
from tasks.jobs.statement import parse
from tasks.partitions.lines import Action
from tasks.partitions.look import look
from tasks.refresh.view import missing
from worker.app import app
from worker.cli import output
from worker.cli.options import ON_A_STANDBY, connection
from worker.doctor import Level
from worker.doctor_views import in_the_way


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A problem and how bad it is."""

    level: Level
    problem: Problem


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """What a database says of the views in it; `absent` says why a declared one was not found."""

    database_name: str
    views: Mapping[RelationName, MaterializedView]
    reads: Mapping[RelationName, frozenset[RelationName]]
    absent: Mapping[RelationName, PermanentError]
    standby: bool = False


def check(config: Path | None, *, offline: bool, as_json: bool) -> int:
    """Judge and print; 1 if there are errors."""
    report = settings.check(config)
    found = [Judged(level=Level.ERROR, problem=p) for p in report.errors]
    found += [Judged(level=Level.WARNING, problem=p) for p in report.warnings]
    if report.settings is not None:
        found += [Judged(level=Level.ERROR, problem=p) for p in judge_schedule(report.settings)]
    if report.settings is not None and not offline:
        for database in report.settings.databases.values():
            try:
                with connection(database, doing="Reading the views", read_only=True) as conn:
                    catalogue = read_catalogue(conn, database)
                    jobs = list(judge_jobs(conn, report.settings.jobs_in(database.name)))
                    partitions = list(judge_partitions(conn, database)) if database.partitions else []
            except UpkeepError as exc:
                problem = Problem(f"databases.{database.name}", "", exc.message, exc.remedy)
                found.append(Judged(level=Level.WARNING, problem=problem))
            else:
                found += judge(database, catalogue)
                found += jobs
                found += partitions
    found.sort(key=lambda each: -each.level.rank)
    _show(report, found, offline=offline, as_json=as_json)
    return int(any(each.level is Level.ERROR for each in found))


def judge_schedule(kept: Settings) -> list[Problem]:
    """The entries that a scheduler would refuse to start with: an unknown task, arguments that make no sense."""
    with app.judging_by(kept):
        return Runs(app.tasks, kept).problems(entries(kept).values(), datetime.now(UTC))


def read_catalogue(conn: psycopg.Connection[Any], database: Database) -> Catalogue:
    """Everything that `judge` needs."""
    found = read_views(conn)
    by_name = {view.name: view for view in found.values()}
    reads = upstream(read_sources(conn), found)
    return Catalogue(
        database_name=conn.info.dbname,
        views=by_name,
        reads={
            found[oid].name: frozenset(found[o].name for o in above)
            for oid, above in reads.items()
            if oid in found
        },
        absent={name: missing(conn, name) for name in database.views if name not in by_name},
        standby=is_standby(conn),
    )


def judge(database: Database, catalogue: Catalogue) -> list[Judged]:
    """What the database says against the declared views, by view."""
    judged = [
        Judged(level=Level.ERROR, problem=Problem(_key(database, name), "", error.message, error.remedy))
        for name, error in sorted(catalogue.absent.items())
    ]
    if catalogue.standby:
        problem = Problem(f"databases.{database.name}", "", *ON_A_STANDBY)
        judged.append(Judged(level=Level.WARNING, problem=problem))
    for name, view in sorted(catalogue.views.items()):
        judged += [
            Judged(level=level, problem=Problem(_key(database, name), "", message, remedy))
            for level, message, remedy in _judge_view(database, catalogue, view)
        ]
    return judged


def judge_jobs(conn: psycopg.Connection[Any], jobs: Iterable[Job]) -> Iterator[Judged]:
    """What the database says of the jobs' statements: each is parsed, none is executed."""
    for job in jobs:
        try:
            parse(conn, job.sql)
        except psycopg.Error as exc:
            if conn.closed:
                raise
            message, remedy = unparsed(exc, job=job)
            level = Level.WARNING if is_transient(exc) else Level.ERROR
            yield Judged(level=level, problem=Problem(f"jobs.{job.name}.sql", "", message, remedy))


def judge_partitions(conn: psycopg.Connection[Any], database: Database) -> Iterator[Judged]:
    """What the database says against the policies of partitioned tables, and what could not be made of their plans."""
    for looked in look(conn, database, clock=read_server(conn).clock, rows=False):
        quoted = str(looked.policy.name).replace("\\", "\\\\").replace('"', '\\"')
        key = f'databases.{database.name}.partitions."{quoted}"'
        for said in looked.contradictions:
            yield Judged(
                level=Level.WARNING if said.warning else Level.ERROR,
                problem=Problem(
                    f"{key}.{said.setting}" if said.setting else key, "", said.message, said.remedy
                ),
            )
        present = [each.range for each in looked.table.partitions if each.range] if looked.table else []
        for line in looked.lines:
            # Whether an old partition may leave is a matter of its rows, which change.
            if line.action is Action.REFUSE and line.range not in present:
                named = f"{line.partition}: " if line.partition is not None else ""
                yield Judged(
                    level=Level.ERROR, problem=Problem(key, "", f"{named}{line.reason}", line.remedy)
                )


def _judge_view(
    database: Database, catalogue: Catalogue, view: MaterializedView
) -> Iterator[tuple[Level, str, str]]:
    declared = database.views.get(view.name)
    if declared is None:
        yield (
            Level.WARNING,
            "it is in the database, but no tier manages it",
            f"Add [{_key(database, view.name)}] with a tier, or leave it to whoever refreshes it",
        )
        return
    obstacles = in_the_way(view, catalogue.database_name)
    if obstacles and view.populated and not declared.allow_blocking:
        reasons = " and ".join(reason for reason, _ in obstacles)
        yield (
            Level.WARNING,
            f"it cannot be refreshed concurrently ({reasons}): it is refreshed only if that takes less "
            "than 200 ms",
            " ".join(remedy for _, remedy in obstacles)
            + " Or allow it to block its readers: allow_blocking = true",
        )
    for above in sorted(catalogue.reads.get(view.name, ())):
        upper = database.views.get(above)
        if upper is None:
            yield (
                Level.WARNING,
                f"it reads {above}, which no tier manages: it is only as fresh as that",
                f"Declare {above} as well",
            )
            continue
        slow, fast = database.tier(upper.tier), database.tier(declared.tier)
        if slow.name != fast.name and slow.shortest_interval > fast.shortest_interval:
            yield (
                Level.INFO,
                f"it is in {fast.name}, but reads {above}, which is in {slow.name}: what comes from there "
                "is as of the "
                f"latest slot of {slow.name}",
                f"Put {above} into {fast.name} if that is too old",
            )


def _key(database: Database, name: RelationName) -> str:
    quoted = str(name).replace("\\", "\\\\").replace('"', '\\"')
    return f'databases.{database.name}.views."{quoted}"'


def _show(report: Report, found: list[Judged], *, offline: bool, as_json: bool) -> None:
    levels = [each.level for each in found]
    kept = report.settings
    if as_json:
        output.emit(
            {
                "path": str(kept.path) if kept and kept.path else None,
                "offline": offline,
                "errors": levels.count(Level.ERROR),
                "warnings": levels.count(Level.WARNING),
                "problems": [{"level": each.level.value, **output.problem(each.problem)} for each in found],
            }
        )
        return
    out = output.console()
    rows = []
    for each in found:
        p = each.problem
        given = f" = {p.value}" if p.value else ""
        rows.append((each.level.value, Text.assemble((f"{p.key}{given}", "bold"), "\n", p.message), p.remedy))
    if rows:
        out.print(output.listing(rows))
        out.print()
    errors, warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
    summary = f"{output.count(errors, 'error')}, {output.count(warnings, 'warning')}"
    if kept is not None:
        views = sum(len(database.views) for database in kept.databases.values())
        where = f"{kept.path}: " if kept.path else ""
        counted = [output.count(len(kept.databases), "database"), output.count(views, "view")]
        policies = sum(len(database.partitions) for database in kept.databases.values())
        counted += [output.count(policies, "partitioned table")] if policies else []
        counted += [output.count(len(kept.jobs), "job")] if kept.jobs else []
        counted += [output.count(len(kept.schedule), "scheduled task")] if kept.schedule else []
        summary = f"{where}{', '.join(counted)}; {summary}"
    elif not offline:
        summary += "; the databases were not looked at, because the configuration has errors"
    out.print(summary, soft_wrap=True)
