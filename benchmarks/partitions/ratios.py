"""What a month's move holds locked and writes, against 004's function that moves its rows one by one.

Nobody else works meanwhile, and nothing refers to the month: 004's function could not delete it otherwise.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from benchmarks.partitions import documented, tables
from benchmarks.partitions.bench import Bench
from benchmarks.partitions.contenders import Ours
from benchmarks.partitions.tables import Before
from benchmarks.parts import Part
from benchmarks.report import at_least
from benchmarks.timing import Deadline, Stopwatch, interleave
from examples.transactions import generate

LOCKED = at_least(
    "ratios.locked", 1000, "times less time under lock", "the move against 004's DELETE … RETURNING → INSERT"
)
WRITTEN = at_least("ratios.wal", 1000, "times less WAL", "the move against 004's DELETE … RETURNING → INSERT")

OURS, DOCUMENTED = "ours", "documented"
LOOK_S = 0.0005
# In quick mode: less is not enough for a round.
LEAST_S = 4.0
# What keeps readers of the table, or of the month, waiting; as anybody else sees it.
_LOCKED = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_locks
                WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock' AND granted
                  AND relation = 'public.transactions'::pg_catalog.regclass)
"""


@dataclass(kw_only=True)
class _Figures:
    locked_ms: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)


def measure(bench: Bench, deadline: Deadline) -> None:
    """In turn, the rows at the same place for both; each is undone before the next one begins."""
    from tasks.partitions import archive_tasks  # noqa: PLC0415

    if not deadline.allows(LEAST_S):
        return
    calendar = bench.calendar
    place = bench.stage.place("ratios", like=bench.base)
    database = tables.database(place, None, calendar, bench.stage.folder)
    superuser = bench.superuser(place)
    superuser.execute(documented.ARCHIVE)
    bench.stage.checkpoint()
    found = {OURS: _Figures(), DOCUMENTED: _Figures()}
    with bench.stage.in_process([database], archive_tasks.TASKS) as tasks:
        ours = Ours(
            place=place,
            superuser=superuser,
            calendar=calendar,
            shape=None,
            before=Before.of(superuser, calendar.extent.tables),
            database=database.name,
            tasks=tasks,
        )

        def one(number: int) -> float:
            with _written(superuser) as written, watched(place.fleet_url) as seen, Stopwatch() as watch:
                ours.move()
            ours.undo()
            if number >= 0:
                found[OURS].locked_ms.append(seen["locked_ms"])
                found[OURS].written.append(written["bytes"])
            return watch.seconds

        def other(number: int) -> float:
            with _written(superuser) as written, Stopwatch() as watch:
                moved = _as_documented(superuser, bench)
            if moved != calendar.extent.rows:
                raise ValueError(f"004's function moved {moved:,} of {calendar.extent.rows:,} rows")
            if number >= 0:
                found[DOCUMENTED].locked_ms.append(1000 * watch.seconds)
                found[DOCUMENTED].written.append(written["bytes"])
            superuser.execute("TRUNCATE public.transactions_archive")
            return watch.seconds

        one(-1)  # the first one makes the archive
        timings = interleave(
            {OURS: one, DOCUMENTED: other}, rounds=bench.rounds, deadline=deadline, warm_up=0
        )
    _report(bench, found, timings.of(OURS))


def _as_documented(connection: psycopg.Connection[Any], bench: Bench) -> int:
    """Its locks are held, and its WAL is written, until it ends, committed or not; rolled back the rows stay."""
    due = bench.calendar.due
    with connection.transaction(force_rollback=True):
        row = connection.execute(
            "SELECT public.archive_transactions_batch(%s, %s)", [due, generate.following(due)]
        ).fetchone()
    assert row is not None  # a function's value
    return int(row[0])


def _report(bench: Bench, found: Mapping[str, _Figures], seconds: list[float]) -> None:
    report = bench.report
    notes = {
        OURS: "ACCESS EXCLUSIVE on the table, looked for every millisecond",
        DOCUMENTED: "its transaction, rolled back at the end: until then its rows are locked",
    }
    for name, figures in found.items():
        report.add_median(f"ratios.{name}.locked", figures.locked_ms, "ms", note=notes[name])
        report.add_median(f"ratios.{name}.wal", figures.written, "bytes")
    report.add_median(
        "ratios.ours.seconds",
        seconds,
        "s",
        note="the whole task: most of it is the CHECK's look at every row",
    )
    rounds = min(len(figures.locked_ms) for figures in found.values())
    for bound, values in (
        (LOCKED, [(theirs, ours) for ours, theirs in _pairs(found, "locked_ms")]),
        (WRITTEN, [(theirs, ours) for ours, theirs in _pairs(found, "written")]),
    ):
        ratio = report.add_median(bound.metric, [theirs / ours for theirs, ours in values], bound.unit)
        report.hold(bound, ratio, rounds=rounds, doubt=bench.doubt)


def _pairs(found: Mapping[str, _Figures], what: str) -> Iterator[tuple[float, float]]:
    return zip(getattr(found[OURS], what), getattr(found[DOCUMENTED], what), strict=False)


@contextmanager
def _written(connection: psycopg.Connection[Any]) -> Iterator[dict[str, float]]:
    """How many bytes of WAL the server has written meanwhile, for whomever."""
    said: dict[str, float] = {}
    row = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
    assert row is not None  # a function's value
    yield said
    row = connection.execute("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)", row).fetchone()
    assert row is not None  # a function's value
    said["bytes"] = float(row[0])


@contextmanager
def watched(url: str) -> Iterator[dict[str, float]]:
    """For how long in all the table was locked against readers, as another session saw it.

    From the last look without the lock to the first one without it again: never less than it was.
    """
    said: dict[str, float] = {}
    stop, ready = threading.Event(), threading.Event()

    def look() -> None:
        with psycopg.connect(url, autocommit=True, application_name="upkeep/benchmark") as connection:
            total = longest_gap = 0.0
            free = time.perf_counter()
            held = False
            ready.set()
            last = False
            while not last:
                # What ended before we were told to stop is seen to have ended.
                last = stop.is_set()
                asked = time.perf_counter()
                row = connection.execute(_LOCKED).fetchone()
                now = time.perf_counter()
                if row == (True,):
                    held = True
                else:
                    if held:
                        total += now - free
                    longest_gap = max(longest_gap, now - free)
                    held, free = False, asked
                time.sleep(LOOK_S)
            # One that nobody saw lay between two looks.
            said["locked_ms"] = 1000 * (total or longest_gap)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield said
    finally:
        stop.set()
        thread.join()


PART = Part(
    name="ratios",
    title="a month's move against 004's function",
    share=2,
    bounds=(LOCKED, WRITTEN),
    measure=measure,
)
