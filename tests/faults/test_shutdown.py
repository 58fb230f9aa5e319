"""What ends a refresh before its time: its worker is stopped, an operator cancels it, its time is up.

Whatever it is, the statement ends in PostgreSQL too, the run says why, and it is done later if it should be.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fleet.ledger import Run, State
from tests import servers
from tests.faults.aftermath import assert_nothing_is_left, assert_nothing_is_lost
from tests.processes import ALL, VIEW, Fleet, Kept, Process, descendants, fleet, keep, wait_gone
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

# How long a refresh takes is in a table: the first attempt can last for ever, and the next one no time at all.
SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY);
INSERT INTO public.t VALUES (1);
CREATE TABLE public.pace (seconds float NOT NULL);
INSERT INTO public.pace VALUES (0);
CREATE MATERIALIZED VIEW public.slow AS
    SELECT id, pg_sleep((SELECT seconds FROM public.pace))::text AS slept FROM public.t;
CREATE UNIQUE INDEX slow_key ON public.slow (id);
CREATE MATERIALIZED VIEW public.above AS SELECT id FROM public.slow;
CREATE UNIQUE INDEX above_key ON public.above (id);
"""
VIEWS = """
[databases.kept.views."public.slow"]
tier = "daily"
retries = ["200ms"]
[databases.kept.views."public.above"]
tier = "daily"
retries = ["200ms"]
"""
SOFT_S = 2
SOON = '[queues]\nsoft_shutdown = "2s"\n' + VIEWS
# Who is asked twice, or harder, does not wait for this.
LATER = '[queues]\nsoft_shutdown = "10m"\n' + VIEWS
FOR_EVER_S = 600
# A worker's children need a second or two to end after the last one that had something to do.
END_S = 8


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture
def soon(tmp_path: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(tmp_path, SOON, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture
def later(tmp_path: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(tmp_path, LATER, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def others(folder: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    """The rest of the fleet; the tests above the first that asks for it have none."""
    with fleet(folder, SOON, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def stays(others: Fleet) -> Process:
    """The worker that goes on with what another one has handed back."""
    return others.worker("stays").wait_ready()


def goes(upkeep: Fleet, queues: str = "archive") -> Process:
    """A worker that only takes what is sent to it: what is rung for later is for another one."""
    return upkeep.worker("goes", "--queues", queues).wait_ready()


def begin(
    upkeep: Fleet,
    kept: Kept,
    seconds: float,
    view: str = "public.slow",
    result: bool = False,
    **options: float,
) -> tuple[str, Run, int]:
    """Have `goes` refresh a view; returns the request, its run and the session. The next refresh takes no time."""
    kept.execute("INSERT INTO public.t SELECT max(id) + 1 FROM public.t")
    kept.change("UPDATE public.pace SET seconds = %s / (SELECT count(*) FROM public.t)", seconds)
    sent = upkeep.producer.send_task(
        VIEW,
        kwargs={"database": "kept", "view": view},
        queue="archive",
        ignore_result=not result,
        **options,
    )
    session = kept.wait_refreshing("public.slow")
    kept.change("UPDATE public.pace SET seconds = 0")
    run = kept.request(sent.id)
    assert run is not None
    assert run.state == State.RUNNING
    assert str(run.worker).startswith("goes@")
    return str(sent.id), run, session


def gone(kept: Kept, session: int) -> bool:
    return kept.scalar("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", session) == 0


def at_rest(kept: Kept, session: int) -> bool:
    """Whether the session executes nothing, or is gone."""
    return not kept.rows("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state <> 'idle'", session)


def child_of(run: Run) -> int:
    return int(str(run.worker).rpartition("/")[2])


def said_since(server: EmbeddedPostgres, position: int) -> str:
    with server.log_path.open("rb") as log:
        log.seek(position)
        return log.read().decode(errors="replace")


def assert_done_elsewhere(kept: Kept, task_id: str, run: Run, *, attempt: int = 1) -> None:
    """Another worker has finished the same run; a first attempt that was handed back does not count."""
    ended = kept.final(task_id)
    assert (ended.id, ended.state, ended.attempt) == (run.id, State.SUCCEEDED, attempt)
    assert str(ended.worker).startswith("stays@")
    assert_all_is_well(kept, task_id)


def assert_all_is_well(kept: Kept, *tasks: str) -> None:
    """Every request has its run, every view that was refreshed is right, and no lock is left."""
    asked = {
        run.target for task_id in tasks if (run := kept.request(task_id)) and run.state == State.SUCCEEDED
    }
    reached = {"public.slow": {"public.slow"}}
    right = {view for target in asked for view in reached.get(target, {"public.slow", "public.above"})}
    assert_nothing_is_lost(kept, requests=tasks, stale={"public.slow", "public.above"} - right)


# Without another worker, so that what a worker leaves can be looked at.


def test_sigterm_lets_what_runs_end_in_time(soon: Fleet, kept: Kept) -> None:
    worker = goes(soon)
    task_id, run, _ = begin(soon, kept, SOFT_S / 2)
    assert worker.end(timeout=SOFT_S + END_S) == 0
    ended = kept.final(task_id, timeout=1)
    assert (ended.state, ended.attempt, ended.worker) == (State.SUCCEEDED, 1, run.worker)
    assert_all_is_well(kept, task_id)
    assert_nothing_is_left(soon, kept)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGQUIT])
def test_an_idle_worker_ends_at_once(later: Fleet, kept: Kept, how: signal.Signals) -> None:
    worker = goes(later)
    processes = descendants(worker.pid)
    assert worker.end(how, timeout=END_S) == 0
    wait_gone(processes, 2)
    assert_nothing_is_left(later, kept)


def test_sigterm_hands_back_what_does_not_end_in_time(
    soon: Fleet, kept: Kept, server: EmbeddedPostgres, request: pytest.FixtureRequest
) -> None:
    worker = goes(soon)
    task_id, run, session = begin(soon, kept, FOR_EVER_S)
    written = server.log_path.stat().st_size
    began = time.monotonic()
    worker.popen.send_signal(signal.SIGTERM)
    worker.wait_line(event="worker.stopping", running=1, soft_shutdown_s=SOFT_S)
    wait_until(lambda: at_rest(kept, session), SOFT_S + 2, "the end of the statement")
    assert time.monotonic() - began > SOFT_S
    assert "canceling statement due to user request" in said_since(server, written)
    assert worker.popen.wait(END_S) == 0
    handed = kept.run(run.id)
    assert (handed.state, handed.attempt, handed.reason) == (State.WAITING, 0, "its worker was stopped")
    assert_nothing_is_left(soon, kept)
    request.getfixturevalue("stays")
    assert_done_elsewhere(kept, task_id, run)


# From here on the rest of the fleet is there.


def test_another_worker_goes_on_at_once(soon: Fleet, kept: Kept, stays: Process) -> None:
    worker = goes(soon)
    task_id, run, session = begin(soon, kept, FOR_EVER_S, view="public.above")
    worker.popen.send_signal(signal.SIGTERM)
    # Two runs end with one statement: the view's, and that of the view which it is built on.
    wait_until(lambda: at_rest(kept, session), SOFT_S + 2, "the end of the statement")
    # Its reaper looks once a second.
    kept.final(task_id, timeout=5)
    assert_done_elsewhere(kept, task_id, run)
    below = kept.rows("SELECT state, attempt FROM upkeep.run WHERE requested_by = %s", f"run {run.id}")
    assert [(row["state"], row["attempt"]) for row in below] == [("succeeded", 1)]
    assert [line for line in stays.lines(event="reaper.rang") if run.id in line["runs"]]
    assert worker.popen.wait(END_S) == 0


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGQUIT])
def test_a_second_signal_does_not_wait(
    later: Fleet, kept: Kept, stays: Process, again: signal.Signals
) -> None:
    worker = goes(later)
    task_id, run, session = begin(later, kept, FOR_EVER_S)
    worker.popen.send_signal(signal.SIGTERM)
    worker.wait_line(event="worker.stopping")
    assert not at_rest(kept, session)
    worker.popen.send_signal(again)
    wait_until(lambda: at_rest(kept, session), 2, "the end of the statement")
    assert worker.popen.wait(END_S) == 0
    assert_done_elsewhere(kept, task_id, run)


def test_sigquit_does_not_wait(later: Fleet, kept: Kept, stays: Process) -> None:
    worker = goes(later)
    task_id, run, session = begin(later, kept, FOR_EVER_S)
    worker.popen.send_signal(signal.SIGQUIT)
    wait_until(lambda: at_rest(kept, session), 2, "the end of the statement")
    assert worker.popen.wait(END_S) == 0
    assert_done_elsewhere(kept, task_id, run)


def test_a_signal_to_every_process_of_the_group(later: Fleet, kept: Kept, stays: Process) -> None:
    """As systemd sends it unless KillMode is mixed: the pool child hears it itself, and does not wait."""
    worker = goes(later)
    task_id, run, session = begin(later, kept, FOR_EVER_S)
    below = descendants(worker.pid)
    os.killpg(worker.pid, signal.SIGTERM)
    wait_until(lambda: at_rest(kept, session), 2, "the end of the statement")
    assert worker.popen.wait(END_S) == 0
    wait_gone(below, END_S)
    assert_done_elsewhere(kept, task_id, run)


def test_a_worker_that_is_told_to_end_by_a_message(soon: Fleet, kept: Kept, stays: Process) -> None:
    worker = goes(soon)
    task_id, run, session = begin(soon, kept, FOR_EVER_S)
    soon.producer.control.shutdown(destination=["goes@test"])
    wait_until(lambda: at_rest(kept, session), SOFT_S + 4, "the end of the statement")
    assert worker.popen.wait(END_S) == 0
    assert_done_elsewhere(kept, task_id, run)


@pytest.mark.slow
def test_a_child_that_does_not_answer_is_killed(soon: Fleet, kept: Kept, stays: Process) -> None:
    worker = goes(soon)
    task_id, run, session = begin(soon, kept, FOR_EVER_S)
    psutil.Process(child_of(run)).suspend()
    assert worker.end(timeout=SOFT_S + 12 + END_S) == 0
    worker.wait_line(event="worker.child_killed", pid=child_of(run))
    # It could hand nothing back: the server notices that it is gone, and the reaper of another worker.
    wait_until(lambda: gone(kept, session), 5, "the end of the session")
    assert_done_elsewhere(kept, task_id, run, attempt=2)


@pytest.mark.slow
def test_a_broker_that_does_not_answer_keeps_no_worker(tmp_path: Path, kept: Kept, stays: Process) -> None:
    with servers.new_redis() as silent, fleet(tmp_path, SOON, {"kept": kept.url}, silent.url()) as made:
        worker = goes(made)
        task_id, run, session = begin(made, kept, FOR_EVER_S)
        below = descendants(worker.pid)
        psutil.Process(silent.pid).suspend()
        worker.popen.send_signal(signal.SIGTERM)
        wait_until(lambda: at_rest(kept, session), SOFT_S + 2, "the end of the statement")
        # The others have their own Redis, and finish it long before this worker gives up.
        assert_done_elsewhere(kept, task_id, run)
        assert worker.popen.wait(30) == 1
        assert worker.lines(event="worker.left")
        wait_gone(below, 2)
        psutil.Process(silent.pid).resume()


def test_many_at_once(soon: Fleet, kept: Kept, stays: Process) -> None:
    """Every place of the worker is taken, and more waits behind."""
    worker = goes(soon)
    kept.change("UPDATE public.pace SET seconds = %s", FOR_EVER_S)
    views = ["public.slow", "public.above"]
    tasks = [soon.send(VIEW, queue="archive", database="kept", view=view) for view in views * 3]
    tasks.append(soon.send(ALL, queue="archive", database="kept"))
    kept.wait_refreshing("public.slow")
    kept.change("UPDATE public.pace SET seconds = 0")
    assert worker.end(timeout=SOFT_S + END_S) == 0
    # What it had not begun with is in Redis, for whoever listens there next.
    soon.worker("next", "--queues", "archive").wait_ready()
    for task_id in tasks:
        assert kept.final(task_id).state in {State.SUCCEEDED, State.SKIPPED}
    assert_all_is_well(kept, *tasks)
    assert kept.scalar("SELECT max(attempt) FROM upkeep.run WHERE request_id = ANY (%s)", tasks) == 1


@pytest.mark.parametrize("view", ["public.slow", "public.above"])
def test_an_operator_terminates_a_task(
    later: Fleet, kept: Kept, server: EmbeddedPostgres, stays: Process, view: str
) -> None:
    """As Flower's button does; the run must not begin again a second later."""
    worker = goes(later)
    pool = worker.pool()
    task_id, run, session = begin(later, kept, FOR_EVER_S, view=view, result=True)
    written = server.log_path.stat().st_size
    later.producer.control.revoke(task_id, terminate=True)
    wait_until(lambda: at_rest(kept, session), 2, "the end of the statement")
    assert "canceling statement due to user request" in said_since(server, written)
    ended = kept.final(task_id, timeout=2)
    assert (ended.id, ended.state, ended.attempt) == (run.id, State.FAILED, 1)
    assert ended.error is not None
    assert (ended.error["kind"], ended.error["type"]) == ("permanent", "Cancelled")
    assert "cancelled by an operator" in str(ended.reason)
    assert "Ask for it again" in ended.error["remedy"]
    assert kept.scalar("SELECT count(*) FROM upkeep.run WHERE finished_at IS NULL") == 0
    assert wait_until(lambda: later.result(task_id)["status"] == "REVOKED")
    # The worker goes on, with the same children.
    again = later.send(VIEW, queue="archive", database="kept", view=view)
    assert kept.final(again).state == State.SUCCEEDED
    assert worker.pool() == pool
    assert later.result(task_id)["status"] == "REVOKED"
    assert_all_is_well(kept, task_id, again)


def test_the_soft_time_limit_cancels_the_statement_at_once(
    later: Fleet, kept: Kept, server: EmbeddedPostgres, stays: Process
) -> None:
    worker = goes(later)
    pool = worker.pool()
    written = server.log_path.stat().st_size
    task_id, run, session = begin(later, kept, FOR_EVER_S, soft_time_limit=2)
    said = worker.wait_line(event="view.refresh.retrying")
    assert (said["run_id"], said["error"]["type"]) == (run.id, "SoftTimeLimitExceeded")
    assert at_rest(kept, session)
    # Asked to, and not because it has noticed a second later that nobody waits any more.
    assert "canceling statement due to user request" in said_since(server, written)
    assert "connection to client lost" not in said_since(server, written)
    assert worker.pool() == pool
    assert_done_elsewhere(kept, task_id, run, attempt=2)


def test_the_hard_time_limit_leaves_no_backend_with_a_lock(later: Fleet, kept: Kept, stays: Process) -> None:
    worker = goes(later)
    task_id, run, session = begin(later, kept, FOR_EVER_S, soft_time_limit=2, time_limit=3)
    # It hears nothing of the soft limit.
    child = psutil.Process(child_of(run))
    child.suspend()
    wait_gone([child], 10)
    began = time.monotonic()
    wait_until(lambda: gone(kept, session), 5, "the end of the session")
    assert time.monotonic() - began < 3
    # The attempt counts: what is too slow every time must not go on for ever.
    assert_done_elsewhere(kept, task_id, run, attempt=2)
    assert worker.popen.poll() is None


def test_nothing_is_left_of_all_this(others: Fleet, stays: Process, kept: Kept) -> None:
    """The last one: it ends the rest of the fleet."""
    assert_nothing_is_left(others, kept)
