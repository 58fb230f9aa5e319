"""A table of things to do, and a way to run jobs on it in this process."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, ClassVar

import psycopg
import pytest

from fleet import ledger
from fleet.ledger import NewRun, Run
from fleet.postgres.connect import connect
from fleet.settings import Job
from tasks.jobs.execute import RUN_JOB, Runner
from tasks.performing import perform
from tests.servers import Database

# As 004's process_pending_transactions_batch: a few at a time, and how many it were.
SCHEMA = """
CREATE TABLE public.todo (id int PRIMARY KEY, done int NOT NULL DEFAULT 0);
INSERT INTO public.todo SELECT generate_series(1, 25);
CREATE FUNCTION public.do_some() RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    n integer;
BEGIN
    UPDATE public.todo SET done = done + 1
     WHERE id IN (SELECT id FROM public.todo WHERE done = 0 ORDER BY id LIMIT 10 FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
"""


def job(sql: str, **changes: Any) -> Job:
    return Job.model_validate({"name": "settle", "database": "kept", "sql": sql} | changes)


class System:
    """A kept database in this process: run jobs, look."""

    made: ClassVar[list[System]] = []

    def __init__(self, database: Database) -> None:
        self.database = database
        self.connection = connect(database.url, application_name="upkeep/test")
        System.made.append(self)

    def insert(self, declared: Job, **changes: Any) -> int:
        new = {
            "task": RUN_JOB,
            "target": declared.name,
            "entry": "operator",
            "queue": declared.queue,
            "max_attempts": 1 + len(declared.retries),
        }
        run_id, _ = ledger.insert(self.connection, NewRun(**(new | changes)))
        return run_id

    def work(self, declared: Job, run_id: int, *, stay: timedelta = timedelta(minutes=5)) -> Run:
        """Deliver a run here, and return it as the ledger has it afterwards."""
        runner = Runner(
            connection=self.connection,
            job=declared,
            lock_timeout=declared.lock_timeout or timedelta(seconds=5),
            stay=stay,
        )
        with ledger.claim(self.connection, run_id, worker="test") as run:
            assert run is not None
            perform(
                self.connection,
                run,
                lambda: runner.run(run),
                retries=declared.retries,
                event="job.run",
                doing=f"Running {declared.name}",
            )
        return self.run_row(run_id)

    def run(self, sql: str | Job, *, stay: timedelta = timedelta(minutes=5), **changes: Any) -> Run:
        """Ask for a job and do it here."""
        declared = sql if isinstance(sql, Job) else job(sql, **changes)
        return self.work(declared, self.insert(declared), stay=stay)

    def run_row(self, run_id: int) -> Run:
        found = ledger.get(self.connection, run_id)
        assert found is not None
        return found

    def scalar(self, query: str, *values: Any) -> Any:
        row = self.connection.execute(query, values).fetchone()
        assert row is not None
        return row[0]

    def done(self) -> dict[int, int]:
        """How many rows were done how often."""
        with psycopg.connect(self.database.url) as other:
            return dict(other.execute("SELECT done, count(*)::int FROM public.todo GROUP BY done").fetchall())


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Every system that a test made is closed, however the test ended."""
    yield
    while System.made:
        System.made.pop().connection.close()


@pytest.fixture
def system(upkeep_database: Database) -> System:
    with upkeep_database.connect() as connection:
        connection.execute(SCHEMA)
    return System(upkeep_database)
