"""What is said of a job that failed; the server's own errors are in the integration tests."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from psycopg import errors

from fleet.errors import PermanentError, TransientError
from fleet.settings import Job
from tasks.jobs.failure import failed
from tasks.jobs.plan import Tally

JOB = Job(name="settle", database="kept", sql="SELECT 1", statement_timeout=timedelta(seconds=30))
LOCK = timedelta(milliseconds=250)


def explained(
    exc: psycopg.Error | PermanentError, tally: Tally | None = None
) -> PermanentError | TransientError:
    return failed(exc, job=JOB, tally=tally or Tally(), lock_timeout=LOCK)


@pytest.mark.parametrize(
    ("exc", "kind", "remedy"),
    [
        (errors.QueryCanceled("x"), TransientError, "statement_timeout = 30s"),
        (errors.LockNotAvailable("x"), TransientError, "lock_timeout = 250ms"),
        (errors.DeadlockDetected("x"), TransientError, ""),
        (errors.DiskFull("x"), TransientError, "make room"),
        (psycopg.OperationalError("server closed the connection"), TransientError, "tries again by itself"),
        (errors.DivisionByZero("x"), PermanentError, "upkeep run upkeep.job.run job=settle --wait"),
        (errors.InsufficientPrivilege("x"), PermanentError, "GRANT the fleet's role"),
    ],
)
def test_the_kind_decides_about_retries_and_the_remedy_is_a_jobs(
    exc: psycopg.Error, kind: type[Exception], remedy: str
) -> None:
    error = explained(exc)
    assert type(error) is kind
    assert error.message.startswith("The job settle failed: ")
    assert remedy in error.remedy
    assert "definition" not in error.remedy


def test_what_is_no_error_of_the_server_keeps_its_words() -> None:
    error = explained(PermanentError("It returned NULL", remedy="Return a number"))
    assert (error.message, error.remedy) == ("It returned NULL", "Return a number")


def test_committed_batches_are_told() -> None:
    error = explained(errors.DivisionByZero("x"), Tally(batches=3, rows=2500))
    assert error.message.endswith("; before that 2,500 rows in 3 batches were committed, and stay")
