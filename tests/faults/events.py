"""What the tests of events share: small views with a table each, writers, processes that stop where they are told."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis
from psycopg import sql

from fleet.ledger import Run, State
from tests.faults.aftermath import assert_nothing_is_lost
from tests.processes import Fleet, Kept, Process
from tests.waiting import wait_until
from upkeep_client import Upkeep

SLOW_S = 1
# A table of its own for each view, so that what one test writes makes no other test's view wrong.
SCHEMA = """
CREATE FUNCTION public.make(VARIADIC names text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY names LOOP
        EXECUTE format('CREATE TABLE public.%I (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)', 't_' || name);
        EXECUTE format('CREATE MATERIALIZED VIEW public.%I AS SELECT id FROM public.%I', name, 't_' || name);
        EXECUTE format('CREATE UNIQUE INDEX ON public.%I (id)', name);
    END LOOP;
END $$;
"""

WRITER = """
import sys, time
from pathlib import Path

import psycopg
from tests.waiting import wait_until
from upkeep_client import Upkeep

postgres, broker, gate, writes, wrong_by = sys.argv[1:]
real = time.time
time.time = lambda: real() + float(wrong_by)
time.time_ns = lambda: int(time.time() * 1e9)
with psycopg.connect(postgres, autocommit=True) as connection, Upkeep(broker, on_error="raise") as upkeep:
    print("ready", file=sys.stderr, flush=True)
    wait_until(Path(gate).exists, 60, "the gate")
    for _ in range(int(writes)):
        connection.execute("INSERT INTO public.t_burst DEFAULT VALUES")
        upkeep.request_refresh("public.burst", database="kept")
"""


def view(name: str, *settings: str) -> str:
    """A view's part of upkeep.toml; retries are quick, because what is tested is that they come, not when."""
    timing = (
        () if any(each.startswith("delay") for each in settings) else ('delay = "100ms"', 'max_wait = "1s"')
    )
    return "\n".join(
        [
            f'[databases.kept.views."public.{name}"]',
            'tier = "daily"',
            'retries = ["200ms", "500ms", "2s", "5s"]',
            *timing,
            *settings,
        ]
    )


@dataclass(kw_only=True)
class Writers:
    """Applications: they write a row, and ask for a refresh in the one way or the other."""

    kept: Kept
    redis_url: str

    def __post_init__(self) -> None:
        self.redis = redis.Redis.from_url(self.redis_url)
        self.client = Upkeep(self.redis_url, database="kept", on_error="raise")

    def close(self) -> None:
        self.client.close()
        self.redis.close()

    def write(self, name: str) -> None:
        """Write what makes the view wrong, and ask for nothing."""
        with psycopg.connect(self.kept.url, autocommit=True) as connection:
            connection.execute(_insert(name))

    def mark(self, name: str, **limits: Any) -> None:
        """Write, then ask in Redis."""
        self.write(name)
        self.client.request_refresh(f"public.{name}", **limits)

    def row(self, name: str) -> None:
        """Write and ask in one transaction."""
        with psycopg.connect(self.kept.url) as connection:
            connection.execute(_insert(name))
            connection.execute("SELECT upkeep.request_refresh(%s)", ["public." + name])

    def fresh(self, name: str) -> bool:
        """Whether every written row is in the view."""
        with psycopg.connect(self.kept.url, autocommit=True) as connection:
            query = sql.SQL("SELECT (SELECT count(*) FROM {}) = (SELECT count(*) FROM {})").format(
                sql.Identifier("public", name), sql.Identifier("public", f"t_{name}")
            )
            row = connection.execute(query).fetchone()
        assert row is not None
        return bool(row[0])

    def wait_fresh(self, name: str, timeout: float = 30, *, hurried: bool = False) -> None:
        def look() -> bool:
            if hurried:
                self.hurry()
            return self.fresh(name)

        wait_until(look, timeout, lambda: f"a fresh {name}; {self.events(name)}")

    def events(self, name: str) -> list[Run]:
        """The event runs of a view, in the order in which they were made."""
        found = self.kept.rows(
            "SELECT id FROM upkeep.run WHERE target = %s AND entry = 'event' ORDER BY id", "public." + name
        )
        return [self.kept.run(each["id"]) for each in found]

    def refreshes(self, name: str) -> list[Run]:
        return [run for run in self.events(name) if run.state == State.SUCCEEDED]

    def marks(self) -> list[str]:
        """All that requests have left in Redis."""
        return sorted(key.decode() for key in self.redis.scan_iter(match="upkeep:marks:*"))

    def hurry(self) -> None:
        """Let a bell be taken for lost after two seconds: the fleet's patience is not what is tested."""
        self.kept.change(
            "UPDATE upkeep.run SET rung_at = rung_at - '1 min'::interval"
            " WHERE state = 'queued' AND rung_at < clock_timestamp() - '2 s'::interval"
            " AND rung_at > clock_timestamp() - '1 min'::interval"
        )
        self.kept.change(
            "UPDATE upkeep.announcement SET created_at = created_at - '1 min'::interval"
            " WHERE created_at BETWEEN clock_timestamp() - '1 min'::interval AND clock_timestamp() - '2 s'::interval"
        )

    def assert_all_is_done(self, *, stale: tuple[str, ...] = (), timeout: float = 60) -> None:
        """Every view is right, every run has ended, and no request waits anywhere."""
        assert_nothing_is_lost(self.kept, stale=stale, timeout=timeout)
        wait_until(lambda: not self.marks(), 10, lambda: f"marks: {self.marks()}")


def _insert(name: str) -> sql.Composed:
    return sql.SQL("INSERT INTO {} DEFAULT VALUES").format(sql.Identifier("public", f"t_{name}"))


class Stops:
    """Processes that stop (SIGSTOP) at a step: of a worker's dispatcher, or of a pool child with a view."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def environment(self, worker: str, path: str) -> dict[str, str]:
        """What a worker is started with."""
        return {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "stops"), path]),
            "UPKEEP_TEST_STOPS": str(self.folder),
            "UPKEEP_TEST_STOPS_NAME": worker,
        }

    def at(self, step: str, what: str) -> None:
        """Whoever comes to the step next stops there, once."""
        (self.folder / f"{step} {what}").touch()

    def wait(self, step: str, what: str, timeout: float = 30) -> psutil.Process:
        """Wait until somebody has stopped there."""
        found = self.folder / f"{step} {what} stopped"

        def stopped() -> psutil.Process | None:
            pid = found.read_text(encoding="utf-8") if found.exists() else ""
            process = psutil.Process(int(pid)) if pid else None
            return process if process and process.status() == psutil.STATUS_STOPPED else None

        process = wait_until(stopped, timeout, f"a process that stops at {step} {what}")
        assert process is not None
        found.unlink()
        return process


@contextmanager
def asleep(*workers: Process) -> Iterator[None]:
    """Workers whose main processes do not run for a while."""
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            os.kill(worker.pid, signal.SIGCONT)


class Overlaps(threading.Thread):
    """Looks all the time whether two sessions refresh one view at once."""

    def __init__(self, url: str) -> None:
        super().__init__(name="overlaps", daemon=True)
        self._url = url
        self._over = threading.Event()
        self.seen: Counter[str] = Counter()
        self.found: list[str] = []

    def run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._over.wait(0.02):
                rows = connection.execute(
                    "SELECT replace(query, 'CONCURRENTLY ', ''), count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND state = 'active' AND query LIKE 'REFRESH%' GROUP BY 1"
                ).fetchall()
                for query, sessions in rows:
                    self.seen[query] += 1
                    if sessions > 1:
                        self.found.append(f"{query}: {sessions} sessions at {time.time()}")

    def close(self) -> None:
        self._over.set()
        self.join(10)

    def assert_none(self) -> None:
        assert not self.found, self.found
        assert self.is_alive(), "nobody has looked"


def command(upkeep: Fleet, *words: str) -> None:
    """An operator's command, which succeeds."""
    process = upkeep.start_command(
        "-".join(words), [sys.executable, "-c", "import worker.cli; worker.cli.main()", *words]
    )
    assert process.popen.wait(60) == 0, process.tail()
