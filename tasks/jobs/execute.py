"""Runs a declared job: one at a time, each batch in a transaction that also counts it in the ledger.

A batch and its count are committed together, and so are the last batch and the run's end. Whoever takes a run over
after a crash finds what was committed, goes on from there, and does nothing twice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from fleet import ledger
from fleet.errors import PermanentError
from fleet.ledger import Run, State
from fleet.postgres import locks
from fleet.postgres.queries import load
from fleet.settings import Job
from tasks.jobs import plan
from tasks.jobs.failure import failed
from tasks.jobs.plan import Next, Tally
from tasks.jobs.statement import Effect, execute
from tasks.performing import Done, Outcome, Skip, Wait

_sql = load("tasks.jobs", "sql/execute.sql")

RUN_JOB = "upkeep.job.run"
# Longer would keep a worker's place from other work; the run is handed back, and woken when the other one is done.
BUSY_WAIT_S = 1.0
HAND_BACK = timedelta(seconds=10)
OVERTAKEN = "its next slot came before it could begin"
# What a statement may leave in its session for the next task; the pool itself takes care of settings and locks.
_LEFT_BEHIND = "SET SESSION AUTHORIZATION DEFAULT; CLOSE ALL; UNLISTEN *; DISCARD TEMP; DEALLOCATE ALL"


def job_key(name: str) -> str:
    """Held while a job runs."""
    return f"upkeep/job/{name}"


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What a job needs besides itself: the connection that does the work, and how long it may keep it."""

    connection: psycopg.Connection[Any]
    job: Job
    lock_timeout: timedelta
    stay: timedelta

    def run(self, run: Run) -> Outcome:
        """Run the job to its end, or until others should have the worker's place.

        Raises:
            PermanentError, TransientError: the statement failed; what was committed before stays.

        """
        key = job_key(self.job.name)
        free = locks.acquire_within(self.connection, key, timeout_s=BUSY_WAIT_S)
        try:
            if self._overtaken(run):
                return Skip(reason=OVERTAKEN)
            if not free:
                reason = f"the job {self.job.name} is running already"
                return Wait(reason=reason, wait=HAND_BACK, waits_for=self._wakes)
            return self._batches(run)
        finally:
            if free:
                locks.release(self.connection, key)

    def _overtaken(self, run: Run) -> bool:
        if run.expires_at is None:
            return False
        row = self.connection.execute(_sql.read_clock.sql).fetchone()
        assert row is not None  # SELECT without FROM
        return plan.overtaken(run, row[0])

    @property
    def _wakes(self) -> str:
        # What runs of the same job wait for; no view has such a name.
        return f"job {self.job.name}"

    def _batches(self, run: Run) -> Outcome:
        tally, began = Tally.of(run.result), time.monotonic()
        while True:
            try:
                outcome, tally = self._batch(run, tally, began)
            except (psycopg.Error, PermanentError) as exc:
                raise failed(exc, job=self.job, tally=tally, lock_timeout=self.lock_timeout) from exc
            if outcome is not None:
                return outcome
            time.sleep(self.job.batch_pause.total_seconds())

    def _batch(self, run: Run, tally: Tally, began: float) -> tuple[Outcome | None, Tally]:
        """One transaction: the statement, and what the ledger keeps of it."""
        connection, job = self.connection, self.job
        started = time.monotonic()
        with connection.transaction():
            connection.execute(
                _sql.begin_batch.sql,
                {
                    "lock_timeout": _ms(self.lock_timeout),
                    "statement_timeout": _ms(job.statement_timeout),
                },
            )
            effect = self._statement()
            rows = plan.rows_of(effect, job=job)
            now = time.monotonic()
            # A batch that finds nothing left is none.
            if rows or not job.repeat_until_zero:
                tally = tally.plus(rows=rows, duration=timedelta(seconds=now - started))
            step = plan.after(job, tally, rows=rows, stayed=timedelta(seconds=now - began), stay=self.stay)
            if step in {Next.END, Next.STOP}:
                return self._end(run, tally, effect, step), tally
            kept = connection.execute(
                _sql.keep_tally.sql,
                {"id": run.id, "tally": Jsonb(tally.to_json()), "progress": Jsonb(plan.progress(tally))},
            )
            if kept.rowcount != 1:
                raise PermanentError(
                    f"Somebody has ended run {run.id} meanwhile: its next batch was rolled back"
                )
        if step is Next.GIVE_WAY:
            reason = f"{tally} so far; others have their turn"
            return Wait(reason=reason, wait=timedelta()), tally
        return None, tally

    def _statement(self) -> Effect:
        effect = execute(self.connection, self.job.sql)
        if self.connection.info.transaction_status is not TransactionStatus.INTRANS:
            raise PermanentError(
                f"The statement of the job {self.job.name} has ended the transaction that it ran in",
                remedy="Leave BEGIN, COMMIT and ROLLBACK to Upkeep: each batch is a transaction",
            )
        if not effect.command:
            raise PermanentError(
                f"The job {self.job.name} has nothing but comments for a statement",
                remedy=f"Write one SQL statement under [jobs.{self.job.name}]",
            )
        return effect

    def _end(self, run: Run, tally: Tally, effect: Effect, step: Next) -> Outcome:
        if not tally.batches:
            reason = "nothing was left to do"
            ledger.finish(self.connection, run.id, State.SKIPPED, reason=reason, wakes=self._wakes)
            return Skip(reason=reason, recorded=True)
        result, note = plan.result(tally, effect, job=self.job), None
        if step is Next.STOP:
            result["more"] = True
            note = f"stopped after max_batches = {self.job.max_batches}: more may be left"
        ledger.finish(self.connection, run.id, State.SUCCEEDED, reason=note, result=result, wakes=self._wakes)
        return Done(result=result, recorded=True)


def tidy(connection: psycopg.Connection[Any]) -> None:
    """Take out of a session what a job's statement left in it; one that cannot be tidied is closed."""
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        return
    try:
        connection.execute(_LEFT_BEHIND)
    except psycopg.Error:
        connection.close()


def _ms(value: timedelta) -> str:
    return f"{max(1, int(value.total_seconds() * 1000))}ms"
