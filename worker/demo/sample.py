"""The sample system that the demo keeps fresh, and the application that writes to it and knows nothing of us."""

from __future__ import annotations

import random
import secrets
import threading
from typing import Any, Protocol

import psycopg
from psycopg import sql

from worker.embedded.postgres import EmbeddedPostgres

# The application's pace: a handful of payments and collections events in each burst.
WRITE_PAUSE_S = 1.0

EXAMPLES = ("lending", "lp", "trading")
OWNER = "app_owner"
ROLE = "upkeep"


class Example(Protocol):
    """What a module under examples/ offers."""

    CONFIG: str
    VIEWS: tuple[str, ...]

    def install(self, conn: psycopg.Connection[Any], *, scale: float, seed: int = 1) -> None:
        """Make the system."""

    def write(self, conn: psycopg.Connection[Any], rng: random.Random) -> Any:
        """One burst of application writes."""


class Writer(threading.Thread):
    """The application: it knows nothing of Upkeep and writes until it is stopped."""

    def __init__(self, example: Example, url: str) -> None:
        super().__init__(name="application", daemon=True)
        self._example = example
        self._url = url
        self._stopped = threading.Event()
        self.bursts = 0
        self.error: str | None = None

    def run(self) -> None:
        """Write a burst, pause, again."""
        rng = random.Random(7)  # noqa: S311 - sample data
        try:
            with psycopg.connect(
                self._url, autocommit=True, application_name="the application"
            ) as connection:
                while not self._stopped.wait(WRITE_PAUSE_S):
                    self._example.write(connection, rng)
                    self.bursts += 1
        except psycopg.Error as exc:
            if not self._stopped.is_set():
                self.error = str(exc).strip()

    def stop(self) -> None:
        """Finish the burst and end."""
        self._stopped.set()
        self.join(timeout=10)


def prepare(postgres: EmbeddedPostgres, name: str, example: Example, scale: float) -> tuple[str, str]:
    """Roles as they should be anywhere: an owner of the data, and the fleet's own role, which is no superuser."""
    passwords = {role: secrets.token_urlsafe(16) for role in (OWNER, ROLE)}
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        for role, password in passwords.items():
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                    sql.Identifier(role), sql.Literal(password)
                )
            )
        connection.execute(
            sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(OWNER))
        )
        connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(OWNER), sql.Identifier(ROLE)))
        connection.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(name), sql.Identifier(ROLE))
        )
    owner, fleet = (postgres.url(name, role, password) for role, password in passwords.items())
    with psycopg.connect(owner) as connection:
        example.install(connection, scale=scale)
    return owner, fleet
