"""`upkeep plan partitions`: what would be made, moved and dropped, and what cannot be; its session cannot write."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from fleet.errors import PermanentError, UpkeepError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import ControlType
from fleet.postgres.catalog.server import read_server
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import Database
from tasks.partitions.calendar import Calendar, text
from tasks.partitions.lines import Action, Line
from tasks.partitions.look import Looked, look
from worker.cli import options, output

# Said below the table, with what to do about it.
_SAID = (Action.REFUSE, Action.WARN)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One database's plans, or why there are none."""

    database: Database
    clock: datetime | None = None
    tables: tuple[Looked, ...] = ()
    standby: bool = False
    error: UpkeepError | None = None

    @property
    def fine(self) -> bool:
        """Whether nothing is refused."""
        return self.error is None and not any(each.refused for each in self.tables)


def plan_partitions(config: Path | None, *, database: str | None, table: str | None, as_json: bool) -> int:
    """Plan and print; 1 if something is refused or could not be planned."""
    databases = options.chosen(options.load(config), database)
    plans = []
    for each, names in _wanted(databases, table):
        try:
            plans.append(_plan(each, names))
        except UpkeepError as exc:
            plans.append(Plan(database=each, error=exc))
    if as_json:
        output.emit({"databases": [_document(each) for each in plans]})
    else:
        _show(plans)
    return int(not all(each.fine for each in plans))


def _wanted(databases: list[Database], table: str | None) -> list[tuple[Database, list[RelationName]]]:
    """Which tables of which databases; only a name that no database has a policy for is a mistake."""
    if table is None:
        return [(each, list(each.partitions)) for each in databases]
    options.parse_view(table)
    found, unknown = [], None
    for each in databases:
        try:
            found.append((each, [each.partition_set(table).name]))
        except PermanentError as exc:
            unknown = exc
    if not found and unknown is not None:
        raise options.UsageMistakeError(unknown.message, remedy=unknown.remedy)
    return found


def _plan(database: Database, names: list[RelationName]) -> Plan:
    with options.connection(database, doing="Planning partitions", read_only=True) as connection:
        refuse_unless_current(connection, database.name)
        server = read_server(connection)
        tables = tuple(look(connection, database, names, clock=server.clock))
    return Plan(database=database, clock=server.clock, tables=tables, standby=server.in_recovery)


def _document(made: Plan) -> dict[str, Any]:
    if made.error is not None:
        return {
            "database": made.database.name,
            "error": {"message": made.error.message, "remedy": made.error.remedy},
        }
    return {
        "database": made.database.name,
        "clock": made.clock,
        "standby": made.standby,
        "tables": [
            {
                "table": str(each.policy.name),
                "problems": [
                    {
                        "level": "warning" if said.warning else "error",
                        "setting": said.setting,
                        "message": said.message,
                        "remedy": said.remedy,
                    }
                    for said in each.contradictions
                ],
                "plan": [_line(line) for line in each.lines],
                "unknown": list(each.unknown),
            }
            for each in made.tables
        ],
    }


def _line(line: Line) -> dict[str, Any]:
    bounds = line.range
    return {
        "action": line.action.value,
        "partition": None if line.partition is None else str(line.partition),
        "from": None if bounds is None or bounds.lower is None else text(bounds.lower),
        "to": None if bounds is None or bounds.upper is None else text(bounds.upper),
        "rows": line.rows,
        "reason": line.reason,
        "locks": [{"table": str(name), "mode": mode} for name, mode in line.locks],
        "remedy": line.remedy,
    }


def _show(plans: list[Plan]) -> None:
    out = output.console()
    for made in plans:
        out.print(made.database.name, style="bold")
        if made.error is not None:
            output.report(made.error, as_json=False)
        elif not made.tables:
            out.print("Nothing to plan: no table has a policy for its partitions.")
        else:
            for each in made.tables:
                _show_table(each)
            if made.standby:
                out.print()
                out.print(output.listing([("warning", *options.ON_A_STANDBY)]))
            counts = Counter(line.action for each in made.tables for line in each.lines)
            parts = [f"{counts[action]:,} {DUE[action]}" for action in Action if counts[action]]
            wrong = sum(not all(said.warning for said in each.contradictions) for each in made.tables)
            said = ", ".join([*parts, *([f"{wrong:,} not planned, with errors"] if wrong else [])])
            out.print()
            out.print(
                f"{output.count(len(made.tables), 'table')}: {said or 'nothing to do'}. Nothing was changed.",
                soft_wrap=True,
            )
        out.print()


