"""What the application waits for while months are made ahead, and while one leaves for the archive."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from benchmarks.partitions import peer, tables
from benchmarks.partitions.application import Waits, working
from benchmarks.partitions.bench import Bench
from benchmarks.partitions.contenders import (
    NOBODY,
    NOTHING_S,
    OURS,
    PARTMAN,
    PLAIN,
    QUICK_NOTHING_S,
    REPLANNED,
    Contender,
    Nobody,
    Ours,
    Plain,
    Replanned,
)
from benchmarks.partitions.tables import Before, Shape
from benchmarks.parts import Part
from benchmarks.report import Bound, at_most
from benchmarks.timing import Deadline, Stopwatch, interleave, percentile

LIMIT_MS = 300
# In quick mode: what one shape takes at least, and what it takes with pg_partman, tables of its own included.
LEAST_S, PEER_S = 5.0, 15.0
CREATING = (
    "no application statement waits longer while 3 months of 8 sub-partitions are created on 5 tables, 200 tps read and"
    " write the hot table and a 2.5 s report is open; 004's foreign key between "
)
MOVING = (
    "no application statement waits longer while one 2 M-row month is moved to warm, 200 tps read and write the hot"
    " table and a 2.5 s report is open; 004's foreign key between "
)
# In the order in which they are measured: in quick mode there may be no time for the second.
CREATE = {
    shape: at_most(f"create.{shape}", LIMIT_MS, "ms", CREATING + shape)
    for shape in (Shape.PARENTS, Shape.PARTITIONS)
}
MOVE = {
    shape: at_most(f"move.{shape}", LIMIT_MS, "ms", MOVING + shape)
    for shape in (Shape.PARENTS, Shape.PARTITIONS)
}


@dataclass(kw_only=True)
class _Felt:
    """What one contender's rounds were like."""

    waits: list[Waits] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[float]:
        return [wait for each in self.waits for wait in each.all]

    @property
    def errors(self) -> list[str]:
        return [error for each in self.waits for error in each.errors]


@contextmanager
def contenders(bench: Bench, shape: Shape, deadline: Deadline) -> Iterator[Mapping[str, Contender]]:
    """Those who take turns at one shape."""
    # Celery: only who needs it pays for its import.
    from tasks.partitions import archive_tasks  # noqa: PLC0415
    from tasks.partitions import tasks as maintenance  # noqa: PLC0415

    place, calendar = bench.shaped(shape), bench.calendar
    database = tables.database(place, shape, calendar, bench.stage.folder)
    superuser = bench.superuser(place)
    kept = [*calendar.extent.tables, *([tables.METADATA] if shape is Shape.PARTITIONS else [])]
    here: dict[str, Any] = {
        "place": place,
        "superuser": superuser,
        "calendar": calendar,
        "shape": shape,
        "before": Before.of(superuser, kept),
    }
    found: dict[str, Contender] = {
        NOBODY: Nobody(place=place, seconds=QUICK_NOTHING_S if bench.quick else NOTHING_S)
    }
    with bench.stage.in_process([database], [*maintenance.TASKS, *archive_tasks.TASKS]) as tasks:
        found[OURS] = Ours(**here, database=database.name, tasks=tasks)
        # In quick mode it would only show that it works.
        if not bench.quick:
            found[REPLANNED] = Replanned(
                place=place, seconds=NOTHING_S, connection=bench.owner(place), times=len(calendar.ahead)
            )
        plain = Plain(**here, connection=bench.owner(place))
        plain.prepare()
        found[PLAIN] = plain
        if shape is Shape.PARENTS and deadline.allows(PEER_S) and bench.partman is not None:
            found[PARTMAN] = bench.partman
        yield found


def _measure(
    name: str, bounds: Mapping[Shape, Bound], deed: Callable[[Contender], None]
) -> Callable[[Bench, Deadline], None]:
    def measure(bench: Bench, deadline: Deadline) -> None:
        longest = LEAST_S
        for shape, bound in bounds.items():
            # One that is not begun is as inconclusive as one that is cut short.
            if not deadline.allows(longest):
                return
            with Stopwatch() as watch:
                with contenders(bench, shape, deadline) as found:
                    felt = _rounds(bench, found, deed, deadline)
                _report(bench, f"{name}.{shape}", bound, felt)
            longest = watch.seconds

    return measure


def _rounds(
    bench: Bench, found: Mapping[str, Contender], deed: Callable[[Contender], None], deadline: Deadline
) -> Mapping[str, _Felt]:
    felt = {name: _Felt() for name in found}

    def turn(name: str) -> Callable[[int], float]:
        def measure(number: int) -> float:
            contender = found[name]
            try:
                with working(contender.place.owner_url, bench.calendar.today) as waits, Stopwatch() as watch:
                    try:
                        deed(contender)
                    except psycopg.Error as error:  # a deadlock: a peer that had to give way
                        felt[name].failures.append(str(error).strip())
            finally:
                contender.undo()
            felt[name].waits.append(waits)
            felt[name].seconds.append(watch.seconds)
            bench.say(f"  {name}: {watch.seconds:.1f} s, the longest wait {waits.worst:.0f} ms")
            return watch.seconds

        return measure

    interleave({name: turn(name) for name in found}, rounds=bench.rounds, deadline=deadline, warm_up=0)
    return felt


def _report(bench: Bench, name: str, bound: Bound, felt: Mapping[str, _Felt]) -> None:
    report = bench.report
    for contender, each in felt.items():
        if not each.all:
            continue
        rounds = len(each.waits)
        said = f"{len(each.all):,} statements"
        if contender == PARTMAN:
            said += f"; {peer.CANNOT}"
        if each.errors:
            said += f"; {len(each.errors)} failed: {each.errors[0].splitlines()[0]}"
        if each.failures:
            said += f"; gave up {len(each.failures)} times: {each.failures[0].splitlines()[0]}"
        report.add(f"{name}.{contender}.worst", max(each.all), "ms", rounds=rounds, note=said)
        report.add(f"{name}.{contender}.p99", percentile(each.all, 0.99), "ms", rounds=rounds)
        report.add_median(f"{name}.{contender}.seconds", each.seconds, "s", note="until it was done")
    if peer.server() is None:
        report.add(f"{name}.{PARTMAN}", "not installed", "")
    ours, nobody = felt[OURS], felt[NOBODY]
    if ours.errors:
        raise RuntimeError(f"the application got errors: {'; '.join(ours.errors[:3])}")
    if not ours.all:
        return
    worst = max(ours.all)
    report.add(
        bound.metric,
        worst,
        "ms",
        rounds=len(ours.waits),
        note=f"of all rounds; the median of theirs is {statistics.median(each.worst for each in ours.waits):.0f}",
    )
    report.hold(bound, worst, floor=max(nobody.all, default=0.0), rounds=len(ours.waits), doubt=bench.doubt)


def create(contender: Contender) -> None:
    """What the first part looks at."""
    contender.create()


def move(contender: Contender) -> None:
    """What the second part looks at."""
    contender.move()


CREATE_PART = Part(
    name="create",
    title="waits while months are made ahead",
    share=6,
    bounds=tuple(CREATE.values()),
    measure=_measure("create", CREATE, create),
)
MOVE_PART = Part(
    name="move",
    title="waits while a month leaves",
    share=4,
    bounds=tuple(MOVE.values()),
    measure=_measure("move", MOVE, move),
)
