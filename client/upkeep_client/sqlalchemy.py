"""Requests that leave with the commit of an SQLAlchemy session, or not at all.

They are kept with the transaction in which they were made. A savepoint hands its own to what it is part of when it is
released, and takes them with it when it is rolled back; the outermost commit sends what is left, each view once, in
one round trip.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, util
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

from upkeep_client import collecting
from upkeep_client.aio import AsyncUpkeep
from upkeep_client.collecting import Collected
from upkeep_client.errors import InvalidType
from upkeep_client.requests import Key, Parameters, Request
from upkeep_client.upkeep import Upkeep

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

_INFO = "upkeep_client"

# The name that SQLAlchemy 2.1 gave it, and the older one.
_await: Any = getattr(util, "await_", None) or util.await_only


def request_refresh_after_commit(
    session: Session | AsyncSession | scoped_session[Any] | async_scoped_session[Any],
    upkeep: Upkeep | AsyncUpkeep,
    view: str | Iterable[str],
    *,
    database: str | None = None,
    keys: Iterable[Key] | None = None,
    parameters: Parameters | None = None,
) -> None:
    """Ask for a refresh when the session's transaction has committed; after a rollback nothing is asked for.

    Whatever happens to Redis then, the session is not told: see `on_error` of `Upkeep`. An `AsyncUpkeep` needs an
    `AsyncSession`; an `Upkeep` works with both, but holds up the event loop for the round trip.

    Raises:
        InvalidRequest: a wrong type or value.

    """
    requests = upkeep.prepare(view, database=database, keys=keys, parameters=parameters)
    # Known by their attributes: SQLAlchemy's asyncio cannot even be imported where greenlet is not installed.
    found: Any = session
    if hasattr(found, "registry"):
        found = found()
    current: Session = getattr(found, "sync_session", found)
    if current is found and isinstance(upkeep, AsyncUpkeep):
        raise InvalidType("An AsyncUpkeep needs an AsyncSession: give this session an Upkeep.")
    place = current.get_nested_transaction() or current.get_transaction()
    _collected(current).setdefault(place, []).extend((upkeep, each) for each in requests)


_ByTransaction = dict[SessionTransaction | None, list[Collected]]


def _collected(session: Session) -> _ByTransaction:
    # None: what was asked for before the session began its transaction, which is the one that it begins next.
    found: _ByTransaction = session.info.setdefault(_INFO, {})
    return found


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    by_transaction: _ByTransaction | None = session.info.get(_INFO)
    if not by_transaction:
        return
    savepoint = session.get_nested_transaction()
    if savepoint is not None:  # released, and nothing more than that
        if requests := by_transaction.pop(savepoint, None):
            outer = savepoint.parent
            while outer is not None and outer.parent is not None and not outer.nested:
                outer = outer.parent  # a flush has a transaction of its own in between
            by_transaction.setdefault(outer, []).extend(requests)
        return
    everything = [each for requests in by_transaction.values() for each in requests]
    by_transaction.clear()
    collecting.send(everything, _send_async)


@event.listens_for(Session, "after_transaction_end")
def _after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    """Drop what is left: had it committed, nothing would be."""
    by_transaction: _ByTransaction | None = session.info.get(_INFO)
    if by_transaction:
        by_transaction.pop(transaction, None)
        if transaction.parent is None:
            by_transaction.pop(None, None)


def _send_async(upkeep: AsyncUpkeep, requests: list[Request]) -> None:
    _await(upkeep.send(requests))  # an AsyncSession commits in a greenlet, where this waits without blocking
