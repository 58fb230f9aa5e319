"""The refresh against the bare statement, against 000's own way, and against what readers and memory bear.

Every part is a module here: the bounds that it answers for, and a function that measures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from benchmarks.refresh import durations, memory, overhead, skip, tiers, waits
from benchmarks.refresh.bench import Bench, Part
from benchmarks.report import Report
from benchmarks.stage import Stage
from benchmarks.timing import Deadline

_PARTS: dict[str, Part] = {
    part.name: part
    for part in (overhead.PART, skip.PART, memory.PART, tiers.PART, durations.PART, waits.PART)
}
PARTS: Sequence[str] = tuple(_PARTS)

# What --quick may take, less than the promised 50 s by what importing, stopping and reporting take.
QUICK_S = 42.0


def run(*, quick: bool, parts: Sequence[str], say: Callable[[str], None]) -> Report:
    """Measure the parts asked for, in their own order.

    In quick mode each part gets its share of the time that is left: one that ends early leaves the others
    more.
    """
    deadline = Deadline.after(QUICK_S if quick else None)
    chosen = [part for name, part in _PARTS.items() if name in parts]
    with Stage(say) as stage:
        report = Report(benchmark="refresh", quick=quick, machine=stage.machine())
        report.add("floor.select", stage.floor.select_ms, "ms", note="one round trip")
        report.add("floor.commit", stage.floor.commit_ms, "ms", note="one durable commit")
        bench = Bench(stage=stage, report=report, quick=quick, say=say)
        with bench:
            for number, part in enumerate(chosen):
                shares = sum(each.share for each in chosen[number:])
                _measure(part, bench, deadline.within(max(0.0, deadline.left()) * part.share / shares))
    return report


def _measure(part: Part, bench: Bench, deadline: Deadline) -> None:
    report = bench.report
    bench.say(f"{part.name}: {part.title}" + (f" ({deadline.left():.0f} s)" if bench.quick else ""))
    began = time.monotonic()
    try:
        part.measure(bench, deadline)
    except Exception as error:  # noqa: BLE001 - fourteen minutes of other parts must not be lost with one
        bench.say(f"{part.name} broke: {error}")
        report.errors[part.name] = f"{type(error).__name__}: {error}"
    for bound in part.bounds:
        if bound.metric not in report.bounds:
            report.hold(bound, None, void="it broke" if part.name in report.errors else "no time was left")
    report.seconds[part.name] = time.monotonic() - began
