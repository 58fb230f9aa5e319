"""10,000 writes of four processes, a request after each: what is sent, refreshed, and missing at the end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.events import peer, writers
from benchmarks.events.bench import BURST, MAX_WAIT_S, Bench
from benchmarks.events.contenders import (
    BULLMQ_MODES,
    POLL_S,
    Contender,
    OfBullmq,
    OfCelery,
    Ours,
    Peers,
    node_is_missing,
)
from benchmarks.parts import Part
from benchmarks.report import at_most
from benchmarks.timing import Deadline, interleave

MESSAGES = at_most("burst.messages", 2, "messages", "sent for 10,000 requests of four processes for one view")
REFRESHES = at_most("burst.refreshes", 2, "refreshes", "for 10,000 requests of four processes for one view")
MISSING = at_most("burst.missing", 0, "writes", "missing in the final view")
EVENTS, QUICK_EVENTS = 10_000, 1_000
# A refresh for each takes an hour or two for all of them: fewer show the same.
DELAY_EVENTS = 400
ROUNDS, QUICK_ROUNDS = 5, 1
PATIENCE_S = 60.0
# A backlog is a backlog after this long too.
DELAY_PATIENCE_S = 10.0
SETTLE_S = 0.3
# What its worker needs to start, and two bursts.
LEAST_FOR_A_PEER_S = 12.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a burst came to. `fresh_s`: from the last request to a view with all writes, None if it never had."""

    events: int
    writing_s: float
    call_s: float
    messages: int
    refreshes: int
    missing: int
    left: int
    fresh_s: float | None


def measure(bench: Bench, deadline: Deadline) -> None:
    """Ours and each of the peers in turn, each on a server that nothing else is asked of meanwhile."""
    report = bench.report
    outcomes: dict[str, list[Outcome]] = {}
    contenders = _contenders(bench, deadline)
    interleave(
        {
            name: _round(bench, contender, name, outcomes.setdefault(name, []))
            for name, contender in contenders.items()
        },
        rounds=QUICK_ROUNDS if bench.quick else ROUNDS,
        deadline=deadline,
        warm_up=0,
    )
    for name, found in outcomes.items():
        if found:
            _report(bench, "burst" if name == "upkeep" else f"burst.{name}", found)
    ours = outcomes["upkeep"]
    if not ours:
        return
    # As many as one says are allowed for a burst of such length; a machine that needs longer makes no burst of it.
    longest = max(each.writing_s for each in ours)
    doubt = f"the writes took {longest:.1f} s: no burst" if longest > 2 * MAX_WAIT_S[BURST] else None
    report.hold(MESSAGES, max(each.messages for each in ours), doubt=doubt)
    report.hold(REFRESHES, max(each.refreshes for each in ours), doubt=doubt)
    report.hold(MISSING, max(each.missing for each in ours))


def _contenders(bench: Bench, deadline: Deadline) -> Mapping[str, Contender]:
    report = bench.report
    peers = Peers(bench=bench)
    found: dict[str, Contender] = {"upkeep": Ours(bench)}
    if not deadline.allows(LEAST_FOR_A_PEER_S):
        report.add("burst.singleton", "skipped", "", note="no time was left")
    elif peer.INSTALLED:
        found["singleton"] = OfCelery(peers, writers.SINGLETON)
    else:
        report.add("burst.singleton", "skipped", "", note="celery-singleton is not installed")
    if bench.quick:
        # Its backlog takes as long as the whole of quick mode, and so does npm.
        for name in ("delay", "bullmq"):
            report.add(f"burst.{name}", "skipped", "", note="no time in quick mode")
        return found
    found["delay"] = OfCelery(peers, writers.DELAY)
    why = node_is_missing()
    if why is None:
        try:
            _ = peers.packages
        except (RuntimeError, OSError) as error:
            why = str(error)
    if why is None:
        found |= {f"bullmq_{mode}": OfBullmq(peers, mode) for mode in BULLMQ_MODES}
    else:
        report.add("burst.bullmq", "skipped", "", note=why)
    return found


