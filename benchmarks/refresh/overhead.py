"""What the body of upkeep.refresh.view costs over the bare statement: locks, plan, state, ledger, logs."""

from __future__ import annotations

from benchmarks.kept import declare, refresh_concurrently
from benchmarks.parts import Part
from benchmarks.refresh.bench import Bench
from benchmarks.refresh.small import VIEW, change_one, install
from benchmarks.report import at_most
from benchmarks.timing import Deadline, Stopwatch, interleave

BOUND = at_most("overhead", 10, "ms", "upkeep.refresh.view over the bare REFRESH of a 20-row view")
ROUNDS = 100
QUICK_ROUNDS = 30
WARM_UP = 5


def measure(bench: Bench, deadline: Deadline) -> None:
    """A tick after one row in twenty changed, in this process, against the open peer."""
    report, floor = bench.report, bench.stage.floor
    small = install(bench, "overhead")
    database = declare(small.kept.place, [VIEW])
    inside: list[float] = []
    with (
        small.kept.place.owner() as application,
        small.peer.owner() as peers_application,
        small.peer.owner() as peer,
        bench.stage.in_process([database]) as tasks,
    ):
        task = tasks["upkeep.refresh.view"]

        def ours(number: int) -> float:
            change_one(application, number)
            run = small.kept.tick(VIEW, small.kept.now())
            with Stopwatch() as watch:
                ended = task(database=database.name, run=run)
            if ended["state"] != "succeeded":
                raise ValueError(f"the tick was not refreshed: {ended}")
            if number >= 0:
                inside.append(1000 * ended["duration_s"])
            return watch.seconds

        def bare(number: int) -> float:
            change_one(peers_application, number)
            with Stopwatch() as watch:
                refresh_concurrently(peer, VIEW)
            return watch.seconds

        timings = interleave(
            {"ours": ours, "bare": bare},
            rounds=QUICK_ROUNDS if bench.quick else ROUNDS,
            deadline=deadline,
            warm_up=WARM_UP,
        )
    report.add_median(
        "overhead.bare", timings.milliseconds("bare"), "ms", note="REFRESH … CONCURRENTLY alone"
    )
    report.add_median(
        "overhead.ours", timings.milliseconds("ours"), "ms", note="the task, pool and logs included"
    )
    report.add_median("overhead.statement", inside, "ms", note="REFRESH as the task sees it")
    ratio = timings.ratio("ours", "bare")
    if ratio is not None:
        report.add("overhead.ratio", ratio, "times bare", rounds=timings.rounds)
    differences = [1000 * seconds for seconds in timings.differences("ours", "bare")]
    overhead = report.add_median("overhead", differences, "ms", note="ours minus bare, round by round")
    report.hold(BOUND, overhead, floor=floor.worst_ms, rounds=timings.rounds)


PART = Part(
    name="overhead",
    title="the task's body against the bare statement",
    share=2,
    bounds=(BOUND,),
    measure=measure,
)
