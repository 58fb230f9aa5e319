"""What a request costs the application that makes it, against a PING and against Celery's delay()."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable

from celery import Celery

from benchmarks.events.bench import Bench
from benchmarks.parts import Part
from benchmarks.report import at_least, at_most
from benchmarks.timing import Deadline, Timings, interleave
from upkeep_client import Upkeep
from upkeep_client.connections import connect
from upkeep_client.upkeep import TIMEOUT_S

PING = at_most("call.ping_ratio", 1.6, "times a PING", "p50 of a request in one process")
DELAY = at_least("call.delay_ratio", 3, "times cheaper", "p50 of a request than of Celery's delay()")
ROUNDS, QUICK_ROUNDS = 15, 7
CALLS, QUICK_CALLS = 2000, 500
# Slower, and one of many rounds: fewer calls of them say as much.
DELAYS, QUICK_DELAYS = 500, 100
SEVERAL, QUICK_SEVERAL = 100, 20
VIEWS = 100
VIEW = "public.mv_portfolio_summary"
MICRO = 1_000_000


def measure(bench: Bench, deadline: Deadline) -> None:
    """One request after one PING, so that both get the same machine; the others in blocks between."""
    report = bench.report
    url = bench.stage.broker()
    # The same kind of connection as a request is sent on: the same library, limits and protocol.
    plain = connect(url, timeout=TIMEOUT_S)
    looking = bench.client(url)
    app = Celery(broker=bench.stage.broker(), set_as_current=False)
    task = app.task(name="peer.refresh", ignore_result=True)(_nothing)
    views = [f"public.v{number:03d}" for number in range(VIEWS)]
    calls, delays, several = (
        (QUICK_CALLS, QUICK_DELAYS, QUICK_SEVERAL) if bench.quick else (CALLS, DELAYS, SEVERAL)
    )
    with plain, Upkeep(url, database="shop", on_error="raise") as client:
        pings: dict[int, float] = {}

        def request(number: int) -> float:
            pings[number], requested = _pairs(plain.ping, lambda: client.request_refresh(VIEW), calls)
            return requested

        contenders = {
            "ping": pings.__getitem__,
            "request": request,
            "delay": lambda _: _median(task.delay, range(delays)),
            "several": lambda _: _median(lambda: client.request_refresh(views), range(several)),
        }
        # What a pair took is known only once it has been measured.
        timings = interleave(
            {"request": contenders["request"]},
            {"ping": contenders["ping"]},
            {"delay": contenders["delay"], "several": contenders["several"]},
            rounds=QUICK_ROUNDS if bench.quick else ROUNDS,
            deadline=deadline,
        )
        _report(bench, timings)
        script = looking.info("commandstats").get("cmdstat_evalsha")
        if isinstance(script, dict):
            report.add(
                "call.server",
                float(script["usec_per_call"]),
                "µs",
                note="of the script on the server, as it says itself; those with 100 views among them",
            )
    app.close()


def _report(bench: Bench, timings: Timings) -> None:
    report = bench.report
    notes = {
        "ping": "p50 of a PING",
        "request": "p50 of a request for one view, each after a PING",
        "delay": "p50 of delay(), fire and forget",
        "several": f"p50 of a request for {VIEWS} views, one round trip",
    }
    for name, note in notes.items():
        report.add_median(f"call.{name}", [MICRO * s for s in timings.of(name)], "µs", note=note)
    report.add_median(
        "call.several.each", [MICRO * s / VIEWS for s in timings.of("several")], "µs", note="… of them, each"
    )
    # Round by round: a processor that is slower for a while is so for both.
    for bound, ratios in (
        (PING, _ratios(timings, "request", "ping")),
        (DELAY, _ratios(timings, "delay", "request")),
    ):
        report.hold(bound, report.add_median(bound.metric, ratios, bound.unit), rounds=timings.rounds)


def _ratios(timings: Timings, more: str, less: str) -> list[float]:
    return [a / b for a, b in zip(timings.of(more), timings.of(less), strict=True)]


def _pairs(one: Callable[[], object], other: Callable[[], object], times: int) -> tuple[float, float]:
    ones, others = [], []
    clock = time.perf_counter
    for _ in range(times):
        began = clock()
        one()
        between = clock()
        other()
        others.append(clock() - between)
        ones.append(between - began)
    return statistics.median(ones), statistics.median(others)


def _median(call: Callable[[], object], times: Iterable[int]) -> float:
    taken = []
    for _ in times:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _nothing() -> None:
    """Nobody works on it."""


PART = Part(name="call", title="a request, a PING, a delay()", share=2, bounds=(PING, DELAY), measure=measure)
