"""Who leads after the leader's process is killed, and how soon, against RedBeat's lock in Redis."""

from __future__ import annotations

import random
import time
from datetime import datetime
from typing import Any

import redis

from benchmarks.clock.bench import IDLE_ENTRIES, LEADS, STANDS_BY, Bench, Clock, Pair, just_before, seconds
from benchmarks.clock.processes import Crew, Process
from benchmarks.parts import Part
from benchmarks.report import at_most
from benchmarks.timing import Deadline, interleave
from schedules.leader import STANDBY_S
from schedules.slots import latest_slot

BOUND = at_most("takeover", 3, "s", "the standby leads (could insert) after SIGKILL of the leader's process")
ROUNDS = 7
QUICK_ROUNDS = 5
PATIENCE_S = 30.0
POLL_S = 0.002

REDBEAT = ("-S", "redbeat.RedBeatScheduler", "-l", "INFO")
LOCK = "redbeat::lock"
ACQUIRED = "beat: Acquired lock"
ACQUIRING = "beat: Starting..."
# A lock of this life, kept alive and tried for as often as RedBeat's own rule of a fifth says.
TUNED_LOCK_S = 10
TUNED = {"redbeat_lock_timeout": TUNED_LOCK_S, "beat_max_loop_interval": TUNED_LOCK_S // 5}


def measure(bench: Bench, deadline: Deadline) -> None:
    """One kill after the other, each time with one standby; RedBeat's defaults are read off, not waited for."""
    report = bench.report
    crew, broker = bench.peer("redbeat", count=IDLE_ENTRIES)
    redbeat = crew.beat(*REDBEAT)
    clock, pair, phase = bench.idle_clock, bench.pair, random.Random(1)
    earliest = _lock_left(redbeat, broker)
    inserted: list[float] = []

    def ours(_: int) -> float:
        return _kill_ours(clock, pair, phase, inserted)

    contenders = {"ours": ours}
    if not bench.quick:
        tuned = _Tuned(*bench.peer("redbeat_tuned", TUNED, count=IDLE_ENTRIES), phase)
        contenders["tuned"] = lambda _: tuned.kill()
    timings = interleave(
        contenders, rounds=QUICK_ROUNDS if bench.quick else ROUNDS, deadline=deadline, warm_up=0
    )
    middle = report.add_median(
        "takeover", timings.of("ours"), "s", note="from SIGKILL to the standby's scheduler.leads"
    )
    report.add_median("takeover.inserted", inserted, "s", note="… until an overdue slot's run was committed")
    if middle is not None:
        report.add("takeover.worst", max(timings.of("ours")), "s", rounds=timings.rounds)
        report.add(
            "takeover.redbeat.earliest", earliest, "s",
            note="what was left of the life of its lock after the kill, with defaults; nobody waited for it",
        )  # fmt: skip
        report.add("takeover.redbeat.ratio", earliest / middle, "times ours")
    if not bench.quick:
        report.add_median(
            "takeover.redbeat_tuned", timings.of("tuned"), "s", note=f"a lock of {TUNED_LOCK_S} s, to the end"
        )
        ratio = timings.ratio("tuned", "ours")
        if ratio is not None:
            report.add("takeover.redbeat_tuned.ratio", ratio, "times ours", rounds=timings.rounds)
    report.hold(BOUND, middle, floor=bench.floor_s, rounds=timings.rounds)


def _kill_ours(clock: Clock, pair: Pair, phase: random.Random, inserted: list[float]) -> float:
    # Anywhere between two looks of the standby's, not always right after one.
    time.sleep(phase.uniform(0, STANDBY_S))
    # The next leader finds a slot that this one knows to be done.
    entry = next(iter(clock.entries.values()))
    slot = latest_slot(entry.cron, entry.timezone, clock.now())
    clock.forget(entry.name, just_before(slot))
    killed = pair.leader.kill()
    leads = pair.standby.wait_said(LEADS, PATIENCE_S)
    inserted.append(seconds(_committed(clock, slot), killed))
    pair.leader = pair.standby
    pair.standby = clock.crew.beat()
    pair.standby.wait_said(STANDS_BY)
    return seconds(leads, killed)


def _committed(clock: Clock, slot: datetime) -> datetime:
    give_up = time.monotonic() + PATIENCE_S
    while True:
        for run in clock.inserted():
            if run.slot == slot:
                return run.committed_at
        if time.monotonic() > give_up:
            raise TimeoutError("the new leader did not insert the slot that was due")
        time.sleep(POLL_S)


def _lock_left(redbeat: Process, broker: redis.Redis) -> float:
    """How long nobody else can lead after a RedBeat with its defaults is killed, in seconds."""
    redbeat.wait_said(ACQUIRED)
    redbeat.kill()
    left: Any = broker.pttl(LOCK)
    if left <= 0:
        raise ValueError(f"RedBeat holds no lock: PTTL {left}")
    return float(left) / 1000


class _Tuned:
    """A leader and a standby of RedBeat's, killed in turn."""

    def __init__(self, crew: Crew, broker: redis.Redis, phase: random.Random) -> None:
        self._crew, self._broker, self._phase = crew, broker, phase
        self._leader = crew.beat(*REDBEAT)
        self._leader.wait_said(ACQUIRED)
        self._standby = crew.beat(*REDBEAT)
        self._standby.wait_said(ACQUIRING)

    def kill(self) -> float:
        """One round."""
        # Anywhere between two looks, and between two extensions of the lock.
        time.sleep(self._phase.uniform(1, 1 + TUNED["beat_max_loop_interval"]))
        killed = self._leader.kill()
        leads = self._standby.wait_said(ACQUIRED, PATIENCE_S)
        self._leader, self._standby = self._standby, self._crew.beat(*REDBEAT)
        self._standby.wait_said(ACQUIRING)
        return seconds(leads, killed)


PART = Part(
    name="takeover",
    title="SIGKILL of the leading scheduler",
    share=10,
    bounds=(BOUND,),
    measure=measure,
)
