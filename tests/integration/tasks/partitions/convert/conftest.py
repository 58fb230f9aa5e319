"""Conversions in this process, with an application that writes through the old name all the while."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from fleet.names import RelationName
from fleet.postgres.connect import connect
from fleet.settings import PartitionSet
from tasks.partitions.convert.finish import finish
from tasks.partitions.convert.looking import look_at
from tasks.partitions.convert.plan import Asked, How, Plan
from tasks.partitions.convert.run import Converter, settle
from tasks.partitions.convert.state import Conversion, get
from tests.integration.examples.conftest import clone, installed
from tests.servers import Database
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres

__all__ = ["clone", "installed"]

# The longest that a statement of the application may wait: the budget, and what two busy cores add.
BUDGET_MS = 200
MARGIN_S = 1.5


def asked(table: str, how: str, column: str, **changes: Any) -> Asked:
    values = {"interval": "month", "lock_budget": f"{BUDGET_MS}ms", "name": RelationName.parse(table)}
    return Asked(
        how=How(how), policy=PartitionSet(**values | {"column": column} | changes), accept_weaker_keys=True
    )


@dataclass
class Conversions:
    """What an operator does, in one session each time, as after a stop."""

    url: str
    said: list[str] = field(default_factory=list)

    @contextmanager
    def session(self) -> Iterator[psycopg.Connection[Any]]:
        with connect(self.url, application_name="upkeep/test") as connection:
            settle(connection)
            yield connection

    def plan(self, wanted: Asked) -> Plan:
        with self.session() as connection:
            return look_at(connection, wanted.policy.name, wanted)[0]

    def prepare(self, wanted: Asked) -> Conversion:
        return self._run(wanted, lambda converter: converter.prepare())

    def switch(self, wanted: Asked) -> Conversion:
        def both(converter: Converter) -> None:
            converter.prepare()
            converter.switch()

        return self._run(wanted, both)

    def back(self, wanted: Asked) -> Conversion:
        return self._run(wanted, lambda converter: converter.back())

    def _run(self, wanted: Asked, do: Callable[[Converter], None]) -> Conversion:
        with self.session() as connection:
            # As the command does: what was killed after the switch has only this left.
            if finished := finish(connection):
                return finished[-1]
            planned, begun = look_at(connection, wanted.policy.name, wanted)
            converter = Converter.begin(
                connection, planned, begun, requested_by="test", tell=self.said.append
            )
            do(converter)
            finish(connection)
            return get(connection, converter.conversion.id)


class Writer:
    """An application that writes all the time, knows what it has written, and never sees an error."""

    def __init__(
        self, url: str, step: Callable[[psycopg.Connection[Any], int], None], setup: str = ""
    ) -> None:
        self._url, self._step, self._setup = url, step, setup
        self.failed: Exception | None = None
        self.longest = 0.0
        self.count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writer:
        self._thread.start()
        wait_until(lambda: self.count > 5 or self.failed is not None, message="the writer's first writes")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with psycopg.connect(self._url, autocommit=True) as connection:
                if self._setup:
                    connection.execute(sql.SQL(self._setup))
                while not self._stop.is_set():
                    began = time.monotonic()
                    self._step(connection, self.count)
                    self.longest = max(self.longest, time.monotonic() - began)
                    self.count += 1
                    self._stop.wait(0.003)
        except Exception as exc:
            self.failed = exc

    def check(self) -> None:
        assert self.failed is None, self.failed
        assert self.longest < BUDGET_MS / 1000 + MARGIN_S


def dump(database: Database) -> str:
    """The schema as pg_dump prints it, without what changes from one dump to the next."""
    given = conninfo_to_dict(database.url)
    text = subprocess.run(
        [EmbeddedPostgres(version=18).bin_dir / "pg_dump", "-s", "-N", "upkeep"],
        check=True,
        capture_output=True,
        text=True,
        env={
            "PGHOST": str(given["host"]),
            "PGPORT": str(given["port"]),
            "PGUSER": str(given["user"]),
            "PGPASSWORD": str(given.get("password", "")),
            "PGDATABASE": str(given["dbname"]),
        },
    ).stdout
    return "\n".join(
        line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))
    )


@pytest.fixture
def database(upkeep_database: Database) -> Database:
    return upkeep_database
