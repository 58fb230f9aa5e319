"""Brings the triggers of on_write to what is declared: one table at a time, never waiting long for its lock.

Creating or replacing one takes SHARE ROW EXCLUSIVE: writers of that table wait, and those behind us in the queue with
them. Dropping one takes ACCESS EXCLUSIVE: its readers wait too. So each wait for a lock is short, and a table that
stays busy is reported and left for another time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import errors, sql

from fleet.errors import PermanentError, TransientError, UpkeepError
from fleet.names import RelationName
from fleet.postgres.catalog.triggers import (
    TRIGGER_NAME,
    Table,
    WriteTrigger,
    read_tables,
    read_write_triggers,
)
from fleet.postgres.failures import explain
from fleet.postgres.queries import load
from fleet.settings import Database
from tasks.refresh import triggers
from tasks.refresh.triggers import Action, Behind, Line
from tasks.refresh.view import look_at_all

_sql = load("tasks.refresh", "sql/triggers.sql")

# Everybody who writes to the table waits for as long as we do.
LONGEST_WAIT = timedelta(milliseconds=500)
TRIES = 6
# Between two tries, so that those who queued up behind us get through, and two of us do not meet again.
PAUSE_S = (0.2, 1.0)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the catalogue says of a database's triggers and of what they should be."""

    role: str
    wanted: Behind
    tables: dict[int, tuple[Table, ...]]
    installed: list[WriteTrigger]
    absent: tuple[PermanentError, ...]
    """Declared with on_write, and not there."""

    def plan(self) -> list[Line]:
        """What is to be done so that they are as declared."""
        return triggers.plan(self.wanted, self.tables, self.installed, role=self.role)

    def without(self, views: Iterable[str] | None) -> list[Line]:
        """What is to be done so that none is there for these views."""
        chosen = None if views is None else set(views)
        return triggers.without(self.installed, self.tables, chosen, role=self.role)


@dataclass(frozen=True, kw_only=True)
class Deed:
    """What became of a line that had an action; `error` None: it is done."""

    line: Line
    error: UpkeepError | None = None


def look(connection: psycopg.Connection[Any], database: Database) -> Found:
    """Read everything that a plan needs; takes no lock on any table."""
    subjects, absent = look_at_all(connection, database)
    wanted = triggers.behind(subjects)
    installed = read_write_triggers(connection)
    return Found(
        role=_sql.read_role(connection),
        wanted=wanted,
        tables=read_tables(connection, {*wanted.tables, *(each.table for each in installed)}),
        installed=installed,
        absent=tuple(error for name, error in sorted(absent.items()) if database.views[name].on_write),
    )


def carry_out(
    connection: psycopg.Connection[Any], lines: Sequence[Line], *, lock_timeout: timedelta
) -> Iterator[Deed]:
    """Do what the lines say, each in a transaction of its own, and tell what became of each.

    A table that stays busy, or that this role may not touch, stops no other. One that is gone needs nothing.
    """
    for line in lines:
        if line.action is None or line.table is None:
            continue
        try:
            _patiently(connection, line, min(lock_timeout, LONGEST_WAIT))
        except psycopg.Error as exc:
            if connection.closed or connection.broken:
                raise
            yield Deed(line=line, error=_failed(exc, line))
        else:
            yield Deed(line=line)


def follow_parent(
    connection: psycopg.Connection[Any], partition: RelationName, *, parent: RelationName
) -> tuple[str, ...]:
    """Put a parent's trigger on a table that is, or is about to be, its partition; returns the views it is for.

    Statement-level triggers are not inherited. Call it in the transaction that creates the table: nobody else
    sees that yet, so there is no lock to wait for, and no write to miss.
    """
    views = {
        view
        for each in read_write_triggers(connection)
        if each.ours and each.table_name == parent
        for view in each.views
    }
    if views:
        with connection.transaction():
            connection.execute(_create(partition, sorted(views)))
    return tuple(sorted(views))


def _patiently(connection: psycopg.Connection[Any], line: Line, lock_timeout: timedelta) -> None:
    for attempt in range(1, TRIES + 1):
        try:
            return _do(connection, line, lock_timeout)
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            if attempt == TRIES:
                raise
        time.sleep(random.uniform(*PAUSE_S))  # noqa: S311 - spreads load, keeps no secret
    return None


def _do(connection: psycopg.Connection[Any], line: Line, lock_timeout: timedelta) -> None:
    assert line.table is not None  # carry_out has looked
    try:
        with connection.transaction():
            _sql.bound_waits(connection, lock_timeout=f"{max(1, int(lock_timeout.total_seconds() * 1000))}ms")
            if line.action is not Action.REMOVE:
                connection.execute(_create(line.table, line.views))
            for name in line.drops:
                connection.execute(
                    sql.SQL("DROP TRIGGER IF EXISTS {} ON {}").format(
                        sql.Identifier(name), line.table.identifier()
                    )
                )
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return  # dropped since we looked


def _create(table: RelationName, views: Sequence[str]) -> sql.Composed:
    return sql.SQL(
        "CREATE OR REPLACE TRIGGER {} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {}"
        " FOR EACH STATEMENT EXECUTE FUNCTION upkeep.note_write({})"
    ).format(
        sql.Identifier(TRIGGER_NAME),
        table.identifier(),
        sql.SQL(", ").join(sql.Literal(view) for view in views),
    )


def _failed(exc: psycopg.Error, line: Line) -> UpkeepError:
    if isinstance(exc, errors.LockNotAvailable):
        return TransientError(
            f"{line.object} was busy at each of {TRIES} tries: no lock on it within {LONGEST_WAIT.total_seconds():g} s",
            remedy="Try again when its long transactions are over; "
            "SELECT * FROM pg_stat_activity WHERE xact_start < now() - interval '1 minute' shows them",
        )
    return explain(exc, doing=f"To {line.action} the trigger on {line.object}")
