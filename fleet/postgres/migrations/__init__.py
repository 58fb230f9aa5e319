"""Installs and upgrades the schema `upkeep` in a kept database.

Numbered .sql files under Alembic, one transaction each, never destructive, run under a session advisory lock:
a killed migration leaves neither a half-applied file nor a lock behind, and running it again goes on where it
stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from alembic import command, op
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import errors

from fleet.errors import PermanentError, TransientError
from fleet.postgres import locks
from fleet.postgres.connect import connect

# Long enough for another migration to end; nobody should wait for minutes without being told.
LOCK_WAIT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Migration:
    """What `migrate` found and did: revision ids, None where the schema was absent."""

    before: str | None
    after: str | None
    applied: tuple[str, ...]


def execute_file(name: str) -> None:
    """Run one .sql file inside the current migration.

    Straight on the driver's connection: the files hold several statements, casts and percent signs, which a
    statement with parameters could not.
    """
    text = (resources.files(__package__) / "versions" / name).read_text(encoding="utf-8")
    connection: Any = op.get_bind().connection.driver_connection
    connection.execute(text)


def head() -> str:
    """The newest revision that this version of Upkeep knows."""
    revision = _script().get_current_head()
    assert revision is not None  # the package ships at least one
    return revision


def current(conninfo: str) -> str | None:
    """The revision installed in a database; None where Upkeep is not installed."""
    with connect(conninfo, application_name="upkeep/migrate", to_read=True) as connection:
        return _installed(connection)


def migrate(conninfo: str) -> Migration:
    """Bring the schema `upkeep` to this version; running it twice does nothing the second time.

    Raises:
        PermanentError: no privilege to create the schema, or the database was migrated by a newer Upkeep.
        TransientError: somebody else is migrating, or the server cannot be reached or is a standby.
    """
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: connect(conninfo, application_name="upkeep/migrate", autocommit=False),
        poolclass=sqlalchemy.NullPool,
    )
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        if not locks.acquire_within(driver, locks.MIGRATION, timeout_s=LOCK_WAIT_S):
            raise TransientError(
                f"Another migration has been running for {LOCK_WAIT_S:.0f} s in this database",
                remedy="Look for application_name 'upkeep/migrate' in pg_stat_activity",
            )
        driver.commit()
        _refuse_newer(driver)
        _create_schema(driver)
        before = _installed(driver)
        driver.commit()
        config = _config()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except sqlalchemy.exc.DBAPIError as exc:
            raise PermanentError(
                f"Migrating the schema upkeep failed: {exc.orig}",
                remedy="Nothing of that step was kept; grant what it names and run it again",
            ) from exc
        after = _installed(driver)
    steps = [s.revision for s in _script().walk_revisions()][::-1]
    applied = tuple(steps[steps.index(before) + 1 :] if before else steps) if before != after else ()
    return Migration(before=before, after=after, applied=applied)


def refuse_unless_current(connection: psycopg.Connection[Any], database: str) -> None:
    """Stop before any effect where the schema is not the one this version works with."""
    installed = _installed(connection)
    if installed is None:
        raise PermanentError(
            f"The database {database!r} has no schema upkeep", remedy="Run `upkeep migrate` once"
        )
    _refuse_newer(connection)
    if installed != head():
        raise PermanentError(
            f"The schema upkeep in the database {database!r} is at {installed}, this version needs {head()}",
            remedy="Run `upkeep migrate`",
        )


def _script() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _installed(connection: psycopg.Connection[Any]) -> str | None:
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


def _refuse_newer(connection: psycopg.Connection[Any]) -> None:
    installed = _installed(connection)
    known = {s.revision for s in _script().walk_revisions()}
    if installed is not None and installed not in known:
        raise PermanentError(
            f"The schema upkeep is at {installed}, which this version of Upkeep (up to {head()}) does not know",
            remedy="A newer Upkeep migrated it; run that version, or a newer one, here too",
        )


def _create_schema(connection: psycopg.Connection[Any]) -> None:
    # CREATE SCHEMA IF NOT EXISTS asks for the privilege even where the schema exists, so look first:
    # a DBA may have created it for us.
    row = connection.execute("SELECT to_regnamespace('upkeep') IS NOT NULL").fetchone()
    if row is not None and row[0]:
        connection.rollback()
        return
    try:
        connection.execute("CREATE SCHEMA upkeep")
        connection.execute(
            "COMMENT ON SCHEMA upkeep IS 'State of Upkeep, the fleet that keeps this database fresh'"
        )
        connection.commit()
    except errors.InsufficientPrivilege as exc:
        raise PermanentError(
            "The role may not create the schema upkeep",
            remedy="As the database's owner: CREATE SCHEMA upkeep AUTHORIZATION <the role>; "
            "deploy/grants.sql has the whole list",
        ) from exc


__all__ = ["Migration", "current", "execute_file", "head", "migrate", "refuse_unless_current"]
