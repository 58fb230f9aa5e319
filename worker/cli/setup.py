"""The commands that bring a database under the fleet's care: init, check, migrate, doctor."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from worker.cli.options import ConfigOption, DatabaseOption, JsonOption

app = typer.Typer()
PANEL = "Set up"


class How(StrEnum):
    """tasks.partitions.convert.plan.How once more: its import takes longer than --help may."""

    ATTACH = "attach"
    FILL = "fill"


class Interval(StrEnum):
    """fleet.settings.partitions.Interval once more."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"


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


@app.command(
    "convert-to-partitioned",
    rich_help_panel=PANEL,
    epilog="""[bold]Examples[/bold]
$ upkeep convert-to-partitioned public.capital_activities --column activity_date --how attach --dry-run
$ upkeep convert-to-partitioned public.capital_activities --column activity_date --how attach --accept-weaker-keys
$ upkeep convert-to-partitioned public.capital_activities --switch
$ upkeep convert-to-partitioned public.capital_activities --back  [dim]# until the switch[/dim]""",
)
def convert_to_partitioned(  # noqa: PLR0917 - Typer fills them by name
    table: Annotated[
        str | None,
        typer.Argument(metavar="SCHEMA.TABLE", help="The plain table.", show_default=False),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            "--column", metavar="NAME", help="The column that tells a row's time.", show_default=False
        ),
    ] = None,
    how: Annotated[
        How | None,
        typer.Option(
            "--how",
            help="attach: the table becomes the partition of everything so far. fill: its rows are copied into "
            "partitions, one for each period.",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[
        Interval | None,
        typer.Option(
            "--interval", help="What one partition has. [dim]Default: month[/dim]", show_default=False
        ),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option(
            "--timezone",
            metavar="ZONE",
            help="Where a day begins. [dim]Default: UTC[/dim]",
            show_default=False,
        ),
    ] = None,
    epoch: Annotated[
        str | None,
        typer.Option(
            "--epoch",
            metavar="UNIT",
            help="What a number counts since 1970, or uuidv7.",
            show_default=False,
        ),
    ] = None,
    premake: Annotated[
        int | None,
        typer.Option(
            "--premake", metavar="N", help="Periods ahead. [dim]Default: 3[/dim]", min=1, show_default=False
        ),
    ] = None,
    keep_default: Annotated[
        bool,
        typer.Option(
            "--keep-default", help="fill: keep the default partition after the switch.", show_default=False
        ),
    ] = False,
    lock_budget: Annotated[
        str | None,
        typer.Option(
            "--lock-budget",
            metavar="DURATION",
            help="How long one step may keep the application waiting. [dim]Default: 200ms[/dim]",
            show_default=False,
        ),
    ] = None,
    accept_weaker_keys: Annotated[
        bool,
        typer.Option(
            "--accept-weaker-keys",
            help="Let unique keys be unique together with the column only.",
            show_default=False,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", "-n", help="Print the whole plan, and change nothing.", show_default=False),
    ] = False,
    switch: Annotated[
        bool,
        typer.Option(
            "--switch", help="Prepare what is missing, and put it in the table's place.", show_default=False
        ),
    ] = False,
    back: Annotated[
        bool,
        typer.Option("--back", help="Undo everything; until the switch.", show_default=False),
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show the conversions and how far they are.", show_default=False)
    ] = False,
    database: DatabaseOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Turn a large plain table into a partitioned one while its application writes to it.

    Prepares everything and stops before the switch. Whatever stops it, the same
    command goes on. Options that are not given come from the table's policy in
    upkeep.toml, if there is one.
    """
    from worker.cli import converting  # noqa: PLC0415

    return converting.convert(
        config,
        converting.Wanted(
            table=table,
            column=column,
            how=how.value if how else None,
            interval=interval.value if interval else None,
            timezone=timezone,
            epoch=epoch,
            premake=premake,
            keep_default=keep_default,
            lock_budget=lock_budget,
            accept_weaker_keys=accept_weaker_keys,
        ),
        database=database,
        dry_run=dry_run,
        switch=switch,
        back=back,
        status=status,
        as_json=as_json,
    )
