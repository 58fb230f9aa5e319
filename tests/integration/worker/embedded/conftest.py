"""What the tests of the embedded servers share: servers to be stopped and killed, and a look at what is left."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests import servers
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.processes import every_process


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary directory of the servers in this test, to see what they leave in it.

    Not below pytest's own: that one is closed to all users but ours, and again whenever a pytest starts.
    """
    with tempfile.TemporaryDirectory(prefix="upkeep-test-") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


@pytest.fixture
def run_version(postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """More servers of the run's version, from where the first one found its binaries to be reachable."""
    monkeypatch.setenv("UPKEEP_TEST_POSTGRES", str(postgres_server.bin_dir))


@pytest.fixture
def postgres(run_version: None, temporary: Path) -> Iterator[EmbeddedPostgres]:
    """A server of its own, to be stopped and killed."""
    with servers.new_postgres(**servers.DURABLE) as server:
        yield server


def alive(pid: int) -> bool:
    return every_process().get(pid, (0, False))[1]


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def query(server: EmbeddedPostgres, statement: str) -> object:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        row = connection.execute(statement).fetchone()  # type: ignore[arg-type]
    return row[0] if row else None


def execute(server: EmbeddedPostgres, statement: str) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[arg-type]
