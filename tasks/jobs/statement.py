"""Sends one statement and keeps of what it returns only what can be counted.

By the extended protocol, which refuses several statements in one text, and row by row: a job that returns a
million rows must not fill the worker with them. psycopg's `stream()` does the same for a SELECT, but keeps the
number of rows that an UPDATE changed to itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

import psycopg
import structlog
from psycopg import errors, generators
from psycopg.abc import PQGen
from psycopg.pq import DiagnosticField, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from fleet.errors import PermanentError
from fleet.postgres.connect import CANCEL_TIMEOUT_S

log = structlog.get_logger(__name__)

T = TypeVar("T")

# How long a cancelled statement may take until its connection is given up.
ENDS_WITHIN_S = 3.0
_INTEGERS = frozenset({"int2", "int4", "int8"})
_VOID = 2278


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a statement did, as the server tells it; nothing in it comes from the data but numbers."""

    command: str
    """The command tag's word: SELECT, UPDATE, CALL; empty where there was nothing to execute."""
    affected: int | None = None
    """How many rows the command tag names, if it names any."""
    columns: int = 0
    returned: int = 0
    """How many rows came back."""
    first: int | None = None
    """The first column of the first row, where that is a whole number."""
    first_shown: str = ""
    """What that is otherwise: NULL, or its type."""


def execute(connection: psycopg.Connection[Any], statement: str) -> Effect:
    """Execute one statement in the connection's transaction.

    Raises:
        psycopg.Error: as the server said it.
        PermanentError: it wants to COPY from or to us; the connection is closed then, because the server
        would wait for it.

    """
    received = _Received()
    try:
        _wait(connection, _execute(connection.pgconn, statement, received))
    except psycopg.OperationalError:
        if received.failed is None:  # else it is what the server said last, before it closed the connection
            raise
    if received.copying:
        connection.close()
        raise PermanentError(
            "The statement is a COPY from or to its client, and nobody is there to send or to read",
            remedy="Use COPY with a file or a program of the server's, or INSERT … SELECT",
        )
    if received.failed is not None:
        raise _error(received.failed)
    if received.end is None or received.end.status == ExecStatus.EMPTY_QUERY:
        return Effect(command="")
    first, shown = _number(connection, received.first) if received.first is not None else (None, "")
    return Effect(
        command=_word(received.end),
        affected=received.end.command_tuples,
        columns=received.end.nfields,
        returned=received.rows,
        first=first,
        first_shown=shown,
    )


def parse(connection: psycopg.Connection[Any], statement: str) -> None:
    """Have a statement parsed and not executed: what it names must be there.

    Raises:
        psycopg.Error: as the server said it.

    """
    for result in _wait(connection, _parse(connection.pgconn, statement)):
        if result.status == ExecStatus.FATAL_ERROR:
            raise _error(result)


@dataclass
class _Received:
    """What has come so far."""

    rows: int = 0
    first: PGresult | None = None
    end: PGresult | None = None
    failed: PGresult | None = None
    copying: bool = False


def _wait(connection: psycopg.Connection[Any], conversation: PQGen[T]) -> T:
    """Have a statement sent, and received to its end also when that is interrupted.

    psycopg cancels an interrupted statement, and then lets the same generator receive what is left. That does
    for an interruption of the waiting itself; one that was raised within the generator has finished it.
    """
    try:
        return connection.wait(conversation)
    except BaseException:
        if connection.info.transaction_status is TransactionStatus.ACTIVE:
            _end(connection)
        raise


def _end(connection: psycopg.Connection[Any]) -> None:
    """Cancel what runs and receive it to its end; what does not end in time, its connection is closed.

    Nothing is raised in the place of the interruption that passes, but another interruption.
    """
    try:
        connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)
        connection.wait(_receive(connection.pgconn, _Received()), timeout=ENDS_WITHIN_S)
    except Exception as exc:  # noqa: BLE001 - the interruption passes, whatever this is
        log.warning("statement.not_ended", error=str(exc).strip() or type(exc).__name__)
    finally:
        if connection.info.transaction_status is TransactionStatus.ACTIVE:
            connection.close()


def _parse(server: PGconn, statement: str) -> PQGen[list[PGresult]]:
    server.send_prepare(b"", statement.encode())
    results: list[PGresult] = yield from generators.execute(server)
    return results


def _execute(server: PGconn, statement: str, received: _Received) -> PQGen[None]:
    # It is sent within the generator, so that nothing can come between the sending and the waiting.
    server.send_query_params(statement.encode(), None)
    server.set_single_row_mode()
    yield from generators.send(server)
    yield from _receive(server, received)


def _receive(server: PGconn, received: _Received) -> PQGen[None]:
    """What there is still to come, as far as the end or a COPY, which has none without us."""
    while (result := (yield from generators.fetch(server))) is not None:
        match result.status:
            case ExecStatus.SINGLE_TUPLE:
                received.rows += result.ntuples
                received.first = received.first or result
            case ExecStatus.FATAL_ERROR:
                received.failed = result
            case ExecStatus.COPY_IN | ExecStatus.COPY_OUT | ExecStatus.COPY_BOTH:
                received.copying = True
                return
            case _:
                received.end = result


def _error(failed: PGresult) -> psycopg.Error:
    # The client library's own, of a lost connection, have no code.
    if failed.error_field(DiagnosticField.SQLSTATE) is None:
        return psycopg.OperationalError(failed.get_error_message("utf-8"))
    return errors.error_from_result(failed, encoding="utf-8")


def _word(result: PGresult) -> str:
    tag = (result.command_status or b"").decode()
    return tag.rstrip(" 0123456789")


def _number(connection: psycopg.Connection[Any], result: PGresult) -> tuple[int | None, str]:
    """The first column as a whole number; else what to call it, which never quotes it."""
    if not result.nfields:
        return None, "a row without columns"
    known = connection.adapters.types.get(result.ftype(0))
    kind = known.name if known else "a type of its own"
    value = result.get_value(0, 0)
    if value is None:
        return None, f"NULL ({kind})"
    if result.ftype(0) == _VOID:
        return None, "void"
    if kind in _INTEGERS:
        return int(value), ""
    if kind == "numeric":
        number = Decimal(value.decode())
        if number.is_finite() and number == number.to_integral_value():
            return int(number), ""
        return None, f"{number} (numeric)"
    return None, f"a value of type {kind}" if known else f"a value of {kind}"
