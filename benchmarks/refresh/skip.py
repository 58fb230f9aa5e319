"""What a tick costs when nothing has changed, against the refresh that it saves."""

from __future__ import annotations

from benchmarks.kept import declare, flush_counters, refresh_concurrently
from benchmarks.parts import Part
from benchmarks.refresh.bench import Bench
from benchmarks.report import at_most
from benchmarks.timing import Deadline, Stopwatch, interleave

BOUND = at_most(
    "skip.ratio",
    1 / 20,
    "of the refresh",
    "an unchanged 50,000-row view is skipped in a twentieth of its refresh",
)
VIEW = "public.balance"
ROWS = 50_000
# An aggregate is what people materialize; few entries a row, as a dearer definition would flatter the skip.
ENTRIES_PER_ROW = 4
ROUNDS = 25
QUICK_ROUNDS = 9

_SCHEMA = f"""
CREATE TABLE public.entry (
    id int PRIMARY KEY, account_id int NOT NULL, amount numeric(12, 2) NOT NULL, at timestamptz NOT NULL);
INSERT INTO public.entry
SELECT i, i % {ROWS}, (i % 9973) / 100.0, timestamptz '2025-01-01' + i * interval '1 second'
  FROM generate_series(1, {ROWS * ENTRIES_PER_ROW}) AS i;
CREATE MATERIALIZED VIEW {VIEW} AS
SELECT account_id, count(*) AS entries, sum(amount) AS balance, max(at) AS last_at
  FROM public.entry GROUP BY account_id ORDER BY account_id;
CREATE UNIQUE INDEX balance_key ON {VIEW} (account_id);
"""


def measure(bench: Bench, deadline: Deadline) -> None:
    """Ticks of an unchanged view in this process, and the bare CONCURRENTLY that each of them saved."""
    report = bench.report
    place = bench.stage.place("skip")
    with place.owner() as connection:
        connection.execute(_SCHEMA)
        connection.execute("VACUUM ANALYZE")
        flush_counters(connection)
    kept = bench.kept(place)
    database = declare(place, [VIEW])
    with place.owner() as peer, bench.stage.in_process([database]) as tasks:
        task = tasks["upkeep.refresh.view"]

        def tick() -> tuple[str, float]:
            run = kept.tick(VIEW, kept.now())
            with Stopwatch() as watch:
                ended = task(database=database.name, run=run)
            return ended["state"], watch.seconds

        def skipped(_: int) -> float:
            state, seconds = tick()
            if state != "skipped":
                raise ValueError(f"the tick of an unchanged view {state}")
            return seconds

        def refreshed(_: int) -> float:
            with Stopwatch() as watch:
                refresh_concurrently(peer, VIEW)
            return watch.seconds

        tick()
        timings = interleave(
            {"skipped": skipped, "refreshed": refreshed},
            rounds=QUICK_ROUNDS if bench.quick else ROUNDS,
            deadline=deadline,
        )
    report.add_median(
        "skip.refresh", timings.milliseconds("refreshed"), "ms", note="CONCURRENTLY, nothing changed"
    )
    report.add_median(
        "skip.tick", timings.milliseconds("skipped"), "ms", note="the task, pool and logs included"
    )
    ratio = timings.ratio("skipped", "refreshed")
    if ratio is not None:
        report.add("skip.ratio", ratio, "of the refresh", rounds=timings.rounds)
    report.hold(BOUND, ratio, rounds=timings.rounds)


PART = Part(name="skip", title="an unchanged view of 50,000 rows", share=4, bounds=(BOUND,), measure=measure)
