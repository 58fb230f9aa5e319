"""2,000 entries that share one slot: when the last of them is inserted and rung for, against stock beat."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import redis

from benchmarks.clock import peer
from benchmarks.clock.bench import QUEUE, Bench, Clock, just_before, seconds
from benchmarks.parts import Part
from benchmarks.report import at_most
from benchmarks.timing import ROUND_MARGIN, Deadline, Stopwatch
from schedules.slots import latest_slot, next_slot

BOUND = at_most("batch", 3, "s", "the last of 2,000 entries that share a slot is inserted after it")
ENTRIES = 2000
ROUNDS = 5
# Ours and the peer's slots take turns: neither has to share the machine with the other.
OURS, THEIRS = "*/2 * * * *", "1-59/2 * * * *"
THEIR_MINUTES = "1-59/2"
READY_S = 5.0
POLL_S = 0.005
PATIENCE_S = 50.0
# Stock beat may need longer on a busy machine, up to its own next slot; ours that begins meanwhile is not measured.
THEIR_PATIENCE_S = 110.0


@dataclass(frozen=True, kw_only=True)
class Round:
    """Seconds until the last run was committed, and until the last bell was in the broker, if that was waited for."""

    inserted: float
    rung: float | None


def measure(bench: Bench, deadline: Deadline) -> None:
    """Real slots, in turn with stock beat's; and a leader that begins with all of them due, which needs no waiting."""
    report = bench.report
    clock = bench.clock("batch", ENTRIES, OURS)
    if not bench.quick:
        _measure_slots(bench, clock)
    begun = _promotions(clock, deadline, rings=not bench.quick)
    clock.crew.close()
    middle = report.add_median(
        "batch.promotion", [r.inserted for r in begun], "s", note="all due at once, from scheduler.leads"
    )
    report.add_median(
        "batch.promotion.rung", [r.rung for r in begun if r.rung], "s", note="… to the last bell"
    )
    if bench.quick and middle is not None:
        report.add(
            "batch", middle, "s", rounds=len(begun), note="from the promotion: no real slot in quick mode"
        )
        report.hold(BOUND, middle, floor=bench.floor_s, rounds=len(begun), doubt="measured from a promotion")


def _measure_slots(bench: Bench, clock: Clock) -> None:
    report = bench.report
    crew, broker = bench.peer("stock", count=ENTRIES, minutes=THEIR_MINUTES)
    stock = crew.beat(f"--schedule={crew.folder / 'schedule'}", "-l", "WARNING")
    clock.set_back(clock.now())
    clock.lead()
    slots: list[Round] = []
    theirs: list[float] = []
    while len(slots) < ROUNDS or len(theirs) < ROUNDS:
        now = clock.now() + timedelta(seconds=READY_S)
        our_slot, their_slot = next_slot(OURS, "UTC", now), next_slot(THEIRS, "UTC", now)
        if our_slot < their_slot:
            slots.append(_slot(clock, our_slot))
            bench.say(f"batch: ours {slots[-1].inserted:.2f} s")
        else:
            broker.delete(peer.QUEUE)
            _sleep_until(their_slot)
            theirs.append(_filled(lambda: _length(broker), their_slot, THEIR_PATIENCE_S))
            bench.say(f"batch: stock beat {theirs[-1]:.2f} s")
    stock.kill()
    clock.crew.close()
    inserted = [each.inserted for each in slots]
    middle = report.add_median("batch", inserted, "s", note="until the last commit, real slots")
    report.add("batch.worst", max(inserted), "s", rounds=len(slots))
    rung = report.add_median(
        "batch.rung", [each.rung for each in slots if each.rung], "s", note="until the last bell was in Redis"
    )
    report.add_median("batch.stock", theirs, "s", note="stock beat, until the last message was in Redis")
    if rung is not None:
        report.add(
            "batch.stock.ratio", statistics.median(theirs) / rung, "times our last bell", rounds=ROUNDS
        )
    report.hold(BOUND, middle, floor=bench.floor_s, rounds=len(slots))


def _slot(clock: Clock, slot: datetime) -> Round:
    clock.broker.delete(QUEUE)
    _sleep_until(slot)
    rung = _filled(clock.rung, slot)
    return Round(inserted=seconds(_last_commit(clock, slot), slot), rung=rung)


def _promotions(clock: Clock, deadline: Deadline, *, rings: bool) -> list[Round]:
    """Set the schedule back while nobody leads, and measure from the moment at which somebody does.

    `rings`: wait for the last bell in every round; otherwise only in the first.
    """
    rounds: list[Round] = []
    longest = 0.0
    while len(rounds) < ROUNDS and deadline.allows(longest * ROUND_MARGIN):
        with Stopwatch() as watch:
            slot = latest_slot(OURS, "UTC", clock.now())
            clock.set_back(just_before(slot))
            beat, leads = clock.lead()
            _filled(lambda: _queued(clock), leads)
            # Where another slot began meanwhile, the first that is complete is the one that was waited for.
            slots = Counter(run.slot for run in clock.inserted() if run.state == "queued")
            complete = min(slot for slot, runs in slots.items() if runs == ENTRIES)
            inserted = seconds(_last_commit(clock, complete), leads)
        rung = _rung(clock, leads, deadline) if rings or not rounds else None
        beat.kill()
        rounds.append(Round(inserted=inserted, rung=rung))
        longest = watch.seconds
    return rounds


def _rung(clock: Clock, leads: datetime, deadline: Deadline) -> float | None:
    try:
        return _filled(clock.rung, leads, min(PATIENCE_S, deadline.left()))
    except TimeoutError:
        # A failure only where there was all the time in the world.
        if deadline.left() > 0:
            raise
        return None


def _queued(clock: Clock) -> int:
    """How many entries are in the queue with one and the same slot."""
    row = clock.connection.execute(
        "SELECT count(*) FROM upkeep.run WHERE state = 'queued' GROUP BY slot ORDER BY 1 DESC LIMIT 1"
    ).fetchone()
    return int(row[0]) if row else 0


def _filled(count: Callable[[], int], since: datetime, patience_s: float = PATIENCE_S) -> float:
    """Wait until there is one of something for every entry; returns the seconds since a moment."""
    give_up = time.monotonic() + patience_s
    while (found := count()) < ENTRIES:
        if time.monotonic() > give_up:
            raise TimeoutError(f"{found} of {ENTRIES} after {patience_s:.0f} s")
        time.sleep(POLL_S)
    return seconds(datetime.now(UTC), since)


def _last_commit(clock: Clock, slot: datetime) -> datetime:
    commits = [run.committed_at for run in clock.inserted() if run.slot == slot and run.state == "queued"]
    if len(commits) != ENTRIES:
        raise ValueError(f"{len(commits)} runs of the slot {slot:%H:%M} instead of {ENTRIES}")
    return max(commits)


def _length(broker: redis.Redis) -> int:
    return int(broker.llen(peer.QUEUE))


def _sleep_until(slot: datetime) -> None:
    time.sleep(max(0.0, seconds(slot, datetime.now(UTC))))


PART = Part(
    name="batch", title=f"{ENTRIES:,} entries that share a slot", share=7, bounds=(BOUND,), measure=measure
)
