"""Sample systems to test on: installed once, shared by tests that roll back, cloned for tests that commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import psycopg
import pytest

from examples import lending, lp, trading, transactions
from tests import servers
from worker.embedded.postgres import EmbeddedPostgres

# As small as its rows still have every value. What takes long with the transactions is the number of partitions: some
# months are enough for everything but their number, and for a summary of 90 days.
SIZES: Mapping[ModuleType, Mapping[str, Any]] = {
    lending: {"scale": 0.002},
    lp: {"scale": 0.002},
    trading: {"scale": 0.001},
    transactions: {"scale": 0.001, "months": 6},
}

Installed = Callable[[ModuleType], servers.Database]


@pytest.fixture(scope="session")
def installed(postgres_server: EmbeddedPostgres) -> Iterator[Installed]:
    """`installed(lending)` is a database with the system, its views populated; commit nothing there."""
    made: dict[ModuleType, servers.Database] = {}

    def install(example: ModuleType) -> servers.Database:
        if example not in made:
            made[example] = servers.create_database(postgres_server)
            with psycopg.connect(made[example].url) as connection:
                example.install(connection, **SIZES[example], populate=True)
        return made[example]

    yield install
    for database in made.values():
        servers.drop_database(database)


@pytest.fixture
def clone(postgres_server: EmbeddedPostgres, installed: Installed) -> Iterator[Installed]:
    """`clone(lending)` is a copy of the installed system for one test to commit in."""
    made: list[servers.Database] = []

    def copy(example: ModuleType) -> servers.Database:
        made.append(servers.create_database(postgres_server, template=installed(example).name))
        return made[-1]

    yield copy
    for database in made:
        servers.drop_database(database)


@pytest.fixture
def lending_system(installed: Installed) -> Iterator[psycopg.Connection]:
    yield from _rolled_back(installed(lending))


@pytest.fixture
def lp_system(installed: Installed) -> Iterator[psycopg.Connection]:
    yield from _rolled_back(installed(lp))


@pytest.fixture
def trading_system(installed: Installed) -> Iterator[psycopg.Connection]:
    yield from _rolled_back(installed(trading))


@pytest.fixture
def transactions_system(installed: Installed) -> Iterator[psycopg.Connection]:
    yield from _rolled_back(installed(transactions))


def _rolled_back(database: servers.Database) -> Iterator[psycopg.Connection]:
    connection = psycopg.connect(database.url, autocommit=True)
    with connection, connection.transaction(force_rollback=True):
        yield connection
