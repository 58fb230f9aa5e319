"""A worker that keeps a table ahead of its clock, and dies at its nth statement; 0 is never. They go to a file."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import IsolationLevel, sql
from pydantic import SecretStr

from fleet import settings
from fleet.postgres.connect import parameters
from tasks.partitions import drain, keep
from tests.integration.tasks.partitions.moving import TABLE, policy

# The last month that is there is April, and the default partition has rows of May.
CLOCK = datetime(2024, 5, 10, 12, tzinfo=UTC)
BATCH = 50
CHILD = "upkeep/child"
_sql = keep._sql


class Clock:
    """What keep asks the server, but for the time."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def clock(self, connection: psycopg.Connection[Any]) -> datetime:
        return self.moment

    def __getattr__(self, name: str) -> Any:
        return getattr(_sql, name)


class Watched(psycopg.Connection[Any]):
    """Tells each statement before it is sent; BEGIN and COMMIT go past the cursors."""

    before: Callable[[str], None]

    def _exec_command(self, command: Any, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        self.before(_text(command, self))
        return (yield from super()._exec_command(command, *args, **kwargs))


class _Cursor(psycopg.Cursor[Any]):
    def execute(self, query: Any, *args: Any, **kwargs: Any) -> _Cursor:
        assert isinstance(self.connection, Watched)
        self.connection.before(_text(query, self.connection))
        return super().execute(query, *args, **kwargs)


def _text(query: Any, connection: psycopg.Connection[Any]) -> str:
    if isinstance(query, sql.Composable):
        query = query.as_string(connection)
    text = query.decode() if isinstance(query, bytes) else str(query)
    return " ".join(text.split())


def watched(url: str, before: Callable[[str], None], *, name: str = "upkeep/test") -> Watched:
    """A connection as the fleet opens it."""
    connection = Watched.connect(
        parameters(url, application_name=name), autocommit=True, cursor_factory=_Cursor
    )
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    connection.before = before
    return connection


def keep_table(connection: psycopg.Connection[Any], **changes: Any) -> keep.Kept:
    """Make what is missing of this month and the next."""
    own = policy(**{"default": "drain", "premake": 1, "companions": ()} | changes)
    database = settings.Database(name="kept", url=SecretStr("postgresql:///kept"), partitions={TABLE: own})
    return keep.keep(connection, database, own)


def main(url: str, dies_at: int, notes: Path, sent: bool = False) -> None:
    """`sent`: die when the server has the statement, and nobody has heard its answer."""
    keep._sql = Clock(CLOCK)
    drain.BATCH = BATCH
    statements: list[str] = []

    def before(statement: str) -> None:
        statements.append(statement)
        if len(statements) == dies_at:
            if sent:
                connection.pgconn.send_query(statement.encode())
                connection.pgconn.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    with watched(url, before, name=CHILD) as connection:
        keep_table(connection)
        notes.write_text("\n".join(statements), encoding="utf-8")
        before("the end")
