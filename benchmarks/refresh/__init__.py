"""The refresh against the bare statement, against 000's own way, and against what readers and memory bear.

Every part is a module here: the bounds that it answers for, and a function that measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.bench import measured
from benchmarks.parts import by_name
from benchmarks.refresh import durations, memory, overhead, skip, tiers, waits
from benchmarks.refresh.bench import Bench
from benchmarks.report import Report

_PARTS = by_name(overhead.PART, skip.PART, memory.PART, tiers.PART, durations.PART, waits.PART)
PARTS: Sequence[str] = tuple(_PARTS)


def run(*, quick: bool, parts: Sequence[str], say: Callable[[str], None]) -> Report:
    """Measure the parts asked for, in their own order."""
    chosen = [part for name, part in _PARTS.items() if name in parts]
    return measured("refresh", Bench, chosen, quick=quick, say=say)
