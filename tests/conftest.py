"""What every test may ask for: real servers, a database or a Redis of its own, a role.

The servers start once per run and only when a test needs them, on free ports. A test that asks for a
PostgreSQL fixture is marked `postgres` by that, one that asks for a Redis fixture `redis`: nobody has to
remember the marker.
"""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest
import redis

from tests import servers
from tests.servers import Database
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

# Every test makes and drops databases of 300 files each: half a second on a disk's file system, 0.03 s here.
SHARED_MEMORY = "/dev/shm"


class NewDatabase(Protocol):
    """`new_database()` is empty, `new_database(migrated=True)` has the schema `upkeep`."""

    def __call__(self, *, migrated: bool = False, name: str = "") -> Database: ...


class NewRole(Protocol):
    """`role(database, name)` creates a plain LOGIN role and returns its URL for that database."""

    def __call__(self, database: Database, name: str = "plain_role") -> str: ...


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "redis: touches a Redis server; CI runs these on Debian's too")
    # What the person who runs the tests has set for psql or for their own fleet is not for the tests.
    for key in list(os.environ):
        if key.startswith("PG") or (key.startswith("UPKEEP_") and not key.startswith("UPKEEP_TEST_")):
            del os.environ[key]
    if "TMPDIR" not in os.environ and servers.fits_into(SHARED_MEMORY):
        # For the processes of the tests as well.
        os.environ["TMPDIR"] = SHARED_MEMORY
        tempfile.tempdir = None
    # A shell starts what it sends to the background with SIGINT ignored, which every process of a test would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m selects by these markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "postgres_server" in fixtures:
            item.add_marker(pytest.mark.postgres)
        if "redis_server" in fixtures:
            item.add_marker(pytest.mark.redis)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """The run's PostgreSQL, shared: a test that stops or configures one takes `servers.new_postgres()`."""
    with servers.new_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """The run's Redis, shared: a test that stops one takes `servers.new_redis()`."""
    with servers.new_redis() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres_server: EmbeddedPostgres) -> str:
    """A database in which Upkeep's migrations have run, once, for the others to be cloned from."""
    from fleet.postgres.migrations import migrate  # noqa: PLC0415  (only a test that needs it pays for alembic)

    template = servers.create_database(postgres_server, name="upkeep_template")
    migrate(template.url)
    with servers.admin(postgres_server) as connection:
        connection.execute("ALTER DATABASE upkeep_template IS_TEMPLATE true ALLOW_CONNECTIONS false")
    return template.name


@pytest.fixture
def _roles(postgres_server: EmbeddedPostgres) -> Iterator[list[str]]:
    """The roles to drop, after the databases in which they own or may do something."""
    names: list[str] = []
    yield names
    for name in names:
        servers.drop_role(postgres_server, name)


@pytest.fixture
def new_database(
    request: pytest.FixtureRequest,
    postgres_server: EmbeddedPostgres,
    _roles: list[str],
) -> Iterator[NewDatabase]:
    """Makes databases for tests that need more than one; they are dropped afterwards."""
    made: list[Database] = []

    def new(*, migrated: bool = False, name: str = "") -> Database:
        template = request.getfixturevalue("migrated_template") if migrated else "template1"
        made.append(servers.create_database(postgres_server, template=template, name=name))
        return made[-1]

    yield new
    for database in made:
        servers.drop_database(database)


@pytest.fixture
def database(new_database: NewDatabase) -> Database:
    """An empty database."""
    return new_database()


@pytest.fixture
def upkeep_database(new_database: NewDatabase) -> Database:
    """A database with the schema `upkeep`."""
    return new_database(migrated=True)


@pytest.fixture
def role(postgres_server: EmbeddedPostgres, _roles: list[str]) -> NewRole:
    """Makes LOGIN roles without any privilege; they are dropped after the test's databases."""

    def new(database: Database, name: str = "plain_role") -> str:
        password = servers.create_role(postgres_server, name)
        _roles.append(name)
        return database.url_for(name, password)

    return new


@pytest.fixture(scope="session")
def _redis_numbers() -> Callable[[], int]:
    # In turn, so that a worker which is slow to stop does not write into the next test's.
    numbers = itertools.cycle(range(16))
    return lambda: next(numbers)


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis, _redis_numbers: Callable[[], int]) -> Iterator[str]:
    """An empty logical database on the run's Redis."""
    url = redis_server.url(_redis_numbers())
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()
