"""How long readers wait while their views are refreshed, in every way that Upkeep does it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks.kept import Kept
from benchmarks.parts import Part
from benchmarks.readers import Reader, Waits, reading
from benchmarks.refresh.bench import BRIEF, CHURNING, LONG, Bench
from benchmarks.refresh.writes import touch_all
from benchmarks.report import at_most
from benchmarks.stage import WorkerProcess
from benchmarks.timing import Deadline
from examples import trading
from fleet.ledger import Run, State

BOUND = at_most("waits.worst", 250, "ms", "no reader of a view waits longer while any refresh runs")
REFRESH_ALL = "upkeep.refresh.all"
FLOOR_S, REFRESH_S = 20.0, 60.0
QUICK_FLOOR_S, QUICK_REFRESH_S = 2.5, 6.0
# A reader who keeps a view open for longer than any other should wait behind a refresh that waits for them.
SLOW_READER_S = 1.0

# What made it too slow is forgotten before each round: it must be tried, and cancelled, every time.
_FORGET = "UPDATE upkeep.view_state SET plain_duration = NULL WHERE view = %s"


def measure(bench: Bench, deadline: Deadline) -> None:
    """A reader at 50 reads a second on every view, first without refreshes, then with one after the other."""
    report = bench.report
    systems, worker = bench.systems, bench.worker
    readers = [Reader(url=kept.place.owner_url, view=view) for kept, views in systems for view in views]
    url = bench.lending.kept.place.owner_url
    slow = [Reader(url=url, view=view, hold_s=SLOW_READER_S) for view in (BRIEF, CHURNING)]
    floor_s, refresh_s = (QUICK_FLOOR_S, QUICK_REFRESH_S) if bench.quick else (FLOOR_S, REFRESH_S)
    with reading([*readers, *slow]) as floor:
        time.sleep(min(floor_s, max(1.0, deadline.left() / 4)))
    with reading([*readers, *slow]) as waits:
        runs = _refresh_until(systems, worker, Deadline.after(min(refresh_s, max(1.0, deadline.left() - 1))))
    _report(bench, "waits.floor", floor, f"{len(readers)} readers, no refresh")
    _report(bench, "waits.refreshing", waits, _did(runs))
    for _, views in systems:
        for view in views:
            worst = waits.worst(view)
            if worst is not None:
                report.add(
                    f"waits.{view.partition('.')[2].removeprefix('mv_')}", worst, "ms", note="worst wait"
                )
    report.hold(BOUND, waits.worst(), floor=floor.worst())


def _refresh_until(
    systems: Sequence[tuple[Kept, Mapping[str, str]]], worker: WorkerProcess, deadline: Deadline
) -> list[Run]:
    """Write, ask for everything, wait for it; again until the time is over."""
    runs: list[Run] = []
    number = 3000  # other parts' writes have other numbers
    while deadline.left() > 0:
        number += 1
        before = {}
        for kept, _ in systems:
            _write(kept, number)
            kept.connection.execute(_FORGET, (LONG,))
            before[kept.place.name] = kept.newest_run()
            worker.send(REFRESH_ALL, database=kept.place.name)
        for kept, views in systems:
            runs += kept.wait_final(worker, before[kept.place.name], len(views))
    return runs


def _write(kept: Kept, number: int) -> None:
    with kept.place.owner() as application:
        if kept.place.name == "trading":
            trading.touch_all(application, random.Random(number))
        else:
            touch_all(application, number)


def _did(runs: Sequence[Run]) -> str:
    """In which ways there were refreshes: `12 concurrently; 3 plain, bounded; 2 given up`."""
    ways = Counter(
        str(run.result["strategy"]) if run.result else ("given up" if run.error else "no refresh")
        for run in runs
        if run.state != State.SKIPPED
    )
    return "; ".join(f"{count} {way}" for way, count in ways.most_common())


def _report(bench: Bench, name: str, waits: Waits, note: str) -> None:
    worst, usual = waits.worst(), waits.share(0.99)
    if worst is not None and usual is not None:
        bench.report.add(f"{name}.worst", worst, "ms", rounds=len(waits.all), note=note)
        bench.report.add(f"{name}.p99", usual, "ms")


PART = Part(
    name="waits", title="readers while their views are refreshed", share=10, bounds=(BOUND,), measure=measure
)
