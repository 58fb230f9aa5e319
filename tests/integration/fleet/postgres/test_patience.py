"""Locks that the application needs: nobody waits for longer than one budget, whatever it is that takes the time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from fleet.errors import TransientError
from fleet.postgres.connect import connect
from fleet.postgres.patience import Deadline, Patience, patiently
from tests.servers import Database
from tests.waiting import wait_until

BUDGET = timedelta(milliseconds=200)
SOON = Patience(tries=2, total=timedelta(seconds=1.5))
# Of a machine that does other things too.
MARGIN_S = 0.5


@pytest.fixture
def ours(database: Database) -> Iterator[psycopg.Connection[Any]]:
    with database.connect() as admin:
        admin.execute("CREATE TABLE a (id int); CREATE TABLE b (id int); CREATE TABLE c (id int)")
    with connect(database.url, application_name="upkeep/test") as connection:
        yield connection


def oids(connection: psycopg.Connection[Any], *names: str) -> list[int]:
    return [row[0] for row in connection.execute("SELECT unnest(%s::regclass[])::oid", (list(names),))]


def lock(deadline: Deadline, *tables: str) -> None:
    names = sql.SQL(", ").join(map(sql.Identifier, tables))
    deadline.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(names))


def test_a_step_is_done_once_and_committed(ours: psycopg.Connection[Any]) -> None:
    def step(deadline: Deadline) -> str:
        assert deadline.left == BUDGET
        deadline.execute(sql.SQL("INSERT INTO a VALUES ({})").format(sql.Literal(1)))
        assert timedelta() < deadline.left < BUDGET
        return "done"

    assert patiently(ours, step, budget=BUDGET, relations=oids(ours, "a"), doing="It") == "done"
    assert ours.execute("SELECT count(*) FROM a").fetchone() == (1,)
    # What the step has set is over with it.
    assert ours.execute("SHOW lock_timeout").fetchone() == ("5s",)
    assert ours.execute("SHOW synchronous_commit").fetchone() != ("local",)


def test_while_somebody_holds_a_lock_for_long_nothing_is_tried(
    database: Database, ours: psycopg.Connection[Any]
) -> None:
    tried: list[int] = []
    with database.connect() as report:
        report.execute("BEGIN; SELECT count(*) FROM a")

        def step(deadline: Deadline) -> None:
            tried.append(1)
            lock(deadline, "a")

        with pytest.raises(TransientError, match="in 1 try") as error:
            patiently(
                ours,
                step,
                budget=BUDGET,
                relations=oids(ours, "a"),
                doing="Moving it",
                patience=Patience(tries=1, total=timedelta(seconds=1)),
            )
        # Once, when the time was over: a lock that is held may be one that does not matter.
        assert len(tried) == 1
        assert str(error.value).startswith(
            "Moving it found no moment in which its locks were free within 200 ms"
        )
        assert f"process {report.info.backend_pid} held one" in error.value.message
        assert "pg_stat_activity" in error.value.remedy


def test_it_is_tried_as_soon_as_the_report_is_over(database: Database, ours: psycopg.Connection[Any]) -> None:
    report = database.connect()
    report.execute("BEGIN; SELECT count(*) FROM a")
    ended = threading.Timer(0.6, report.rollback)
    ended.start()
    try:
        patiently(
            ours, lambda deadline: lock(deadline, "a"), budget=BUDGET, relations=oids(ours, "a"), doing="It"
        )
    finally:
        ended.join()


def test_short_transactions_are_no_reason_to_wait(database: Database, ours: psycopg.Connection[Any]) -> None:
    with at_it(database, "UPDATE a SET id = id") as slowest:
        for _ in range(20):
            patiently(
                ours,
                lambda deadline: lock(deadline, "a"),
                budget=BUDGET,
                relations=oids(ours, "a"),
                doing="It",
                patience=SOON,
            )
    assert max(slowest) < BUDGET.total_seconds() + MARGIN_S


@pytest.mark.parametrize("at_once", [True, False], ids=["one statement", "three statements"])
def test_many_locks_share_one_budget(
    database: Database, ours: psycopg.Connection[Any], at_once: bool
) -> None:
    """lock_timeout bounds each wait for itself, and three locks come free one after the other."""
    several = ["a", "b", "c"]
    waited: list[float] = []

    def step(deadline: Deadline) -> None:
        began = time.monotonic()
        try:
            for tables in [several] if at_once else [[each] for each in several]:
                lock(deadline, *tables)
        finally:
            waited.append(time.monotonic() - began)

    holders = [database.connect() for _ in several]
    for name, holder in zip(several, holders, strict=True):
        holder.execute(sql.SQL("BEGIN; LOCK TABLE {}").format(sql.Identifier(name)))
    # Each is given back after less than the budget; all of them later than that.
    timers = [
        threading.Timer(0.15 * number, holder.rollback) for number, holder in enumerate(holders, start=1)
    ]
    for timer in timers:
        timer.start()
    try:
        # Nothing to look for first: what is measured is the step.
        with pytest.raises(TransientError):
            patiently(ours, step, budget=BUDGET, relations=[], doing="It", patience=Patience(tries=1))
    finally:
        for timer in timers:
            timer.join()
    assert BUDGET.total_seconds() * 0.8 < waited[0] < BUDGET.total_seconds() + MARGIN_S


def test_work_counts_as_well_as_waiting(ours: psycopg.Connection[Any]) -> None:
    def step(deadline: Deadline) -> None:
        deadline.execute(sql.SQL("INSERT INTO a VALUES (1)"))
        deadline.execute(sql.SQL("SELECT pg_sleep(5)"))

    began = time.monotonic()
    with pytest.raises(TransientError, match="in 2 tries"):
        patiently(ours, step, budget=BUDGET, relations=[], doing="It", patience=SOON)
    assert time.monotonic() - began < 4
    assert ours.execute("SELECT count(*) FROM a").fetchone() == (0,)


def test_when_the_time_is_over_no_statement_is_sent(ours: psycopg.Connection[Any]) -> None:
    with ours.transaction():
        deadline = Deadline(ours, timedelta(milliseconds=20))
        deadline.execute(sql.SQL("SELECT 1"))
        wait_until(lambda: deadline.left == timedelta())
        with pytest.raises(errors.LockNotAvailable, match="all locks of this step together"):
            deadline.execute(sql.SQL("SELECT 1"))


def test_a_deadlock_is_tried_again(ours: psycopg.Connection[Any]) -> None:
    tried: list[int] = []

    def step(deadline: Deadline) -> int:
        tried.append(1)
        if len(tried) == 1:
            raise errors.DeadlockDetected("as PostgreSQL would")
        lock(deadline, "a")
        return len(tried)

    assert patiently(ours, step, budget=BUDGET, relations=oids(ours, "a"), doing="It") == 2


def fail(connection: psycopg.Connection[Any]) -> None:
    with suppress(errors.DivisionByZero):
        connection.execute("SELECT 1 / 0")


def nested(connection: psycopg.Connection[Any]) -> None:
    with connection.transaction():
        pass


@pytest.mark.parametrize(
    "cut",
    [fail, lambda connection: (fail(connection), nested(connection))],
    ids=["a statement", "a savepoint"],
)
def test_what_has_failed_is_never_taken_for_done(ours: psycopg.Connection[Any], cut: Any) -> None:
    """A nested block whose end is cut short only says so in psycopg's log; then the COMMIT is a ROLLBACK."""
    tried: list[int] = []

    def step(deadline: Deadline) -> int:
        tried.append(1)
        deadline.execute(sql.SQL("INSERT INTO a VALUES (1)"))
        if len(tried) == 1:
            cut(ours)
        return len(tried)

    assert patiently(ours, step, budget=BUDGET, relations=[], doing="It") == 2
    assert ours.execute("SELECT count(*) FROM a").fetchone() == (1,)
    nested(ours)


