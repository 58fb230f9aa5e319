"""Carries a claimed run to its end: what it did, why it did nothing, when it is tried again, or why it never will be.

Without Celery, so that a run can work inside another one (a view brings its upstream views up to date first).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
import structlog
from psycopg.pq import TransactionStatus

from fleet import ledger, redaction
from fleet.errors import PermanentError, TransientError, UpkeepError
from fleet.ledger import Run, State
from fleet.postgres.connect import abandon
from fleet.postgres.failures import explain
from tasks import interruption
from tasks.interruption import Cancelled, Interrupted, SoftTimeLimitExceeded

log = structlog.get_logger(__name__)

# Retries of many views that failed together must not come back together.
JITTER = 0.2


@dataclass(frozen=True, kw_only=True)
class Done:
    """The work was done; `result` is what the ledger keeps of it (JSON).

    `recorded`: the run was ended in the transaction of its effect already.
    """

    result: Mapping[str, Any] = field(default_factory=dict)
    recorded: bool = False


@dataclass(frozen=True, kw_only=True)
class Skip:
    """Nothing had to be done, and why; `recorded` as for Done."""

    reason: str
    recorded: bool = False


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Something else works on the object: come back later, without having used an attempt."""

    reason: str
    wait: timedelta
    waits_for: str | None = None


Outcome = Done | Skip | Wait


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What became of a delivery: the run's state afterwards, and the error behind it where there is one."""

    state: State
    summary: Mapping[str, Any]
    error: UpkeepError | None = None


class CancelledByOperator(PermanentError):
    """An operator has ended the run: nothing is wrong, and nothing is tried again."""


def perform(
    connection: psycopg.Connection[Any],
    run: Run,
    work: Callable[[], Outcome],
    *,
    retries: Sequence[timedelta],
    event: str,
    doing: str,
    within: Run | None = None,
) -> Conclusion:
    """Do the work of a claimed run and write down what came of it.

    `work` may end the run itself, in the transaction of its effect; ending it again here changes nothing.
    Transient errors make the run wait for its next attempt (`retries` are the pauses between attempts,
    jittered), permanent ones and the last attempt fail it. A broken connection is raised: somebody with
    another one must write. So is an interruption of what runs `within` another run, which ends as well.
    """
    with interruption.uninterrupted():
        try:
            outcome = interruption.interruptible(work)
        except Interrupted as exc:
            interrupted = exc
        except psycopg.Error as exc:
            behind = interruption.behind(exc)
            if behind is None:
                return _failed(connection, run, explain(exc, doing=doing), exc, retries=retries, event=event)
            interrupted = behind
        except UpkeepError as exc:
            behind = interruption.behind(exc)
            if behind is None:
                cause = exc.__cause__ if isinstance(exc.__cause__, psycopg.Error) else exc
                return _failed(connection, run, exc, cause, retries=retries, event=event)
            interrupted = behind
        else:
            return _concluded(connection, run, outcome, event)
        return _interrupted(
            connection, run, interrupted, retries=retries, event=event, doing=doing, within=within
        )


def _concluded(connection: psycopg.Connection[Any], run: Run, outcome: Outcome, event: str) -> Conclusion:
    match outcome:
        case Done(result=result, recorded=recorded):
            if not recorded:
                ledger.finish(connection, run.id, State.SUCCEEDED, result=result)
            _say("info", event, State.SUCCEEDED, **result)
            return Conclusion(state=State.SUCCEEDED, summary=dict(result))
        case Skip(reason=reason, recorded=recorded):
            if not recorded:
                ledger.finish(connection, run.id, State.SKIPPED, reason=reason)
            _say("info", event, State.SKIPPED, reason=reason)
            return Conclusion(state=State.SKIPPED, summary={"reason": reason})
        case Wait():
            ledger.hand_back(
                connection, run.id, wait=outcome.wait, reason=outcome.reason, waits_for=outcome.waits_for
            )
            _say("info", event, State.WAITING, reason=outcome.reason, wait_s=outcome.wait.total_seconds())
            return Conclusion(state=State.WAITING, summary={"reason": outcome.reason})


def record_failure(
    connection: psycopg.Connection[Any],
    run: Run,
    error: UpkeepError,
    *,
    cause: BaseException | None = None,
    retries: Sequence[timedelta] = (),
    event: str,
) -> Conclusion:
    """Write a failed attempt down: waiting for the next one where that may help, failed for good otherwise."""
    written = describe(error, cause or error)
    if isinstance(error, TransientError) and run.attempt < run.max_attempts:
        wait = backoff(retries, run.attempt)
        reason = f"attempt {run.attempt} of {run.max_attempts} failed: {error.message}"
        ledger.hand_back(connection, run.id, wait=wait, reason=reason, error=written, counts=True)
        _say("warning", event, "retrying", wait_s=round(wait.total_seconds(), 1), error=written)
        return Conclusion(state=State.WAITING, summary={"reason": reason}, error=error)
    ledger.finish(connection, run.id, State.FAILED, reason=error.message, error=written)
    _say("error", event, State.FAILED, error=written)
    return Conclusion(state=State.FAILED, summary={"error": written}, error=error)


