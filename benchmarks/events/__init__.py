"""Requests after writes: what they cost those who write, and how soon and how often the view follows.

Every part is a module here: the bounds that it answers for, and a function that measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.events import burst, call, continuous, dispatch, fresh, sql
from benchmarks.events.bench import Bench
from benchmarks.parts import QUICK_S, by_name, measure
from benchmarks.report import Report
from benchmarks.stage import Stage
from benchmarks.timing import Deadline

_PARTS = by_name(call.PART, sql.PART, fresh.PART, continuous.PART, dispatch.PART, burst.PART)
PARTS: Sequence[str] = tuple(_PARTS)


def run(*, quick: bool, parts: Sequence[str], say: Callable[[str], None]) -> Report:
    """Measure the parts asked for, in their own order."""
    deadline = Deadline.after(QUICK_S if quick else None)
    with Stage(say) as stage:
        report = stage.report("events", quick=quick)
        with Bench(stage=stage, report=report, quick=quick, say=say) as bench:
            measure([part for name, part in _PARTS.items() if name in parts], bench, deadline)
    return report
