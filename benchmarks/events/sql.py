"""What `SELECT upkeep.request_refresh(…)` and the triggers cost a transaction that writes, by pgbench itself."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.events.bench import Bench
from benchmarks.parts import Part
from benchmarks.report import at_least
from benchmarks.stage import Place
from benchmarks.timing import Deadline, Timings, interleave

BOUND = at_least(
    "sql.ratio", 0.9, "of the throughput without", "a pgbench write transaction with upkeep.request_refresh"
)
VIEW = "public.mv_branches"
CLIENTS = 4
SCALE, QUICK_SCALE = 10, 4
# Many short rounds, about half a second each: a machine with others on it changes its speed within seconds.
ROUNDS, TRANSACTIONS = 61, 300
QUICK_ROUNDS, QUICK_TRANSACTIONS = 21, 100
OTHER_ROUNDS = 21
# An INSERT of one row is that much shorter than pgbench's transaction.
SHORTER = 4
MANY = 1000

# pgbench's own, word for word: `pgbench --show-script=tpcb-like`.
_WRITE = """
\\set aid random(1, 100000 * :scale)
\\set bid random(1, 1 * :scale)
\\set tid random(1, 10 * :scale)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
"""
_ASK = f"SELECT upkeep.request_refresh('{VIEW}');\n"
_ONE = "INSERT INTO public.written (n) VALUES (1);\n"
_THOUSAND = f"INSERT INTO public.written (n) SELECT n FROM generate_series(1, {MANY}) AS n;\n"
SCRIPTS: Mapping[str, str] = {
    "plain": f"{_WRITE}END;\n",
    "asking": f"{_WRITE}{_ASK}END;\n",
    # What any statement costs in its place: most of it is the round trip.
    "round_trip": f"{_WRITE}SELECT 1;\nEND;\n",
    "one": _ONE,
    "thousand": _THOUSAND,
}
_TABLE = "CREATE TABLE public.written (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int NOT NULL)"
# What `upkeep triggers install` would make for VIEW.
_TRIGGERS = f"""
CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON public.pgbench_accounts
    FOR EACH STATEMENT EXECUTE FUNCTION upkeep.note_write('{VIEW}');
CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON public.written
    FOR EACH STATEMENT EXECUTE FUNCTION upkeep.note_write('{VIEW}');
"""
_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


class Writers:
    """pgbench on databases of the stage."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._scale = QUICK_SCALE if bench.quick else SCALE
        self._transactions = QUICK_TRANSACTIONS if bench.quick else TRANSACTIONS
        self._program = bench.stage.postgres.bin_dir / "pgbench"
        self._scripts: dict[str, Path] = {}
        self._connections: dict[str, psycopg.Connection[Any]] = {}
        for name, text in SCRIPTS.items():
            self._scripts[name] = bench.stage.folder / f"{name}.sql"
            self._scripts[name].write_text(text, encoding="utf-8")

    def prepare(self) -> Place:
        """A database with pgbench's tables, and one more."""
        place = self._bench.stage.place("pgbench", like=self._bench.base)
        self._run(place, "--initialize", "--quiet", f"--scale={self._scale}")
        with place.owner() as connection:
            connection.execute(_TABLE)
        self._bench.stage.checkpoint()
        return place

    def with_triggers(self, place: Place) -> Place:
        """A copy of it, as pgbench left it, that has triggers."""
        self._connections.pop(place.name).close()
        noted = self._bench.stage.place("pgbench_noted", like=place)
        # As the fleet installs them: whoever owns the tables may not use the function.
        with noted.fleet() as connection:
            connection.execute(_TRIGGERS)
        self._bench.stage.checkpoint()
        return noted

    def seconds(self, place: Place, script: str, mode: str = "simple") -> float:
        """Seconds for a transaction, all clients together: the inverse of pgbench's tps."""
        # As after a refresh, which deletes them.
        self._looking(place).execute("TRUNCATE upkeep.refresh_request")
        said = self._run(
            place,
            "--no-vacuum",
            f"--client={CLIENTS}",
            "--jobs=2",
            f"--transactions={self._transactions * (SHORTER if script == 'one' else 1)}",
            f"--protocol={mode}",
            f"--define=scale={self._scale}",
            f"--file={self._scripts[script]}",
        )
        found = _TPS.search(said)
        if found is None:
            raise ValueError(f"pgbench named no throughput: {said[-500:]}")
        return 1 / float(found[1])

    def _looking(self, place: Place) -> psycopg.Connection[Any]:
        if place.name not in self._connections:
            self._connections[place.name] = self._bench.fleet(place)
        return self._connections[place.name]

    def _run(self, place: Place, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._program), *arguments, place.owner_url], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"pgbench failed: {done.stderr.strip()[-500:]}")
        return done.stdout


