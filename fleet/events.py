"""What writers have asked for, as runs in the ledger: event runs, which take in what is asked for meanwhile.

One that is queued or waits stands for every request until it is claimed; `fleet.ledger` has the rest of a run's life.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from fleet.ledger import Run
from fleet.postgres.queries import load

_sql = load("fleet", "events.sql")


@dataclass(frozen=True, kw_only=True)
class NewEvent:
    """Requests of writers for one target, to be put into one run.

    `arguments`: what the requests are limited to, as lists; a part that is not there is not limited.
    `unhurried`: no run is wanted while another event run of the target is open.
    """

    task: str
    target: str
    queue: str
    arguments: Mapping[str, Any]
    max_attempts: int
    requested_by: str
    unhurried: bool = False


@dataclass(frozen=True, kw_only=True)
class TakenIn:
    """A queued run that stands for requests of writers; `created`: it was not there before."""

    id: int
    task: str
    target: str
    queue: str
    created: bool


def insert(connection: psycopg.Connection[Any], new: Iterable[NewEvent]) -> list[TakenIn]:
    """Put requests of writers into the queue in one statement: a run for each target, or into the one that is there.

    A run that waits takes them in silently; those that are queued now, new or not, are returned.
    """
    events = [asdict(each) for each in sorted(new, key=lambda each: (each.task, each.target))]
    with connection.cursor(row_factory=class_row(TakenIn)) as cursor:
        return cursor.execute(_sql.insert.sql, {"events": Jsonb(events)}).fetchall()


def join_waiting(connection: psycopg.Connection[Any], run: Run) -> tuple[int, datetime] | None:
    """Give what an event run was asked for to another one of its target that waits: its id, and until when it does."""
    values = {"id": run.id, "task": run.task, "target": run.target, "arguments": Jsonb(run.arguments)}
    row = connection.execute(_sql.join_waiting.sql, values).fetchone()
    return None if row is None else (int(row[0]), row[1])


def last(connection: psycopg.Connection[Any], *, task: str, target: str) -> Run | None:
    """The last event run of a target that was not skipped."""
    with connection.cursor(row_factory=class_row(Run)) as cursor:
        return cursor.execute(_sql.last.sql, {"task": task, "target": target}).fetchone()
