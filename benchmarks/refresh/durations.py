"""How long each view of the sample systems takes, against what the documents promise their readers."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from benchmarks.kept import Kept, declare, flush_counters
from benchmarks.parts import Part
from benchmarks.refresh.bench import Bench
from benchmarks.refresh.writes import touch_all
from benchmarks.report import Bound, at_most
from benchmarks.timing import Deadline, Stopwatch
from examples import lending, trading

LENDING = at_most("durations.lending", 30, "s", "every lending view refreshes in under 30 s at scale 1 (000)")
TRADING: dict[str, Bound] = {
    view: at_most(
        f"durations.{view.partition('.mv_')[2]}", limit, "s", f"{view} within {limit:g} s at scale 1 (003)"
    )
    for view, limit in (
        ("monitoring.mv_trading_summary_24h", 0.5),
        ("monitoring.mv_user_trading_stats", 2.0),
        ("monitoring.mv_order_flow_metrics", 0.3),
    )
}
ROUNDS = 5
# Their bounds speak of scale 1: in quick mode there is nothing to judge, only to show.
QUICK_ROUNDS = 2
# Reported beside scale 1, without a bound.
LARGE_SCALE = 5.0

Write = Callable[[psycopg.Connection[Any], int], None]


def measure(bench: Bench, deadline: Deadline) -> None:
    """Ticks of every view after something under each has changed, one after the other, in this process."""
    floor_s = bench.stage.floor.worst_ms / 1000
    taken = _take(bench, bench.lending.kept, lending.VIEWS, touch_all, deadline.within(deadline.left() / 2))
    medians = _report(bench, taken, f"scale {bench.scale:g}")
    rounds = min(map(len, taken.values()))
    bench.report.hold(
        LENDING, max(medians.values(), default=None), floor=floor_s, rounds=rounds, void=bench.scale_doubt
    )
    taken = _take(bench, bench.trading, trading.VIEWS, _touch_trading, deadline)
    medians = _report(bench, taken, f"scale {bench.scale:g}")
    for view, bound in TRADING.items():
        bench.report.hold(
            bound, medians.get(view), floor=floor_s, rounds=len(taken[view]), void=bench.scale_doubt
        )
    if not bench.quick:
        _measure_large(bench)


def _measure_large(bench: Bench) -> None:
    place = bench.stage.place("lending_large")
    with Stopwatch() as watch, place.owner() as connection:
        lending.install(connection, scale=LARGE_SCALE, populate=True)
    bench.say(f"lending at scale {LARGE_SCALE:g} loaded in {watch.seconds:.0f} s")
    kept = bench.kept(place)
    bench.stage.checkpoint()
    taken = _take(bench, kept, lending.VIEWS, touch_all, Deadline())
    _report(bench, taken, f"scale {LARGE_SCALE:g}", suffix=f"_at_scale_{LARGE_SCALE:g}")


def _take(
    bench: Bench, kept: Kept, views: Sequence[str], write: Write, deadline: Deadline
) -> dict[str, list[float]]:
    database = declare(kept.place, views)
    taken: dict[str, list[float]] = {view: [] for view in views}
    # The writes of other parts must not be repeated: their numbers begin elsewhere.
    numbers = iter(range(1000, 2000))
    longest = 0.0
    with kept.place.owner() as application, bench.stage.in_process([database]) as tasks:
        while len(taken[views[-1]]) < (QUICK_ROUNDS if bench.quick else ROUNDS) and deadline.allows(longest):
            with Stopwatch() as watch:
                write(application, next(numbers))
                kept.a_minute_later()
                slot = kept.slot()
                for view in views:
                    run = kept.tick(view, slot)
                    with Stopwatch() as own:
                        ended = tasks["upkeep.refresh.view"](database=database.name, run=run)
                    if ended["state"] != "succeeded":
                        raise ValueError(f"{view} was not refreshed: {ended}")
                    taken[view].append(own.seconds)
            longest = watch.seconds
    return taken


def _report(bench: Bench, taken: dict[str, list[float]], note: str, *, suffix: str = "") -> dict[str, float]:
    medians = {}
    for view, seconds in taken.items():
        middle = bench.report.add_median(
            f"durations.{view.partition('.mv_')[2]}{suffix}", seconds, "s", note=note
        )
        if middle is not None:
            medians[view] = statistics.median(seconds)
    return medians


def _touch_trading(connection: psycopg.Connection[Any], number: int) -> None:
    trading.touch_all(connection, random.Random(number))
    flush_counters(connection)


PART = Part(
    name="durations",
    title="each view of the sample systems",
    share=6,
    bounds=(LENDING, *TRADING.values()),
    measure=measure,
)
