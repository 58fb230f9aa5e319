"""`upkeep retention`: how long rows must be kept, by whose rule, and what stands against it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.errors import UpkeepError
from fleet.names import RelationName
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import Database, Retention
from tasks.partitions.retention import Rule, existing, read_rules
from worker.cli import options, output

NOT_DECLARED = "no longer declared in upkeep.toml"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One table's rule: as it is declared, as the database has it, and what is wrong with it."""

    table: str
    declared: Retention | None
    written: Rule | None
    problems: tuple[tuple[str, str], ...] = ()
    """Message and remedy."""


def retention(config: Path | None, *, database: str | None, as_json: bool) -> int:
    """Read and print; 1 if something stands against a rule, or a database cannot be read."""
    found: list[tuple[Database, list[Kept] | UpkeepError]] = []
    for each in options.chosen(options.load(config), database):
        try:
            found.append((each, _read(each)))
        except UpkeepError as exc:
            found.append((each, exc))
    if as_json:
        output.emit({"databases": [_document(each, kept) for each, kept in found]})
    else:
        _show(found)
    return int(any(isinstance(kept, UpkeepError) or any(k.problems for k in kept) for _, kept in found))


def _read(database: Database) -> list[Kept]:
    with options.connection(database, doing="Reading the rules of retention", read_only=True) as connection:
        refuse_unless_current(connection, database.name)
        written = {rule.table_name: rule for rule in read_rules(connection)}
        there = existing(connection, list(database.retention))
        declared = {str(name): rule for name, rule in database.retention.items()}
        return [
            Kept(
                table=table,
                declared=declared.get(table),
                written=written.get(table),
                problems=tuple(_problems(database, declared.get(table), there)),
            )
            for table in sorted(declared.keys() | written.keys())
        ]


def _problems(
    database: Database, rule: Retention | None, there: Collection[RelationName]
) -> Iterator[tuple[str, str]]:
    if rule is None:
        return
    if rule.name not in there:
        yield (
            f"there is no table {rule.name}",
            f"Create it, or take [databases.{database.name}.retention] of it out of upkeep.toml",
        )
    if rule.name not in database.partitions:
        yield (
            "nothing enforces it: the table has no policy for its partitions",
            f'Declare [databases.{database.name}.partitions."{rule.name}"]',
        )


def _document(database: Database, found: list[Kept] | UpkeepError) -> dict[str, Any]:
    if isinstance(found, UpkeepError):
        return {"database": database.name, "error": {"message": found.message, "remedy": found.remedy}}
    return {
        "database": database.name,
        "retention": [
            {
                "table": kept.table,
                "declared": kept.declared is not None,
                "retention_years": _years(kept),
                "archive_after_months": _months(kept),
                "compliance_framework": _framework(kept),
                "last_purged_at": kept.written.last_purged_at if kept.written else None,
                "problems": [{"message": message, "remedy": remedy} for message, remedy in kept.problems],
            }
            for kept in found
        ],
    }


def _years(kept: Kept) -> int | None:
    return kept.declared.years if kept.declared else kept.written.retention_years if kept.written else None


def _months(kept: Kept) -> int | None:
    if kept.declared:
        return kept.declared.archive_after_months
    return kept.written.archive_after_months if kept.written else None


def _framework(kept: Kept) -> str | None:
    if kept.declared:
        return kept.declared.framework
    return kept.written.compliance_framework if kept.written else None


def _show(found: list[tuple[Database, list[Kept] | UpkeepError]]) -> None:
    out = output.console()
    for database, rules in found:
        out.print(database.name, style="bold")
        if isinstance(rules, UpkeepError):
            output.report(rules, as_json=False)
            out.print()
            continue
        if not rules:
            out.print(f"No rule is declared under [databases.{database.name}.retention].")
            out.print()
            continue
        table = output.table("table", "years", "archived after", "framework", "last purged", right=("years",))
        for kept in rules:
            purged = kept.written.last_purged_at if kept.written else None
            table.add_row(
                kept.table,
                str(_years(kept)),
                output.count(_months(kept) or 0, "month"),
                _framework(kept) or "",
                f"{purged:%Y-%m-%d}" if purged else "never",
            )
        out.print(table)
        said = [
            ("error", f"{kept.table}: {message}", remedy)
            for kept in rules
            for message, remedy in kept.problems
        ]
        said += [("info", f"{kept.table}: {NOT_DECLARED}", "") for kept in rules if kept.declared is None]
        if said:
            out.print()
            out.print(output.listing(said))
        out.print()
