"""How long it takes to plan a thousand partition sets of a hundred partitions each, and how much memory."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Sequence
from datetime import UTC, date, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.partitions.bench import Bench
from benchmarks.parts import Part
from benchmarks.report import at_most
from benchmarks.stage import Place
from benchmarks.timing import Deadline, Stopwatch
from examples.transactions import generate
from fleet import settings

PROMISED = "planning 1,000 partition sets of 100 partitions"
SECONDS = at_most("planning", 5, "s", PROMISED)
# "Memory bounded": by what a worker's child may have before it is replaced, max_memory_per_child's default.
MEMORY = at_most("planning.memory", 256, "MiB", f"{PROMISED}, memory bounded: what a worker's child may have")
SETS, QUICK_SETS = 1000, 20
PARTITIONS, AHEAD = 100, 3
WRITERS = 2
ROUNDS, QUICK_ROUNDS = 5, 3
STARTS_S = 60.0
# In quick mode: less is not enough for a round.
LEAST_S = 3.0


def measure(bench: Bench, deadline: Deadline) -> None:
    """Each round in a process of its own, whose memory nobody else has used."""
    if not deadline.allows(LEAST_S):
        return
    sets = QUICK_SETS if bench.quick else SETS
    place = bench.stage.place("planning")
    bench.stage.migrate(place)
    with Stopwatch() as watch:
        _fill(place, sets)
    bench.stage.checkpoint()
    bench.say(f"{sets:,} sets of {PARTITIONS} partitions after {watch.seconds:.1f} s")
    config = _configuration(place, sets, bench.stage.folder)
    seconds: list[float] = []
    memory: list[float] = []
    lines = 0
    for number in range(-1, QUICK_ROUNDS if bench.quick else ROUNDS):
        if seconds and not deadline.allows(2 * seconds[-1] + 1):
            break
        took, grown, lines = _in_a_process(config, place)
        if number >= 0:
            seconds.append(took)
            memory.append(grown)
    _report(bench, sets, seconds, memory, lines)


def _report(bench: Bench, sets: int, seconds: Sequence[float], memory: Sequence[float], lines: int) -> None:
    report = bench.report
    report.add(
        "planning.sets", sets, "partition sets", note=f"of {PARTITIONS} partitions; {lines:,} lines planned"
    )
    void = f"measured with {sets} sets, promised for {SETS:,}" if sets != SETS else None
    took = report.add_median(
        SECONDS.metric, seconds, "s", note="catalogue read, judged and planned, in one process"
    )
    report.hold(SECONDS, took, floor=bench.stage.floor.worst_ms / 1000, rounds=len(seconds), void=void)
    grown = report.add_median(
        MEMORY.metric, memory, "MiB", note="by how much the most it ever had grew meanwhile"
    )
    report.hold(MEMORY, grown, rounds=len(memory), void=void)


def _fill(place: Place, sets: int) -> None:
    """Plain partitions, a set a transaction; months up to the current one and the three that are to be ahead."""
    firsts = generate.months(datetime.now(UTC), PARTITIONS - AHEAD)
    while len(firsts) < PARTITIONS:
        firsts.append(generate.following(firsts[-1]))
    threads = [
        threading.Thread(target=_write, args=(place, range(number, sets, WRITERS), firsts))
        for number in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with place.owner() as connection:
        connection.execute("VACUUM (ANALYZE) pg_catalog.pg_class")
        count = connection.execute("SELECT count(*) FROM pg_partitioned_table").fetchone()
    if count != (sets,):
        raise RuntimeError(f"{count} of {sets} partition sets could be made")


def _write(place: Place, numbers: range, firsts: Sequence[date]) -> None:
    with place.owner() as connection:
        for number in numbers:
            table = f"set_{number:04d}"
            statements: list[sql.Composable] = [
                sql.SQL(
                    "CREATE TABLE {} (id bigint NOT NULL, at date NOT NULL) PARTITION BY RANGE (at)"
                ).format(sql.Identifier("public", table))
            ]
            statements += [
                sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})").format(
                    sql.Identifier("public", f"{table}_y{first:%Y}m{first:%m}"),
                    sql.Identifier("public", table),
                    sql.Literal(f"{first}"),
                    sql.Literal(f"{generate.following(first)}"),
                )
                for first in firsts
            ]
            with connection.transaction():
                connection.execute(sql.SQL(";").join(statements))


def _configuration(place: Place, sets: int, folder: Path) -> Path:
    """A policy for every set: the defaults, under which 80 of a hundred months are due."""
    lines = ["[fleet]", 'home = "planning"', "[databases.planning]"]
    lines += [f'[databases.planning.partitions."public.set_{number:04d}"]' for number in range(sets)]
    path = folder / "planning.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _in_a_process(config: Path, place: Place) -> tuple[float, float, int]:
    """Seconds, MiB and lines of one planning.

    Raises:
        RuntimeError: it did not plan.

    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_plan_all, args=(theirs, config, place), name="planner", daemon=True)
    process.start()
    theirs.close()
    try:
        said, error = ours.recv()
    finally:
        process.join(STARTS_S)
        process.kill()
    if error:
        raise RuntimeError(error)
    found: tuple[float, float, int] = said
    return found


def _plan_all(pipe: Connection, config: Path, place: Place) -> None:
    from tasks.partitions.look import look  # noqa: PLC0415

    environment = {"UPKEEP_PLANNING_URL": place.fleet_url, "UPKEEP_REDIS_URL": "redis://localhost"}
    database = settings.load(config, environment).databases["planning"]
    try:
        with psycopg.connect(place.fleet_url, autocommit=True) as connection:
            before = _most_mib()
            with Stopwatch() as watch:
                # One after the other, as they come: nobody keeps a thousand plans.
                lines = sum(
                    len(looked.lines) for looked in look(connection, database, clock=datetime.now(UTC))
                )
            pipe.send(((watch.seconds, _most_mib() - before, lines), ""))
    except Exception as error:  # noqa: BLE001 - said by whoever waits for it
        pipe.send((None, f"{type(error).__name__}: {error}"))


def _most_mib() -> float:
    import resource  # noqa: PLC0415 - not on every system that imports this

    most: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most) / 1024


PART = Part(
    name="planning",
    title="the plans of a thousand partition sets",
    share=1.5,
    bounds=(SECONDS, MEMORY),
    measure=measure,
)