def measure(bench: Bench, deadline: Deadline) -> None:
    """With and without, in turn, on a server that waits for its disk, as in production."""
    report = bench.report
    writers = Writers(bench)
    place = writers.prepare()

    def contender(where: Place, script: str, mode: str = "simple") -> Callable[[int], float]:
        return lambda _: writers.seconds(where, script, mode)

    timings = interleave(
        {script: contender(place, script) for script in ("plain", "asking", "round_trip")},
        rounds=QUICK_ROUNDS if bench.quick else ROUNDS,
        deadline=deadline,
    )
    _throughput(bench, "sql.plain", timings, "plain", "pgbench's transaction, 4 clients")
    _throughput(bench, "sql.asking", timings, "asking", "… with the call")
    value = report.add_median(BOUND.metric, _shares(timings, "plain", "asking"), BOUND.unit)
    report.add_median(
        "sql.round_trip.ratio",
        _shares(timings, "plain", "round_trip"),
        BOUND.unit,
        note="with SELECT 1 in the place of the call",
    )
    report.hold(BOUND, value, rounds=timings.rounds)
    if bench.quick:
        return
    noted = writers.with_triggers(place)
    for name, script, what in (
        ("trigger", "plain", "the same transaction with a trigger"),
        ("one_row", "one", "an INSERT of one row with a trigger"),
        ("many_rows", "thousand", f"an INSERT of {MANY:,} rows with a trigger"),
    ):
        both = {"plain": contender(place, script), "asking": contender(noted, script)}
        _compare(bench, name, both, what)
    prepared = {s: contender(place, s, "prepared") for s in ("plain", "asking")}
    _compare(bench, "prepared", prepared, "with the call, all statements prepared")
    with _careless(bench):
        both = {s: contender(place, s) for s in ("plain", "asking")}
        _compare(bench, "no_fsync", both, "with the call, fsync and synchronous_commit off")


def _compare(bench: Bench, name: str, contenders: Mapping[str, Callable[[int], float]], what: str) -> None:
    bench.say(f"sql: {what}")
    timings = interleave(contenders, rounds=OTHER_ROUNDS, deadline=Deadline())
    _throughput(bench, f"sql.{name}.plain", timings, "plain", "without")
    bench.report.add_median(
        f"sql.{name}.ratio", _shares(timings, "plain", "asking"), BOUND.unit, note=f"{what}; no bound"
    )


def _throughput(bench: Bench, metric: str, timings: Timings, contender: str, note: str) -> None:
    bench.report.add_median(metric, [1 / s for s in timings.of(contender)], "transactions/s", note=note)


def _shares(timings: Timings, plain: str, asking: str) -> list[float]:
    """The throughput with, of that without, round by round."""
    return [a / b for a, b in zip(timings.of(plain), timings.of(asking), strict=True)]


@contextlib.contextmanager
def _careless(bench: Bench) -> Iterator[None]:
    """Without waiting for the disk: what is left is what the statements themselves cost."""
    with psycopg.connect(bench.stage.postgres.url(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("ALTER SYSTEM SET synchronous_commit = off")
        connection.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            connection.execute("ALTER SYSTEM RESET fsync")
            connection.execute("ALTER SYSTEM RESET synchronous_commit")
            connection.execute("SELECT pg_reload_conf()")


PART = Part(
    name="sql", title="requests within transactions that write", share=7, bounds=(BOUND,), measure=measure
)
