"""Turns what writers have asked for into runs, once it is due: the other bell-ringer in every worker.

A bootstep with a thread per kept database, so that one that is away holds up no other. Any number of them side
by side is safe: there is one queued run for a view whoever inserts it, and what is asked for meanwhile joins it.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psycopg
import structlog
from redis import Redis, RedisError

from fleet import settings
from fleet.errors import PermanentError, UpkeepError
from fleet.postgres.connect import connect
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings.values import closest
from schedules.bell import ring
from tasks.base import Runtime
from tasks.refresh import debounce
from tasks.refresh.announce import Announcer
from tasks.refresh.dispatch import UNKNOWN_KEPT, Dispatcher, Look, tell_unknown
from worker.watching import ThreadPerDatabase

log = structlog.get_logger(__name__)

# How often marks are looked at: half of the shortest delay of a database's views, within these.
SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.02, 0.25
# The same for requests in the database, with the whole of the delay.
SHORTEST_QUERY_S, LONGEST_QUERY_S = 0.1, 0.5
# What is left over, and what nobody manages, is not urgent.
SWEEP_S = 5.0
# After an error.
PAUSE_S = 2.0


class Dispatch(ThreadPerDatabase):
    """The dispatcher's threads, which start and stop with the worker."""

    thread_name = "dispatch"

    def watch(self, app: Any, database: settings.Database, stop: threading.Event) -> Watch:
        """Watch one database."""
        return Watch(app, database, stop)


class Away:
    """Says once that something is away, and once that it is back."""

    def __init__(self, what: str, **bound: Any) -> None:
        self._what = what
        self._bound = bound
        self._away = False
        self.until = 0.0

    @property
    def now(self) -> bool:
        """Whether it is not worth trying yet."""
        return time.monotonic() < self.until

    def failed(self, error: Exception) -> None:
        """Leave it alone for a moment."""
        self.until = time.monotonic() + PAUSE_S
        if not self._away:
            # A redis-py error may quote the URL that it was given.
            shown = type(error).__name__ if isinstance(error, RedisError) else str(error).strip()
            log.warning("dispatch.away", what=self._what, error=shown, **self._bound)
        self._away = True

    def worked(self) -> None:
        """It answers."""
        if self._away:
            log.info("dispatch.back", what=self._what, **self._bound)
        self._away = False


class Watch:
    """Watches the requests for one database until it is told to stop."""

    def __init__(self, app: Any, database: settings.Database, stop: threading.Event) -> None:
        self._app = app
        self._runtime: Runtime = app.runtime
        self._database = database
        self._stop = stop
        self._connection: psycopg.Connection[Any] | None = None
        kept = self._runtime.settings.databases
        self._is_home = database.name == self._runtime.settings.fleet.home
        self._dispatcher = Dispatcher(
            database, names=(database.name, "") if len(kept) == 1 else (database.name,)
        )
        self._told: set[str] = set()
        shortest = min((v.delay for v in database.views.values()), default=timedelta(hours=1)).total_seconds()
        self._look_s = min(max(shortest / 2, SHORTEST_LOOK_S), LONGEST_LOOK_S)
        self._query_s = min(max(shortest, SHORTEST_QUERY_S), LONGEST_QUERY_S)
        self._redis_away = Away("Redis", database=database.name)
        self._database_away = Away("PostgreSQL", database=database.name)
        self._next_query = self._next_sweep = 0.0

    def run(self) -> None:
        """Look, make runs, ring, wait; what is away is told once, and again when it is back."""
        while not self._stop.is_set():
            try:
                wait = self._look()
            except Exception:  # a thread that dies here would be missed by nobody until a write is
                log.exception("dispatch.failed", database=self._database.name)
                self._disconnect()
                wait = PAUSE_S
            self._wait(wait)
        self._disconnect()

    def _look(self) -> float:
        """Look at the marks and, at their times, at the rows and at what is left over; returns how long to wait."""
        wait = self._look_s
        if not self._redis_away.now:
            try:
                found = self._dispatcher.look_at_marks(self._redis, self._connected)
                self._ring(found)
                wait = min(wait, found.next_in if found.next_in is not None else wait)
                self._redis_away.worked()
            except RedisError as exc:
                self._redis_away.failed(exc)
            except (psycopg.Error, UpkeepError) as exc:
                self._lost(exc)
        now = time.monotonic()
        if not self._database_away.now:
            try:
                if now >= self._next_query:
                    found = self._dispatcher.look_at_rows(self._connected())
                    self._ring(found)
                    soon = self._query_s if found.next_in is None else min(self._query_s, found.next_in)
                    self._next_query = now + max(soon, SHORTEST_LOOK_S)
                    self._database_away.worked()
                if now >= self._next_sweep:
                    self._next_sweep = now + SWEEP_S
                    self._sweep()
            except RedisError as exc:
                self._redis_away.failed(exc)
            except (psycopg.Error, UpkeepError) as exc:
                self._lost(exc)
        return max(SHORTEST_LOOK_S, min(wait, self._next_query - now))

    def _sweep(self) -> None:
        Announcer(self._database.name, broker=self._redis, cache=self._runtime.cache).catch_up(
            self._connected()
        )
        if self._is_home and not self._redis_away.now:
            self._look_for_strangers()

    def _look_for_strangers(self) -> None:
        """Requests for databases that are not declared belong to nobody else."""
        known = self._runtime.settings.databases
        for name in sorted(debounce.marked_databases(self._redis) - set(known)):
            if name == "" and len(known) == 1:
                continue
            found = debounce.read_marks(self._redis, name)
            if not found.marks:
                debounce.forget_database(self._redis, name)
                continue
            error = (
                PermanentError(
                    f"There is no database named {name!r}",
                    remedy=f"{closest(name, known)}: requests name it as upkeep.toml does",
                )
                if name
                else PermanentError(
                    "No database was named", remedy=f"Name one of: {', '.join(sorted(known))}"
                )
            )
            for mark in found.marks:
                tell_unknown(
                    self._connected,
                    mark.view,
                    error,
                    database=name,
                    told=self._told,
                    within=name or "(no database)",
                )
            oldest = found.clock_ms - UNKNOWN_KEPT / timedelta(milliseconds=1)
            debounce.clear(self._redis, name, [mark for mark in found.marks if mark.last_ms < oldest])

    def _ring(self, found: Look) -> None:
        if found.created:
            runs = [(each.id, each.task, each.queue) for each in found.created]
            rung = ring(self._app, self._database.name, runs)
            log.info(
                "dispatch.rang",
                database=self._database.name,
                runs=[run_id for run_id, _, _ in runs][:20],
                count=len(runs),
                rung=rung,
            )

    def _wait(self, seconds: float) -> None:
        """Until it is time, a writer wakes us, or the worker stops."""
        connection = self._connection
        if connection is None:
            self._stop.wait(seconds)
            return
        try:
            for _ in connection.notifies(timeout=seconds, stop_after=1):
                self._next_query = 0.0
        except psycopg.Error as exc:
            self._lost(exc)

    @property
    def _redis(self) -> Redis:
        return self._runtime.redis

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            connection = connect(self._database.url.get_secret_value(), application_name="upkeep/dispatch")
            self._connection = connection
            refuse_unless_current(connection, self._database.name)
            connection.execute("LISTEN upkeep_request")
        return self._connection

    def _lost(self, error: Exception) -> None:
        self._database_away.failed(error)
        self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()
