"""Rows from one table to another, in batches that keep nobody waiting for long: each is always in one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg import errors, sql

from fleet.errors import TransientError
from fleet.names import RelationName
from fleet.postgres.queries import load
from tasks import interruption
from tasks.partitions.archive import ARCHIVED_AT, BATCH

_sql = load("tasks.partitions", "sql/companions.sql")

FIRST, LEAST, MOST = 500, 50, 20_000
# Rows that somebody has locked are passed by, and looked for again after this.
PAUSE_S = 0.2
LONGEST = timedelta(minutes=1)
PASSED_BY = 50


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Which rows go from where to where, as part of which batch.

    `before`: called in each batch's transaction, with its rows locked and before they are deleted; raising ends it.
    `after`: called in each batch's transaction with the number of its rows.
    """

    source: RelationName
    target: RelationName
    columns: Sequence[str]
    """Without generated ones, which cannot be given."""
    condition: sql.Composable
    batch: UUID
    at: datetime
    budget: timedelta
    before: Callable[[], object] = lambda: None
    after: Callable[[int], object] = lambda rows: None


def transfer(connection: psycopg.Connection[Any], work: Transfer) -> int:
    """Move all the rows; returns how many.

    The first batch is small, and each next one as large as the time of the last one allows: an application that
    wants to change a row of a batch waits until the batch is over.

    Raises:
        TransientError: rows were locked by somebody all the time.
    """
    size, total, passed = FIRST, 0, 0
    while True:
        began = time.monotonic()
        try:
            moved = _batch(connection, work, size)
        except (errors.LockNotAvailable, errors.QueryCanceled, errors.DeadlockDetected) as exc:
            if interruption.behind(exc) is not None:
                raise
            passed += 1
            if passed > PASSED_BY:
                raise _locked(work) from exc
            size = max(LEAST, size // 4)
            time.sleep(PAUSE_S)
            continue
        total += moved
        if moved:
            passed = 0
        elif not _left(connection, work):
            return total
        else:
            passed += 1
            if passed > PASSED_BY:
                raise _locked(work)
            time.sleep(PAUSE_S)
            continue
        took = time.monotonic() - began
        aim = work.budget.total_seconds() / 2
        size = max(LEAST, min(MOST, int(size * min(2.0, aim / max(took, 0.001)))))


def _batch(connection: psycopg.Connection[Any], work: Transfer, size: int) -> int:
    with connection.transaction():
        _sql.bounds(connection, waits=_ms(work.budget), works=_ms(LONGEST))
        found = connection.execute(
            sql.SQL("SELECT ctid FROM ONLY {} WHERE {} LIMIT {} FOR UPDATE SKIP LOCKED").format(
                work.source.identifier(), work.condition, sql.Literal(size)
            )
        ).fetchall()
        if not found:
            return 0
        work.before()
        columns = sql.SQL(", ").join(sql.Identifier(each) for each in work.columns)
        moved = connection.execute(
            sql.SQL(
                "WITH gone AS (DELETE FROM ONLY {} WHERE ctid = ANY(%s::tid[]) RETURNING {})"
                " INSERT INTO {} ({}, {}, {}) SELECT {}, %s, %s FROM gone"
            ).format(
                work.source.identifier(),
                columns,
                work.target.identifier(),
                columns,
                sql.Identifier(ARCHIVED_AT),
                sql.Identifier(BATCH),
                columns,
            ),
            ([row[0] for row in found], work.at, work.batch),
        ).rowcount
        work.after(moved)
        return moved


def _left(connection: psycopg.Connection[Any], work: Transfer) -> bool:
    with connection.transaction(force_rollback=True):
        _sql.bounds(connection, waits=_ms(work.budget), works=_ms(LONGEST))
        row = connection.execute(
            sql.SQL("SELECT EXISTS (SELECT FROM ONLY {} WHERE {})").format(
                work.source.identifier(), work.condition
            )
        ).fetchone()
    assert row is not None  # an expression
    return bool(row[0])


def _locked(work: Transfer) -> TransientError:
    return TransientError(
        f"Rows of {work.source} that are to be moved to {work.target} were locked by somebody at every try",
        remedy="Upkeep tries again; SELECT * FROM pg_stat_activity WHERE xact_start < now() - interval '1 minute' "
        "shows long transactions",
    )


def _ms(value: timedelta) -> str:
    return f"{max(1, int(value.total_seconds() * 1000))}ms"


__all__ = ["Transfer", "transfer"]
