"""The commands that read what the fleet keeps: status, history, retention."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from worker.cli.options import ConfigOption, DatabaseOption, JsonOption

app = typer.Typer()
PANEL = "Look"


class RunState(StrEnum):
    """fleet.ledger.State once more: its import takes longer than --help may. A test compares them."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"
    MISSED = "missed"
    LOST = "lost"


@app.command(
    rich_help_panel=PANEL,
    epilog="""[bold]Examples[/bold]
$ upkeep status
$ upkeep status --json | jq -r '.databases\\[].views\\[] | select(.age_s > 3600) | .view'""",
)
def status(database: DatabaseOption = None, config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """Show how fresh every view is, its last run and its next slot.

    And what is queued or running, and what went wrong, with its remedy. Exit
    code 1 if a database cannot be read.
    """
    from worker.cli import freshness  # noqa: PLC0415

    return freshness.status(config, database=database, as_json=as_json)


@app.command(
    rich_help_panel=PANEL,
    epilog="""[bold]Examples[/bold]
$ upkeep history --view public.mv_portfolio --limit 5
$ upkeep history --state failed
$ upkeep history --run 4711""",
)
def history(  # noqa: PLR0917 - Typer fills them by name
    run: Annotated[
        int | None,
        typer.Option(
            "--run",
            "-r",
            metavar="ID",
            min=1,
            max=2**63 - 1,
            help="Show this run in full.",
            show_default=False,
        ),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(
            "--view",
            "-v",
            "--target",
            metavar="SCHEMA.NAME",
            help="Only runs of this view or table.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            "-t",
            metavar="TASK",
            help="Only runs of this task, as in upkeep.refresh.view.",
            show_default=False,
        ),
    ] = None,
    state: Annotated[
        RunState | None, typer.Option("--state", "-s", help="Only runs in this state.", show_default=False)
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, max=10_000, help="How many at most.")
    ] = 20,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show what ran, newest first, or one run in full."""
    from worker.cli import runs  # noqa: PLC0415

    if run is not None:
        return runs.one(config, run, database=database, as_json=as_json)
    return runs.history(
        config,
        database=database,
        view=view,
        task=task,
        state=state.value if state else None,
        limit=limit,
        as_json=as_json,
    )


@app.command(
    rich_help_panel=PANEL,
    epilog="""[bold]Examples[/bold]
$ upkeep retention
$ upkeep retention --json | jq -r '.databases\\[].retention\\[] | select(.problems != \\[]) | .table'""",
)
def retention(
    database: DatabaseOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> int:
    """Show how long the rows of each table must be kept, by whose rule, and when it was last purged.

    Exit code 1 if something stands against a rule: its table is not there, or
    nothing enforces it.
    """
    from worker.cli import retaining  # noqa: PLC0415

    return retaining.retention(config, database=database, as_json=as_json)
