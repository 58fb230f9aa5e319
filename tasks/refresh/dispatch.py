"""From requests of writers to runs in the ledger: what is due, once for each view, and what nobody manages.

Requests come as marks in Redis or as rows in the kept database. Neither needs the other: what Redis forgets,
the rows and the tiers bring; without Redis the rows still become runs, which the reapers find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import structlog
from redis import Redis

from fleet import events, ledger, redaction, settings
from fleet.errors import PermanentError
from fleet.events import NewEvent, TakenIn
from fleet.ledger import NewRun, State
from tasks.performing import describe
from tasks.refresh import debounce, requests
from tasks.refresh.execute import REFRESH_VIEW

log = structlog.get_logger(__name__)

# Requests for what is not declared: another worker may have a newer configuration than this one.
UNKNOWN_KEPT = timedelta(minutes=10)
# What only requests in the database ask for: they say themselves what was written, with their refresh.
NOTHING_ELSE: Mapping[str, Any] = {"keys": [], "parameters": [], "sources": []}
SHOWN_LENGTH = 200
# The ledger knows what was told; this only spares asking it.
TOLD_KEPT = 10_000


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Requests for one view. `due_in`, `age`: seconds until they are due, since the last one came."""

    written: str
    due_in: float
    age: float
    view: settings.View | None = None
    error: PermanentError | None = None


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a look at the requests came to: the runs that are new, and how soon the next request is due, if any is."""

    created: tuple[TakenIn, ...] = ()
    next_in: float | None = None


def judge(database: settings.Database, written: str, *, first: float, last: float, now: float) -> Asked:
    """Which view requests mean and when they are due; times in seconds of one clock."""
    age = max(0.0, now - last)
    try:
        view = database.view(written)
    except PermanentError as exc:
        return Asked(written=written, due_in=0.0, age=age, error=exc)
    due_in = debounce.due_in(first, last, now, delay=view.delay, max_wait=view.max_wait)
    return Asked(written=written, due_in=due_in, age=age, view=view)


class Dispatcher:
    """Looks at the requests for one database. Any number of them side by side is safe."""

    def __init__(self, database: settings.Database, *, names: Iterable[str] | None = None) -> None:
        """`names`: what writers call the database: its name, and nothing where it is the only one."""
        self._database = database
        self._names = tuple(names) if names is not None else (database.name,)
        self._told: set[str] = set()

    def look_at_marks(self, redis: Redis, connected: Callable[[], psycopg.Connection[Any]]) -> Look:
        """Make runs of the marks that are due, then clear those; the ledger is only asked for when one is.

        Raises:
            RedisError: of the marks nothing is known now.
            psycopg.Error, UpkeepError: the database is away; the marks stay.
        """
        created: list[TakenIn] = []
        waiting: list[float] = []
        for name in self._names:
            found = debounce.read_marks(redis, name)
            asked = [
                (
                    mark,
                    judge(
                        self._database,
                        mark.view,
                        first=mark.first_ms / 1000,
                        last=mark.last_ms / 1000,
                        now=found.clock_ms / 1000,
                    ),
                )
                for mark in found.marks
            ]
            unknown = [(mark, each) for mark, each in asked if each.error is not None]
            for _, each in unknown:
                self._tell_unknown(connected, each)
            debounce.clear(redis, name, [m for m, a in unknown if a.age > UNKNOWN_KEPT.total_seconds()])
            due = [(mark, each.view) for mark, each in asked if each.view is not None and each.due_in <= 0]
            if due:
                limits = debounce.read_limits(redis, name, [mark.view for mark, _ in due])
                new = [
                    self._event(view, arguments, by="a writer")
                    for (_, view), arguments in zip(due, limits, strict=True)
                    if arguments is not None
                ]
                created += self._insert(connected(), new) if new else []
                debounce.clear(redis, name, [mark for mark, _ in due])
            waiting += [each.due_in for _, each in asked if each.view is not None and each.due_in > 0]
        return Look(created=tuple(created), next_in=min(waiting, default=None))

    def look_at_rows(self, connection: psycopg.Connection[Any]) -> Look:
        """Make runs of the requests in the database that are due; the refresh deletes them.

        Raises:
            psycopg.Error: as the server said it.
        """
        waiting: list[float] = []
        new: list[NewEvent] = []
        for row in requests.read_waiting(connection):
            each = judge(
                self._database,
                row.view,
                first=row.first_at.timestamp(),
                last=row.last_at.timestamp(),
                now=row.clock.timestamp(),
            )
            if each.view is None:
                self._tell_unknown(lambda: connection, each)
                if each.age > UNKNOWN_KEPT.total_seconds():
                    requests.drop(connection, row.view, older_than=UNKNOWN_KEPT)
                continue
            if row.view != str(each.view.name):
                requests.rename(connection, row.view, each.view.name)
            if each.due_in <= 0:
                new.append(self._event(each.view, NOTHING_ELSE, by="a writer", unhurried=True))
            else:
                waiting.append(each.due_in)
        created = self._insert(connection, new) if new else []
        return Look(created=tuple(created), next_in=min(waiting, default=None))

    def _event(
        self, view: settings.View, arguments: Mapping[str, Any], *, by: str, unhurried: bool = False
    ) -> NewEvent:
        return NewEvent(
            task=REFRESH_VIEW,
            target=str(view.name),
            queue=view.queue,
            arguments=arguments,
            max_attempts=1 + len(view.retries),
            requested_by=by,
            unhurried=unhurried,
        )

    def _insert(self, connection: psycopg.Connection[Any], new: list[NewEvent]) -> list[TakenIn]:
        # Two ways to write one name are one view, and one statement may not touch a row twice.
        first: dict[str, NewEvent] = {}
        again: list[NewEvent] = []
        for event in new:
            if first.setdefault(event.target, event) is not event:
                again.append(event)
        taken = events.insert(connection, first.values())
        for event in again:
            taken += events.insert(connection, [event])
        return [each for each in taken if each.created]

    def _tell_unknown(self, connected: Callable[[], psycopg.Connection[Any]], asked: Asked) -> None:
        assert asked.error is not None
        tell_unknown(connected, asked.written, asked.error, database=self._database.name, told=self._told)


def tell_unknown(
    connected: Callable[[], psycopg.Connection[Any]],
    written: str,
    error: PermanentError,
    *,
    database: str,
    told: set[str],
    within: str | None = None,
) -> None:
    """Report requests for something that is not declared: once a day, whoever of the fleet sees them first.

    `told`: what this process has seen reported already. `within`: the database that it is not, where its run is in
    the ledger of another one, which may have a view of that name.
    """
    shown = _shown(written)
    key = f"event/unknown/{_shown(database)}/{shown}/{datetime.now(UTC).date().isoformat()}"
    if key in told:
        return
    made = ledger.insert_all(
        connected(),
        [
            NewRun(
                task=REFRESH_VIEW,
                target=(shown or "(no view)") if within is None else f"{_shown(within)}/{shown}",
                entry=ledger.EVENT,
                queue="refresh",
                request_id=key,
                requested_by="a writer",
                state=State.FAILED,
                reason=error.message,
                error=describe(error, error),
            )
        ],
        worker="",
    )
    if len(told) >= TOLD_KEPT:
        told.clear()
    told.add(key)
    if made:
        log.error("request.unknown", database=database, view=shown, error=error.message, remedy=error.remedy)


def _shown(given: str) -> str:
    return redaction.text(given if given.isprintable() else repr(given))[:SHOWN_LENGTH]
