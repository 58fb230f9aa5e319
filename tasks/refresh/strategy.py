"""How a view is refreshed: concurrently where it can be, plain only where promise 3 lets readers be blocked.

A plain refresh takes ACCESS EXCLUSIVE for its whole run. It is chosen for an unpopulated view (nobody can read
it), where `allow_blocking = true`, or *bounded*: cancelled by the server before it has kept a reader waiting for
too long, so that the promise does not hang on a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from fleet.errors import PermanentError
from tasks.refresh.view import Subject

# Architecture, promise 3: the longest that a plain refresh may block readers without being allowed to.
PLAIN_LIMIT = timedelta(milliseconds=200)
# Cancelling, rolling back and being scheduled take their share of that limit: measured, up to 90 ms on two busy cores.
PLAIN_STATEMENT_TIMEOUT = timedelta(milliseconds=150)
# Its share that may pass waiting for the lock: readers queue behind the waiter too.
PLAIN_LOCK_TIMEOUT = timedelta(milliseconds=50)
# CONCURRENTLY excludes writers of the view only, never its readers; it may wait for a VACUUM of the view.
CONCURRENT_LOCK_TIMEOUT = timedelta(seconds=5)
# facts/refresh.md: over half of the rows changed, building anew beats diffing; plain takes 0.27 to 0.45 of
# CONCURRENTLY's time.
HIGH_CHURN = 0.5
PLAIN_SHARE = 0.45
# A prediction for choosing plain where concurrently would do as well must leave room for a bad day.
PREDICTION_MARGIN = 0.5


class How(StrEnum):
    """The ways to refresh, as the ledger and `upkeep plan` name them."""

    POPULATE = "populate"
    CONCURRENTLY = "concurrently"
    PLAIN = "plain"
    PLAIN_BOUNDED = "plain, bounded"


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A choice and its reason; the timeouts are what enforces it."""

    how: How
    reason: str
    lock_timeout: timedelta
    statement_timeout: timedelta

    @property
    def concurrently(self) -> bool:
        """Whether readers go on reading."""
        return self.how is How.CONCURRENTLY


def choose(subject: Subject) -> Strategy:
    """Choose from what the catalogue says and what the last refreshes took and changed.

    Raises:
        PermanentError: we may not refresh it, or only in a way that would block its readers.
    """
    view, found, state = subject.declared, subject.found, subject.state
    timeout = view.statement_timeout
    if not found.may_refresh:
        raise PermanentError(
            f"The role may not refresh {subject.name}, which belongs to {found.owner}",
            remedy=f"GRANT {_quoted(found.owner)} TO <the fleet's role>, "
            f"or from PostgreSQL 17 on GRANT MAINTAIN ON {subject.name}",
        )
    if not found.populated:
        return Strategy(
            how=How.POPULATE,
            reason="not populated: nobody can read it yet",
            lock_timeout=CONCURRENT_LOCK_TIMEOUT,
            statement_timeout=timeout,
        )
    obstacle = in_the_way(subject)
    if obstacle is None:
        churn = _churn(subject)
        predicted = state.plain_duration or (
            state.duration * PLAIN_SHARE if state.duration is not None else None
        )
        if churn is not None and churn > HIGH_CHURN:
            if view.allow_blocking:
                return Strategy(
                    how=How.PLAIN,
                    reason=f"{churn:.0%} of its rows changed last time, and blocking is allowed",
                    lock_timeout=CONCURRENT_LOCK_TIMEOUT,
                    statement_timeout=timeout,
                )
            if predicted is not None and predicted <= PLAIN_LIMIT * PREDICTION_MARGIN:
                return Strategy(
                    how=How.PLAIN_BOUNDED,
                    reason=f"{churn:.0%} of its rows changed last time; predicted {_ms(predicted)}",
                    lock_timeout=PLAIN_LOCK_TIMEOUT,
                    statement_timeout=PLAIN_STATEMENT_TIMEOUT,
                )
        return Strategy(
            how=How.CONCURRENTLY,
            reason=f"unique index {found.unique_index}",
            lock_timeout=CONCURRENT_LOCK_TIMEOUT,
            statement_timeout=timeout,
        )
    if view.allow_blocking:
        return Strategy(
            how=How.PLAIN,
            reason=f"{obstacle.reason}, and blocking is allowed",
            lock_timeout=CONCURRENT_LOCK_TIMEOUT,
            statement_timeout=timeout,
        )
    if (
        state.relation == found.oid
        and state.plain_duration is not None
        and state.plain_duration > PLAIN_LIMIT
    ):
        raise PermanentError(
            f"{subject.name} cannot be refreshed concurrently ({obstacle.reason}), and a plain refresh, "
            f"which took {_ms(state.plain_duration)}, would block its readers for more than {_ms(PLAIN_LIMIT)}",
            remedy=f"{obstacle.remedy}; or set allow_blocking = true for the view",
        )
    return Strategy(
        how=How.PLAIN_BOUNDED,
        reason=f"{obstacle.reason}; cancelled after {_ms(PLAIN_STATEMENT_TIMEOUT)}",
        lock_timeout=PLAIN_LOCK_TIMEOUT,
        statement_timeout=PLAIN_STATEMENT_TIMEOUT,
    )


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """What is in the way of refreshing a view concurrently."""

    reason: str
    remedy: str


def in_the_way(subject: Subject) -> Obstacle | None:
    """What keeps a populated view from being refreshed concurrently, if anything."""
    found = subject.found
    if found.unique_index is None:
        return Obstacle(
            reason="no usable unique index",
            remedy=f"CREATE UNIQUE INDEX ON {subject.name} (its key columns), "
            "without WHERE and without expressions",
        )
    if not found.owner_has_temp:
        return Obstacle(
            reason=f"its owner {found.owner} lacks TEMP on the database",
            remedy=f"GRANT TEMPORARY ON DATABASE … TO {_quoted(found.owner)}",
        )
    return None


def too_slow(subject: Subject) -> PermanentError:
    """The bounded plain refresh was cancelled: say what would let it run."""
    obstacle = in_the_way(subject)
    return PermanentError(
        f"A plain refresh of {subject.name} would block its readers for {_ms(PLAIN_LIMIT)} or more"
        + (f"; concurrently is not possible: {obstacle.reason}" if obstacle else ""),
        remedy=(f"{obstacle.remedy}; or set" if obstacle else "Set") + " allow_blocking = true for the view",
    )


def _churn(subject: Subject) -> float | None:
    state = subject.state
    if (
        state.relation != subject.found.oid
        or state.strategy != How.CONCURRENTLY
        or state.rows_changed is None
        or not state.row_estimate
    ):
        return None
    # CONCURRENTLY counts a changed row twice: once deleted, once inserted.
    return state.rows_changed / 2 / state.row_estimate


def _ms(value: timedelta) -> str:
    return f"{value.total_seconds() * 1000:.0f} ms"


def _quoted(role: str) -> str:
    escaped = role.replace('"', '""')
    return f'"{escaped}"'
