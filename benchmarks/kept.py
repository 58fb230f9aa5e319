"""A database that Upkeep keeps, as a benchmark drives it: ticks that are due, runs that end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from pydantic import SecretStr

from benchmarks.stage import Place, WorkerProcess
from benchmarks.timing import Stopwatch
from fleet import ledger, settings
from fleet.ledger import NewRun, Run, State
from fleet.names import RelationName

REFRESH_VIEW = "upkeep.refresh.view"
REFRESH_TIER = "upkeep.refresh.tier"

# Every tier's: a slot of all of them at once is then never further away than the last full minute.
EVERY_MINUTE = "* * * * *"
# Runs are looked for this often at first, so that a skip of some milliseconds is not measured as a poll's
# interval; later at a hundredth of the time passed, which leaves the processor to those who work.
POLL_S = 0.001
POLL_SHARE = 0.01
SLOWEST_POLL_S = 0.05
PATIENCE_S = 300.0


def declare(
    place: Place, views: Sequence[str], *, tier: str = "five_minutes", **changes: Any
) -> settings.Database:
    """A kept database with all its views in one tier that is due every minute."""
    names = [RelationName.parse(view) for view in views]
    return settings.Database(
        name=place.name,
        url=SecretStr(place.fleet_url),
        tiers={tier: settings.Tier(name=tier, cron=EVERY_MINUTE)},
        views={name: settings.View(name=name, tier=tier, **changes) for name in names},
    )


def configuration(systems: Sequence[tuple[Place, Mapping[str, str]]], *, concurrency: int) -> str:
    """An upkeep.toml: databases, each with its views and their tiers, each tier due every minute.

    Two refreshes at a time in a database, and children that live for as long as the benchmark.
    """
    lines = [
        "[fleet]",
        f'home = "{systems[0][0].name}"',
        "[queues]",
        f"concurrency = {concurrency}",
        "max_tasks_per_child = 1000000",
    ]
    for place, views in systems:
        lines += [f"[databases.{place.name}]", "max_parallel_refreshes = 2"]
        for tier in sorted(set(views.values())):
            lines += [f"[databases.{place.name}.tiers.{tier}]", f'cron = "{EVERY_MINUTE}"']
        for view, tier in views.items():
            lines += [f'[databases.{place.name}.views."{view}"]', f'tier = "{tier}"']
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A kept database and a connection to look on with."""

    place: Place
    connection: psycopg.Connection[Any]

    def now(self) -> datetime:
        """The server's clock, which slots are on."""
        row = self.connection.execute("SELECT pg_catalog.clock_timestamp()").fetchone()
        assert row is not None  # SELECT without FROM
        found: datetime = row[0]
        return found

    def slot(self) -> datetime:
        """The last full minute: the latest slot of every tier here."""
        return self.now().replace(second=0, microsecond=0)

    def a_minute_later(self) -> None:
        """Move everything recorded into the past by a minute, so that the current slot is due again.

        Cron knows no seconds; a benchmark that waited for real minutes would wait for hours. The runs go
        further back, each by days of its own, so that no two of them meet in one slot.
        """
        with self.connection.transaction():
            self.connection.execute(
                "UPDATE upkeep.view_state SET snapshot_at = snapshot_at - interval '1 minute',"
                " verified_at = verified_at - interval '1 minute'"
            )
            self.connection.execute(
                "UPDATE upkeep.run SET slot = slot - id * interval '1 day'"
                " WHERE slot > pg_catalog.clock_timestamp() - interval '1 hour' AND finished_at IS NOT NULL"
            )

    def tick(self, view: str, slot: datetime, *, tier: str = "five_minutes") -> int:
        """Insert a tick's run of a view, as a tier's fan-out does."""
        new = NewRun(task=REFRESH_VIEW, target=view, entry=tier, slot=slot, queue="refresh")
        run_id, _ = ledger.insert(self.connection, new)
        return run_id

    def tick_all(self, worker: WorkerProcess, tiers: Sequence[str]) -> Sequence[Run]:
        """Let all tiers be due at once, as the scheduler would, and wait until every view's run has ended.

        A slot is a whole minute, so that a view finds its upstream views' runs under the same slot and
        waits for them.
        """
        slot = self.slot()
        for tier in tiers:
            run_id, _ = ledger.insert(
                self.connection,
                NewRun(task=REFRESH_TIER, target=tier, entry=tier, slot=slot, queue="refresh"),
            )
            worker.send(REFRESH_TIER, database=self.place.name, run=run_id)
        expected = sum(len(worker.settings.database(self.place.name).views_in(tier)) for tier in tiers)
        self._wait(
            worker,
            "SELECT count(*) FROM upkeep.run WHERE task = %s AND slot = %s AND finished_at IS NOT NULL",
            (REFRESH_VIEW, slot),
            expected,
        )
        return [
            r
            for r in ledger.history(self.connection, task=REFRESH_VIEW, limit=5 * expected)
            if r.slot == slot
        ]

    def wait_final(self, worker: WorkerProcess, above: int, count: int) -> list[Run]:
        """Wait until `count` views' runs with an id above `above` have ended or failed once; returns all."""
        self._wait(
            worker,
            # A run that failed and waits for its next attempt has done what it could.
            "SELECT count(*) FROM upkeep.run"
            " WHERE task = %s AND id > %s AND (finished_at IS NOT NULL OR error IS NOT NULL)",
            (REFRESH_VIEW, above),
            count,
        )
        return [
            r for r in ledger.history(self.connection, task=REFRESH_VIEW, limit=5 * count) if r.id > above
        ]

    def newest_run(self) -> int:
        """The id of the newest run, 0 without one."""
        row = self.connection.execute("SELECT coalesce(max(id), 0) FROM upkeep.run").fetchone()
        return int(row[0]) if row else 0

    def _wait(self, worker: WorkerProcess, query: str, values: tuple[Any, ...], expected: int) -> None:
        began = time.monotonic()
        while True:
            row = self.connection.execute(query, values).fetchone()
            if row and row[0] >= expected:
                return
            passed = time.monotonic() - began
            if passed > 1:
                worker.check()
            if passed > PATIENCE_S:
                raise TimeoutError(f"{row[0] if row else 0} of {expected} runs ended in {passed:.0f} s")
            time.sleep(min(SLOWEST_POLL_S, max(POLL_S, POLL_SHARE * passed)))


def refresh_one_after_the_other(connection: psycopg.Connection[Any], views: Iterable[str]) -> float:
    """000's own way: one session, one view after the other. Returns its seconds."""
    with Stopwatch() as watch:
        for view in views:
            refresh_concurrently(connection, view)
    return watch.seconds


def refresh_concurrently(connection: psycopg.Connection[Any], view: str) -> None:
    """The bare statement."""
    name = RelationName.parse(view)
    connection.execute(sql.SQL("REFRESH MATERIALIZED VIEW CONCURRENTLY {}").format(name.identifier()))


def flush_counters(connection: psycopg.Connection[Any]) -> None:
    """Make the rows that this session wrote visible in the counters, as they are a second later anyway."""
    connection.execute("SELECT pg_catalog.pg_stat_force_next_flush()")


def expect(runs: Iterable[Run], states: Iterable[State]) -> None:
    """Refuse a measurement of work that was not done, or not done as it should have been.

    Raises:
        ValueError: a run ended in another state, with its reason.

    """
    allowed = {state.value for state in states}
    wrong = [
        f"{run.target} {run.state}: {run.reason or run.error}" for run in runs if run.state not in allowed
    ]
    if wrong:
        raise ValueError(f"Not what was to be measured: {'; '.join(wrong)}")
