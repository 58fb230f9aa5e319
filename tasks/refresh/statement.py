"""The transaction of a refresh: the statement, and everything that must be true if and only if it was committed.

The requests that it fulfils are deleted before REFRESH takes its snapshot; the view's state, the requests of
the views that follow it, what is to be told afterwards and the end of the run are written after it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import stamina
from psycopg import errors, sql

from fleet import ledger
from fleet.ledger import Run, State
from fleet.names import RelationName
from fleet.postgres.catalog.server import Server
from fleet.postgres.queries import load
from tasks.refresh import announce, requests
from tasks.refresh import view as views
from tasks.refresh.requests import Parameters
from tasks.refresh.strategy import PLAIN_LIMIT, How, Strategy, choose, too_slow
from tasks.refresh.view import SourceReading, Subject

_sql = load("tasks.refresh", "sql/execute.sql")

# Tries within one attempt when only the lock was not free: jittered, a few seconds in all.
LOCK_TRIES = 5
# A refresh that takes less than this is over before anybody could watch it.
WATCHED_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Work:
    """One refresh, decided: of what, why, and what it fulfils and sets off.

    `reading`: the sources' counters, read before. `stale`: upstream views that could not be brought up.
    `limits`: the parameters of the requests behind the run, None where it is for everything.
    `followers`: the views that want to be refreshed after this one has changed.
    """

    run: Run
    subject: Subject
    server: Server
    reason: str
    reading: SourceReading
    stale: tuple[str, ...]
    fulfils: requests.Within
    limits: Parameters
    followers: tuple[RelationName, ...]


def refresh(connection: psycopg.Connection[Any], database: str, work: Work) -> Mapping[str, Any]:
    """Refresh the view as its strategy says; returns what the ledger keeps of it.

    Raises:
        PermanentError: only refreshable by blocking its readers for too long.
        psycopg.Error: as the server said it.
    """
    return _execute(connection, database, work, choose(work.subject))


def _execute(
    connection: psycopg.Connection[Any], database: str, work: Work, strategy: Strategy
) -> Mapping[str, Any]:
    subject = work.subject
    expected = subject.state.duration.total_seconds() if subject.state.duration else None
    if expected is None or expected >= WATCHED_S:
        ledger.show_progress(
            connection,
            work.run.id,
            phase="refreshing",
            view=str(subject.name),
            strategy=strategy.how.value,
            reason=work.reason,
            expected_s=expected,
        )
    try:
        for attempt in stamina.retry_context(
            on=errors.LockNotAvailable, attempts=LOCK_TRIES, timeout=None, wait_initial=0.1, wait_max=1.0
        ):
            with attempt:
                return _transaction(connection, database, work, strategy)
    except errors.QueryCanceled as exc:
        if strategy.how is not How.PLAIN_BOUNDED:
            raise
        views.record_too_slow(connection, subject.name, PLAIN_LIMIT + timedelta(milliseconds=1))
        error = too_slow(subject)
        if subject.found.unique_index is None:
            raise error from exc
        # It could be refreshed concurrently after all; the prediction was wrong.
        calm = replace(
            subject, state=replace(subject.state, plain_duration=PLAIN_LIMIT * 2, rows_changed=None)
        )
        return _execute(connection, database, replace(work, subject=calm), choose(calm))
    raise AssertionError("stamina returns or raises")  # pragma: no cover


def _transaction(
    connection: psycopg.Connection[Any], database: str, work: Work, strategy: Strategy
) -> Mapping[str, Any]:
    subject, found = work.subject, work.subject.found
    with connection.transaction():
        # SET takes no parameters. The clock is read before REFRESH takes its snapshot.
        row = connection.execute(
            _sql.begin_refresh.sql,
            {
                "lock_timeout": _ms(strategy.lock_timeout),
                "statement_timeout": _ms(strategy.statement_timeout),
                "timezone": subject.declared.timezone,
                "work_mem": subject.declared.work_mem,
                "relation": found.oid,
            },
        ).fetchone()
        assert row is not None  # SELECT without FROM
        snapshot_at: datetime = row[0]
        counted_before: int = row[1]
        taken = requests.take(connection, subject.name, work.fulfils)
        began = time.monotonic()
        connection.execute(
            sql.SQL("REFRESH MATERIALIZED VIEW {}{}").format(
                sql.SQL("CONCURRENTLY ") if strategy.concurrently else sql.SQL(""),
                found.name.identifier(),
            )
        )
        duration = timedelta(seconds=time.monotonic() - began)
        rows_changed = views.rows_written(connection, found.oid, work.server) - counted_before
        plain = not strategy.concurrently
        result: dict[str, Any] = {
            "strategy": strategy.how.value,
            "reason": work.reason,
            "duration_s": round(duration.total_seconds(), 4),
            "rows_changed": rows_changed,
            "snapshot_at": snapshot_at.isoformat(),
        }
        if taken.requests:
            result["requests"] = taken.requests
        if work.stale:
            result["upstream_stale"] = list(work.stale)
        views.record_refresh(
            connection,
            subject,
            server=work.server,
            snapshot_at=snapshot_at,
            run_id=work.run.id,
            strategy=strategy.how.value,
            duration=duration,
            plain=plain,
            rows_changed=rows_changed,
            row_estimate=rows_changed if plain else found.row_estimate,
            reading=work.reading,
            upstream_stale=work.stale,
        )
        if work.followers and rows_changed:
            requests.request_downstream(connection, work.followers, source=found.oid)
        announce.prepare(
            connection,
            database,
            subject.declared,
            run_id=work.run.id,
            snapshot_at=snapshot_at,
            parameters=requests.united(work.limits, taken.parameters if taken.requests else []),
        )
        ledger.finish(connection, work.run.id, State.SUCCEEDED, result=result, wakes=str(subject.name))
    return result


def _ms(value: timedelta) -> str:
    return f"{max(1, int(value.total_seconds() * 1000))}ms"
