"""A refresh that is interrupted: its statement ends, its run is final or waits, and nobody holds a lock."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from celery import Celery
from celery.exceptions import Ignore

from fleet import ledger, settings
from fleet.ledger import NewRun, Run, State
from fleet.postgres import locks
from fleet.postgres.connect import Pools
from fleet.postgres.migrations import migrate
from tasks import interruption
from tasks.base import Runtime
from tasks.interruption import CANCEL, STOP, TIME_IS_UP
from tasks.refresh import holding
from tasks.refresh.execute import REFRESH_VIEW
from tasks.refresh.tasks import RefreshView
from tests import servers
from tests.integration.tasks.refresh.conftest import SCHEMA, System, view
from tests.servers import Database
from tests.waiting import wait_until

pytestmark = pytest.mark.any_server

SLOW = """
CREATE MATERIALIZED VIEW public.slow AS SELECT 1 AS one, pg_sleep(30)::text AS slept WITH NO DATA;
CREATE UNIQUE INDEX slow_key ON public.slow (one);
CREATE MATERIALIZED VIEW public.on_slow AS SELECT one FROM public.slow WITH NO DATA;
CREATE UNIQUE INDEX on_slow_key ON public.on_slow (one);
"""
VIEWS = [
    view("public.base"),
    view("public.top", "fifteen_minutes"),
    view("public.slow"),
    view("public.on_slow"),
]


class Child:
    """What a pool child does with a bell, here: hear, claim, refresh, write."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.pools = Pools()
        app: Any = Celery("test", set_as_current=False)
        app.runtime = Runtime(
            settings=settings.Settings(
                fleet=settings.Fleet(home="kept"), databases={"kept": system.settings}
            ),
            pools=self.pools,
        )
        self.task = app.register_task(RefreshView())

    def insert(self, name: str, **changes: Any) -> int:
        new = {
            "task": REFRESH_VIEW,
            "target": name,
            "entry": "operator",
            "queue": "refresh",
            "max_attempts": 4,
        }
        return ledger.insert(self.system.connection, NewRun(**(new | changes)))[0]

    def work_on(self, run_id: int) -> Any:
        try:
            return self.task.run(database="kept", run=run_id)
        except Ignore:
            return "ignored"

    def run(self, run_id: int) -> Run:
        found = ledger.get(self.system.connection, run_id)
        assert found is not None
        return found

    def locks(self) -> int:
        return int(self.system.scalar("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"))

    def sessions(self) -> list[Any]:
        """Of the work; what looks on has another name."""
        return self.system.connection.execute(
            "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'upkeep/refresh%%' AND state <> 'idle'"
        ).fetchall()


@pytest.fixture
def child(system: System, monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    with psycopg.connect(system.database.url, autocommit=True) as connection:
        connection.execute(SLOW)
    made = Child(System(system.database, VIEWS))
    monkeypatch.setattr(interruption._state, "listening", True)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (STOP, TIME_IS_UP, CANCEL)}
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)
    made.pools.close()


def send_when(number: signal.Signals, condition: Callable[[], object]) -> threading.Thread:
    """Send a signal to this process, from a thread, as soon as a condition holds."""

    def watch() -> None:
        wait_until(condition)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def executing(database: Database, what: str) -> Callable[[], bool]:
    """Whether a session executes such a statement."""

    def look() -> bool:
        with psycopg.connect(database.url, autocommit=True) as connection:
            return bool(
                connection.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
                    " AND query LIKE %s AND pid <> pg_backend_pid()",
                    (f"{what}%",),
                ).fetchall()
            )

    return look


def test_stopped_in_the_middle_of_the_statement(child: Child) -> None:
    run_id = child.insert("public.slow")
    sender = send_when(STOP, executing(child.system.database, "REFRESH"))
    began = time.monotonic()
    assert child.work_on(run_id) == {
        "run": run_id,
        "state": "waiting",
        "reason": "its worker was stopped",
    }
    assert time.monotonic() - began < 10
    sender.join()
    run = child.run(run_id)
    assert (run.state, run.attempt, run.error) == (State.WAITING, 0, None)
    # A session that was closed frees its locks before the server strikes it off its list.
    wait_until(lambda: child.sessions() == [])
    wait_until(lambda: child.locks() == 0)
    # Due at once: the reaper rings for it at its next look.
    assert [due.id for due in ledger.ring_due(child.system.connection)] == [run_id]


def test_cancelled_in_the_middle_of_the_statement(child: Child) -> None:
    run_id = child.insert("public.slow")
    sender = send_when(CANCEL, executing(child.system.database, "REFRESH"))
    assert child.work_on(run_id) == "ignored"
    sender.join()
    run = child.run(run_id)
    assert (run.state, run.attempt) == (State.FAILED, 1)
    assert run.reason == "upkeep.refresh.view of public.slow was cancelled by an operator"
    assert run.error is not None
    assert (run.error["kind"], run.error["type"]) == ("permanent", "Cancelled")
    wait_until(lambda: child.locks() == 0)


def test_out_of_time_in_the_middle_of_the_statement(child: Child) -> None:
    run_id = child.insert("public.slow")
    sender = send_when(TIME_IS_UP, executing(child.system.database, "REFRESH"))
    assert child.work_on(run_id)["state"] == "waiting"
    sender.join()
    run = child.run(run_id)
    assert (run.state, run.attempt) == (State.WAITING, 1)
    assert run.error is not None
    assert (run.error["kind"], run.error["type"]) == ("transient", "SoftTimeLimitExceeded")
    wait_until(lambda: child.locks() == 0)


