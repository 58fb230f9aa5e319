"""The commands that bring a database under the fleet's care: init, check, migrate, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.cli.options import ConfigOption, DatabaseOption, JsonOption

app = typer.Typer()
PANEL = "Set up"


@app.command(
    rich_help_panel=PANEL,
    epilog="""[bold]Examples[/bold]
$ upkeep init postgresql://me@db.example.com/lending > upkeep.toml
$ upkeep init "host=/run/postgresql dbname=lending" --probe --output upkeep.toml""",
)
def init(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="Where the database is: postgresql://user@host:port/dbname or keywords (host=… dbname=…).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write to a new file instead of stdout; an old one is never overwritten.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="What the fleet calls the database. [dim]Default: from its own name[/dim]",
            show_default=False,
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Read views that have no unique index to find their key (10 s per view at most).",
            show_default=False,
        ),
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Print a starter upkeep.toml for a database.

    Every materialized view with a suggested tier, and in comments what is in
    the way of refreshing it without blocking its readers. Nothing is written to
    the database, and a password in the URL never appears in the output.
    """
    from worker.cli import starting  # noqa: PLC0415

    return starting.init(url, name=name, probe=probe, output_file=output, as_json=as_json)


@app.command(
    rich_help_panel=PANEL,
    epilog="""[bold]Examples[/bold]
$ upkeep check
$ upkeep check --offline --config deploy/upkeep.toml  [dim]# without databases, as in CI[/dim]""",
)
def check(
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            help="Judge the file and the environment alone; connect to nothing.",
            show_default=False,
        ),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """List all errors and warnings of the configuration at once.

    The file and the environment first, then what the databases say of the
    declared views. Exit code 1 if there are errors.
    """
    from worker.cli import checking  # noqa: PLC0415

    return checking.check(config, offline=offline, as_json=as_json)


@app.command(
    rich_help_panel=PANEL,
    epilog="""[bold]Examples[/bold]
$ upkeep migrate --status
$ upkeep migrate --database lending""",
)
def migrate(
    status: Annotated[
        bool,
        typer.Option(
            "--status",
            help="Only show what is installed; exit code 1 if a migration is due.",
            show_default=False,
        ),
    ] = False,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Install or upgrade the schema upkeep in every database.

    Running it again does nothing. A migration that is killed leaves nothing
    half done.
    """
    from worker.cli import migrating  # noqa: PLC0415

    return migrating.migrate(config, database=database, only_status=status, as_json=as_json)


@app.command(
    rich_help_panel=PANEL,
    epilog="""[bold]Examples[/bold]
$ upkeep doctor
$ upkeep doctor --database lending --all
$ upkeep doctor --json | jq '.findings\\[] | select(.level == "error")'""",
)
def doctor(
    database: DatabaseOption = None,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also list what is fine.", show_default=False)
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say what is missing, and print the statement that mends it.

    Servers (version, clock, connections, pooler in the way, Redis eviction),
    the scheduler, privileges, and each view (unique index, TEMP, populated,
    stored timestamps, order). Changes nothing. Exit code 1 if something is an
    error.
    """
    from worker.cli import examining  # noqa: PLC0415

    return examining.doctor(config, database=database, everything=everything, as_json=as_json)
