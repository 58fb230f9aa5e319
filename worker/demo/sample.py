"""The sample system that the demo keeps fresh, and the application that writes to it.

Most know nothing of us. One that does asks for refreshes: it has a module `bursts` with an `application`.
"""

from __future__ import annotations

import importlib
import random
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import psycopg
from psycopg import sql

from worker.embedded.postgres import EmbeddedPostgres

# The application's pace: a handful of payments and collections events in each burst.
WRITE_PAUSE_S = 1.0

EXAMPLES = ("lending", "lp", "trading", "transactions")
# Up in under a minute after installation, on two cores. 26 months, in 234 tables with 14 indexes each, take longer.
DEFAULT_SCALES = dict.fromkeys(EXAMPLES, 0.05) | {"transactions": 0.01}
# Whose application asks for refreshes.
AWARE = frozenset({"lp"})
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


class Application(Protocol):
    """What writes, and may look when its writes can be read."""

    def burst(self, rng: random.Random) -> None:
        """Some writes."""

    def seen_after(self) -> Mapping[str, float]:
        """By view, the seconds from a write's commit until the view had it."""

    def told(self) -> str:
        """What else it has to tell, in a few words."""


# On the application's connection, with the fleet's Redis.
Applications = Callable[[psycopg.Connection[Any], str], AbstractContextManager[Application]]


class Unaware:
    """An application that knows nothing of Upkeep."""

    def __init__(self, example: Example, connection: psycopg.Connection[Any]) -> None:
        self._example = example
        self._connection = connection

    def burst(self, rng: random.Random) -> None:
        """What the example writes."""
        self._example.write(self._connection, rng)

    def seen_after(self) -> Mapping[str, float]:
        """It does not look."""
        return {}

    def told(self) -> str:
        """Nothing."""
        return ""


def application(name: str, example: Example) -> Applications:
    """The example's own application, or one that only writes."""
    if name in AWARE:
        aware: Applications = importlib.import_module(f"examples.{name}.bursts").application
        return aware

    @contextmanager
    def unaware(connection: psycopg.Connection[Any], _: str) -> Iterator[Application]:
        yield Unaware(example, connection)

    return unaware


class Writer(threading.Thread):
    """The application's process: it writes until it is stopped."""

    def __init__(self, application: Applications, url: str, redis_url: str) -> None:
        super().__init__(name="application", daemon=True)
        self._application = application
        self._url = url
        self._redis_url = redis_url
        self._stopped = threading.Event()
        self.bursts = 0
        self.seen_after: Mapping[str, float] = {}
        self.told = ""
        self.error: str | None = None

    def run(self) -> None:
        """Write a burst, pause, again."""
        rng = random.Random(7)  # noqa: S311 - sample data
        try:
            with (
                psycopg.connect(self._url, autocommit=True, application_name="the application") as connection,
                self._application(connection, self._redis_url) as application,
            ):
                while not self._stopped.wait(WRITE_PAUSE_S):
                    application.burst(rng)
                    self.bursts += 1
                    self.seen_after = application.seen_after()
                    self.told = application.told()
        except psycopg.Error as exc:
            if not self._stopped.is_set():
                self.error = str(exc).strip()

    def stop(self) -> None:
        """Finish the burst and end."""
        self._stopped.set()
        if self.is_alive():  # it may never have begun
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


def let_request(fleet: str) -> None:
    """What the application's role needs to ask for refreshes and to look how fresh a view is."""
    with psycopg.connect(fleet) as connection:
        for statement in (
            "GRANT USAGE ON SCHEMA upkeep TO {}",
            "GRANT EXECUTE ON FUNCTION upkeep.request_refresh(text, jsonb, boolean) TO {}",
            "GRANT SELECT ON upkeep.view_freshness TO {}",
        ):
            connection.execute(sql.SQL(statement).format(sql.Identifier(OWNER)))
