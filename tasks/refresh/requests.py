"""Requests that stand in the kept database: of writers in their own transactions, of triggers, of upstream refreshes.

A request is deleted by the transaction of a refresh that has seen its write, and by nothing else: it outlives
whatever Redis forgets, and a worker that is killed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import class_row, dict_row

from fleet.names import RelationName
from fleet.postgres.queries import load

_sql = load("tasks.refresh", "sql/requests.sql")

# What requests were limited to: the parameters of tags; None for no limit.
Parameters = list[Mapping[str, Any]] | None

# More would say nothing: then all of a tag's family goes.
MAX_PARAMETERS = 10_000
# A snapshot older than every transaction.
NOTHING_VISIBLE = "1:1:"


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """The requests for one view, named as their writers did; all times on the kept database's clock."""

    view: str
    first_at: datetime
    last_at: datetime
    clock: datetime


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a refresh saw of a view's requests before it began with the views above it.

    `sources`: the relations that were written, None where not every request names its own.
    """

    snapshot: str
    requests: int
    sources: frozenset[int] | None


@dataclass(frozen=True, kw_only=True)
class Within:
    """Which requests a refresh fulfils.

    `everything`: the view is built on no other managed view. `own`: the relations that it reads and none of those
    does. `snapshot`: the moment up to which those have been brought, None where they have not.
    """

    everything: bool
    own: frozenset[int]
    snapshot: str | None


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The requests that a refresh has fulfilled. `parameters`: what they were limited to, None for nothing."""

    requests: int
    parameters: Parameters


def read_waiting(connection: psycopg.Connection[Any]) -> list[Waiting]:
    """The views for which requests wait."""
    with connection.cursor(row_factory=class_row(Waiting)) as cursor:
        return cursor.execute(_sql.waiting_requests.sql, {}).fetchall()


def rename(connection: psycopg.Connection[Any], written: str, name: RelationName) -> None:
    """Give requests the canonical name of their view."""
    connection.execute(_sql.rename_requests.sql, {"written": written, "canonical": str(name)})


def drop(connection: psycopg.Connection[Any], view: str, *, older_than: timedelta) -> None:
    """Remove the old requests for a view that nobody manages."""
    connection.execute(_sql.drop_requests.sql, {"view": view, "older_than": older_than})


def see(connection: psycopg.Connection[Any], name: RelationName) -> Seen:
    """Look at a view's requests, before its upstream views are looked at."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_sql.seen_requests.sql, {"view": str(name)}).fetchone()
    assert row is not None  # an aggregate
    return Seen(
        snapshot=row["snapshot"],
        requests=row["requests"],
        sources=None if row["unnamed"] else frozenset(row["sources"]),
    )


def take(connection: psycopg.Connection[Any], name: RelationName, within: Within) -> Taken:
    """Delete the requests that this transaction's refresh fulfils; call it before REFRESH takes its snapshot."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(
            _sql.take_requests.sql,
            {
                "view": str(name),
                "everything": within.everything,
                "own": sorted(within.own),
                "snapshot": within.snapshot or NOTHING_VISIBLE,
            },
        ).fetchone()
    assert row is not None  # an aggregate
    limited = not row["unlimited"] and len(row["parameters"]) <= MAX_PARAMETERS
    return Taken(requests=row["requests"], parameters=row["parameters"] if limited else None)


def request_downstream(
    connection: psycopg.Connection[Any], views: Sequence[RelationName], *, source: int
) -> None:
    """Request the refresh of views that follow the one that has just been refreshed, in its transaction."""
    connection.execute(_sql.request_downstream.sql, {"views": [str(v) for v in views], "source": source})


def united(one: Parameters, other: Parameters) -> Parameters:
    """What two limits allow together."""
    if one is None or other is None:
        return None
    both = [*one, *(each for each in other if each not in one)]
    return both if len(both) <= MAX_PARAMETERS else None
