"""How soon a refresh is run again when its worker is killed in the middle, against plain Celery's redelivery."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from celery import Celery

from benchmarks.clock import peer
from benchmarks.clock.bench import Bench, seconds
from benchmarks.clock.processes import Crew, Process
from benchmarks.kept import REFRESH_VIEW, configuration
from benchmarks.parts import Part
from benchmarks.report import at_most
from benchmarks.timing import ROUND_MARGIN, Deadline, Stopwatch
from fleet import ledger
from fleet.ledger import Run, State

BOUND = at_most(
    "recovery", 35, "s", "a refresh runs again on another worker after SIGKILL of its worker's main process"
)
ROUNDS = 5
QUICK_ROUNDS = 2
VIEW = "public.slow"
# A refresh takes this long, and is killed so long after it has begun.
WORK_S = 2.0
KILL_AFTER_S = 1.0
POLL_S = 0.01
PATIENCE_S = 150.0
READY = " ready."
# What a round takes at the very least: two workers start, a refresh is killed, found and run again.
LEAST_S = 9.0

_SCHEMA = f"""
CREATE TABLE public.t (id int PRIMARY KEY);
INSERT INTO public.t VALUES (1);
CREATE MATERIALIZED VIEW {VIEW} AS
SELECT id, pg_sleep(CASE id WHEN 1 THEN {WORK_S} ELSE 0 END)::text AS slept FROM public.t;
CREATE UNIQUE INDEX slow_key ON {VIEW} (id);
"""
# As somebody sets it who wants a task back: the least that facts call safe for short tasks.
VISIBILITY_S = 20
PLAIN = {
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "worker_prefetch_multiplier": 1,
    "broker_transport_options": {"visibility_timeout": VISIBILITY_S},
}
# … and who has read kombu's source: the queue of the unacknowledged is looked through every second.
SWEPT = {
    **PLAIN,
    "broker_transport_options": {
        "visibility_timeout": VISIBILITY_S,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
}


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """Seconds from the kill until somebody else had begun, and until that was over."""

    claimed: float
    ended: float


def measure(bench: Bench, deadline: Deadline) -> None:
    """Kill, wait for the second attempt, start another worker; the peers' turn comes after ours."""
    report = bench.report
    if not deadline.allows(LEAST_S):
        return
    ours = _Ours(bench, deadline)
    recovered: list[Recovered] = []
    longest = LEAST_S
    while len(recovered) < (QUICK_ROUNDS if bench.quick else ROUNDS) and deadline.allows(longest):
        try:
            with Stopwatch() as watch:
                recovered.append(ours.round())
        except _OutOfTimeError:
            break
        longest = max(longest, ROUND_MARGIN * watch.seconds)
        bench.say(f"recovery: {recovered[-1].claimed:.2f} s")
    ours.crew.close()
    middle = report.add_median(
        "recovery", [each.claimed for each in recovered], "s", note="from SIGKILL to the second claim"
    )
    report.add_median("recovery.ended", [each.ended for each in recovered], "s", note="… to the run's end")
    if middle is not None:
        report.add("recovery.worst", max(each.claimed for each in recovered), "s", rounds=len(recovered))
        if not bench.quick:
            _measure_peers(bench, middle)
        report.hold(BOUND, middle, floor=bench.floor_s, rounds=len(recovered))


def _measure_peers(bench: Bench, ours: float) -> None:
    report = bench.report
    for name, options, rounds, note in (
        ("swept", SWEPT, ROUNDS, "and unacked_restore_interval and _throttle 1"),
        ("default", PLAIN, 1, "and the default sweep; once"),
    ):
        plain = _Plain(bench, f"plain_{name}", options)
        began = []
        for _ in range(rounds):
            began.append(plain.round())
            bench.say(f"recovery: plain Celery, {name}: {began[-1]:.2f} s")
        plain.crew.close()
        middle = report.add_median(
            f"recovery.celery_{name}",
            began,
            "s",
            note=f"acks_late, visibility_timeout {VISIBILITY_S} s, {note}",
        )
        if middle is not None:
            report.add(f"recovery.celery_{name}.ratio", middle / ours, "times ours", rounds=rounds)


@dataclass
class _Pool:
    """Two workers, either of which may get the message and be killed."""

    crew: Crew
    queue: str
    ready: list[Process] = field(default_factory=list)

    def fill(self) -> None:
        while len(self.ready) < 2:
            self.ready.append(self.crew.worker(self.queue, "-l", "INFO"))
        for worker in self.ready:
            worker.wait_said(READY)

    def kill(self, hostname: str) -> datetime:
        victim = self.crew.named(hostname)
        self.ready.remove(victim)
        return victim.kill()


