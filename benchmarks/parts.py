"""The parts of a benchmark: each answers for some bounds, gets its share of the time, and may break alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from benchmarks.report import Bound, Report
from benchmarks.timing import Deadline

# What --quick may take, less than the promised 50 s by what importing, stopping and reporting take.
QUICK_S = 42.0


class Bench(Protocol):
    """What the parts of every benchmark share."""

    @property
    def report(self) -> Report: ...  # noqa: D102
    @property
    def quick(self) -> bool: ...  # noqa: D102
    @property
    def say(self) -> Callable[[str], None]: ...  # noqa: D102


B = TypeVar("B", bound=Bench)


@dataclass(frozen=True, kw_only=True)
class Part(Generic[B]):
    """One part of a benchmark; `share` is its weight in dividing the time of quick mode."""

    name: str
    title: str
    share: float
    bounds: tuple[Bound, ...]
    measure: Callable[[B, Deadline], None]


def by_name(*parts: Part[B]) -> Mapping[str, Part[B]]:
    """Parts in the order in which they are measured."""
    return {part.name: part for part in parts}


def measure(parts: Sequence[Part[B]], bench: B, deadline: Deadline) -> None:
    """Measure parts, each in its share of the time that is left: one that ends early leaves the others more."""
    for number, part in enumerate(parts):
        shares = sum(each.share for each in parts[number:])
        _measure(part, bench, deadline.within(max(0.0, deadline.left()) * part.share / shares))


def _measure(part: Part[B], bench: B, deadline: Deadline) -> None:
    report = bench.report
    bench.say(f"{part.name}: {part.title}" + (f" ({deadline.left():.0f} s)" if bench.quick else ""))
    began = time.monotonic()
    try:
        part.measure(bench, deadline)
    except Exception as error:  # noqa: BLE001 - many minutes of other parts must not be lost with one
        bench.say(f"{part.name} broke: {error}")
        report.errors[part.name] = f"{type(error).__name__}: {error}"
    for bound in part.bounds:
        if bound.metric not in report.bounds:
            report.hold(bound, None, void="it broke" if part.name in report.errors else "no time was left")
    report.seconds[part.name] = time.monotonic() - began
