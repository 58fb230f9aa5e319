"""How far a conversion is: a row of upkeep.conversion, written in the transaction of each step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import errors, sql
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Oid

from fleet.errors import PermanentError
from fleet.postgres.queries import load
from tasks.partitions.convert.plan import Plan

state_sql = load("tasks.partitions.convert", "sql/state.sql")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A row of upkeep.conversion."""

    id: int
    table_name: str
    relation: int
    parent: int | None
    how: str
    asked: dict[str, Any]
    state: str
    steps: list[str]
    boundary: str | None
    last_key: list[Any] | None
    end_key: list[Any] | None
    rows_copied: int
    remade: list[dict[str, Any]]
    verified: dict[str, Any] | None
    run_id: int | None
    requested_by: str | None
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None

    @property
    def final(self) -> bool:
        """Switched or undone."""
        return self.finished_at is not None


def begin(
    connection: psycopg.Connection[Any], plan: Plan, *, boundary: str | None, requested_by: str
) -> Conversion:
    """Put a new one down.

    Raises:
        PermanentError: there is an open one, of this table or another.
    """
    try:
        made = state_sql.begin(
            connection,
            table_name=str(plan.facts.name),
            relation=Oid(plan.facts.oid),
            how=plan.asked.how.value,
            asked=Jsonb(plan.asked.stored()),
            boundary=boundary,
            requested_by=requested_by,
        )
    except errors.UniqueViolation:
        there = read_open(connection)
        raise (
            busy(there) if there is not None else PermanentError("Another conversion has just ended")
        ) from None
    return get(connection, made)


def busy(other: Conversion) -> PermanentError:
    """One at a time: what depends on two tables could not be remade for both."""
    return PermanentError(
        f"The conversion of {other.table_name} is under way in this database, and there is one at a time",
        remedy=f"Finish it with --switch, or undo it: upkeep convert-to-partitioned {other.table_name} --back",
    )


def read_open(connection: psycopg.Connection[Any]) -> Conversion | None:
    """The one that is under way."""
    row = state_sql.open(connection)
    return None if row is None else Conversion(**row)


def get(connection: psycopg.Connection[Any], number: int) -> Conversion:
    """One by its id."""
    return Conversion(**state_sql.get(connection, id=number))


def read_all(connection: psycopg.Connection[Any]) -> list[Conversion]:
    """The newest first."""
    return [Conversion(**row) for row in state_sql.all(connection)]


@contextmanager
def acting_as(connection: psycopg.Connection[Any], role: str) -> Iterator[None]:
    """Make what belongs to that role as that role: it owns it then, and needs its own rights only.

    What is written about the conversion is written outside of it, because the schema upkeep is the fleet's.
    """
    row = connection.execute("SELECT current_user").fetchone()
    if row is not None and row[0] == role:
        yield
        return
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    try:
        yield
    except psycopg.Error:
        # In a failed transaction nothing can be reset; its rollback does.
        if connection.info.transaction_status.name != "INERROR":
            connection.execute("RESET ROLE")
        raise
    connection.execute("RESET ROLE")