@pytest.mark.parametrize(
    ("number", "own", "upstream"),
    [
        (STOP, (State.WAITING, 0), (State.WAITING, 0)),
        (CANCEL, (State.FAILED, 1), (State.FAILED, 1)),
        # It was the other's time.
        (TIME_IS_UP, (State.WAITING, 1), (State.WAITING, 0)),
    ],
)
def test_interrupted_while_an_upstream_view_is_brought_up(
    child: Child, number: signal.Signals, own: tuple[State, int], upstream: tuple[State, int]
) -> None:
    run_id = child.insert("public.on_slow")
    sender = send_when(number, executing(child.system.database, "REFRESH"))
    child.work_on(run_id)
    sender.join()
    rows = child.system.connection.execute("SELECT id, target FROM upkeep.run").fetchall()
    runs = {target: child.run(each) for each, target in rows}
    assert (runs["public.on_slow"].state, runs["public.on_slow"].attempt) == own
    assert (runs["public.slow"].state, runs["public.slow"].attempt) == upstream
    assert runs["public.slow"].reason
    wait_until(lambda: child.locks() == 0)


def test_stopped_while_it_waits_for_a_lock(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "BUSY_WAIT_S", 60.0)
    oid = child.system.scalar("SELECT 'public.base'::regclass::oid")
    with child.system.database.connect() as busy:
        assert locks.try_acquire(busy, locks.relation_key(oid))
        run_id = child.insert("public.base")
        sender = send_when(STOP, lambda: child.run(run_id).state == State.RUNNING)
        began = time.monotonic()
        assert child.work_on(run_id)["reason"] == "its worker was stopped"
        # It would have polled for a minute.
        assert time.monotonic() - began < 20
        sender.join()
    assert child.run(run_id).attempt == 0


def test_a_commit_that_was_sent_counts() -> None:
    """A commit that waits for a standby is done here already: to cancel it only ends the waiting."""
    with servers.new_postgres(synchronous_commit="local", synchronous_standby_names="nobody") as server:
        database = servers.create_database(server)
        migrate(database.url)
        with database.connect() as connection:
            connection.execute(SCHEMA)
            connection.execute(
                "CREATE FUNCTION public.wait_for_it() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM set_config('synchronous_commit', 'on', true); RETURN NULL; END $$"
            )
            connection.execute(
                "CREATE TRIGGER wait_for_it AFTER UPDATE ON upkeep.run FOR EACH ROW"
                " WHEN (NEW.state = 'succeeded') EXECUTE FUNCTION public.wait_for_it()"
            )
        made = Child(System(database, VIEWS[:2]))
        state = interruption._state
        state.listening = True
        try:
            run_id = made.insert("public.base")
            sender = send_when(STOP, executing(database, "COMMIT"))
            conclusion = made.work_on(run_id)
            sender.join()
            assert (conclusion["state"], conclusion["strategy"]) == ("succeeded", "populate")
            assert (made.run(run_id).state, made.run(run_id).attempt) == (State.SUCCEEDED, 1)
        finally:
            state.listening = False
            made.pools.close()
            made.system.connection.close()


@pytest.mark.slow
# Python raises nothing out of a destructor or the callback of a weak reference: there the instant was somebody else's.
@pytest.mark.filterwarnings(
    r"ignore:(?s).*\btasks\.interruption\.\w+:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("number", [STOP, CANCEL, TIME_IS_UP])
def test_interrupted_at_any_instant(child: Child, number: signal.Signals) -> None:
    """Whatever Python, psycopg or the server were doing: the row says what is true, and nobody holds anything."""
    seen: Counter[str] = Counter()
    began = time.monotonic()
    child.work_on(child.insert("public.top"))
    longest_s = 1.2 * (time.monotonic() - began)
    for _ in range(50):
        child.system.write()
        run_id = child.insert("public.top")
        delay_s = random.uniform(0, longest_s)
        stopped = threading.Event()

        def send(delay_s: float = delay_s, stopped: threading.Event = stopped) -> None:
            if not stopped.wait(delay_s):
                os.kill(os.getpid(), number)

        sender = threading.Thread(target=send)
        sender.start()
        child.work_on(run_id)
        stopped.set()
        sender.join()
        # An upstream's run that nobody has claimed yet is queued; the reaper rings for either.
        unfinished = child.system.connection.execute(
            "SELECT state, reason FROM upkeep.run WHERE finished_at IS NULL"
        ).fetchall()
        assert all(state == "queued" or (state == "waiting" and reason) for state, reason in unfinished), (
            unfinished
        )
        run = child.run(run_id)
        seen[run.state] += 1
        wait_until(lambda: child.locks() == 0, 5, "the release of the locks")
        # Nothing is in the way of the next worker.
        child.system.connection.execute(
            "UPDATE upkeep.run SET not_before = clock_timestamp() WHERE state = 'waiting'"
        )
        child.work_on(run_id)
        assert child.run(run_id).final
    # How many were faster than the signal depends on the machine.
    assert seen[State.WAITING if number is not CANCEL else State.FAILED] > 0, seen
