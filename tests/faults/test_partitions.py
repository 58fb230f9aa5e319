"""Moves to the archive, killed at each step, among long readers, locks and writers: every row is always there, once."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel

from fleet.errors import TransientError
from fleet.settings.partitions import PartitionSet
from tasks.partitions import archive as archives
from tasks.partitions import foreign_keys
from tasks.partitions.archiving import archive
from tasks.performing import Done, Outcome, Skip
from tests import servers
from tests.faults import moving_child
from tests.faults.moving_child import FIRST_MONTH
from tests.integration.tasks.partitions.moving import (
    META,
    OWNER,
    ROLE,
    ROWS,
    TABLE,
    System,
    install,
    policy,
)
from tests.servers import Database
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres

# What a statement may wait beyond the budget, on two noisy cores: its own work, and the end of ours.
MARGIN_S = 0.6
# Of who counts, so that the others have the processor as well.
PAUSE_S = 0.005
COUNTS = """
SELECT (SELECT array[count(*), count(DISTINCT id), sum(id)::bigint] FROM archive.transactions_all WHERE id <= %s),
       (SELECT array[count(*), count(DISTINCT transaction_id)] FROM archive.transaction_metadata_all)
"""
EXPECTED = ([ROWS, ROWS, ROWS * (ROWS + 1) // 2], [ROWS // 2, ROWS // 2])
_names = itertools.count(1)


@pytest.fixture(scope="module")
def fleet_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The roles, which belong to the server; the URL without its database."""
    servers.create_role(postgres_server, OWNER)
    password = servers.create_role(postgres_server, ROLE)
    yield password
    for name in (ROLE, OWNER):
        servers.drop_role(postgres_server, name)


@pytest.fixture(scope="module")
def template(postgres_server: EmbeddedPostgres, fleet_url: str) -> Iterator[Database]:
    made = servers.create_database(postgres_server, name="moving_template")
    url = made.url_for(ROLE, fleet_url)
    install(made, url)
    system = System(made, url)
    # So that there is a view over both from the first moment.
    for name, column in ((TABLE, ""), (META, "partition_date")):
        archives.ensure(system.connection, name, "archive", budget=policy().lock_budget, partition_by=column)
    system.close()
    yield made
    servers.drop_database(made)


@contextmanager
def cloned(template: Database, password: str) -> Iterator[System]:
    made = servers.create_database(template.server, template=template.name, name=f"moving_{next(_names)}")
    system = System(made, made.url_for(ROLE, password))
    try:
        yield system
    finally:
        system.close()
        servers.drop_database(made)


@pytest.fixture
def system(template: Database, fleet_url: str) -> Iterator[System]:
    with cloned(template, fleet_url) as made:
        yield made


@dataclass
class Checker:
    """Counts the rows all the while, in both isolation levels, and how long each count took."""

    url: str
    level: IsolationLevel
    wrong: list[Any] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with psycopg.connect(self.url) as connection:
            connection.isolation_level = self.level
            connection.prepare_threshold = 2
            while not self._stop.is_set():
                began = time.monotonic()
                seen = [connection.execute(COUNTS, [ROWS]).fetchone() for _ in range(2)]
                connection.commit()
                self.took.append(time.monotonic() - began)
                self.wrong += [each for each in seen if each != EXPECTED]
                self._stop.wait(PAUSE_S)

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def checked(system: System) -> Iterator[list[Checker]]:
    checkers = [
        Checker(system.database.url, level)
        for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ)
    ]
    threads = [threading.Thread(target=each.run) for each in checkers]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(each.took for each in checkers), 20, "the first counts")
        yield checkers
    finally:
        for each in checkers:
            each.stop()
        for thread in threads:
            thread.join()
    assert [each.wrong for each in checkers] == [[], []]
    assert all(len(each.took) > 1 for each in checkers)


