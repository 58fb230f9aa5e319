"""`upkeep convert-to-partitioned`: the plan, the conversion, its state, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import Database, PartitionSet
from fleet.settings.partitions import DEFAULT_PATTERNS
from tasks.partitions.convert.finish import finish
from tasks.partitions.convert.looking import look_at
from tasks.partitions.convert.plan import Asked, How, Plan
from tasks.partitions.convert.run import Converter, settle
from tasks.partitions.convert.state import Conversion, get, read_all
from worker.cli import options, output

# What a conversion takes from a policy that is declared already.
_DECLARED = (
    "column",
    "interval",
    "timezone",
    "epoch",
    "epoch_start",
    "epoch_shift",
    "premake",
    "partition_name",
    "default",
    "subpartitions",
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line says."""

    table: str | None
    column: str | None = None
    how: str | None = None
    interval: str | None = None
    timezone: str | None = None
    epoch: str | None = None
    premake: int | None = None
    keep_default: bool = False
    lock_budget: str | None = None
    accept_weaker_keys: bool = False

    def name(self) -> RelationName:
        """The table; a mistake on the command line without one."""
        if self.table is None:
            raise options.UsageMistakeError(
                "Which table?", remedy="Name it: upkeep convert-to-partitioned schema.table"
            )
        with options.asking():
            return RelationName.parse(self.table)

    def asked(self, database: Database) -> Asked | None:
        """What is to be begun, from upkeep.toml where it has a policy, and from the options; None: nothing was said."""
        name = self.name()
        declared = database.partitions.get(name)
        given: dict[str, Any] = {
            key: value
            for key, value in (
                ("column", self.column),
                ("interval", self.interval),
                ("timezone", self.timezone),
                ("epoch", self.epoch),
                ("premake", self.premake),
                ("lock_budget", self.lock_budget),
                ("default", "drain" if self.keep_default else None),
            )
            if value is not None
        }
        if self.how is None:
            if given:
                raise options.UsageMistakeError(
                    "The way is missing", remedy="Add --how attach or --how fill; --help explains them"
                )
            return None
        if declared is not None:
            given = {
                key: getattr(declared, key) for key in _DECLARED if getattr(declared, key) is not None
            } | given
        if "column" not in given or given["column"] is None:
            raise options.UsageMistakeError("The control column is missing", remedy="Add --column")
        try:
            policy = PartitionSet(**given | {"name": name})
        except ValueError as exc:
            said = "; ".join(str(each["msg"]).removeprefix("Value error, ") for each in exc.errors())  # type: ignore[attr-defined]
            raise options.UsageMistakeError(f"It makes no policy: {said}", remedy="Mend the options") from exc
        return Asked(how=How(self.how), policy=policy, accept_weaker_keys=self.accept_weaker_keys)


def convert(
    config: Path | None,
    wanted: Wanted,
    *,
    database: str | None,
    dry_run: bool,
    switch: bool,
    back: bool,
    status: bool,
    as_json: bool,
) -> int:
    """Do what was asked for; 1 if it is refused."""
    if sum((dry_run, switch and not dry_run, back, status)) > 1:
        raise options.UsageMistakeError(
            "--dry-run, --switch, --back and --status exclude each other", remedy="Choose one"
        )
    settings = options.load(config)
    databases = options.chosen(settings, database)
    if len(databases) > 1:
        raise options.UsageMistakeError("Which database?", remedy="Add --database")
    chosen = databases[0]
    if status:
        return _status(chosen, as_json=as_json)
    name, asked = wanted.name(), wanted.asked(chosen)
    with options.connection(chosen, doing=f"Converting {name}", read_only=dry_run) as connection:
        refuse_unless_current(connection, chosen.name)
        settle(connection)
        if not dry_run:
            finished = finish(connection)
            same = [each for each in finished if each.table_name == str(name)]
            # One JSON document at most: of this table, or of what follows here.
            _report_finished(same if as_json else finished, chosen, as_json=as_json)
            if same:
                return int(back)  # it was stopped after the switch, and had only this left
        plan, conversion = look_at(connection, name, asked)
        if dry_run:
            _show_plan(plan, conversion, as_json=as_json)
            return int(bool(plan.refused))
        if back and conversion is None:
            raise PermanentError(
                f"No conversion of {name} is under way", remedy="After the switch there is no way back"
            )
        out = output.console(stderr=True)
        converter = Converter.begin(
            connection, plan, conversion, requested_by=options.who(), tell=lambda said: out.print(f"… {said}")
        )
        if back:
            converter.back()
        else:
            converter.prepare()
            if switch:
                converter.switch()
                finish(connection)
        _show_end(get(connection, converter.conversion.id), plan, chosen, as_json=as_json)
    return 0