def test_a_nested_block_that_ends_too_late_is_tried_again(ours: psycopg.Connection[Any]) -> None:
    tried: list[int] = []

    def step(deadline: Deadline) -> int:
        tried.append(1)
        deadline.execute(sql.SQL("INSERT INTO a VALUES (1)"))
        with ours.transaction(savepoint_name="nested", force_rollback=True):
            if len(tried) == 1:
                # So that the block's own ROLLBACK TO fails.
                ours.execute("RELEASE nested")
        return len(tried)

    assert patiently(ours, step, budget=BUDGET, relations=[], doing="It") == 2
    # What such a block does is undone, and no more.
    assert ours.execute("SELECT count(*) FROM a").fetchone() == (1,)


def test_a_session_is_never_left_in_a_transaction(ours: psycopg.Connection[Any]) -> None:
    """Whatever goes wrong in psycopg's own bookkeeping."""

    left = ours.transaction()

    def step(deadline: Deadline) -> None:
        deadline.execute(sql.SQL("INSERT INTO a VALUES (1)"))
        # A block that is never left, as one was that was interrupted at its beginning (psycopg before 3.3.7).
        left.__enter__()
        deadline.execute(sql.SQL("SELECT 1 / 0"))

    with pytest.raises(psycopg.Error):
        patiently(ours, step, budget=BUDGET, relations=[], doing="It")
    assert ours.closed


