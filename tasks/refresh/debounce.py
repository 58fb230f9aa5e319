"""Marks: what applications have asked for in Redis since the last dispatch, and when that is due.

A mark is a view's first and last request on Redis's clock, and a sequence number that moves with each: it is
cleared only if it has not moved since it was read. The script that sets marks is the client's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from importlib.resources import files
from typing import Any

from redis import Redis

from upkeep_client import marking

# "All of them": a request that was not limited to some.
EVERYTHING = marking.ALL.encode()

# The ledger keeps them, and every look at the run reads them; the client sends no more in one call.
MAX_BYTES = 1024 * 1024

_CLEAR = files("tasks.refresh").joinpath("lua", "clear.lua").read_text(encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The requests for one view, named as its writers did. Times in milliseconds of Redis's clock."""

    view: str
    value: bytes
    first_ms: int
    last_ms: int


@dataclass(frozen=True, kw_only=True)
class Marks:
    """The marks of a database at one moment of Redis's clock."""

    clock_ms: int
    marks: tuple[Mark, ...]


def due_in(first: float, last: float, now: float, *, delay: timedelta, max_wait: timedelta) -> float:
    """Seconds until requests are due, 0 or less where they are; all times in seconds of one clock.

    A time that is ahead of the clock was noted before that was set back: then nobody knows how long ago it was,
    and it is due.
    """
    if first > now or last > now:
        return 0.0
    return min(last + delay.total_seconds(), first + max_wait.total_seconds()) - now


def read_marks(redis: Redis, database: str) -> Marks:
    """Every mark of a database, in one round trip."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(marking.marks(database))
        pipeline.time()
        found, (seconds, microseconds) = pipeline.execute()
    marks = (_mark(view, value) for view, value in found.items())
    return Marks(
        clock_ms=int(seconds) * 1000 + int(microseconds) // 1000,
        marks=tuple(sorted((mark for mark in marks if mark is not None), key=lambda mark: mark.view)),
    )


def read_limits(redis: Redis, database: str, views: Iterable[str]) -> list[dict[str, Any] | None]:
    """What the requests for some views were limited to: keys, parameters; a part that is not there is not limited.

    None where the mark is gone: another dispatcher has made a run of it. Its limits went with it, and without
    them it would look like a request for everything.
    """
    asked = list(views)
    with redis.pipeline(transaction=True) as pipeline:
        for view in asked:
            pipeline.hexists(marking.marks(database), view)
            pipeline.smembers(marking.keys(database, view))
            pipeline.smembers(marking.parameters(database, view))
        answers = pipeline.execute()
    found: list[dict[str, Any] | None] = []
    for marked, keys, parameters in zip(answers[::3], answers[1::3], answers[2::3], strict=True):
        parts = {"keys": _limit(keys), "parameters": _limit(parameters)}
        limits = {name: part for name, part in parts.items() if part is not None}
        found.append(limits if marked else None)
    return found


def clear(redis: Redis, database: str, marks: Iterable[Mark]) -> int:
    """Clear the marks that have not moved since they were read; returns how many."""
    arguments = [part for mark in marks for part in (mark.view, mark.value)]
    return int(redis.eval(_CLEAR, 0, database, *arguments)) if arguments else 0


def marked_databases(redis: Redis) -> set[str]:
    """The names of databases that somebody has ever made a request for."""
    return {name.decode(errors="replace") for name in redis.smembers(marking.MARKED)}  # type: ignore[union-attr]


def forget_database(redis: Redis, database: str) -> None:
    """Take the name of a database without marks out of the known ones."""
    redis.srem(marking.MARKED, database)


def _mark(view: bytes, value: bytes) -> Mark | None:
    try:
        _, first, last = value.split()
        return Mark(view=view.decode(), value=value, first_ms=int(first), last_ms=int(last))
    except ValueError:
        # Nothing of ours; a stranger's field must not stop the others.
        return None


def _limit(members: Iterable[bytes]) -> list[Any] | None:
    found = set(members)
    if not found or EVERYTHING in found or sum(map(len, found)) > MAX_BYTES:
        return None
    try:
        return [json.loads(member) for member in sorted(found)]
    except ValueError:
        return None