def record_interruption(
    connection: psycopg.Connection[Any],
    run: Run,
    interrupted: Interrupted,
    *,
    retries: Sequence[timedelta] = (),
    event: str,
    doing: str,
    within: Run | None = None,
) -> Conclusion:
    """Write down what an interruption makes of a run that is ours, unless its end was committed already.

    Stopped: it waits, for no time, and has used no attempt. Cancelled: failed for good. Out of time: a failed
    attempt, but not of what ran within another run, whose time it was.
    """
    known = ledger.get(connection, run.id)
    assert known is not None  # nothing but the ledger's pruning deletes, and that only what is final
    if known.state != State.RUNNING:
        # Its commit came first, or a crash of the server has forgotten our claim.
        summary = known.result or {"reason": known.reason}
        _say("info", event, State(known.state), **summary)
        return Conclusion(state=State(known.state), summary=summary)
    if isinstance(interrupted, Cancelled):
        cancelled = CancelledByOperator(
            f"{doing} was {interrupted.reason}", remedy="Ask for it again when it may run"
        )
        return record_failure(connection, run, cancelled, cause=interrupted, event=event)
    if isinstance(interrupted, SoftTimeLimitExceeded) and within is None:
        late = TransientError(
            f"{doing} ran into its time limit", remedy="Raise soft_time_limit under [queues]"
        )
        return record_failure(connection, run, late, cause=interrupted, retries=retries, event=event)
    ledger.hand_back(connection, run.id, wait=timedelta(), reason=interrupted.reason)
    _say("info", event, State.WAITING, reason=interrupted.reason, wait_s=0)
    return Conclusion(state=State.WAITING, summary={"reason": interrupted.reason})


def tell_lost(run: Run) -> None:
    """A claim found the run's attempts used up by workers that died: it is over, and that is an alert."""
    log.error(
        "run.lost", run_id=run.id, task=run.task, target=run.target, attempts=run.attempt, reason=run.reason
    )


def describe(error: UpkeepError, cause: BaseException) -> dict[str, Any]:
    """An error as the ledger keeps it."""
    described: dict[str, Any] = {
        "kind": "transient" if isinstance(error, TransientError) else "permanent",
        "type": type(cause).__name__,
        "message": redaction.text(error.message),
        "remedy": error.remedy,
    }
    if isinstance(cause, psycopg.Error):
        described["sqlstate"] = cause.sqlstate
        described["detail"] = cause.diag.message_detail
    return described


def _say(level: str, event: str, outcome: str, **values: Any) -> None:
    """One log event per outcome, under the task's own name: view.refresh.succeeded."""
    getattr(log, level)(".".join((event, outcome)), **values)


def backoff(retries: Sequence[timedelta], attempt: int) -> timedelta:
    """The pause after the nth attempt (from 1), jittered by a fifth either way; the last one repeats."""
    if not retries:
        return timedelta()
    pause = retries[min(attempt, len(retries)) - 1]
    return pause * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads load, keeps no secret


def _interrupted(
    connection: psycopg.Connection[Any],
    run: Run,
    interrupted: Interrupted,
    *,
    retries: Sequence[timedelta],
    event: str,
    doing: str,
    within: Run | None,
) -> Conclusion:
    conclusion = None
    if connection.info.transaction_status is TransactionStatus.IDLE:
        # The run's lock is ours still: nobody else can have begun with it.
        with suppress(psycopg.Error):
            conclusion = record_interruption(
                connection, run, interrupted, retries=retries, event=event, doing=doing, within=within
            )
    if conclusion is None:
        interrupted.unwritten.append(run)
    if conclusion is None or within is None:
        # Nobody knows in the middle of what psycopg was interrupted.
        abandon(connection)
    if conclusion is None or within is not None:
        raise interrupted
    return conclusion


def _failed(
    connection: psycopg.Connection[Any],
    run: Run,
    error: UpkeepError,
    cause: BaseException,
    *,
    retries: Sequence[timedelta],
    event: str,
) -> Conclusion:
    if connection.broken or connection.closed:
        raise error from cause
    return record_failure(connection, run, error, cause=cause, retries=retries, event=event)


__all__ = [
    "CancelledByOperator",
    "Conclusion",
    "Done",
    "Outcome",
    "Skip",
    "Wait",
    "backoff",
    "describe",
    "perform",
    "record_failure",
    "record_interruption",
    "tell_lost",
]
