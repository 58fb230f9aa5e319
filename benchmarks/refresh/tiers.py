"""All three tiers due at once, through a real worker, against 000's own way: one view after the other."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg

from benchmarks.kept import expect, refresh_one_after_the_other
from benchmarks.parts import Part
from benchmarks.refresh.bench import Bench, Pair
from benchmarks.refresh.documented import build
from benchmarks.refresh.writes import WRITES
from benchmarks.report import Bound, at_least
from benchmarks.stage import WorkerProcess
from benchmarks.timing import Deadline, Stopwatch, interleave
from examples import lending
from fleet.ledger import Run, State

BOUNDS: dict[str, Bound] = {
    "payments": at_least(
        "tiers.payments", 2, "times faster", "the five lending views after 1 % new payments, at scale 1"
    ),
    "everything": at_least("tiers.everything", 1.4, "times faster", "… after changes under every view"),
    "nothing": at_least("tiers.nothing", 50, "times faster", "… with nothing changed"),
}
ROUNDS = 7
QUICK_ROUNDS = 5
# The order in which 000 sends its five statements.
THEIR_ORDER = (
    "public.mv_current_loan_status_realtime",
    "public.mv_portfolio_summary_realtime",
    "public.mv_payment_summary_detailed",
    "public.mv_collections_summary_detailed",
    "public.mv_ml_features_cache",
)
TIERS = tuple(sorted(set(lending.TIERS.values())))

# Reported beside the bound, which compares the same definitions on both sides.
DOCUMENTED = "one after the other, with 000's own last_updated in every row"

# Two databases that got the same writes have the same features, whoever refreshed them; no column is a time.
_FINGERPRINT = "SELECT md5(string_agg(v::text, ',' ORDER BY loan_id)) FROM public.mv_ml_features_cache AS v"


def measure(bench: Bench, deadline: Deadline) -> None:
    """Each round: the same writes in both databases, then both ways to bring the views up to date."""
    report, pair, worker = bench.report, bench.lending, bench.worker
    report.add("tiers.scale", bench.scale, "of the documented volumes")
    with (
        pair.kept.place.owner() as application,
        pair.peer.owner() as peers_application,
        pair.peer.owner() as peer,
    ):
        documented = () if bench.quick else build(peer, THEIR_ORDER)
        done: dict[str, list[Run]] = {kind: [] for kind in WRITES}
        # "nothing" comes last in every round: what was written before it has been refreshed in both.
        groups = [
            {
                f"{kind}.ours": _ours(kind, pair, worker, application, done[kind]),
                f"{kind}.theirs": _theirs(kind, peers_application, peer),
            }
            # Right after the other one, over the same writes.
            | ({f"{kind}.documented": partial(_documented, peer, documented)} if documented else {})
            for kind in WRITES
        ]
        timings = interleave(*groups, rounds=QUICK_ROUNDS if bench.quick else ROUNDS, deadline=deadline)
        if _fingerprint(application) != _fingerprint(peers_application):
            raise ValueError("our views and the peer's differ after the same writes")
    for kind, bound in BOUNDS.items():
        report.add_median(
            f"tiers.{kind}.theirs", timings.of(f"{kind}.theirs"), "s", note="one after the other"
        )
        report.add_median(f"tiers.{kind}.ours", timings.of(f"{kind}.ours"), "s", note=_did(done[kind]))
        ratio = timings.ratio(f"{kind}.theirs", f"{kind}.ours")
        if ratio is not None:
            report.add(bound.metric, ratio, bound.unit, rounds=timings.rounds)
        if documented:
            report.add_median(
                f"tiers.{kind}.documented", timings.of(f"{kind}.documented"), "s", note=DOCUMENTED
            )
            own = timings.ratio(f"{kind}.documented", f"{kind}.ours")
            if own is not None:
                report.add(
                    f"{bound.metric}.documented", own, bound.unit, rounds=timings.rounds, note=DOCUMENTED
                )
        report.hold(bound, ratio, rounds=timings.rounds, doubt=bench.scale_doubt)


def _ours(
    kind: str, pair: Pair, worker: WorkerProcess, application: psycopg.Connection[Any], done: list[Run]
) -> Callable[[int], float]:
    def ours(number: int) -> float:
        WRITES[kind](application, number)
        pair.kept.a_minute_later()
        with Stopwatch() as watch:
            runs = pair.kept.tick_all(worker, TIERS)
        # In the warm-up the fleet sees the views for the first time.
        expect(
            runs, [State.SUCCEEDED] if number < 0 and kind == "payments" else [State.SUCCEEDED, State.SKIPPED]
        )
        done[:] = runs
        return watch.seconds

    return ours


def _theirs(
    kind: str, application: psycopg.Connection[Any], peer: psycopg.Connection[Any]
) -> Callable[[int], float]:
    def theirs(number: int) -> float:
        WRITES[kind](application, number)
        return refresh_one_after_the_other(peer, THEIR_ORDER)

    return theirs


def _documented(peer: psycopg.Connection[Any], views: tuple[str, ...], _number: int) -> float:
    return refresh_one_after_the_other(peer, views)


def _did(runs: list[Run]) -> str:
    """What the last round's runs did: `payment_summary_detailed 0.31 s, 4 skipped`."""
    refreshed = sorted(
        (float(run.result["duration_s"]), run.target.removeprefix("public.mv_"))
        for run in runs
        if run.state == State.SUCCEEDED and run.result
    )
    said = [f"{name} {seconds:.2f} s" for seconds, name in reversed(refreshed)]
    skipped = sum(run.state == State.SKIPPED for run in runs)
    return ", ".join([*said, *([f"{skipped} skipped"] if skipped else [])])


def _fingerprint(connection: psycopg.Connection[Any]) -> str | None:
    row = connection.execute(_FINGERPRINT).fetchone()
    return None if row is None else str(row[0])


PART = Part(
    name="tiers",
    title="three tiers due at once against one view after the other",
    share=12,
    bounds=tuple(BOUNDS.values()),
    measure=measure,
)
