"""How long a view stays as it is while writes never stop: delay alone would put its refresh off for ever."""

from __future__ import annotations

import itertools
import threading
from datetime import datetime, timedelta
from typing import Any

import psycopg

from benchmarks.events.bench import CONTINUOUS, COUNTED, COUNTED_TOO, MAX_WAIT_S, Bench
from benchmarks.parts import Part
from benchmarks.report import at_most
from benchmarks.timing import Deadline
from upkeep_client import Upkeep

_PROMISE = "the longest time between two refreshes under continuous writes, of max_wait + its own duration; "
MARK = at_most("continuous.mark", 1, "of max_wait + its own duration", _PROMISE + "the client")
SQL = at_most("continuous.sql", 1, "of max_wait + its own duration", _PROMISE + "upkeep.request_refresh")
WINDOW_S, QUICK_WINDOW_S = 60.0, 7.5
# Far more often than the delay of a second.
PACE_S = 0.005


def measure(bench: Bench, deadline: Deadline) -> None:
    """One writer who asks for two views at every write, in both ways."""
    place = bench.places[CONTINUOUS]
    url = bench.broker_url
    window_s = min(QUICK_WINDOW_S if bench.quick else WINDOW_S, max(0.0, deadline.left() - 0.5))
    with place.owner() as application, Upkeep(url, database=CONTINUOUS, on_error="raise") as client:
        writer = Writer(application, client)
        began, ended = writer.write_for(window_s)
    looking = bench.fleet(place)
    bench.report.add("continuous.writes", writer.writes, "writes", note=f"in {window_s:.0f} s")
    for bound, view in ((MARK, COUNTED), (SQL, COUNTED_TOO)):
        _judge(bench, bound.metric, _refreshes(looking, view, began, ended), began, ended)


class Writer:
    """Somebody who does not stop."""

    def __init__(self, application: psycopg.Connection[Any], client: Upkeep) -> None:
        self._application = application
        self._client = client
        self.writes = 0

    def write_for(self, seconds: float) -> tuple[datetime, datetime]:
        """Write until then; returns from when to when, on the database's clock."""
        began = self._now()
        stop = threading.Event()
        timer = threading.Timer(seconds, stop.set)
        timer.start()
        try:
            while not stop.wait(PACE_S):
                with self._application.transaction():
                    self._application.execute("INSERT INTO public.event (writer) VALUES (1)")
                    self._application.execute("SELECT upkeep.request_refresh(%s)", (COUNTED_TOO,))
                self._client.request_refresh(COUNTED)
                self.writes += 1
        finally:
            timer.cancel()
        return began, self._now()

    def _now(self) -> datetime:
        row = self._application.execute("SELECT pg_catalog.clock_timestamp()").fetchone()
        assert row is not None  # SELECT without FROM
        found: datetime = row[0]
        return found


def _refreshes(
    looking: psycopg.Connection[Any], view: str, began: datetime, ended: datetime
) -> list[tuple[datetime, timedelta]]:
    """When each ended, and how long it took by its worker's own account."""
    return looking.execute(
        "SELECT finished_at, (result ->> 'duration_s')::float8 * interval '1 second' FROM upkeep.run"
        " WHERE target = %s AND state = 'succeeded' AND finished_at BETWEEN %s AND %s ORDER BY finished_at",
        (view, began, ended),
    ).fetchall()


def _judge(
    bench: Bench,
    metric: str,
    refreshes: list[tuple[datetime, timedelta]],
    began: datetime,
    ended: datetime,
) -> None:
    report = bench.report
    bound = MARK if metric == MARK.metric else SQL
    report.add(f"{metric}.refreshes", len(refreshes), "refreshes")
    if len(refreshes) < 2:
        report.hold(bound, None, void=f"{len(refreshes)} refreshes in the time that there was")
        return
    max_wait = timedelta(seconds=MAX_WAIT_S[CONTINUOUS])
    moments = [at for at, _ in refreshes]
    durations = [duration for _, duration in refreshes]
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    shares = [gap / (max_wait + d) for gap, d in zip(gaps, durations[1:], strict=True)]
    # What had not come when the writes stopped was not late if there was time left for it.
    shares.append((ended - moments[-1]) / (max_wait + durations[-1]))
    report.add(
        f"{metric}.first", (moments[0] - began).total_seconds(), "s", note="from the first write to a refresh"
    )
    report.add_median(
        f"{metric}.gap", [gap.total_seconds() for gap in gaps], "s", note="between two refreshes"
    )
    report.add(f"{metric}.worst", max(gaps).total_seconds(), "s")
    report.add(metric, max(shares), bound.unit, note=f"the worst of {len(gaps)}; {_note(durations)}")
    report.hold(bound, max(shares))


def _note(durations: list[timedelta]) -> str:
    """Their own durations, in words."""
    longest = max(durations).total_seconds()
    return f"max_wait {MAX_WAIT_S[CONTINUOUS]:g} s, the longest refresh {longest:.2f} s"


PART = Part(name="continuous", title="writes that never stop", share=8, bounds=(MARK, SQL), measure=measure)