class _OutOfTimeError(Exception):
    """Quick mode's time is over."""


class _Ours:
    """A view of two seconds, and two of Upkeep's workers."""

    def __init__(self, bench: Bench, deadline: Deadline) -> None:
        self._deadline = deadline
        place = bench.stage.place("recovery")
        with place.owner() as application:
            application.execute(_SCHEMA)
        bench.stage.migrate(place)
        self._connection = bench.fleet(place)
        self._application = bench.owner(place)
        environment = bench.stage.environment(
            "recovery", configuration([(place, {VIEW: "five_minutes"})], concurrency=1), [place]
        )
        self.crew = bench.crew("worker.app", environment)
        self._pool = _Pool(self.crew, "refresh")
        self._client = Celery(broker=environment["UPKEEP_REDIS_URL"], set_as_current=False)
        self._database = place.name

    def round(self) -> Recovered:
        """One refresh that is killed in its middle."""
        self._pool.fill()
        self._application.execute("INSERT INTO public.t SELECT max(id) + 1 FROM public.t")
        sent = self._client.send_task(
            REFRESH_VIEW,
            kwargs={"database": self._database, "view": VIEW},
            queue="refresh",
            ignore_result=True,
        )
        self._wait(self._refreshing, "a refresh")
        time.sleep(KILL_AFTER_S)
        first = self._run(sent.id)
        if first is None or first.state != State.RUNNING or first.worker is None:
            raise ValueError(f"nothing to kill: {first}")
        killed = self._pool.kill(first.worker)

        def again() -> Run | None:
            run = self._run(sent.id)
            return run if run is not None and run.attempt > first.attempt else None

        def ended() -> Run | None:
            run = self._run(sent.id)
            return run if run is not None and run.final else None

        self._wait(again, "the second claim")
        claimed = seconds(datetime.now(UTC), killed)
        last = self._wait(ended, "the end")
        if last.state != State.SUCCEEDED or last.worker == first.worker or last.finished_at is None:
            raise ValueError(f"not run again as it should have been: {last}")
        return Recovered(claimed=claimed, ended=seconds(last.finished_at, killed))

    def _wait(self, look: Callable[[], Any], what: str) -> Any:
        try:
            return _wait(look, what, min(PATIENCE_S, self._deadline.left()))
        except TimeoutError:
            # A failure only where there was all the time in the world.
            if self._deadline.left() <= 0:
                raise _OutOfTimeError from None
            raise

    def _refreshing(self) -> bool:
        row = self._connection.execute(
            "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database()"
            " AND state = 'active' AND query LIKE 'REFRESH%'"
        ).fetchone()
        return bool(row and row[0])

    def _run(self, request_id: str) -> Run | None:
        return ledger.get_request(self._connection, request_id)


class _Plain:
    """Two workers of plain Celery, and a task that takes as long."""

    def __init__(self, bench: Bench, name: str, options: Mapping[str, Any]) -> None:
        self.crew, self._broker = bench.peer(name, options)
        self._pool = _Pool(self.crew, peer.QUEUE)
        self._client = Celery(broker=self.crew.environment[peer.BROKER], set_as_current=False)
        self._number = 0

    def round(self) -> float:
        """Seconds from the kill until somebody else has begun."""
        self._pool.fill()
        self._number += 1
        self._client.send_task(
            peer.WORK,
            kwargs={"number": self._number, "seconds": WORK_S},
            queue=peer.QUEUE,
            ignore_result=True,
        )
        first = _wait(lambda: self._begun(1), "a task")
        time.sleep(KILL_AFTER_S)
        killed = self._pool.kill(first["worker"])
        second = _wait(lambda: self._begun(2), "its redelivery")
        # Until it is acknowledged: the next round's kill must not hit it.
        time.sleep(WORK_S + 1)
        return float(second["at"]) - killed.timestamp()

    def _begun(self, times: int) -> dict[str, Any] | None:
        """Who began this round's task so many times."""
        lines: Any = self._broker.lrange(peer.BEGUN, 0, -1)
        begun = [each for each in map(json.loads, lines) if each["number"] == self._number]
        return begun[times - 1] if len(begun) >= times else None


def _wait(look: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    give_up = time.monotonic() + patience_s
    while not (found := look()):
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited {patience_s:.0f} s for {what}")
        time.sleep(POLL_S)
    return found


PART = Part(
    name="recovery",
    title="SIGKILL of a worker in the middle of a refresh",
    share=12,
    bounds=(BOUND,),
    measure=measure,
)
