"""The commands for what is due by itself: schedule list, pause, resume, run-now."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli.options import ConfigOption, JsonOption

PANEL = "Schedule"
app = typer.Typer()
schedule = typer.Typer(no_args_is_help=True)
app.add_typer(
    schedule,
    name="schedule",
    rich_help_panel=PANEL,
    help="What is due when, who sees to it, and pausing it.",
)

EntriesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="ENTRY",
        help="As [bold]upkeep schedule list[/bold] shows them: database/tier, database/job.NAME, "
        "database/schedule.NAME, database/ledger.prune.",
        show_default=False,
    ),
]


@schedule.command(
    "list",
    epilog="""[bold]Examples[/bold]
$ upkeep schedule list
$ upkeep schedule list --json | jq -r '.entries\\[] | select(.paused) | .entry'""",
)
def list_(
    everything: Annotated[
        bool,
        typer.Option(
            "--all", "-a", help="Also what has been in the schedule, but is not declared.", show_default=False
        ),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show every entry: what it does, its last and its next slot, and what is paused.

    And above them which scheduler leads, or that none does. Exit code 1 if a
    database cannot be read.
    """
    from worker.cli import scheduling  # noqa: PLC0415

    return scheduling.show(config, everything=everything, as_json=as_json)


@schedule.command(
    epilog="""[bold]Examples[/bold]
$ upkeep schedule pause lending/daily --reason "migration 42"
$ upkeep schedule pause lending/five_minutes lending/job.settle""",
)
def pause(
    entries: EntriesArgument,
    reason: Annotated[
        str | None,
        typer.Option("--reason", "-r", metavar="TEXT", help="Why, for whoever wonders.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Let the slots of entries go by until they are resumed.

    It holds for every scheduler within a second, through restarts and changes
    of the configuration. Runs that are in the ledger already go on.
    """
    from worker.cli import pausing  # noqa: PLC0415

    return pausing.pause(config, entries, reason=reason, as_json=as_json)


@schedule.command(
    epilog="""[bold]Examples[/bold]
$ upkeep schedule resume lending/daily""",
)
def resume(entries: EntriesArgument, config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """Let entries go on with their next slot; those of the pause are not made up for."""
    from worker.cli import pausing  # noqa: PLC0415

    return pausing.resume(config, entries, as_json=as_json)


@schedule.command(
    "run-now",
    epilog="""[bold]Examples[/bold]
$ upkeep schedule run-now lending/job.settle --wait""",
)
def run_now(
    entry: Annotated[
        str,
        typer.Argument(
            metavar="ENTRY",
            help="As [bold]upkeep schedule list[/bold] shows it.",
            show_default=False,
        ),
    ],
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
            help="Stop waiting after this long, with exit code 1; the run goes on.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Do now what an entry's slot would do, paused or not, as an operator's request.

    Sent through Redis, as by [bold]upkeep run[/bold]; its slots come as before.
    """
    from worker.cli import running  # noqa: PLC0415

    return running.run_entry(config, entry, wait=wait, timeout_s=timeout, as_json=as_json)
