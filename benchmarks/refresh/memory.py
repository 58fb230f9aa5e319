"""Whether a worker's child that refreshes for a long time keeps its size."""

from __future__ import annotations

import statistics
import time

import psutil

from benchmarks.kept import REFRESH_VIEW, Kept, configuration, expect
from benchmarks.parts import Part
from benchmarks.refresh.bench import Bench
from benchmarks.refresh.small import VIEW, install
from benchmarks.report import at_most
from benchmarks.timing import Deadline
from fleet.ledger import State

GROWTH = at_most("memory.growth", 5, "%", "a worker's resident memory does not grow over 1,000 refreshes")
# Growth that levels off is a warm-up that was too short; growth that goes on is a leak, however small.
TREND = at_most(
    "memory.trend", 1, "%", "… and shows no upward trend: the last third against the one before it"
)
WARM_UP = 100
REFRESHES = 1000
QUICK_REFRESHES = 200
POLL_S = 0.05
PATIENCE_S = 300.0


def measure(bench: Bench, deadline: Deadline) -> None:
    """An operator's refreshes of a 20-row view, one after the other, by a real worker with one child."""
    report = bench.report
    wanted = QUICK_REFRESHES if bench.quick else REFRESHES
    small = install(bench, "memory")
    config = configuration([(small.kept.place, {VIEW: "five_minutes"})], concurrency=1)
    with bench.stage.worker("memory", config, [small.kept.place], concurrency=1) as worker:
        for _ in range(WARM_UP + wanted):
            worker.send(REFRESH_VIEW, database=small.kept.place.name, view=VIEW)
        samples: dict[int, float] = {}
        child: psutil.Process | None = None
        began = time.monotonic()
        while not samples or max(samples) < WARM_UP + wanted:
            worker.check()
            ended = _ended(small.kept)
            if child is None and ended:
                child = psutil.Process(_child_pid(small.kept))
            if child is not None and ended >= WARM_UP:
                samples[ended] = child.memory_info().rss / 2**20
            if time.monotonic() - began > PATIENCE_S or (samples and not deadline.allows(0)):
                break
            time.sleep(POLL_S)
        runs = small.kept.wait_final(worker, 0, max(samples, default=0)) if samples else []
        expect((run for run in runs if run.final), [State.SUCCEEDED])
        if len({run.worker for run in runs if run.worker}) > 1:
            raise ValueError("the child was replaced while it was measured")
    done = max(samples, default=WARM_UP) - WARM_UP
    sizes = [samples[at] for at in sorted(samples)]
    if len(sizes) < 6 or done < wanted / 2:
        return
    third = len(sizes) // 3
    growth = 100 * (sizes[-1] / sizes[0] - 1)
    trend = 100 * (statistics.median(sizes[-third:]) / statistics.median(sizes[third : 2 * third]) - 1)
    report.add("memory.refreshes", done, "refreshes", note=f"after a warm-up of {WARM_UP}")
    report.add("memory.before", sizes[0], "MiB", note="resident, the pool's child")
    report.add("memory.after", sizes[-1], "MiB")
    report.add("memory.peak", max(sizes), "MiB")
    doubt = f"{done} refreshes, promised for {REFRESHES}" if done < REFRESHES else None
    for bound, value in ((GROWTH, growth), (TREND, trend)):
        report.add(bound.metric, value, "%")
        report.hold(bound, value, doubt=doubt)


def _ended(kept: Kept) -> int:
    row = kept.connection.execute("SELECT count(*) FROM upkeep.run WHERE finished_at IS NOT NULL").fetchone()
    return int(row[0]) if row else 0


def _child_pid(kept: Kept) -> int:
    """The ledger names who did it: host/pid."""
    row = kept.connection.execute("SELECT worker FROM upkeep.run WHERE worker IS NOT NULL LIMIT 1").fetchone()
    assert row is not None  # a run has ended
    return int(str(row[0]).rpartition("/")[2])


PART = Part(
    name="memory", title="a child's resident memory", share=9, bounds=(GROWTH, TREND), measure=measure
)
