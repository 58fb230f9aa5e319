"""Moves to the archive, killed at each step, among long readers, locks and writers: every row is always there, once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.context import BaseContext
from pathlib import Path

import psycopg
import pytest

from fleet.errors import TransientError
from fleet.settings.partitions import PartitionSet
from tasks.partitions import foreign_keys
from tasks.partitions.archiving import archive
from tasks.performing import Done, Outcome, Skip
from tests.faults import moving_child
from tests.faults.counting import counted, forking, nobody
from tests.faults.moving_child import FIRST_MONTH
from tests.integration.tasks.partitions.cloning import Template, templates
from tests.integration.tasks.partitions.moving import (
    ROWS,
    TABLE,
    System,
    policy,
)
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres

# What a statement may wait beyond the budget, on two noisy cores: its own work, and the end of ours.
MARGIN_S = 0.6
COUNTS = f"""
SELECT (SELECT array[count(*), count(DISTINCT id), sum(id)::bigint] FROM archive.transactions_all WHERE id <= {ROWS}),
       (SELECT array[count(*), count(DISTINCT transaction_id)] FROM archive.transaction_metadata_all)
"""
EVERY_ROW_ONCE = {COUNTS: ([ROWS, ROWS, ROWS * (ROWS + 1) // 2], [ROWS // 2, ROWS // 2])}


@pytest.fixture(scope="module")
def template(postgres_server: EmbeddedPostgres) -> Iterator[Template]:
    with templates(postgres_server, "moving") as (made,):
        yield made


@pytest.fixture
def system(template: Template) -> Iterator[System]:
    with template.cloned() as made:
        yield made


@pytest.fixture(scope="module")
def children() -> BaseContext:
    return forking("tests.faults.moving_child")


def child(children: BaseContext, system: System, dies_at: int, notes: Path) -> int | None:
    process = children.Process(target=moving_child.main, args=(system.url, dies_at, notes))
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.any_server
@pytest.mark.timeout(600)
def test_killed_at_each_step(
    template: Template,
    children: BaseContext,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    notes = tmp_path / "steps"
    monkeypatch.setattr(foreign_keys, "JOINED_IN_TIME", -1)
    with template.cloned() as system:
        assert child(children, system, 0, notes) == 0
        steps = notes.read_text().splitlines()
        undisturbed = system.catalogue()
    assert {"check added", "detached public.transactions_y2024m01", "about to commit", "moved"} <= set(steps)
    for number in range(1, len(steps) + 1):
        with template.cloned() as system:
            with counted(system, EVERY_ROW_ONCE):
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
    with counted(system, EVERY_ROW_ONCE) as checkers:
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
    assert max(max(each.took) for each in checkers) < 0.2 + MARGIN_S


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
        with counted(system, EVERY_ROW_ONCE):
            done = moved_in_time(system, own)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert isinstance(done, Done | Skip)
    assert len(system.partitions("archive.transactions")) == 4
