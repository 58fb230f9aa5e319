"""How soon a view has a write that was requested for: by a mark, in SQL, by a trigger."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.events.bench import BY_MARK, BY_SQL, BY_TRIGGER, DELAYS_S, ITEMS, LONG, SHORT, WAYS, Bench
from benchmarks.parts import Part
from benchmarks.report import Bound, at_most
from benchmarks.timing import Deadline, interleave
from upkeep_client import Upkeep

LIMIT_MS = 200
ROUNDS, QUICK_ROUNDS = 25, 5
POLL_S = 0.002
PATIENCE_S = 30.0
# Those who look for requests do it at intervals of up to half a second; writes come at any time between.
SPREAD_S = {SHORT: 0.1, LONG: 0.5}
GOLDEN = 0.618

_NAMES = {BY_MARK: "mark", BY_SQL: "sql", BY_TRIGGER: "trigger"}
_SAID = {BY_MARK: "the client", BY_SQL: "upkeep.request_refresh", BY_TRIGGER: "a trigger"}


def _bound(way: str, system: str) -> Bound:
    delay = f"{1000 * DELAYS_S[system]:.0f} ms"
    return at_most(
        f"fresh.{_NAMES[way]}.{system.removeprefix('fresh_')}",
        LIMIT_MS,
        "ms",
        f"fresh after the last event, over the delay of {delay} and the refresh; asked for by {_SAID[way]}",
    )


BOUNDS = {(way, system): _bound(way, system) for system in (SHORT, LONG) for way in WAYS}


@dataclass(kw_only=True)
class System:
    """One of the two databases: its views have the same delay."""

    name: str
    application: psycopg.Connection[Any]
    looking: psycopg.Connection[Any]
    client: Upkeep

    def over(self, way: str, number: int) -> float:
        """Write, ask, wait; returns the seconds over the delay and the refresh's own."""
        time.sleep(SPREAD_S[self.name] * (number * GOLDEN % 1.0))
        key = 1 + number % ITEMS
        table, view = sql.Identifier("public", f"item_{way}"), sql.Identifier("public", way)
        write = sql.SQL("UPDATE {} SET n = n + 1 WHERE id = %s RETURNING n").format(table)
        began = time.perf_counter()
        with self.application.transaction():
            row = self.application.execute(write, (key,)).fetchone()
            if way == BY_SQL:
                self.application.execute("SELECT upkeep.request_refresh(%s)", (f"public.{way}",))
        assert row is not None  # RETURNING of a row that is there
        if way == BY_MARK and not self.client.request_refresh(f"public.{way}"):
            raise ValueError("Redis did not take the request")
        read = sql.SQL("SELECT n FROM {} WHERE id = %s").format(view)
        while self.looking.execute(read, (key,)).fetchone() != row:
            if time.perf_counter() - began > PATIENCE_S:
                raise TimeoutError(f"{view} has not seen a write after {PATIENCE_S:.0f} s")
            time.sleep(POLL_S)
        passed = time.perf_counter() - began
        refresh_s = self.looking.execute(
            "SELECT (result ->> 'duration_s')::float8 FROM upkeep.run"
            " WHERE target = %s AND state = 'succeeded' ORDER BY id DESC LIMIT 1",
            (f"public.{way}",),
        ).fetchone()
        assert refresh_s is not None  # its run is finished in the transaction that was just seen
        return passed - DELAYS_S[self.name] - float(refresh_s[0])


def measure(bench: Bench, deadline: Deadline) -> None:
    """One write after the other, each in its turn, at moments that have nothing to do with who looks for them."""
    report = bench.report
    url = bench.broker_url
    rounds = QUICK_ROUNDS if bench.quick else ROUNDS
    shares = {SHORT: 0.5, LONG: 1.0}
    for name in (SHORT, LONG):
        place = bench.places[name]
        with (
            place.owner() as application,
            place.fleet() as looking,
            Upkeep(url, database=name, on_error="raise") as client,
        ):
            system = System(name=name, application=application, looking=looking, client=client)
            timings = interleave(
                {way: _contender(system, way) for way in WAYS},
                rounds=rounds,
                deadline=deadline.within(max(0.0, deadline.left()) * shares[name]),
                warm_up=0 if bench.quick else 1,
            )
        for way in WAYS:
            bound = BOUNDS[way, name]
            over = timings.milliseconds(way)
            value = report.add_median(bound.metric, over, "ms", note="over delay and refresh")
            if over:
                report.add(f"{bound.metric}.worst", max(over), "ms", note=f"of {len(over)}; no bound")
            report.hold(bound, value, floor=bench.stage.floor.worst_ms, rounds=timings.rounds)


def _contender(system: System, way: str) -> Callable[[int], float]:
    return lambda number: system.over(way, number)


PART = Part(
    name="fresh",
    title="from a write to a view that has it",
    share=11,
    bounds=tuple(BOUNDS.values()),
    measure=measure,
)
