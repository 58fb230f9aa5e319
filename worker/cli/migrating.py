"""`upkeep migrate`: the schema upkeep in one database after the other; one that fails stops no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from fleet import logs
from fleet.errors import UpkeepError
from fleet.postgres import migrations
from fleet.postgres.failures import explain
from fleet.settings import Database
from worker.cli import options, output


def migrate(config: Path | None, *, database: str | None, only_status: bool, as_json: bool) -> int:
    """Migrate and print; 1 if one failed, or with `only_status` if one is not at this version."""
    logs.configure()
    databases = options.chosen(options.load(config), database)
    done = [_status(each) if only_status else _migrate(each) for each in databases]
    if as_json:
        output.emit({"head": migrations.head(), "databases": done})
    else:
        _show(done)
    return int(any("error" in each or each["after"] != migrations.head() for each in done))


def _status(database: Database) -> dict[str, Any]:
    try:
        found = migrations.current(database.url.get_secret_value())
    except UpkeepError as exc:
        return _failed(database, exc)
    except psycopg.Error as exc:
        return _failed(database, explain(exc, doing="Reading the schema upkeep"))
    return {"database": database.name, "before": found, "after": found, "applied": []}


def _migrate(database: Database) -> dict[str, Any]:
    try:
        done = migrations.migrate(database.url.get_secret_value())
    except UpkeepError as exc:
        return _failed(database, exc)
    except psycopg.Error as exc:
        return _failed(database, explain(exc, doing="Migrating the schema upkeep"))
    return {
        "database": database.name,
        "before": done.before,
        "after": done.after,
        "applied": list(done.applied),
    }


def _failed(database: Database, error: UpkeepError) -> dict[str, Any]:
    return {"database": database.name, "error": {"message": error.message, "remedy": error.remedy}}


def _show(done: list[dict[str, Any]]) -> None:
    out = output.console()
    table = output.table("database", "before", "after", "")
    for each in done:
        if "error" in each:
            table.add_row(each["database"], "", "", output.styled("error"))
            continue
        before, after = each["before"] or "not installed", each["after"] or "not installed"
        due = each["after"] != migrations.head()
        said = (
            f"this version needs {migrations.head()}"
            if due
            else f"applied {', '.join(each['applied'])}"
            if each["applied"]
            else "up to date"
        )
        table.add_row(each["database"], before, after, output.styled("warning" if due else "ok", said))
    out.print(table)
    for each in done:
        if "error" in each:
            error = each["error"]
            output.report(
                UpkeepError(f"{each['database']}: {error['message']}", remedy=error["remedy"]), as_json=False
            )
