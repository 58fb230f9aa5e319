"""Which revision of the schema `upkeep` a kept database has, which one this version needs, and the way there.

Numbered .sql files, one transaction each, never destructive, run under a session advisory lock: a killed migration
leaves neither a half-applied file nor a lock behind, and running it again goes on where it stopped. Alembic runs them;
every process asks for the revisions, and only who migrates loads that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import psycopg
from psycopg import errors

from fleet.errors import PermanentError
from fleet.postgres.connect import connect


@dataclass(frozen=True, kw_only=True)
class Migration:
    """What `migrate` found and did: revision ids, None where the schema was absent."""

    before: str | None
    after: str | None
    applied: tuple[str, ...]


@cache
def revisions() -> tuple[str, ...]:
    """Those that this version of Upkeep knows, the oldest first: what the files are called begins with them."""
    files = (resources.files(__package__) / "versions").iterdir()
    return tuple(sorted(each.name.partition("_")[0] for each in files if each.name.endswith(".sql")))


def head() -> str:
    """The newest revision that this version of Upkeep knows."""
    return revisions()[-1]


def current(conninfo: str) -> str | None:
    """The revision installed in a database; None where Upkeep is not installed."""
    with connect(conninfo, application_name="upkeep/migrate", to_read=True) as connection:
        return installed(connection)


def migrate(conninfo: str) -> Migration:
    """Bring the schema `upkeep` to this version; running it twice does nothing the second time.

    Raises:
        PermanentError: no privilege to create the schema, or the database was migrated by a newer Upkeep.
        TransientError: somebody else is migrating, or the server cannot be reached or is a standby.
    """
    # Alembic and SQLAlchemy are a quarter of what a worker, and every command, takes to start.
    from fleet.postgres.migrations.upgrade import upgrade  # noqa: PLC0415

    before, after = upgrade(conninfo)
    steps = revisions()
    applied = tuple(steps[steps.index(before) + 1 :] if before else steps) if before != after else ()
    return Migration(before=before, after=after, applied=applied)


def refuse_unless_current(connection: psycopg.Connection[Any], database: str) -> None:
    """Stop before any effect where the schema is not the one this version works with."""
    found = installed(connection)
    if found is None:
        raise PermanentError(
            f"The database {database!r} has no schema upkeep", remedy="Run `upkeep migrate` once"
        )
    refuse_newer(found)
    if found != head():
        raise PermanentError(
            f"The schema upkeep in the database {database!r} is at {found}, this version needs {head()}",
            remedy="Run `upkeep migrate`",
        )


def installed(connection: psycopg.Connection[Any]) -> str | None:
    """The revision that a database is at, None where there is none."""
    known = connection.execute("SELECT to_regclass('upkeep.schema_version') IS NOT NULL").fetchone()
    if known is None or not known[0]:
        return None
    try:
        row = connection.execute("SELECT version_num FROM upkeep.schema_version").fetchone()
    except errors.InsufficientPrivilege as exc:
        raise PermanentError(
            "The role may not use the schema upkeep",
            remedy="Install it with the role that the fleet uses, or grant that role the schema and its tables; "
            "`upkeep doctor` prints the statements",
        ) from exc
    return None if row is None else str(row[0])


def refuse_newer(found: str | None) -> None:
    """Stop where a newer version of Upkeep has been."""
    if found is not None and found not in revisions():
        raise PermanentError(
            f"The schema upkeep is at {found}, which this version of Upkeep (up to {head()}) does not know",
            remedy="A newer Upkeep migrated it; run that version, or a newer one, here too",
        )


__all__ = [
    "Migration",
    "current",
    "head",
    "installed",
    "migrate",
    "refuse_newer",
    "refuse_unless_current",
    "revisions",
]