def test_a_rollback_that_is_cut_short_is_sent_again(
    ours: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The few milliseconds that a step had left are the ROLLBACK's as well."""
    cut: list[object] = []
    commands = psycopg.Transaction._get_rollback_commands

    def late(self: Any) -> Any:
        if cut:
            return commands(self)
        cut.append(self)
        # Fails, as ROLLBACK does that comes too late.
        return [b"SELECT 1"]

    monkeypatch.setattr(psycopg.Transaction, "_get_rollback_commands", late)
    tried = []

    def step(deadline: Deadline) -> int:
        tried.append(deadline)
        deadline.execute(sql.SQL("INSERT INTO a VALUES (1)"))
        if len(tried) == 1:
            deadline.execute(sql.SQL("SELECT pg_sleep(1)"))
        return len(tried)

    assert patiently(ours, step, budget=BUDGET, relations=[], doing="It") == 2
    assert cut
    assert ours.execute("SELECT count(*) FROM a").fetchone() == (1,)


def test_it_begins_outside_of_any_transaction(ours: psycopg.Connection[Any]) -> None:
    with ours.transaction(), pytest.raises(RuntimeError, match="It would keep its locks"):
        patiently(ours, lambda deadline: None, budget=BUDGET, relations=[], doing="It")


def test_any_other_error_is_the_callers(ours: psycopg.Connection[Any]) -> None:
    def step(deadline: Deadline) -> None:
        deadline.execute(sql.SQL("SELECT 1 / 0"))

    with pytest.raises(errors.DivisionByZero):
        patiently(ours, step, budget=BUDGET, relations=[], doing="It")


def test_who_interrupts_it_is_not_taken_for_a_lock(ours: psycopg.Connection[Any]) -> None:
    tried: list[int] = []

    def step(deadline: Deadline) -> None:
        tried.append(1)
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise errors.QueryCanceled("in its wake") from None

    with pytest.raises(errors.QueryCanceled):
        patiently(ours, step, budget=BUDGET, relations=[], doing="It")
    assert tried == [1]


@contextmanager
def at_it(database: Database, statement: str) -> Iterator[list[float]]:
    """Somebody who does the same all the time; how long it took him each time."""
    took, stop = [0.0], threading.Event()

    def work() -> None:
        with psycopg.connect(database.url, autocommit=True) as connection:
            while not stop.is_set():
                began = time.monotonic()
                connection.execute(statement)
                took.append(time.monotonic() - began)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()
