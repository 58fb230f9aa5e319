"""Finds the runs that nobody works on and rings again: waiting ones that are due, lost bells, dead workers' runs.

A bootstep in every worker. Any number of them side by side is safe: each due run is marked and taken by one
of them, and a bell rung twice finds its run taken or final.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import psycopg
import structlog
from kombu.exceptions import OperationalError as BrokerError
from redis import RedisError

from fleet import ledger, settings
from fleet.errors import UpkeepError
from fleet.postgres.catalog.server import read_server
from fleet.postgres.connect import connect
from fleet.postgres.migrations import refuse_unless_current
from schedules.bell import ring
from schedules.expiry import end_expired
from tasks.refresh.promotion import REFRESH_ALL, refresh_what_is_of_another_timeline
from worker.declaring import declare
from worker.queues import waiting_bells
from worker.watching import ThreadPerDatabase

log = structlog.get_logger(__name__)

# How late a waiting run may start; one query per database and worker in this time.
INTERVAL_S = 1.0
# After an error: no retry comes before the reaper is back. A database that is away costs one line in all.
PAUSE_S = 2.0
# With more than these behind, a fleet has another problem than lost bells.
MOST_OVERDUE = 2000


class Reaper(ThreadPerDatabase):
    """The reaper's threads, which start and stop with the worker."""

    thread_name = "reaper"

    def watch(self, app: Any, database: settings.Database, stop: threading.Event) -> Watch:
        """Watch one database."""
        return Watch(app, database, stop)


class Watch:
    """Watches one database's ledger until it is told to stop."""

    def __init__(self, app: Any, database: settings.Database, stop: threading.Event) -> None:
        self._app = app
        self._database = database
        self._stop = stop
        self._connection: psycopg.Connection[Any] | None = None
        self._channel: Any = None

    def run(self) -> None:
        """Look, ring, wait; an error is told once, and again when it is over."""
        away = False
        while not self._stop.is_set():
            try:
                self._look()
            except (UpkeepError, psycopg.Error) as exc:
                self._disconnect()
                if not away:
                    log.warning("reaper.database_away", database=self._database.name, error=str(exc).strip())
                away = True
                self._stop.wait(PAUSE_S)
                continue
            except Exception:  # a thread that dies here would be missed by nobody until a run is
                log.exception("reaper.failed", database=self._database.name)
                self._disconnect()
                self._stop.wait(PAUSE_S)
                continue
            if away:
                log.info("reaper.database_back", database=self._database.name)
            away = False
            self._stop.wait(INTERVAL_S)
        self._disconnect()

    def _look(self) -> None:
        if self._connection is None:
            connection = connect(self._database.url.get_secret_value(), application_name="upkeep/reaper")
            self._connection = connection
            refuse_unless_current(connection, self._database.name)
            declare(connection, self._database)
            self._look_for_a_promotion(connection)
        end_expired(self._connection, self._database.name)
        due = ledger.ring_due(self._connection, busy=self._unknown_queues(self._connection))
        if due:
            rung = ring(self._app, self._database.name, ((run.id, run.task, run.queue) for run in due))
            log.info("reaper.rang", database=self._database.name, runs=[run.id for run in due], rung=rung)

    def _look_for_a_promotion(self, connection: psycopg.Connection[Any]) -> None:
        """A promotion breaks every session: only a new one can find another timeline."""
        run_id = refresh_what_is_of_another_timeline(connection, self._database, read_server(connection))
        if run_id is not None:
            # It may be new, or a refresh's, which rings no bells; or it has been rung for, which does no harm.
            ring(self._app, self._database.name, [(run_id, REFRESH_ALL, "refresh")])

    def _unknown_queues(self, connection: psycopg.Connection[Any]) -> list[str]:
        """The queues that cannot be looked through, after noting which overdue runs' bells are in the others.

        A broker that does not answer holds nothing that could be waited for.
        """
        try:
            if self._channel is None:
                # Not default_channel, which tries for ever.
                self._channel = self._app.connection_for_read().channel()
            client = self._channel.client
            busy = [name for name in self._app.amqp.queues if client.llen(name)]
            overdue = ledger.overdue_in(connection, busy, limit=MOST_OVERDUE + 1) if busy else {}
            if sum(map(len, overdue.values())) > MOST_OVERDUE:
                return busy
            unknown = []
            for queue, runs in overdue.items():
                bells = waiting_bells(client, queue, self._database.name)
                if bells is None:
                    unknown.append(queue)
                else:
                    ledger.bell_seen(connection, bells.intersection(runs))
        except (BrokerError, RedisError, OSError):
            self._hang_up()
            return []
        return unknown

    def _hang_up(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            with suppress(BrokerError, RedisError, OSError):
                channel.connection.client.release()

    def _disconnect(self) -> None:
        self._hang_up()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
