"""Brings the schema `upkeep` to this version, with Alembic: the only module of the fleet that loads it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from alembic import command, op
from alembic.config import Config
from psycopg import errors

from fleet.errors import PermanentError, TransientError
from fleet.postgres import locks
from fleet.postgres.connect import connect
from fleet.postgres.migrations import installed, refuse_newer

# Long enough for another migration to end; nobody should wait for minutes without being told.
LOCK_WAIT_S = 30.0


def execute_file(name: str) -> None:
    """Run one .sql file inside the current migration.

    Straight on the driver's connection: the files hold several statements, casts and percent signs, which a
    statement with parameters could not.
    """
    text = (resources.files(__package__) / "versions" / name).read_text(encoding="utf-8")
    connection: Any = op.get_bind().connection.driver_connection
    connection.execute(text)


def upgrade(conninfo: str) -> tuple[str | None, str | None]:
    """The revision before and afterwards; raises what `migrate` does."""
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
        refuse_newer(installed(driver))
        _create_schema(driver)
        before = installed(driver)
        driver.commit()
        config = configuration()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except sqlalchemy.exc.DBAPIError as exc:
            raise PermanentError(
                f"Migrating the schema upkeep failed: {exc.orig}",
                remedy="Nothing of that step was kept; grant what it names and run it again",
            ) from exc
        after = installed(driver)
    return before, after


def configuration() -> Config:
    """Alembic's: where the revisions are."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


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


__all__ = ["configuration", "execute_file", "upgrade"]