def _status(database: Database, *, as_json: bool) -> int:
    with options.connection(database, doing="Reading the conversions", read_only=True) as connection:
        refuse_unless_current(connection, database.name)
        found = read_all(connection)
    if as_json:
        output.emit({"database": database.name, "conversions": [_document(each) for each in found]})
        return 0
    out = output.console()
    if not found:
        out.print("No table of this database was converted.")
        return 0
    table = output.table(
        "table", "how", "state", "steps done", "rows copied", "since", right=("rows copied",)
    )
    for each in found:
        table.add_row(
            each.table_name,
            each.how,
            each.state,
            ", ".join(each.steps),
            output.number(each.rows_copied),
            output.moment(each.started_at),
        )
    out.print(table)
    return 0


def _document(conversion: Conversion) -> dict[str, Any]:
    return {
        "table": conversion.table_name,
        "how": conversion.how,
        "state": conversion.state,
        "steps": conversion.steps,
        "boundary": conversion.boundary,
        "rows_copied": conversion.rows_copied,
        "verified": conversion.verified,
        "run_id": conversion.run_id,
        "started_at": conversion.started_at,
        "finished_at": conversion.finished_at,
    }


def _show_plan(plan: Plan, conversion: Conversion | None, *, as_json: bool) -> None:
    facts = plan.facts
    if as_json:
        output.emit(
            {
                "table": str(facts.name),
                "how": plan.asked.how.value,
                "rows": facts.table.rows,
                "bytes": facts.table.bytes,
                "kept_as": str(plan.kept_as) if plan.kept_as else None,
                "partitions": [str(name) for name, _ in plan.ranges],
                "depends": [f"{each.schema}.{each.name}" for each in facts.readers],
                "steps": [vars(each) for each in plan.steps],
                "done": conversion.steps if conversion else [],
                "lost": list(plan.lost),
                "notes": list(plan.notes),
                "refused": [{"message": message, "remedy": remedy} for message, remedy in plan.refused],
            }
        )
        return
    out = output.console()
    size = facts.table.bytes / 1024**2
    out.print(f"{facts.name}: about {max(facts.table.rows, 0):,} rows, {size:,.1f} MB with its indexes")
    if plan.steps:
        table = output.table("step", "what is done", "locks")
        done = set(conversion.steps if conversion else ())
        for each in plan.steps:
            table.add_row(f"{each.name}{' (done)' if each.name in done else ''}", each.what, each.locks)
        out.print(table)
    for name, bounds in plan.ranges[-4:]:
        out.print(f"partition {name}: {plan.calendar.said(bounds)}")
    said = [("error", message, remedy) for message, remedy in plan.refused]
    said += [("warning", f"lost: {each}", "") for each in plan.lost]
    said += [("info", each, "") for each in plan.notes]
    if said:
        out.print(output.listing(said))
    out.print("Nothing was changed.")


def _report_finished(finished: list[Conversion], database: Database, *, as_json: bool) -> None:
    for each in finished:
        if as_json:
            output.emit(_document(each) | {"policy": policy_text(database.name, each)})
        else:
            output.console().print(f"{each.table_name} had been switched; what follows is done now.")
            output.console().print(policy_text(database.name, each))


def _show_end(conversion: Conversion, plan: Plan, database: Database, *, as_json: bool) -> None:
    if as_json:
        document = _document(conversion)
        if conversion.state == "switched":
            document["policy"] = policy_text(database.name, conversion)
        output.emit(document)
        return
    out = output.console()
    name = conversion.table_name
    match conversion.state:
        case "undone":
            out.print(f"{name} is as it was.")
        case "switched":
            out.print(f"{name} is partitioned; what it was is {plan.kept_as} now.")
            if plan.asked.how is How.FILL:
                out.print(f"When nobody misses it: DROP TABLE {plan.kept_as};")
            out.print("\nFor upkeep.toml:\n")
            output.emit_text(policy_text(database.name, conversion))
        case _:
            out.print(f"{name} is ready to be switched. Until then there is a way back (--back).")
            out.print(f"Next: upkeep convert-to-partitioned {name} --switch")


def policy_text(database: str, conversion: Conversion) -> str:
    """The policy to keep it with, as upkeep.toml has it."""
    kept, quoted = conversion.asked["policy"], conversion.table_name.replace("\\", "\\\\").replace('"', '\\"')
    lines = [f'[databases.{database}.partitions."{quoted}"]', f'column = "{kept["column"]}"']
    lines.append(f'interval = "{kept["interval"]}"')
    if kept["timezone"] != "UTC":
        lines.append(f'timezone = "{kept["timezone"]}"')
    if "epoch" in kept:
        lines.append(f'epoch = "{kept["epoch"]}"')
        if conversion.asked["epoch_start"] != "1970-01-01":
            lines.append(f"epoch_start = {conversion.asked['epoch_start']}")
        if kept["epoch_shift"]:
            lines.append(f"epoch_shift = {kept['epoch_shift']}")
    lines.append(f"premake = {kept['premake']}")
    if kept["partition_name"] != DEFAULT_PATTERNS[kept["interval"]]:
        lines.append(f'partition_name = "{kept["partition_name"]}"')
    if kept["default"] != "none":
        lines.append(f'default = "{kept["default"]}"')
    return "\n".join(lines) + "\n"
