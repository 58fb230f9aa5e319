"""The Celery task of declared jobs: a message carries a job's name, never SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
from pydantic import model_validator

from fleet import ledger, settings
from fleet.errors import PermanentError
from fleet.ledger import NewRun
from tasks.base import Arguments, Delivery, LedgeredTask, Runtime
from tasks.jobs import plan
from tasks.jobs.execute import RUN_JOB, Runner, tidy
from tasks.performing import Conclusion, Outcome


class JobArguments(Arguments):
    """`job` by its name in upkeep.toml; needed unless a run is named."""

    job: str | None = None

    @model_validator(mode="after")
    def _something_to_do(self) -> JobArguments:
        if self.run is None and self.job is None:
            raise ValueError("name the job")
        return self


class RunJob(LedgeredTask[JobArguments]):
    """Runs one declared job in its own database, once or in batches until nothing is left."""

    name = RUN_JOB
    arguments = JobArguments
    event = "job.run"

    def place(self, arguments: JobArguments, runtime: Runtime) -> settings.Database:
        """The job's own database, which a request need not name."""
        if arguments.job is None:
            return super().place(arguments, runtime)
        job = runtime.settings.job(arguments.job)
        return runtime.database(arguments.database or job.database)

    def request_run(self, arguments: JobArguments, database: settings.Database, now: datetime) -> NewRun:
        """An operator's run for a declared job."""
        job = _in(database, self.runtime.settings.job(arguments.job))
        return NewRun(
            task=self.name,
            target=job.name,
            entry=ledger.OPERATOR,
            queue=job.queue,
            max_attempts=1 + len(job.retries),
            request_id=self.request.id,
        )

    def work(self, delivery: Delivery[JobArguments]) -> Outcome:
        """Run it, as it is declared now."""
        declared = self.runtime.settings
        job = _in(delivery.database, declared.job(delivery.run.target))
        runner = Runner(
            connection=delivery.connection,
            job=job,
            lock_timeout=job.lock_timeout or delivery.database.lock_timeout,
            stay=plan.stay(job, declared.queues.soft_time_limit),
        )
        return runner.run(delivery.run)

    def retries(self, delivery: Delivery[JobArguments]) -> Sequence[timedelta]:
        """As the job declares them."""
        job = self.runtime.settings.jobs.get(delivery.run.target)
        return job.retries if job else ()

    def _perform(
        self,
        connection: psycopg.Connection[Any],
        run: ledger.Run,
        arguments: JobArguments,
        database: settings.Database,
    ) -> Conclusion:
        try:
            return super()._perform(connection, run, arguments, database)
        finally:
            tidy(connection)

    def _context(self, run: ledger.Run) -> dict[str, Any]:
        return {"job": run.target}


def _in(database: settings.Database, job: settings.Job) -> settings.Job:
    if job.database != database.name:
        raise PermanentError(
            f"The job {job.name} runs in the database {job.database}, not in {database.name}",
            remedy=f"Ask for it without database=, or declare one for {database.name} under [jobs.NAME]",
        )
    return job


TASKS = (RunJob,)
