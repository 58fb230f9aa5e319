"""Why a job failed and what to do about it: a statement that somebody wrote fails for other reasons than a refresh."""

from __future__ import annotations

from datetime import timedelta

import psycopg

from fleet import durations
from fleet.errors import PermanentError, TransientError, UpkeepError
from fleet.postgres.failures import explain
from fleet.settings import Job
from tasks.jobs.plan import Tally

_SEARCH_PATH = "a name without a schema is looked up in the search_path of the fleet's role"
_REMEDIES = {
    "25001": "A job runs in a transaction, and this statement cannot: VACUUM, REINDEX CONCURRENTLY and the like are "
    "for the maintenance tasks, not for a job",
    "2D000": "Each batch is a transaction of Upkeep's: take COMMIT and ROLLBACK out of the procedure, and let "
    "repeat_until_zero commit between batches",
    "42601": "A job is one statement in the server's SQL: put several into a function, or declare several jobs",
    "42883": f"Create the function, or correct its name and the types of its arguments; {_SEARCH_PATH}",
    "42P01": f"Create the relation, or correct its name; {_SEARCH_PATH}",
    "42703": "Correct the name of the column",
    "42501": "GRANT the fleet's role what the statement needs: EXECUTE on the function, or privileges on its tables",
    "P0001": "The function raised this itself",
}
_WHO_HOLDS_IT = "SELECT * FROM pg_stat_activity WHERE wait_event_type = 'Lock' shows who"


def failed(
    exc: psycopg.Error | PermanentError, *, job: Job, tally: Tally, lock_timeout: timedelta
) -> PermanentError | TransientError:
    """The error of a job whose statement failed; what was committed before stays, and it says so."""
    explained = explain(exc, doing=f"The job {job.name}") if isinstance(exc, psycopg.Error) else exc
    message = explained.message
    if tally.batches:
        message += f"; before that {tally} were committed, and stay"
    return type(explained)(message, remedy=_remedy(exc, explained, job=job, lock_timeout=lock_timeout))


def unparsed(exc: psycopg.Error, *, job: Job) -> tuple[str, str]:
    """What the server says of a statement that it cannot parse, and what to do about it."""
    said = exc.diag.message_primary or str(exc).strip()
    return said, _REMEDIES.get(
        exc.sqlstate or "", f"Mend the statement under [jobs.{job.name}] or what it calls"
    )


def _remedy(
    exc: psycopg.Error | PermanentError, explained: UpkeepError, *, job: Job, lock_timeout: timedelta
) -> str:
    code = exc.sqlstate if isinstance(exc, psycopg.Error) else None
    if code == "57014":
        return (
            f"It ran into statement_timeout = {durations.format(job.statement_timeout)}, or was cancelled: raise it "
            f"under [jobs.{job.name}], or let the statement do less at a time"
        )
    if code == "55P03":
        return f"A lock was not free within lock_timeout = {durations.format(lock_timeout)}; {_WHO_HOLDS_IT}"
    if code in _REMEDIES:
        return _REMEDIES[code]
    if isinstance(exc, PermanentError) or isinstance(explained, TransientError):
        return explained.remedy
    return (
        f"Mend the statement under [jobs.{job.name}] or what it calls, then try it: "
        f"upkeep run upkeep.job.run job={job.name} --wait"
    )
