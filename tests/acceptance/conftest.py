"""Servers for the fleets of these tests: their own, because they log every statement and ask for passwords."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import processes, servers
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that writes down every statement."""
    with servers.new_postgres(log_statement="all") as started:
        yield started


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedRedis]:
    """A Redis that asks for a password."""
    with processes.new_redis_with_password() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's processes write."""
    return tmp_path_factory.mktemp("fleet")