def _round(bench: Bench, contender: Contender, name: str, outcomes: list[Outcome]) -> Callable[[int], float]:
    is_plain = name == "delay"
    events = DELAY_EVENTS if is_plain else QUICK_EVENTS if bench.quick else EVENTS
    patience_s = DELAY_PATIENCE_S if is_plain else PATIENCE_S

    def measured(_: int) -> float:
        began = time.monotonic()
        outcome = _burst(contender, events, patience_s)
        outcomes.append(outcome)
        fresh = "never" if outcome.fresh_s is None else f"{outcome.fresh_s:.2f} s"
        bench.say(
            f"burst: {name}: {outcome.events / outcome.writing_s:,.0f} writes/s, {outcome.messages} messages,"
            f" {outcome.refreshes} refreshes, {outcome.missing} missing, fresh after {fresh}"
        )
        return time.monotonic() - began

    return measured


def _burst(contender: Contender, events: int, patience_s: float) -> Outcome:
    with contender.place.owner() as looking:

        def scalar(query: str) -> int:
            row = looking.execute(query).fetchone()
            assert row is not None  # an aggregate
            return int(row[0])

        with contender.writing(events) as begin:
            refreshes, messages = contender.refreshes(), contender.messages()
            wrote = begin()
            written = scalar("SELECT count(*) FROM public.event")
            fresh_at: float | None = None
            settled_at: float | None = None
            give_up = time.monotonic() + patience_s
            while True:
                # Asked for first: what is refreshed after that is not missed below.
                settled = contender.settled()
                missing = written - scalar("SELECT coalesce(sum(events), 0) FROM public.counted")
                now = time.monotonic()
                if not missing and fresh_at is None:
                    fresh_at = time.time()
                settled_at = (settled_at or now) if settled else None
                if (settled_at is not None and now - settled_at > SETTLE_S) or now > give_up:
                    break
                time.sleep(POLL_S)
            done, sent = contender.refreshes() - refreshes, contender.messages() - messages
        if not settled:
            contender.abandon()
    return Outcome(
        events=events,
        writing_s=wrote.last - wrote.first,
        call_s=wrote.call_s,
        messages=sent,
        refreshes=done,
        missing=missing,
        left=max(0, sent - done),
        fresh_s=None if fresh_at is None else fresh_at - wrote.last,
    )


def _report(bench: Bench, prefix: str, outcomes: Sequence[Outcome]) -> None:
    report = bench.report
    count = len(outcomes)
    is_ours = prefix == "burst"
    events = outcomes[0].events
    worst = "the most of a round"
    for name in ("messages", "refreshes", "missing"):
        values = [int(getattr(each, name)) for each in outcomes]
        value = max(values) if is_ours else int(statistics.median(values))
        unit = "writes" if name == "missing" else name
        note = worst if is_ours else f"{min(values)} to {max(values)}"
        report.add(f"{prefix}.{name}", value, unit, rounds=count, note=f"{events:,} requests; {note}")
    fresh = [each.fresh_s for each in outcomes if each.fresh_s is not None]
    if fresh:
        never = count - len(fresh)
        note = "from the last request to a view with every write" + (f"; {never} never" if never else "")
        report.add_median(f"{prefix}.fresh", fresh, "s", note=note)
    else:
        report.add(f"{prefix}.fresh", "never", "", rounds=count)
    left = [each.left for each in outcomes]
    if any(left):
        report.add_median(
            f"{prefix}.left",
            left,
            "messages",
            note=f"not worked on {DELAY_PATIENCE_S:.0f} s after the last write",
        )
    report.add_median(f"{prefix}.rate", [each.events / each.writing_s for each in outcomes], "writes/s")
    report.add_median(
        f"{prefix}.call",
        [1_000_000 * each.call_s for each in outcomes],
        "µs",
        note="p50 of a call, with four at it",
    )


PART = Part(
    name="burst",
    title="10,000 requests of four processes for one view",
    share=14,
    bounds=(MESSAGES, REFRESHES, MISSING),
    measure=measure,
)