DUE = {
    Action.FINALIZE: "to finish detaching",
    Action.CREATE: "to create",
    Action.DRAIN: "to drain into",
    Action.LATE: "with late rows",
    Action.MOVE: "to move",
    Action.EXPORT: "due for export",
    Action.PURGE: "due for purge",
    Action.HOLD: "held",
    Action.REFUSE: "refused",
    Action.WARN: "to know of",
}


def _show_table(looked: Looked) -> None:
    out = output.console()
    out.print()
    out.print(str(looked.policy.name), style="bold")
    calendar = _calendar(looked)
    done = [line for line in looked.lines if line.action not in _SAID]
    if done:
        table = output.table("what", "partition and why", "range", "rows", right=("rows",))
        for line in done:
            name = Group(
                Text("" if line.partition is None else str(line.partition)),
                Padding(Text(line.reason, "dim"), (0, 0, 0, 2)),
            )
            shown = "" if line.range is None or calendar is None else calendar.said(line.range)
            table.add_row(output.styled(line.action.value), name, shown, output.number(line.rows))
        out.print(table)
        for locked in _locks(looked, done):
            out.print(Text(locked, "dim"))
    said = [
        (
            "warning" if each.warning else "error",
            f"{each.setting}: {each.message}".removeprefix(": "),
            each.remedy,
        )
        for each in looked.contradictions
    ]
    said += [
        (
            "error" if line.action is Action.REFUSE else "warning",
            f"{line.partition}: {line.reason}" if line.partition is not None else _with_range(line, calendar),
            line.remedy,
        )
        for line in looked.lines
        if line.action in _SAID
    ]
    said += [("warning", each, "") for each in looked.unknown]
    if said:
        out.print(output.listing(said))
    if not done and not said:
        out.print("Nothing to do.")


def _with_range(line: Line, calendar: Calendar | None) -> str:
    if line.range is None or calendar is None or line.action is Action.WARN:
        return line.reason
    return f"{calendar.said(line.range)}: {line.reason}"


def _locks(looked: Looked, lines: list[Line]) -> list[str]:
    """Every table that a step locks, once for all that lock the same beside partitions of their own range."""
    leaves = {each.name: set(each.leaves) for each in (looked.table.partitions if looked.table else ())}
    shared = [{name for name, _ in line.locks} for line in lines if line.action is Action.MOVE]
    always = set.intersection(*shared) if len(shared) > 1 else None
    found: dict[str, list[str]] = {}
    for line in lines:
        own = {line.partition} | (leaves.get(line.partition, set()) if line.partition is not None else set())
        modes: dict[str, list[str]] = {}
        alike = False
        for name, mode in line.locks:
            if line.action is Action.MOVE and always is not None and name not in own | always:
                alike = True  # a companion's, which each move has another one of
            elif name not in own:
                modes.setdefault(mode, []).append(str(name))
        said = "; ".join(f"{mode}: {', '.join(names)}" for mode, names in modes.items())
        if any(name in own for name, _ in line.locks):
            said += f"{'; ' if said else ''}and the partition itself with its leaves"
            said += ", and its companions' of the same range" if alike else ""
        if said and line.action.value not in found.setdefault(said, []):
            found[said].append(line.action.value)
    return [f"{', '.join(actions)} locks {said}" for said, actions in found.items() if actions]


def _calendar(looked: Looked) -> Calendar | None:
    control: ControlType | None = None if looked.table is None else looked.table.control_type
    if control is None:
        return None
    try:
        return Calendar.of(looked.policy, control)
    except PermanentError:
        return None
