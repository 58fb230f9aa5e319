"""The options that every command has, and how a command reaches the databases that it was asked about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.errors import UpkeepError

if TYPE_CHECKING:
    import psycopg

    from fleet.settings import Database, Settings
    from schedules.entries import Entry

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="PATH",
        help="The configuration to use. [dim]Default: $UPKEEP_CONFIG, ./upkeep.toml, "
        "~/.config/upkeep/upkeep.toml, /etc/upkeep/upkeep.toml[/dim]",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout instead of tables.", show_default=False),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        "-d",
        metavar="NAME",
        help="Only this database of upkeep.toml. [dim]Default: all[/dim]",
        show_default=False,
    ),
]


# What every command that only reads says of such a server: message and remedy.
ON_A_STANDBY = (
    "The server is a standby (in recovery): nothing is done here until it is promoted",
    "Point the URL at the primary, or list all servers with target_session_attrs=read-write",
)


class UsageMistakeError(UpkeepError):
    """The command line asks for something that is not there: exit code 2, as for a wrong option."""


@contextmanager
def asking() -> Iterator[None]:
    """Inside, an unknown name is a mistake on the command line, not a failure of what was asked for."""
    from fleet.errors import PermanentError  # noqa: PLC0415 - beside the class that it becomes

    try:
        yield
    except PermanentError as exc:
        raise UsageMistakeError(exc.message, remedy=exc.remedy) from exc


def load(config: Path | None) -> Settings:
    """The settings; ConfigurationErrors end the command with exit code 2."""
    from fleet import settings  # noqa: PLC0415 - pydantic takes longer to import than --help may

    return settings.load(config)


def chosen(settings: Settings, name: str | None) -> list[Database]:
    """The database that was asked for, or all of them."""
    if name is None:
        return list(settings.databases.values())
    with asking():
        return [settings.database(name)]


def entry(settings: Settings, name: str) -> Entry:
    """An entry of the schedule by its name, as `upkeep schedule list` shows it."""
    from fleet.settings.values import closest  # noqa: PLC0415
    from schedules.entries import entries  # noqa: PLC0415

    declared = entries(settings)
    if name not in declared:
        raise UsageMistakeError(
            f"There is no entry named {name!r} in the schedule", remedy=closest(name, declared)
        )
    return declared[name]


@contextmanager
def connection(
    database: Database, *, doing: str, read_only: bool = False
) -> Iterator[psycopg.Connection[Any]]:
    """A direct connection for the length of the block, in autocommit.

    `read_only`: the server refuses every write of this session, whatever we send; it may be a standby.

    Raises:
        UpkeepError: the server cannot be reached or refuses a statement; it says what we were doing.

    """
    import psycopg  # noqa: PLC0415

    from fleet.postgres.connect import connect  # noqa: PLC0415
    from fleet.postgres.failures import explain  # noqa: PLC0415

    try:
        with connect(
            database.url.get_secret_value(),
            application_name="upkeep/cli",
            lock_timeout=database.lock_timeout,
            to_read=read_only,
        ) as opened:
            if read_only:
                opened.execute("SET default_transaction_read_only = on")
            yield opened
    except psycopg.Error as exc:
        raise explain(exc, doing=f"{doing} in the database {database.name}") from exc


def parse_view(text: str) -> str:
    """A view's name as the ledger writes it, from one as people write it."""
    from fleet.names import RelationName  # noqa: PLC0415

    with asking():
        return str(RelationName.parse(text))


def user() -> str:
    """The operating system's name for whoever types."""
    import getpass  # noqa: PLC0415

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user that /etc/passwd does not know
        return str(os.getuid())


def who() -> str:
    """Who types, and where: what a pause is signed with."""
    import socket  # noqa: PLC0415

    return f"{user()}@{socket.gethostname()}"
