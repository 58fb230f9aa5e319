"""How things are timed: in turn, each round beginning with another one, until rounds or time are over.

A machine that is busy for ten seconds is then busy for all contenders, and the median forgets it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

# What a round may take longer than the longest one so far, when it is asked whether another one fits.
ROUND_MARGIN = 1.3


@dataclass(frozen=True)
class Deadline:
    """A moment on the monotonic clock; None is never."""

    at: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """So many seconds from now."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds until then, infinite without a deadline."""
        return float("inf") if self.at is None else self.at - time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Whether something that takes so long would still end in time."""
        return self.left() >= seconds

    def within(self, seconds: float) -> Deadline:
        """The earlier of this one and so many seconds from now; never, where this one is."""
        return self if self.at is None else Deadline(min(self.at, time.monotonic() + seconds))


@dataclass(frozen=True)
class Timings:
    """Seconds by contender, in the order of the rounds."""

    seconds: Mapping[str, list[float]]

    @property
    def rounds(self) -> int:
        """How many rounds every contender completed."""
        return min((len(values) for values in self.seconds.values()), default=0)

    def of(self, contender: str) -> list[float]:
        """One contender's seconds."""
        return self.seconds[contender][: self.rounds]

    def milliseconds(self, contender: str) -> list[float]:
        """One contender's milliseconds."""
        return [1000 * seconds for seconds in self.of(contender)]

    def ratio(self, slower: str, faster: str) -> float | None:
        """How many times faster `faster` is, by the medians."""
        if not self.rounds:
            return None
        return statistics.median(self.of(slower)) / statistics.median(self.of(faster))

    def differences(self, more: str, less: str) -> list[float]:
        """`more` minus `less`, round by round: what both of a round suffered from cancels out."""
        return [a - b for a, b in zip(self.of(more), self.of(less), strict=True)]


@dataclass
class Stopwatch:
    """Measures a block: `with Stopwatch() as watch: …; watch.seconds`."""

    seconds: float = 0.0
    _began: float = field(default=0.0, repr=False)

    def __enter__(self) -> Stopwatch:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began


def interleave(
    *groups: Mapping[str, Callable[[int], float]], rounds: int, deadline: Deadline, warm_up: int = 1
) -> Timings:
    """Let contenders run in turn, `rounds` times or as often as fits before the deadline.

    Each is called with the round's number and returns its seconds, so that it can prepare before it starts
    the watch. Groups keep their order in every round; within a group another contender begins each time.
    Warm-up rounds come first, have negative numbers, and are forgotten.
    """
    seconds: dict[str, list[float]] = {name: [] for group in groups for name in group}
    longest = 0.0
    for number in range(-warm_up, rounds):
        began = time.monotonic()
        if not deadline.allows(longest * ROUND_MARGIN):
            break
        for group in groups:
            names = list(group)
            turn = number % len(names)
            for name in (*names[turn:], *names[:turn]):
                taken = group[name](number)
                if number >= 0:
                    seconds[name].append(taken)
        # The first one is slower than all others will be.
        longest = time.monotonic() - began
    return Timings(seconds)


def median_of(measure: Callable[[], object], *, times: int) -> float:
    """The median seconds of something called several times: for floors."""
    taken = []
    for _ in range(times):
        with Stopwatch() as watch:
            measure()
        taken.append(watch.seconds)
    return statistics.median(taken)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed, one of them (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, int(share * len(ordered) + 0.5) - 1))]
