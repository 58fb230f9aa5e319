"""`upkeep triggers list`, `install` and `remove`: what writes request, shown, brought about and taken away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from rich.text import Text

from fleet.errors import PermanentError, UpkeepError
from fleet.postgres.failures import explain
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import Database
from tasks.refresh import triggers as planning
from tasks.refresh.trigger_ddl import Deed, Found, carry_out, look
from tasks.refresh.triggers import Action, Line, State
from worker.cli import options, output

_DONE = {Action.INSTALL: "installed", Action.REPLACE: "replaced", Action.REMOVE: "removed"}


@dataclass(kw_only=True)
class Report:
    """One database: what was found, planned and done, or why nothing was."""

    database: Database
    connection: psycopg.Connection[Any] | None = None
    found: Found | None = None
    lines: list[Line] = field(default_factory=list)
    deeds: dict[str, Deed] = field(default_factory=dict)
    error: UpkeepError | None = None

    @property
    def absent(self) -> tuple[PermanentError, ...]:
        """Declared with on_write, and not there."""
        return self.found.absent if self.found is not None else ()


def list_(config: Path | None, views: Sequence[str], *, database: str | None, as_json: bool) -> int:
    """Print how every table stands; 1 if one is not as declared, or a database cannot be read."""
    with ExitStack() as stack:
        reports = _look(stack, config, views, database=database, planned=Found.plan, read_only=True)
    for each in reports:
        if each.found is not None and views:
            each.lines = planning.concerning(each.lines, each.found.installed, _names(views))
    fine = all(
        each.error is None and not each.absent and all(line.state.fine for line in each.lines)
        for each in reports
    )
    _tell(reports, as_json=as_json, did=None)
    return int(not fine)


def install(
    config: Path | None, views: Sequence[str], *, database: str | None, dry_run: bool, as_json: bool
) -> int:
    """Bring them to what is declared, and print what was done; 1 if something is not as declared then."""
    with ExitStack() as stack:
        reports = _look(stack, config, views, database=database, planned=Found.plan, read_only=dry_run)
        for each in reports:
            if each.found is not None and views:
                each.lines = planning.concerning(each.lines, each.found.installed, _names(views))
        _do(reports, dry_run=dry_run)
    _tell(reports, as_json=as_json, did=not dry_run)
    return int(not all(each.error is None and not each.absent and _accomplished(each) for each in reports))


def remove(
    config: Path | None, views: Sequence[str], *, database: str | None, dry_run: bool, as_json: bool
) -> int:
    """Remove ours, and print what was done; 1 if one could not be removed."""
    names = _names(views) or None
    with ExitStack() as stack:
        reports = _look(
            stack,
            config,
            views,
            database=database,
            planned=lambda found: found.without(names),
            read_only=dry_run,
            declared=False,
        )
        _do(reports, dry_run=dry_run)
    _tell(reports, as_json=as_json, did=not dry_run)
    return int(not all(each.error is None and _accomplished(each) for each in reports))


def _names(views: Sequence[str]) -> set[str]:
    return {options.parse_view(view) for view in views}


def _look(
    stack: ExitStack,
    config: Path | None,
    views: Sequence[str],
    *,
    database: str | None,
    planned: Callable[[Found], list[Line]],
    read_only: bool,
    declared: bool = True,
) -> list[Report]:
    """Read every database before anything is done in one, so that a mistaken name does nothing anywhere."""
    names = _names(views)
    databases = options.chosen(options.load(config), database)
    reports = []
    for each in databases:
        report = Report(database=each)
        reports.append(report)
        try:
            report.connection = stack.enter_context(
                options.connection(each, doing="Reading the triggers", read_only=read_only)
            )
            refuse_unless_current(report.connection, each.name)
            report.found = look(report.connection, each)
            report.lines = planned(report.found)
        except psycopg.Error as exc:
            report.error = explain(exc, doing=f"Reading the triggers in the database {each.name}")
        except UpkeepError as exc:
            report.error = exc
    known = {str(name) for each in databases for name in each.views}
    on_write = {str(v.name) for each in databases for v in each.views.values() if v.on_write}
    there = {
        view
        for report in reports
        if report.found is not None
        for trigger in report.found.installed
        if trigger.ours
        for view in trigger.views
    }
    for name in sorted(names - there - (on_write if declared else known)):
        if name in known:
            raise options.UsageMistakeError(
                f"The view {name} is not declared with on_write = true",
                remedy="Declare it so in upkeep.toml, and run it again",
            )
        if all(report.error is None for report in reports):
            raise options.UsageMistakeError(
                f"The view {name} is not declared, and no trigger is for it", remedy="upkeep triggers list"
            )
    return reports


def _do(reports: list[Report], *, dry_run: bool) -> None:
    for each in reports:
        if each.error is not None or each.connection is None or dry_run:
            continue
        try:
            for deed in carry_out(each.connection, each.lines, lock_timeout=each.database.lock_timeout):
                each.deeds[deed.line.object] = deed
        except psycopg.Error as exc:
            each.error = explain(exc, doing=f"Changing the triggers in the database {each.database.name}")


def _accomplished(report: Report) -> bool:
    """Whether nothing is left that this command should have done, or was told that it would do."""
    return not any(
        (line.object in report.deeds and report.deeds[line.object].error is not None)
        or (line.action is None and not line.state.fine)
        for line in report.lines
    )


def _tell(reports: list[Report], *, as_json: bool, did: bool | None) -> None:
    if as_json:
        output.emit({"databases": [_document(each) for each in reports]})
        return
    for each in reports:
        _show(each, did=did)


def _document(report: Report) -> dict[str, Any]:
    if report.error is not None and not report.deeds:
        return {
            "database": report.database.name,
            "error": {"message": report.error.message, "remedy": report.error.remedy},
        }
    document: dict[str, Any] = {
        "database": report.database.name,
        "triggers": [
            {
                "object": line.object,
                "state": line.state,
                "views": line.views,
                "action": line.action,
                "reason": line.reason,
                "remedy": line.remedy,
                **_outcome(report.deeds.get(line.object)),
            }
            for line in report.lines
        ],
        "absent": [{"message": error.message, "remedy": error.remedy} for error in report.absent],
    }
    if report.error is not None:
        document["error"] = {"message": report.error.message, "remedy": report.error.remedy}
    return document


def _outcome(deed: Deed | None) -> dict[str, Any]:
    if deed is None:
        return {}
    error = deed.error
    return {
        "done": error is None,
        "error": {"message": error.message, "remedy": error.remedy} if error is not None else None,
    }


def _show(report: Report, *, did: bool | None) -> None:
    out = output.console()
    out.print(report.database.name, style="bold")
    if report.lines:
        table = output.table("", "table and why", "views")
        for line in report.lines:
            name = Text(line.object)
            if line.reason:
                name.append(f"\n  {line.reason}", style="dim")
            table.add_row(_word(line, report.deeds.get(line.object), did=did), name, "\n".join(line.views))
        out.print(table)
    said = [("error", error.message, error.remedy) for error in report.absent]
    for line in report.lines:
        deed = report.deeds.get(line.object)
        if deed is not None and deed.error is not None:
            said.append(("error", deed.error.message, deed.error.remedy))
        elif line.remedy and line.action is None:
            if line.state is State.IMPOSSIBLE:
                said.append(("info", f"No trigger can tell of {line.object}", line.remedy))
            else:
                said.append(("warning", f"The trigger on {line.object} is {line.state}", line.remedy))
    if did is None and any(line.action is not None for line in report.lines):
        said.append(("warning", "Not everything is as declared", planning.INSTALL))
    if said:
        out.print()
        out.print(output.listing(said))
    out.print(_summary(report, did=did))
    if report.error is not None:
        output.report(report.error, as_json=False)
    out.print()


def _word(line: Line, deed: Deed | None, *, did: bool | None) -> Text:
    if did is not None and line.action is not None:
        if deed is None:
            return output.styled("waiting", f"would {line.action}" if not did else "not tried")
        return output.styled("failed") if deed.error is not None else output.styled("ok", _DONE[line.action])
    return output.styled("ok" if line.state is State.INSTALLED else "warning", line.state.value)


def _summary(report: Report, *, did: bool | None) -> str:
    if not report.lines:
        if report.error is not None:
            return "Nothing was done."
        return (
            "No view is declared with on_write = true, and no trigger is there."
            if did is None
            else ("There is nothing to do.")
        )
    if did is None:
        fine = sum(line.state is State.INSTALLED for line in report.lines)
        tables = sum(line.table is not None for line in report.lines)
        return f"{fine} of {output.count(tables, 'table')} as declared."
    planned = sum(line.action is not None for line in report.lines)
    if not did:
        return f"{output.count(planned, 'change')} to make. Nothing was changed."
    done = sum(deed.error is None for deed in report.deeds.values())
    return f"{output.count(done, 'change')} made of {planned}."
