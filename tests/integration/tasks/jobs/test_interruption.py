"""A job that is interrupted: the batch under way is undone, those before it count, nothing is done twice."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from celery import Celery
from celery.exceptions import Ignore
from pydantic import SecretStr

from fleet import settings
from fleet.ledger import State
from fleet.postgres.connect import Pools
from tasks import interruption
from tasks.base import Runtime
from tasks.interruption import CANCEL, STOP, TIME_IS_UP
from tasks.jobs.tasks import RunJob
from tests.integration.tasks.jobs.conftest import System, job
from tests.waiting import wait_until

pytestmark = pytest.mark.any_server

BATCHES = job("SELECT public.do_some()", repeat_until_zero=True, batch_pause="1ms", retries=["1ms"])
SLOW = job("SELECT public.do_some() FROM pg_sleep(30)", repeat_until_zero=True)


class Child:
    """What a pool child does with a bell, here."""

    def __init__(self, system: System, declared: settings.Job) -> None:
        self.pools = Pools()
        kept = settings.Database(name="kept", url=SecretStr(system.database.url), views={})
        loaded = settings.Settings.model_construct(
            databases={"kept": kept}, jobs={declared.name: declared}, queues=settings.Queues()
        )
        app: Any = Celery("test", set_as_current=False)
        app.runtime = Runtime(settings=loaded, pools=self.pools)
        self.task = app.register_task(RunJob())

    def work_on(self, run_id: int) -> Any:
        try:
            return self.task.run(database="kept", run=run_id)
        except Ignore:
            return "ignored"


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(interruption._state, "listening", True)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (STOP, TIME_IS_UP, CANCEL)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def free_of_locks(system: System) -> bool:
    return system.scalar("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(
    ("number", "state", "attempt"),
    [(STOP, State.WAITING, 0), (CANCEL, State.FAILED, 1), (TIME_IS_UP, State.FAILED, 1)],
)
def test_in_the_middle_of_a_statement(
    system: System, number: signal.Signals, state: State, attempt: int
) -> None:
    """Psycopg's own execute() is not in between: the statement is sent and read piece by piece."""
    declared = SLOW.model_copy(update={"retries": ()})
    child = Child(system, declared)
    run_id = system.insert(declared)

    def sleeping() -> bool:
        with psycopg.connect(system.database.url) as other:
            return bool(
                other.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
                ).fetchall()
            )

    def send() -> None:
        wait_until(sleeping)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    child_ended = None
    try:
        child_ended = child.work_on(run_id)
    except Exception as exc:  # out of time without another attempt: the task fails
        child_ended = exc
    sender.join()
    run = system.run_row(run_id)
    assert (run.state, run.attempt) == (state, attempt), child_ended
    wait_until(lambda: not sleeping(), 2)
    wait_until(lambda: free_of_locks(system), 2)
    assert system.done() == {0: 25}
    child.pools.close()


@pytest.mark.usefixtures("heard")
def test_stopped_at_any_instant_and_taken_up_again(system: System) -> None:
    child = Child(system, BATCHES)
    began = time.monotonic()
    child.work_on(system.insert(BATCHES))
    # At any instant on any machine: one that is slow must come to the end of a batch now and then.
    longest_s = 1.2 * (time.monotonic() - began)
    interrupted = 0
    for _ in range(15):
        system.connection.execute("UPDATE public.todo SET done = 0")
        run_id = system.insert(BATCHES)
        for _ in range(100):
            stopped = threading.Event()

            def send(
                stopped: threading.Event = stopped, delay_s: float = random.uniform(0, longest_s)
            ) -> None:
                if not stopped.wait(delay_s):
                    os.kill(os.getpid(), STOP)

            sender = threading.Thread(target=send)
            sender.start()
            child.work_on(run_id)
            stopped.set()
            sender.join()
            run = system.run_row(run_id)
            wait_until(lambda: free_of_locks(system), 2)
            if run.final:
                break
            interrupted += 1
            assert (run.state, run.attempt) == (State.WAITING, 0)
        assert run.state == State.SUCCEEDED
        assert run.result is not None
        assert (run.result["batches"], run.result["rows"]) == (3, 25)
        assert system.done() == {1: 25}
    assert interrupted > 0
    child.pools.close()
