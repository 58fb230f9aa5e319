"""Tells the world of a refresh: NOTIFY with its commit, a message in Redis, and the cached results that it made wrong.

NOTIFY and the message are for whoever listens at that moment. Deleting cached results must happen: it is a row
of the refresh's transaction, deleted once they are gone, so that a worker killed in between only delays it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import psycopg
import structlog
from psycopg.rows import class_row
from psycopg.types.json import Jsonb
from redis import Redis, RedisError
from redis.exceptions import RedisClusterException

from fleet import settings
from fleet.postgres.queries import load
from tasks.refresh.requests import Parameters

log = structlog.get_logger(__name__)
_sql = load("tasks.refresh", "sql/announce.sql")

# The channel of Redis, and of NOTIFY.
CHANNEL = "upkeep:refreshed"
# The worker that refreshed tells at once; later, somebody else does.
PATIENCE = timedelta(seconds=10)
BATCH = 100


class Cache(Protocol):
    """What applications' cached results are deleted with; `upkeep_client.cache.Cache` is one."""

    def invalidate(self, tags: Iterable[str], parameters: Iterable[Mapping[str, Any]] | None = None) -> int:
        """Delete what is filed under the tags; returns how many keys."""


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """Cached results to be deleted: those filed under the tags of a view, for these parameters or for all."""

    id: int
    view: str
    run_id: int
    snapshot_at: datetime
    tags: list[str]
    parameters: list[dict[str, Any]] | None


def prepare(
    connection: psycopg.Connection[Any],
    database: str,
    view: settings.View,
    *,
    run_id: int,
    snapshot_at: datetime,
    parameters: Parameters,
) -> None:
    """Write down, in the transaction of a refresh, what is to be told after it."""
    connection.execute(_sql.notify.sql, {"payload": _message(database, str(view.name), run_id, snapshot_at)})
    invalidate_later(connection, view, run_id=run_id, snapshot_at=snapshot_at, parameters=parameters)


def invalidate_later(
    connection: psycopg.Connection[Any],
    view: settings.View,
    *,
    run_id: int,
    snapshot_at: datetime,
    parameters: Parameters,
) -> None:
    """Write down which cached results are no longer right, if the view has any."""
    if view.invalidates and parameters != []:
        connection.execute(
            _sql.insert_announcement.sql,
            {
                "view": str(view.name),
                "run_id": run_id,
                "snapshot_at": snapshot_at,
                "tags": list(view.invalidates),
                "parameters": None if parameters is None else Jsonb(parameters),
            },
        )


class Announcer:
    """Tells what has been committed. Every failure is logged and swallowed: the refresh itself has succeeded."""

    def __init__(self, database: str, *, broker: Redis, cache: Cache) -> None:
        self._database = database
        self._broker = broker
        self._cache = cache

    def refreshed(
        self, connection: psycopg.Connection[Any], view: settings.View, *, run_id: int, snapshot_at: datetime
    ) -> None:
        """A refresh was committed: publish it and delete the cached results that it made wrong."""
        try:
            self._broker.publish(CHANNEL, _message(self._database, str(view.name), run_id, snapshot_at))
        except RedisError as exc:
            log.warning("refresh.not_published", error=type(exc).__name__)
        self.invalidate_of(connection, view, run_id)

    def invalidate_of(self, connection: psycopg.Connection[Any], view: settings.View, run_id: int) -> None:
        """Delete the cached results that a run made wrong."""
        if view.invalidates:
            with connection.cursor(row_factory=class_row(Announcement)) as cursor:
                found = cursor.execute(_sql.announcements_of.sql, {"run_id": run_id}).fetchall()
            self._tell(connection, found)

    def catch_up(self, connection: psycopg.Connection[Any]) -> int:
        """Delete what nobody has told of in its time; returns how many refreshes that concerned."""
        with connection.cursor(row_factory=class_row(Announcement)) as cursor:
            found = cursor.execute(
                _sql.left_announcements.sql, {"patience": PATIENCE, "batch": BATCH}
            ).fetchall()
        return self._tell(connection, found)

    def _tell(self, connection: psycopg.Connection[Any], found: list[Announcement]) -> int:
        told: list[int] = []
        for each in found:
            try:
                keys = self._cache.invalidate(each.tags, each.parameters)
            except (RedisError, RedisClusterException, OSError) as exc:
                log.warning(
                    "cache.not_invalidated",
                    view=each.view,
                    run_id=each.run_id,
                    error=type(exc).__name__,
                    remedy="It is tried again; until then cached results may be old",
                )
                break
            log.info("cache.invalidated", view=each.view, run_id=each.run_id, tags=each.tags, keys=keys)
            told.append(each.id)
        if told:
            connection.execute(_sql.delete_announcements.sql, {"ids": told})
        return len(told)


def _message(database: str, view: str, run_id: int, snapshot_at: datetime) -> str:
    return json.dumps(
        {"database": database, "view": view, "run": run_id, "snapshot_at": snapshot_at.isoformat()}
    )
