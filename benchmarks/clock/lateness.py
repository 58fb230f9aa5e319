"""How late a slot's run is there, when 2,000 entries are spread over five minutes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta

from benchmarks.clock.bench import Bench, Clock, Inserted, just_before, seconds
from benchmarks.parts import Part
from benchmarks.report import at_most
from benchmarks.timing import Deadline, percentile
from schedules.slots import latest_slot

BOUND = at_most(
    "lateness.p99", 150, "ms", "a run is inserted after it was due, 2,000 entries spread over five minutes"
)
ENTRIES = 2000
CRON = "*/5 * * * *"
INTERVAL = timedelta(minutes=5)
# The longest that the interval allows: an entry is due anywhere between two slots.
JITTER = "299s"
# A leader that has just begun catches up first.
SETTLE = timedelta(seconds=0.5)
GRACE_S = 0.5
PATIENCE_S = 15.0
# Of fewer a 99th percentile says nothing.
LEAST_RUNS = 100

Key = tuple[str, datetime]


def measure(bench: Bench, deadline: Deadline) -> None:
    """Every entry that is due in the window, from the moment that its slot and jitter say to its commit."""
    report = bench.report
    clock = bench.clock("lateness", ENTRIES, CRON, jitter=JITTER)
    _spread(clock)
    _, leads = clock.lead()
    begin = leads + SETTLE
    window_s = min(INTERVAL.total_seconds(), deadline.left() - SETTLE.total_seconds() - 2 * GRACE_S)
    if window_s <= 0:
        return
    end = begin + timedelta(seconds=window_s)
    due = _due(clock, begin, end)
    time.sleep(max(0.0, seconds(end, clock.now())) + GRACE_S)
    runs = _runs_of(clock, due)
    clock.crew.close()
    late = [1000 * seconds(runs[key].committed_at, moment) for key, moment in due.items()]
    created = [1000 * seconds(runs[key].created_at, moment) for key, moment in due.items()]
    if not late:
        return
    report.add(
        "lateness.entries", len(late), "runs", note=f"due within {window_s:.0f} s, all of them inserted"
    )
    report.add("lateness.p50", percentile(late, 0.5), "ms", note="until the commit")
    report.add(BOUND.metric, percentile(late, 0.99), "ms", note="until the commit")
    report.add("lateness.worst", max(late), "ms")
    report.add("lateness.created.p99", percentile(created, 0.99), "ms", note="until the row's created_at")
    report.hold(
        BOUND,
        percentile(late, 0.99),
        floor=bench.stage.floor.worst_ms,
        doubt=f"{len(late)} runs of {ENTRIES}" if bench.quick else None,
        void=f"{len(late)} runs only, {LEAST_RUNS} are needed" if len(late) < LEAST_RUNS else None,
    )


def _spread(clock: Clock) -> None:
    """As if a leader had gone just now: what was due before is done, what is due from now on is not."""
    now = clock.now()
    slot = latest_slot(CRON, "UTC", now)
    clock.set_back(just_before(slot))
    clock.advance({name: slot for name, entry in clock.entries.items() if entry.due_at(slot) <= now})


def _due(clock: Clock, begin: datetime, end: datetime) -> dict[Key, datetime]:
    """What is due in the window, by the ledger's key: when."""
    slots = [latest_slot(CRON, "UTC", begin) + number * INTERVAL for number in (-1, 0, 1, 2)]
    moments = {(entry.label, slot): entry.due_at(slot) for entry in clock.entries.values() for slot in slots}
    return {key: moment for key, moment in moments.items() if begin <= moment < end}


def _runs_of(clock: Clock, due: Mapping[Key, datetime]) -> dict[Key, Inserted]:
    give_up = time.monotonic() + PATIENCE_S
    while True:
        runs = {(run.entry, run.slot): run for run in clock.inserted()}
        missing = due.keys() - runs.keys()
        if not missing:
            return runs
        if time.monotonic() > give_up:
            raise ValueError(f"{len(missing)} of {len(due)} slots were not inserted: {sorted(missing)[:3]}")
        time.sleep(GRACE_S)


PART = Part(
    name="lateness",
    title=f"{ENTRIES:,} entries spread over five minutes",
    share=6,
    bounds=(BOUND,),
    measure=measure,
)
