"""`upkeep plan refresh`: what would be refreshed, in which order, how and why; its session cannot write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from fleet.errors import PermanentError, UpkeepError
from fleet.names import RelationName
from fleet.postgres.catalog.server import read_server
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import Database
from schedules.slots import latest_slot
from tasks.refresh.plan import Demand, Planned, plan
from tasks.refresh.readings import take_readings
from tasks.refresh.view import look_at_all
from worker.cli import options, output


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One database's plan, or why there is none; `absent` are declared views that cannot be planned."""

    database: Database
    clock: datetime | None = None
    lines: tuple[Planned, ...] = ()
    absent: tuple[PermanentError, ...] = ()
    standby: bool = False
    error: UpkeepError | None = None

    @property
    def fine(self) -> bool:
        """Whether everything that was asked for can be done."""
        return self.error is None and not self.absent and all(line.action != "refuse" for line in self.lines)


def plan_refresh(
    config: Path | None,
    *,
    database: str | None,
    tier: str | None,
    view: str | None,
    demand: str,
    as_json: bool,
) -> int:
    """Plan and print; 1 if something would be refused or could not be planned."""
    databases = options.chosen(options.load(config), database)
    if tier is not None and view is not None:
        raise options.UsageMistakeError("--tier and --view exclude each other", remedy="Give one of them")
    wanted = _wanted(databases, tier=tier, view=view)
    plans = []
    for each, names in wanted:
        try:
            plans.append(_plan(each, names, Demand(demand)))
        except UpkeepError as exc:
            plans.append(Plan(database=each, error=exc))
    if as_json:
        output.emit({"as": demand, "databases": [_document(each) for each in plans]})
    else:
        _show(plans)
    return int(not all(each.fine for each in plans))


def _wanted(
    databases: list[Database], *, tier: str | None, view: str | None
) -> list[tuple[Database, list[RelationName]]]:
    """Which views of which databases; only a name that no database knows is a mistake."""
    if view is not None:
        options.parse_view(view)
    found, unknown = [], None
    for each in databases:
        try:
            if view is not None:
                names = [each.view(view).name]
            elif tier is not None:
                names = [v.name for v in each.views_in(each.tier(tier).name)]
            else:
                names = list(each.views)
        except PermanentError as exc:
            unknown = exc
        else:
            found.append((each, names))
    if not found and unknown is not None:
        raise options.UsageMistakeError(unknown.message, remedy=unknown.remedy)
    return found


def _plan(database: Database, names: Iterable[RelationName], demand: Demand) -> Plan:
    with options.connection(database, doing="Planning", read_only=True) as connection:
        refuse_unless_current(connection, database.name)
        subjects, absent = look_at_all(connection, database)
        server = read_server(connection)
        readings = take_readings(connection, subjects.values(), server)
    names = list(names)
    targets = [name for name in names if name in subjects]
    as_of = {}
    for name in targets:
        tier = subjects[name].tier
        as_of[name] = (
            latest_slot(tier.cron, tier.timezone, server.clock) if demand is Demand.TICK else server.clock
        )
    lines = plan(subjects, targets, server=server, readings=readings, as_of=as_of, demand=demand)
    gone = tuple(error for name, error in sorted(absent.items()) if name in names)
    return Plan(
        database=database,
        clock=server.clock,
        lines=tuple(lines),
        absent=gone,
        standby=server.in_recovery,
    )


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
        "plan": [
            {
                "view": str(line.view),
                "tier": line.tier,
                "action": line.action,
                "how": line.how,
                "reason": line.reason,
                "as_of": line.as_of,
                "after": [str(name) for name in line.after],
                "warning": line.warning,
                "remedy": line.remedy,
            }
            for line in made.lines
        ],
        "absent": [{"message": error.message, "remedy": error.remedy} for error in made.absent],
    }


def _show(plans: list[Plan]) -> None:
    out = output.console()
    for made in plans:
        out.print(made.database.name, style="bold")
        if made.error is not None:
            output.report(made.error, as_json=False)
        elif not made.lines and not made.absent:
            out.print("Nothing to plan: no view is in what was asked for.")
        else:
            table = output.table("", "view and why", "tier", "what", "how", right=("",))
            for position, line in enumerate(made.lines, 1):
                how, _, because = (line.how or "").partition(" (")
                reasons = [line.reason, because.removesuffix(")")] if line.action != "refuse" else []
                view = Text.assemble(
                    str(line.view), *((f"\n  {reason}", "dim") for reason in reasons if reason)
                )
                table.add_row(str(position), view, line.tier, output.styled(line.action), how)
            out.print(table)
            said = [("error", error.message, error.remedy) for error in made.absent]
            said += [
                ("error", line.reason, line.remedy or "") for line in made.lines if line.action == "refuse"
            ]
            said += [("warning", f"{line.view} {line.warning}", "") for line in made.lines if line.warning]
            said += [("warning", *options.ON_A_STANDBY)] if made.standby else []
            if said:
                out.print()
                out.print(output.listing(said))
            doing = sum(line.action == "refresh" for line in made.lines)
            out.print()
            out.print(f"{output.count(len(made.lines), 'view')}: {doing} to refresh. Nothing was changed.")
        out.print()
