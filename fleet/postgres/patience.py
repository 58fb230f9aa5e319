"""Locks that the application needs: taken for a bounded time, all of them together, and again later.

Who waits for a lock makes everybody wait who comes after him, and who holds three makes the users of all three wait.
And lock_timeout bounds each wait for itself: with 200 ms one DETACH and ATTACH made a SELECT wait 454 ms. So a step has
one deadline: each statement gets what is left of it, for its waits and its work.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
from psycopg import errors, sql
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Oid

from fleet.errors import TransientError
from fleet.postgres.queries import load

T = TypeVar("T")

_sql = load("fleet.postgres", "patience.sql")

# Somebody who holds a lock at both ends of this is in the middle of something: queueing up behind him is in vain.
GLANCE_S = 0.05
# Between two looks at who is there.
LOOK_S = 0.25
# After a try that found no end of it: the statements that queued up behind us get through first.
PAUSE_S = (0.2, 1.0)
# The last: the time was over in the ROLLBACK TO of a nested block, which psycopg notes in its log and does not raise.
_IN_VAIN = (
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.DeadlockDetected,
    errors.InFailedSqlTransaction,
)
ROLLBACKS = 10
# The server ends a statement a moment later than it was told to, and rolls back.
LEAST_MS = 1


class Deadline:
    """What is left of the time for which one transaction may keep others waiting.

    Use it inside a transaction: what it sets ends with that.
    """

    def __init__(self, connection: psycopg.Connection[Any], budget: timedelta) -> None:
        self._connection = connection
        self._budget = budget
        self._ends: float | None = None

    @property
    def left(self) -> timedelta:
        """Of the budget; all of it before the first statement."""
        if self._ends is None:
            return self._budget
        return timedelta(seconds=max(0.0, self._ends - time.monotonic()))

    def execute(
        self, statement: sql.Composed | sql.SQL, values: Any = None, *, at_most: timedelta | None = None
    ) -> psycopg.Cursor[Any]:
        """Send one statement that may wait, or work, for as long as is left. The first one starts the clock.

        `at_most`: this one for no longer than that.

        Raises:
            LockNotAvailable, QueryCanceled: the time is over.
        """
        if self._ends is None:
            self._ends = time.monotonic() + self._budget.total_seconds()
        left_ms = int(min(self.left, at_most or self.left).total_seconds() * 1000)
        if left_ms < LEAST_MS:
            raise errors.LockNotAvailable("the time for all locks of this step together is over")
        _sql.bound(self._connection, milliseconds=f"{left_ms}ms")
        return self._connection.execute(statement, values)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often, and how long, a step is tried before it is left for another time."""

    tries: int = 10
    total: timedelta = timedelta(seconds=60)
    """Looking on included; a step that has begun is not cut short by it."""


def patiently(
    connection: psycopg.Connection[Any],
    step: Callable[[Deadline], T],
    *,
    budget: timedelta,
    relations: Iterable[int],
    doing: str,
    patience: Patience = Patience(),
) -> T:
    """Try a step in a transaction of its own until its locks are free, without anybody waiting longer than `budget`.

    On a connection in autocommit mode, which is outside of any transaction afterwards, or closed.

    `relations`: what it will lock. While somebody holds a lock on one for longer than a glance nothing is tried.
    The step must have no effect outside of its transaction, and is called again after each try in vain.

    Raises:
        TransientError: never free for long enough; says who held what, where that can be seen.
    """
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        raise RuntimeError(f"{doing} would keep its locks until the end of a transaction that began before")
    oids = [Oid(oid) for oid in sorted(set(relations))]
    ends = time.monotonic() + patience.total.total_seconds()
    tried = 0
    while True:
        if not _long_holders(connection, oids) or time.monotonic() >= ends:
            tried += 1
            try:
                return _try(connection, step, budget)
            except _IN_VAIN as exc:
                if _interrupted(exc):
                    raise
                if connection.closed:
                    raise TransientError(
                        f"{doing} ended with its session: the server did not even roll it back in time",
                        remedy="Upkeep tries again",
                    ) from exc
                if tried >= patience.tries or time.monotonic() >= ends:
                    raise _never_free(connection, oids, doing=doing, tried=tried, budget=budget) from exc
            time.sleep(random.uniform(*PAUSE_S))  # noqa: S311 - spreads load, keeps no secret
        else:
            time.sleep(LOOK_S)


def _try(connection: psycopg.Connection[Any], step: Callable[[Deadline], T], budget: timedelta) -> T:
    """Once, whole or not at all."""
    try:
        with connection.transaction():
            # With its locks held a commit would wait for every synchronous standby as well.
            _sql.commit_here(connection)
            done = step(Deadline(connection, budget))
            if connection.info.transaction_status is TransactionStatus.INERROR:
                # To a COMMIT of what has failed the server says ROLLBACK, and nobody would hear it.
                raise errors.InFailedSqlTransaction("a statement of this step failed, and the step went on")
            return done
    except _IN_VAIN as exc:
        if not _interrupted(exc):
            _roll_back(connection)
        raise
    finally:
        if connection.info.transaction_status is not TransactionStatus.IDLE and not connection.closed:
            connection.close()


def _roll_back(connection: psycopg.Connection[Any]) -> None:
    """Once more, where the statement_timeout of what was tried, a few milliseconds, has ended the ROLLBACK as well."""
    for _ in range(ROLLBACKS):
        if connection.info.transaction_status is not TransactionStatus.INERROR:
            return
        with suppress(psycopg.Error):
            connection.rollback()


def _interrupted(exc: BaseException) -> bool:
    """Whether a statement was cancelled because somebody wants us to stop, and not by its time."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt):
            return True
        seen = seen.__context__
    return False


def _holders(connection: psycopg.Connection[Any], oids: list[Oid]) -> set[tuple[int, str]]:
    return {(row["pid"], row["transaction"]) for row in _sql.holders(connection, oids=oids)}


def _long_holders(connection: psycopg.Connection[Any], oids: list[Oid]) -> set[tuple[int, str]]:
    """Who holds a lock on one of these now, and still a glance later in the same transaction."""
    first = _holders(connection, oids)
    if not first:
        return set()
    time.sleep(GLANCE_S)
    return first & _holders(connection, oids)


def _never_free(
    connection: psycopg.Connection[Any], oids: list[Oid], *, doing: str, tried: int, budget: timedelta
) -> TransientError:
    who = ", ".join(f"process {pid}" for pid, _ in sorted(_holders(connection, oids))[:3])
    return TransientError(
        f"{doing} found no moment in which its locks were free within {budget / timedelta(milliseconds=1):g} ms, "
        f"in {tried} {'try' if tried == 1 else 'tries'}" + (f"; {who} held one" if who else ""),
        remedy="Upkeep tries again. Who works there for long: "
        "SELECT * FROM pg_stat_activity WHERE xact_start < now() - interval '1 second'",
    )
