"""What a benchmark run says: figures, the bounds they are held to, and the machine they were taken on.

A bound is judged here and nowhere else, so that no benchmark can be kinder to itself than another. The
verdict is one of three: a figure that the machine's own noise floor or too few rounds make worthless is
inconclusive, neither kept nor missed.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import psutil

Verdict = bool | Literal["inconclusive"]

INCONCLUSIVE: Literal["inconclusive"] = "inconclusive"
# Where doing nothing costs more than a fifth of an absolute bound, the machine is measured and not the code.
FLOOR_SHARE = 1 / 5
# A median of fewer is an anecdote.
LEAST_ROUNDS = 5


class Direction(StrEnum):
    """On which side of its limit a figure must be."""

    AT_MOST = "at most"
    AT_LEAST = "at least"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A promise, as the issue states it: fixed before anything is measured."""

    metric: str
    direction: Direction
    limit: float
    unit: str
    promise: str

    def met_by(self, value: float) -> bool:
        """Whether a figure keeps the promise."""
        return value <= self.limit if self.direction is Direction.AT_MOST else value >= self.limit

    @property
    def text(self) -> str:
        """The promise's figure: `at most 10 ms`."""
        return f"{self.direction} {self.limit:g} {self.unit}"


def at_most(metric: str, limit: float, unit: str, promise: str) -> Bound:
    """A bound that the figure must not exceed."""
    return Bound(metric=metric, direction=Direction.AT_MOST, limit=limit, unit=unit, promise=promise)


def at_least(metric: str, limit: float, unit: str, promise: str) -> Bound:
    """A bound that the figure must reach."""
    return Bound(metric=metric, direction=Direction.AT_LEAST, limit=limit, unit=unit, promise=promise)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure; `rounds` says how many it is the median of, where it is one."""

    value: float | int | str | bool
    unit: str
    rounds: int | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the report prints it, without what is not known."""
        said = {"value": _rounded(self.value), "unit": self.unit, "rounds": self.rounds, "note": self.note}
        return {key: value for key, value in said.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A bound with its figure and the verdict; `why` explains anything but a plain yes."""

    bound: Bound
    value: float | None
    ok: Verdict
    floor: float | None = None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the report prints it."""
        said: dict[str, Any] = {
            "bound": self.bound.text,
            "value": None if self.value is None else _rounded(self.value),
            "ok": self.ok,
        }
        if self.floor is not None:
            said["floor"] = _rounded(self.floor)
        if self.why:
            said["why"] = self.why
        return said


def judge(
    bound: Bound,
    value: float | None,
    *,
    floor: float | None = None,
    rounds: int | None = None,
    doubt: str | None = None,
    void: str | None = None,
) -> Judged:
    """Hold a figure to its bound.

    `floor` (absolute bounds): what the same machine needs in the same run for next to nothing, in the
    bound's unit. `rounds`: how many measurements the figure is the median of. `doubt`: why a miss would say
    nothing, as where smaller data make it harder to keep; a bound that is kept nevertheless is kept.
    `void`: why neither would say anything.
    """

    def verdict(ok: Verdict, why: str | None = None) -> Judged:
        return Judged(bound=bound, value=value, ok=ok, floor=floor, why=why)

    if value is None:
        return verdict(INCONCLUSIVE, void or doubt or "not measured")
    if void is not None:
        return verdict(INCONCLUSIVE, void)
    if rounds is not None and rounds < LEAST_ROUNDS:
        return verdict(INCONCLUSIVE, f"{rounds} rounds only, {LEAST_ROUNDS} are needed")
    if floor is not None and floor > bound.limit * FLOOR_SHARE:
        return verdict(INCONCLUSIVE, f"the floor, {floor:.3g} {bound.unit}, exceeds a fifth of the bound")
    if bound.met_by(value):
        return verdict(True)
    return verdict(INCONCLUSIVE, doubt) if doubt else verdict(False, "missed")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the figures were taken: without it they mean nothing to anybody else."""

    cores: int
    memory_gib: float
    cpu: str
    python: str
    system: str
    load_average: float
    servers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Machine:
        """The machine, before the run adds its own load."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return cls(
            cores=usable or 1,
            memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
            cpu=_cpu_model(),
            python=platform.python_version(),
            system=f"{platform.system()} {platform.release()}",
            load_average=round(os.getloadavg()[0], 2),
        )

    def to_json(self) -> dict[str, Any]:
        """As the report prints it; the servers' versions stand beside the rest."""
        own = {
            k: getattr(self, k) for k in ("cores", "memory_gib", "cpu", "python", "system", "load_average")
        }
        return own | self.servers


@dataclass(kw_only=True)
class Report:
    """One run of one benchmark, filled as it goes."""

    benchmark: str
    quick: bool
    machine: Machine
    results: dict[str, Metric] = field(default_factory=dict)
    bounds: dict[str, Judged] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(
        self,
        metric: str,
        value: float | int | str | bool,
        unit: str,
        *,
        rounds: int | None = None,
        note: str | None = None,
    ) -> None:
        """Note a figure."""
        self.results[metric] = Metric(value=value, unit=unit, rounds=rounds, note=note)

    def add_median(
        self, metric: str, values: Sequence[float], unit: str, *, note: str | None = None
    ) -> float | None:
        """Note the median of some measurements and how many there were; None where there were none."""
        if not values:
            return None
        middle = statistics.median(values)
        self.add(metric, middle, unit, rounds=len(values), note=note)
        return middle

    def hold(
        self,
        bound: Bound,
        value: float | None,
        *,
        floor: float | None = None,
        rounds: int | None = None,
        doubt: str | None = None,
        void: str | None = None,
    ) -> Judged:
        """Judge a bound and note the verdict."""
        judged = judge(bound, value, floor=floor, rounds=rounds, doubt=doubt, void=void)
        self.bounds[bound.metric] = judged
        return judged

    @property
    def ok(self) -> Verdict:
        """False if a bound was missed or a part broke, inconclusive if any bound is."""
        verdicts = [judged.ok for judged in self.bounds.values()]
        if self.errors or False in verdicts:
            return False
        return INCONCLUSIVE if INCONCLUSIVE in verdicts else True

    @property
    def exit_code(self) -> int:
        """1 on a miss; a figure that says nothing fails nobody's build."""
        return 1 if self.ok is False else 0

    def to_json(self) -> dict[str, Any]:
        """The object that --json prints."""
        said: dict[str, Any] = {
            "benchmark": self.benchmark,
            "quick": self.quick,
            "results": {name: metric.to_json() for name, metric in self.results.items()},
            "bounds": {name: judged.to_json() for name, judged in self.bounds.items()},
            "ok": self.ok,
            "machine": self.machine.to_json(),
            "seconds": {name: round(seconds, 1) for name, seconds in self.seconds.items()},
        }
        return said | ({"errors": self.errors} if self.errors else {})


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _rounded(value: float | int | str | bool) -> float | int | str | bool:
    # Four digits: no benchmark here is more exact than that.
    return float(f"{value:.4g}") if isinstance(value, float) else value
