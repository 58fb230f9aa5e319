"""The commands for on_write = true: triggers list, install, remove."""

from __future__ import annotations

from typing import Annotated

import typer

from worker.cli.options import ConfigOption, DatabaseOption, JsonOption

PANEL = "Refresh"
app = typer.Typer()
triggers = typer.Typer(invoke_without_command=True)
app.add_typer(
    triggers,
    name="triggers",
    rich_help_panel=PANEL,
    help="The triggers by which writes request refreshes (on_write = true).",
)

ViewsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="VIEW",
        help="Only the tables behind these views. [dim]Default: all[/dim]",
        show_default=False,
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", "-n", help="Print what would be done, and do nothing.", show_default=False),
]


@triggers.callback()
def triggers_(context: typer.Context) -> int:
    """List them, where no other command is given."""
    if context.invoked_subcommand is not None:
        return 0
    from worker.cli import triggering  # noqa: PLC0415

    return triggering.list_(None, [], database=None, as_json=False)


@triggers.command(
    "list",
    epilog="""[bold]Examples[/bold]
$ upkeep triggers list
$ upkeep triggers list public.mv_summary --json""",
)
def list_(
    views: ViewsArgument = None,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show every table behind a view with on_write = true, and whether writes to it request a refresh.

    Also what no trigger can tell of, and what to do about that. Exit code 1 if
    something is not as declared.
    """
    from worker.cli import triggering  # noqa: PLC0415

    return triggering.list_(config, views or [], database=database, as_json=as_json)


@triggers.command(
    epilog="""[bold]Examples[/bold]
$ upkeep triggers install --dry-run
$ upkeep triggers install public.mv_summary""",
)
def install(
    views: ViewsArgument = None,
    database: DatabaseOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Bring the triggers to what is declared: add, change, remove what is left over.

    A writer of a table waits while its trigger is made, never for longer than
    half a second at a time; a table that stays busy is reported, and the others
    are done. Running it again does nothing. Run it after adding partitions.
    """
    from worker.cli import triggering  # noqa: PLC0415

    return triggering.install(config, views or [], database=database, dry_run=dry_run, as_json=as_json)


@triggers.command(
    epilog="""[bold]Examples[/bold]
$ upkeep triggers remove --dry-run
$ upkeep triggers remove public.mv_summary""",
)
def remove(
    views: ViewsArgument = None,
    database: DatabaseOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Remove our triggers, and no others: all, or what is for these views, declared or not.

    [bold]upkeep triggers install[/bold] puts back what is declared.
    """
    from worker.cli import triggering  # noqa: PLC0415

    return triggering.remove(config, views or [], database=database, dry_run=dry_run, as_json=as_json)
