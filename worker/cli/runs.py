"""`upkeep history`: the ledger's rows, and one run in full."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from fleet import ledger
from fleet.errors import UpkeepError
from fleet.ledger import Run, State
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import Database
from worker.cli import options, output


def history(
    config: Path | None,
    *,
    database: str | None,
    view: str | None,
    task: str | None,
    state: str | None,
    limit: int,
    as_json: bool,
) -> int:
    """The newest runs of all databases, or of one; 1 if one of them cannot be read."""
    databases = options.chosen(options.load(config), database)
    target = None if view is None else options.parse_view(view)
    found: list[tuple[Database, Run]] = []
    failed: list[tuple[Database, UpkeepError]] = []
    for each in databases:
        try:
            with options.connection(each, doing="Reading the ledger", read_only=True) as connection:
                refuse_unless_current(connection, each.name)
                found += [
                    (each, run)
                    for run in ledger.history(connection, target=target, task=task, state=state, limit=limit)
                ]
        except UpkeepError as exc:
            failed.append((each, exc))
    found = sorted(found, key=lambda pair: pair[1].created_at, reverse=True)[:limit]
    if as_json:
        errors = [
            {"database": each.name, "message": exc.message, "remedy": exc.remedy} for each, exc in failed
        ]
        output.emit(
            {"runs": [{"database": each.name, **document(run)} for each, run in found], "errors": errors}
        )
    else:
        if found:
            output.console().print(_table(found, several=len(databases) > 1))
        elif not failed:
            output.console().print("No run matches.")
        for each, error in failed:
            output.report(UpkeepError(f"{each.name}: {error.message}", remedy=error.remedy), as_json=False)
    return int(bool(failed))


def one(config: Path | None, run_id: int, *, database: str | None, as_json: bool) -> int:
    """One run in full. Each database counts its runs by itself, so an id may be in several."""
    found: list[tuple[Database, Run, list[Run]]] = []
    databases = options.chosen(options.load(config), database)
    failed: UpkeepError | None = None
    for each in databases:
        try:
            with options.connection(each, doing="Reading the ledger", read_only=True) as connection:
                refuse_unless_current(connection, each.name)
                run = ledger.get(connection, run_id)
                if run is not None:
                    found.append((each, run, ledger.children(connection, run_id)))
        except UpkeepError as exc:
            failed = exc
    if not found:
        where = databases[0].name if len(databases) == 1 else "any database"
        raise failed or options.UsageMistakeError(
            f"There is no run {run_id} in {where}", remedy="upkeep history lists them; old ones are pruned"
        )
    if len(found) > 1:
        raise options.UsageMistakeError(
            f"There is a run {run_id} in {', '.join(each.name for each, _, _ in found)}",
            remedy="Say which with --database",
        )
    each, run, children = found[0]
    if as_json:
        output.emit(
            {"database": each.name, **document(run), "children": [document(child) for child in children]}
        )
        return 0
    out = output.console()
    out.print(output.details(_details(each, run)))
    if children:
        out.print()
        out.print(results(children))
    return 0


def document(run: Run) -> dict[str, Any]:
    """A run as JSON has it."""
    return {**asdict(run), "duration_s": run.duration.total_seconds() if run.duration else None}


def results(runs: Iterable[Run]) -> Table:
    """What became of several runs: one line each, a second one for why."""
    table = output.table("run", "target", "state", "took", "rows", right=("run", "took", "rows"))
    for run in runs:
        table.add_row(
            str(run.id),
            _with_reason(run.target, run),
            output.styled(run.state),
            output.span(run.duration),
            output.number(rows_changed(run)),
        )
    return table


def rows_changed(run: Run) -> int | None:
    """How many rows its refresh wrote, or its job was about, where it was one."""
    result = run.result or {}
    found = result.get("rows_changed", result.get("rows"))
    return found if isinstance(found, int) else None


def why(run: Run) -> str:
    """One line on what became of a run: why it was skipped or failed, or how it was done and why."""
    result = run.result or {}
    if run.state == State.SUCCEEDED and "strategy" in result:
        return f"{result['strategy']}: {result.get('reason', '')}"
    if run.state == State.SUCCEEDED and "runs" in result:
        what = "view" if "views" in result else "table"
        return f"{result['runs']} of {output.count(result.get(f'{what}s', result['runs']), what)} started"
    if run.state == State.SUCCEEDED and "batches" in result and not run.reason:
        returned = f", returned {result['returned']}" if "returned" in result else ""
        batches = "1 batch" if result["batches"] == 1 else f"{result['batches']:,} batches"
        return f"{batches}{returned}"
    if run.state == State.SUCCEEDED and not run.reason and (done := _partitions(result)):
        return done
    if run.state == State.RUNNING and run.progress:
        return ", ".join(
            str(run.progress[key]) for key in ("phase", "strategy", "reason") if run.progress.get(key)
        )
    return run.reason or ""


def _partitions(result: Mapping[str, Any]) -> str:
    """What was done to a table's partitions, or found there."""
    drained, cold = result.get("drained_rows", 0), result.get("late_cold", 0)
    late = result.get("late", 0) if "moved" in result else 0
    parts = {f"{len(result.get(key, ()))} {key}": result.get(key) for key in _DONE} | {
        f"{output.count(drained, 'row')} drained": drained,
        f"{output.count(late, 'late row')}": late,
        f"{output.count(cold, 'row')} too late for the archive": cold,
        "analysed": result.get("analyzed") is True,
    }
    return ", ".join(said for said, there in parts.items() if there)


_DONE = ("finalized", "created", "moved", "held")


def _with_reason(what: str, run: Run) -> Text:
    reason = why(run)
    return Text.assemble(what, "\n", (reason, "dim")) if reason else Text(what)


def _table(found: list[tuple[Database, Run]], *, several: bool) -> Table:
    now = max(run.created_at for _, run in found)
    columns = (
        "run",
        *(("database",) if several else ()),
        "created (UTC)",
        "state",
        "took",
        "rows",
        "what and why",
    )
    table = output.table(*columns, right=("run", "took", "rows"))
    for database, run in found:
        task = "" if run.task == "upkeep.refresh.view" else f"{run.task} "
        what = _with_reason(f"{task}{run.target} ({run.entry})", run)
        table.add_row(
            str(run.id),
            *((database.name,) if several else ()),
            output.moment(run.created_at, now=now),
            output.styled(run.state),
            output.span(run.duration),
            output.number(rows_changed(run)),
            what,
        )
    return table


def _details(database: Database, run: Run) -> list[tuple[str, str | Text]]:
    rows: list[tuple[str, str | Text]] = [("run", f"{run.id} in {database.name}")]
    fields = asdict(run)
    error = fields.pop("error") or {}
    for name in ("task", "target", "entry", "state", "reason"):
        value = fields.pop(name)
        rows.append((name, output.styled(value) if name == "state" else value or ""))
    for name, value in error.items():
        rows.append((f"error {name}", str(value or "")))
    rows.append(("took", output.span(run.duration)))
    for name, value in fields.items():
        if name != "id":
            rows.append((name.replace("_", " "), _shown(value)))
    return [(name, value) for name, value in rows if value]


def _shown(value: object) -> str:
    if isinstance(value, datetime):
        return f"{output.moment(value)} UTC"
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False, default=str) if value else ""
    return "" if value is None else str(value)
