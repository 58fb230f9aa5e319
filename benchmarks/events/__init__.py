"""Requests after writes: what they cost those who write, and how soon and how often the view follows.

Every part is a module here: the bounds that it answers for, and a function that measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.bench import measured
from benchmarks.events import burst, call, continuous, dispatch, fresh, sql
from benchmarks.events.bench import Bench
from benchmarks.parts import by_name
from benchmarks.report import Report

_PARTS = by_name(call.PART, sql.PART, fresh.PART, continuous.PART, dispatch.PART, burst.PART)
PARTS: Sequence[str] = tuple(_PARTS)


def run(*, quick: bool, parts: Sequence[str], say: Callable[[str], None]) -> Report:
    """Measure the parts asked for, in their own order."""
    chosen = [part for name, part in _PARTS.items() if name in parts]
    return measured("events", Bench, chosen, quick=quick, say=say)
