"""Hits and misses per pattern of keys, counted in the process and written once a second at most.

Redis has a hash per pattern and day, which lives for eight days, and a sorted set of the patterns: nobody needs SCAN
to read them.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from upkeep_client.cache.layout import Layout
from upkeep_client.cache.steps import Command

FLUSH_S = 1.0
KEPT_S = 8 * 86_400
MAX_PATTERNS = 1000
"""More than this are no patterns, but keys; the rest is counted together."""
OTHER = "(other)"
FIELDS = ("hits", "misses", "errors")


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternStats:
    """What became of the lookups of one pattern."""

    hits: int
    misses: int
    errors: int
    """Lookups that Redis did not answer; no part of the ratio."""

    @property
    def ratio(self) -> float | None:
        """Hits of all lookups that Redis answered; None if there was none."""
        total = self.hits + self.misses
        return self.hits / total if total else None


class Counters:
    """What this process has counted and not written yet."""

    def __init__(self, layout: Layout, flush: Callable[[], object] | None = None) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._patterns: set[str] = set()
        self._due = time.monotonic() + FLUSH_S
        self.at_exit = flush
        _living.add(self)

    def count(self, pattern: str, field: str) -> None:
        """Count one lookup."""
        with self._lock:
            if pattern not in self._patterns:
                if len(self._patterns) < MAX_PATTERNS:
                    self._patterns.add(pattern)
                else:
                    pattern = OTHER
            place = (pattern, field)
            self._counts[place] = self._counts.get(place, 0) + 1

    def take(self, *, now: bool = False) -> list[Command]:
        """Return what is to be written, if it is time for that; it counts as written."""
        if not now and time.monotonic() < self._due:
            return []
        with self._lock:
            counts, self._counts = self._counts, {}
            self._due = time.monotonic() + FLUSH_S
        if not counts:
            return []
        today = datetime.now(UTC)
        commands: list[Command] = []
        for (pattern, field), number in counts.items():
            commands.append(("HINCRBY", self._layout.stats(pattern, _day(today)), field, number))
        for pattern in dict.fromkeys(pattern for pattern, _ in counts):
            commands.append(("EXPIRE", self._layout.stats(pattern, _day(today)), KEPT_S))
            commands.append(("ZADD", self._layout.patterns, int(today.timestamp()), pattern))
        forgotten = int(today.timestamp()) - KEPT_S
        commands.append(("ZREMRANGEBYSCORE", self._layout.patterns, "-inf", forgotten))
        return commands

    def forget(self) -> None:
        """Begin anew, in the child of a fork: what was counted is the parent's."""
        self._lock = threading.Lock()
        self._counts = {}


def patterns_command(layout: Layout) -> Command:
    """All patterns that had a lookup in the last eight days."""
    return ("ZRANGE", layout.patterns, 0, -1)


def stats_commands(layout: Layout, patterns: list[str], days: int) -> list[Command]:
    """Today's figures and those of the days before, a pattern after the other."""
    today = datetime.now(UTC)
    return [
        ("HMGET", layout.stats(pattern, _day(today - timedelta(days=back))), *FIELDS)
        for pattern in patterns
        for back in range(days)
    ]


def collect(patterns: list[str], days: int, replies: list[list[Any]]) -> dict[str, PatternStats]:
    """Add up what `stats_commands` were answered."""
    found = {}
    for at, pattern in enumerate(patterns):
        rows = replies[at * days : (at + 1) * days]
        hits, misses, errors = (sum(int(row[field] or 0) for row in rows) for field in range(3))
        if hits or misses or errors:
            found[pattern] = PatternStats(hits=hits, misses=misses, errors=errors)
    return found


def _day(moment: datetime) -> str:
    return moment.date().isoformat()


_living: weakref.WeakSet[Counters] = weakref.WeakSet()


def _after_fork() -> None:
    for counters in list(_living):
        counters.forget()


def _at_exit() -> None:
    for counters in list(_living):
        if counters.at_exit is not None:
            counters.at_exit()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
