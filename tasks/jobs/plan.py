"""What a batch came to and what comes after it: without a database, so that every turn can be tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from fleet.errors import PermanentError
from fleet.ledger import Run
from fleet.settings import Job
from tasks.jobs.statement import Effect

# A job of many batches gives its place in the worker to others now and then, and is never stopped by a time limit.
LONGEST_STAY = timedelta(minutes=5)
# Their command tags count the rows that they changed, whatever RETURNING shows.
_WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
_EXPECTED = (
    "one row whose first column is a whole number, 0 when nothing is left; or INSERT, UPDATE, DELETE or MERGE"
)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What the committed batches of a run came to, over all its attempts."""

    batches: int = 0
    rows: int = 0
    duration: timedelta = timedelta()

    def __str__(self) -> str:
        batches = "1 batch" if self.batches == 1 else f"{self.batches:,} batches"
        return f"{self.rows:,} {'row' if self.rows == 1 else 'rows'} in {batches}"

    @classmethod
    def of(cls, kept: Mapping[str, Any] | None) -> Tally:
        """What an earlier attempt left in the ledger, if there was one."""
        kept = kept or {}
        try:
            return cls(
                batches=int(kept["batches"]),
                rows=int(kept["rows"]),
                duration=timedelta(seconds=float(kept["duration_s"])),
            )
        except (KeyError, TypeError, ValueError):
            return cls()

    def plus(self, *, rows: int, duration: timedelta) -> Tally:
        """With one batch more."""
        return replace(
            self, batches=self.batches + 1, rows=self.rows + rows, duration=self.duration + duration
        )

    def to_json(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return {
            "batches": self.batches,
            "rows": self.rows,
            "duration_s": round(self.duration.total_seconds(), 4),
        }


def overtaken(run: Run, now: datetime) -> bool:
    """Whether a tick that has not begun need not any more: its next slot is there, with a run of its own.

    Without this the ticks of a job that takes longer than its interval would wait for it in an ever longer row. One
    that has begun goes on, and so does one that failed and is tried again.
    """
    begun = run.attempt > 1 or Tally.of(run.result).batches > 0
    return run.expires_at is not None and run.expires_at <= now and not begun


class Next(Enum):
    """What comes after a batch."""

    END = "nothing is left"
    STOP = "max_batches is reached"
    GO_ON = "there may be more"
    GIVE_WAY = "others wait for the worker"


def rows_of(effect: Effect, *, job: Job) -> int:
    """How many rows a statement was about: of a batch, what must become 0 in the end.

    Raises:
        PermanentError: a batch does not say; running it again would never end.

    """
    counted = effect.affected if effect.command in _WRITES else effect.first
    if not job.repeat_until_zero:
        shown = effect.columns and effect.command not in _WRITES
        return effect.returned if shown else effect.affected or 0
    if effect.command not in _WRITES and effect.returned > 1:
        raise _says_nothing(job, f"it returned {effect.returned} rows")
    if counted is None:
        found = effect.first_shown or ("no row" if effect.columns else f"nothing ({effect.command})")
        raise _says_nothing(job, f"it returned {found}")
    if counted < 0:
        raise _says_nothing(job, f"it returned {counted}")
    return counted


def _says_nothing(job: Job, found: str) -> PermanentError:
    return PermanentError(
        f"The job {job.name} is repeated until zero, but does not say how much it did: {found}",
        remedy=f"Its statement must return {_EXPECTED}; or take repeat_until_zero out",
    )


def after(job: Job, tally: Tally, *, rows: int, stayed: timedelta, stay: timedelta) -> Next:
    """What comes after a batch of so many rows, `stayed` after the first one of this delivery began."""
    if not job.repeat_until_zero or rows == 0:
        return Next.END
    if tally.batches >= job.max_batches:
        return Next.STOP
    return Next.GIVE_WAY if stayed + job.batch_pause >= stay else Next.GO_ON


def stay(job: Job, soft_time_limit: timedelta) -> timedelta:
    """How long a delivery may go on beginning batches: the last one must be over before the task's own limit."""
    return max(timedelta(), min(LONGEST_STAY, soft_time_limit - job.statement_timeout))


def result(tally: Tally, effect: Effect, *, job: Job) -> dict[str, Any]:
    """What the ledger keeps in the end: numbers only."""
    kept = tally.to_json()
    # What a function that is called once returns is often how much it did.
    if not job.repeat_until_zero and effect.returned == 1 and effect.first is not None:
        kept["returned"] = effect.first
    return kept


def progress(tally: Tally) -> dict[str, Any]:
    """Where a run is, for whoever watches."""
    return {
        "phase": f"batch {tally.batches + 1}",
        "reason": f"{tally} so far",
        "batches": tally.batches,
        "rows": tally.rows,
    }