@pytest.fixture(scope="module")
def children() -> BaseContext:
    """Processes of their own that need not import everything anew, and inherit no thread or connection of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.moving_child"])
    return context


def child(children: BaseContext, system: System, dies_at: int, notes: Path) -> int | None:
    process = children.Process(target=moving_child.main, args=(system.url, dies_at, notes))
    process.start()
    process.join(120)
    return process.exitcode


def nobody(system: System) -> bool:
    return not system.scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'upkeep/child'"
    )


@pytest.mark.slow
@pytest.mark.any_server
@pytest.mark.timeout(600)
def test_killed_at_each_step(
    template: Database,
    fleet_url: str,
    children: BaseContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes = tmp_path / "steps"
    monkeypatch.setattr(foreign_keys, "JOINED_IN_TIME", -1)
    with cloned(template, fleet_url) as system:
        assert child(children, system, 0, notes) == 0
        steps = notes.read_text().splitlines()
        undisturbed = system.catalogue()
    assert {"check added", "detached public.transactions_y2024m01", "about to commit", "moved"} <= set(steps)
    for number in range(1, len(steps) + 1):
        with cloned(template, fleet_url) as system:
            with checked(system):
                assert child(children, system, number, notes) == -9, (number, notes.read_text())
                wait_until(lambda: nobody(system), 20, "the end of the session")
                archive(system.connection, {TABLE: FIRST_MONTH}, FIRST_MONTH)
            assert system.catalogue() == undisturbed, steps[number - 1]


@pytest.mark.parametrize("many", [False, True], ids=["checked in the detach", "added again"])
def test_a_long_report_and_writers_wait_no_longer_than_the_budget(
    system: System, monkeypatch, many: bool
) -> None:
    monkeypatch.setattr(foreign_keys, "JOINED_IN_TIME", -1 if many else 20_000)
    own = policy(lock_budget="200ms")
    waits: dict[str, list[float]] = {"hot": [], "month": [], "metadata": []}
    errors: list[BaseException] = []
    stop = threading.Event()
    # The newest month is written all the while, the month that moves for as long as it is there.
    statements = {
        "hot": "UPDATE public.transactions SET amount = amount + 1 WHERE id = 3 AND partition_date = '2024-04-04'",
        "month": "UPDATE public.transactions SET amount = amount + 1 WHERE id = 8 AND partition_date = '2024-01-09'",
        "metadata": "UPDATE public.transaction_metadata SET note = note || '.' WHERE transaction_id = 1",
    }

    def write(kind: str) -> None:
        try:
            with psycopg.connect(system.database.url, autocommit=True) as connection:
                while not stop.is_set():
                    began = time.monotonic()
                    connection.execute(statements[kind])
                    waits[kind].append(time.monotonic() - began)
        except BaseException as exc:
            errors.append(exc)

    def report() -> None:
        with psycopg.connect(system.database.url) as connection:
            connection.execute("SELECT count(*) FROM public.transactions, pg_sleep(2.5)")

    threads = [threading.Thread(target=write, args=[kind]) for kind in statements]
    threads.append(threading.Thread(target=report))
    with checked(system) as checkers:
        for thread in threads:
            thread.start()
        done = archive(system.connection, {TABLE: own}, own)
        stop.set()
        for thread in threads:
            thread.join()
    assert isinstance(done, Done)
    assert done.result["companion_rows"] == ROWS // 2
    assert errors == []
    longest = {kind: max(each) for kind, each in waits.items()}
    assert max(longest.values()) < 0.2 + MARGIN_S, longest
    # Two counts, in one transaction that never waits for more than one try of ours.
    assert max(max(each.took) for each in checkers) < 0.2 + 2 * MARGIN_S


def moved_in_time(system: System, own: PartitionSet) -> Outcome:
    """What found no moment for it in ten tries is left to the run's next attempt."""
    for _ in range(3):
        with suppress(TransientError):
            return archive(system.connection, {TABLE: own}, own)
    return archive(system.connection, {TABLE: own}, own)


def test_a_storm_of_locks_delays_and_breaks_nothing(system: System) -> None:
    own = policy(lock_budget="50ms")
    stop = threading.Event()

    def storm() -> None:
        with psycopg.connect(system.database.url) as connection:
            while not stop.is_set():
                connection.execute("LOCK TABLE ONLY public.transactions IN ROW EXCLUSIVE MODE")
                stop.wait(0.04)
                connection.commit()
                stop.wait(0.03)

    threads = [threading.Thread(target=storm) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with checked(system):
            done = moved_in_time(system, own)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert isinstance(done, Done | Skip)
    assert len(system.partitions("archive.transactions")) == 4
