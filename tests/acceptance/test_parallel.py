"""Two workers side by side: no view is refreshed twice at once, and no more views at once than the database allows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from fleet.ledger import State
from tests.processes import VIEW, Fleet, Kept, fleet, keep
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

NAMES = ("a", "b", "c")
LIMIT = 2
SCHEMA = "CREATE TABLE public.t (id int PRIMARY KEY); INSERT INTO public.t VALUES (1);" + "".join(
    f"CREATE MATERIALIZED VIEW public.{name} AS SELECT id, pg_sleep(0.25)::text AS slept FROM public.t;"
    f"CREATE UNIQUE INDEX {name}_key ON public.{name} (id);"
    for name in NAMES
)
CONFIG = f"[databases.kept]\nmax_parallel_refreshes = {LIMIT}\n" + "".join(
    f'[databases.kept.views."public.{name}"]\ntier = "daily"\n' for name in NAMES
)


@pytest.fixture
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture
def upkeep(tmp_path: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(tmp_path, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


class Watcher(threading.Thread):
    """Looks at the server again and again: which views are refreshed at this moment?"""

    def __init__(self, kept: Kept) -> None:
        super().__init__(daemon=True)
        self._url = kept.database.url
        self._stop_looking = threading.Event()
        self.seen: list[list[str]] = []

    def run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._stop_looking.wait(0.01):
                found = connection.execute(
                    "SELECT query FROM pg_stat_activity WHERE datname = current_database()"
                    " AND state = 'active' AND query LIKE 'REFRESH MATERIALIZED VIEW%'"
                    # A parallel worker of the query is not a second refresh.
                    " AND backend_type = 'client backend'"
                ).fetchall()
                self.seen.append([query for (query,) in found])

    def stop(self) -> list[list[str]]:
        self._stop_looking.set()
        self.join()
        return self.seen


def test_twenty_requests_at_once(upkeep: Fleet, kept: Kept) -> None:
    workers = [upkeep.worker(name, concurrency=3) for name in ("one", "two")]
    for worker in workers:
        worker.wait_ready()
    watcher = Watcher(kept)
    watcher.start()
    sent = [upkeep.send(VIEW, database="kept", view=f"public.{NAMES[n % len(NAMES)]}") for n in range(20)]
    runs = [kept.final(task_id, timeout=60) for task_id in sent]
    seen = watcher.stop()

    assert {run.state for run in runs} == {State.SUCCEEDED, State.SKIPPED}
    assert {run.reason for run in runs if run.state == State.SKIPPED} == {"already fresh"}
    done = [run for run in runs if run.state == State.SUCCEEDED]
    assert {run.target for run in done} == {f"public.{name}" for name in NAMES}
    assert {str(run.worker).split("@")[0] for run in runs} == {"one", "two"}
    # What the server showed: the views of a moment are different ones, and never more than allowed.
    assert any(len(moment) == LIMIT for moment in seen)
    for moment in seen:
        assert len(moment) <= LIMIT
        assert len(set(moment)) == len(moment)
    # What the ledger says: a refresh begins after the one before it has ended.
    for name in NAMES:
        times = sorted(
            (
                datetime.fromisoformat(str(run.result["snapshot_at"])),
                timedelta(seconds=run.result["duration_s"]),
            )
            for run in done
            if run.result is not None and run.target == f"public.{name}"
        )
        for (began, took), (next_began, _) in pairwise(times):
            assert next_began >= began + took
    # Every request is as fresh as it asked for, and a hand-back has used up no attempt.
    for run in runs:
        newest = max(
            datetime.fromisoformat(str(other.result["snapshot_at"]))
            for other in done
            if other.target == run.target and other.result is not None
        )
        assert run.as_of is not None
        assert newest >= run.as_of
        assert run.attempt == 1
    assert kept.advisory_locks() == 0
    assert not [
        line for worker in workers for line in worker.lines() if line.get("level") in {"error", "critical"}
    ]
