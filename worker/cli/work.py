"""The commands that make the fleet work, or show what it would do: plan, run, demo."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from worker.cli.options import ConfigOption, DatabaseOption, JsonOption

app = typer.Typer()
trial = typer.Typer()
PANEL = "Refresh"
plan = typer.Typer(no_args_is_help=True)
app.add_typer(plan, name="plan", rich_help_panel=PANEL, help="Print what would be done, without doing it.")


class AskedAs(StrEnum):
    """Whose request a plan is for."""

    OPERATOR = "operator"
    TICK = "tick"


@plan.command(
    "refresh",
    epilog="""[bold]Examples[/bold]
$ upkeep plan refresh --as tick                  [dim]# what the tiers would do now[/dim]
$ upkeep plan refresh --view public.mv_features  [dim]# what "refresh now" would do[/dim]""",
)
def plan_refresh(  # noqa: PLR0917 - Typer fills them by name
    database: DatabaseOption = None,
    tier: Annotated[
        str | None,
        typer.Option(
            "--tier",
            "-t",
            metavar="TIER",
            help="Only the views of this tier, and what they read.",
            show_default=False,
        ),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(
            "--view",
            "-v",
            metavar="SCHEMA.VIEW",
            help="Only this view, and what it reads.",
            show_default=False,
        ),
    ] = None,
    asked_as: Annotated[
        AskedAs,
        typer.Option(
            "--as", help="An operator's request never skips by counters; a tick is satisfied by its slot."
        ),
    ] = AskedAs.OPERATOR,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Print which views would be refreshed, in which order, how and why.

    Reads only: the session cannot write. Exit code 1 if a view would be
    refused.
    """
    from worker.cli import planning  # noqa: PLC0415

    return planning.plan_refresh(
        config, database=database, tier=tier, view=view, demand=asked_as.value, as_json=as_json
    )


@plan.command(
    "partitions",
    epilog="""[bold]Examples[/bold]
$ upkeep plan partitions                              [dim]# every table with a policy[/dim]
$ upkeep plan partitions --table public.transactions  [dim]# one of them[/dim]""",
)
def plan_partitions(
    database: DatabaseOption = None,
    table: Annotated[
        str | None,
        typer.Option("--table", "-t", metavar="SCHEMA.TABLE", help="Only this table.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Print which partitions would be made, filled, moved and dropped, and what they lock.

    Reads only: the session cannot write. Exit code 1 if something is refused.
    """
    from worker.cli import partitions  # noqa: PLC0415

    return partitions.plan_partitions(config, database=database, table=table, as_json=as_json)


@app.command(
    rich_help_panel=PANEL,
    epilog="""[bold]Tasks[/bold]

upkeep.refresh.view  view=schema.view  one view, what it reads first
upkeep.refresh.tier  tier=name         the views of a tier
upkeep.refresh.all                     every managed view
upkeep.refresh.triggers                the triggers of on_write = true
upkeep.job.run       job=name          one declared job
upkeep.ledger.prune                    old runs become monthly summaries

Each takes database=name; it may be left out where there is only one.

[bold]Examples[/bold]
$ upkeep run upkeep.refresh.view view=public.mv_portfolio --wait
$ upkeep run upkeep.refresh.all database=lending --wait --timeout 600""",
)
def run(  # noqa: PLR0917 - Typer fills them by name
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="The task's name, as below.", show_default=False)
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="The task's arguments.", show_default=False),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            "-w",
            help="Stay and show progress until it has ended; exit code 1 if it failed.",
            show_default=False,
        ),
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0,
            help="Stop waiting after this long, with exit code 1; the run goes on. [dim]Default: wait "
            "for as long as it takes[/dim]",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Send a task to the fleet through Redis.

    Prints the task's id. The arguments are checked here, before anything is
    sent.
    """
    from worker.cli import running  # noqa: PLC0415

    return running.run(config, task, arguments or [], wait=wait, timeout_s=timeout, as_json=as_json)


@trial.command(
    rich_help_panel="Try it",
    epilog="""[bold]Examples[/bold]
$ upkeep demo
$ upkeep demo --example trading --duration 60 --no-ui  [dim]# as in CI[/dim]""",
)
def demo(
    example: Annotated[
        str,
        typer.Option(
            "--example", metavar="NAME", help="The sample system: lending, lp, trading or transactions."
        ),
    ] = "lending",
    scale: Annotated[
        float | None,
        typer.Option(
            "--scale",
            metavar="X",
            help="How much data; 1 is the documented scale. [dim]Default: small[/dim]",
            show_default=False,
        ),
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option(
            "--duration",
            metavar="SECONDS",
            min=0,
            help="End by itself after this long. [dim]Default: until Ctrl-C[/dim]",
            show_default=False,
        ),
    ] = None,
    interactive: Annotated[
        bool | None,
        typer.Option(
            "--ui/--no-ui",
            help="A live table, or plain lines. [dim]Default: a table on a terminal[/dim]",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Start a whole fleet on this machine and watch it keep a sample system fresh.

    Brings its own PostgreSQL and Redis, and leaves nothing behind.
    """
    from worker.demo import run as run_demo  # noqa: PLC0415

    return run_demo(example=example, scale=scale, duration=duration, interactive=interactive, as_json=as_json)
