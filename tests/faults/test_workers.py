"""Workers that are killed or told to stop in the middle of a refresh: time is lost, nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fleet.errors import TransientError
from fleet.ledger import Run, State
from tests.faults.aftermath import assert_nothing_is_lost
from tests.faults.conftest import CONFIG, DIFFERENCE, SCHEMA, SLOW_S
from tests.processes import TIER, VIEW, Fleet, Kept, Process, descendants, fleet, keep, wait_gone
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

# What is promised: the reaper is there within 30 s, and then the refresh runs again. Measured: about 10.
RECOVERY_S = 35


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def worker(upkeep: Fleet) -> Process:
    """The worker that stays."""
    return upkeep.worker("stays").wait_ready()


def begin(upkeep: Fleet, kept: Kept, queue: str = "refresh") -> tuple[str, Run, int]:
    """Ask for the slow view; returns the request, its run and the session, once the refresh is under way."""
    kept.execute("INSERT INTO public.t SELECT max(id) + 1 FROM public.t")
    task_id = upkeep.send(VIEW, queue=queue, database="kept", view="public.slow")
    session = kept.wait_refreshing("public.slow")
    run = kept.request(task_id)
    assert run is not None
    assert run.state == State.RUNNING
    return task_id, run, session


def assert_as_if_nothing_had_happened(kept: Kept) -> None:
    assert kept.rows(DIFFERENCE) == []
    assert_nothing_is_lost(kept, stale=["public.quick", "public.once"])  # only public.slow was asked for
    wait_until(lambda: kept.advisory_locks() == 0, 10, lambda: f"{kept.advisory_locks()} advisory locks")
    assert kept.scalar("SELECT count(*) FROM upkeep.run WHERE finished_at IS NULL") == 0


def gone(kept: Kept, session: int) -> bool:
    return kept.scalar("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", session) == 0


def test_a_killed_pool_child(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    task_id, run, session = begin(upkeep, kept)
    child = int(str(run.worker).rpartition("/")[2])
    assert child in worker.pool()
    began = time.monotonic()
    os.kill(child, signal.SIGKILL)
    # The server cancels what nobody waits for, and frees its locks, long before any time-out of Redis.
    wait_until(lambda: gone(kept, session), 5, "the end of the dead child's session")
    ended = kept.final(task_id, timeout=RECOVERY_S)
    assert time.monotonic() - began < RECOVERY_S
    assert (ended.state, ended.id, ended.attempt) == (State.SUCCEEDED, run.id, 2)
    assert str(ended.worker) != str(run.worker)
    assert worker.popen.poll() is None
    assert_as_if_nothing_had_happened(kept)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_by_another(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    # It alone listens to a queue where nothing of a view's should be, so that it gets the request.
    victim = upkeep.worker("dies", "--queues", "archive").wait_ready()
    task_id, run, session = begin(upkeep, kept, queue="archive")
    assert str(run.worker).startswith("dies@")
    processes = descendants(victim.pid)
    victim.kill()
    began = time.monotonic()
    # Its children go with it, and their sessions.
    wait_gone(processes, 5)
    wait_until(lambda: gone(kept, session), 5, "the end of the dead worker's session")
    assert not [s for s in kept.sessions() if s["state"] == "active" and "REFRESH" in s["query"]]
    ended = kept.final(task_id, timeout=RECOVERY_S)
    assert time.monotonic() - began < RECOVERY_S
    assert (ended.state, ended.id, ended.attempt) == (State.SUCCEEDED, run.id, 2)
    assert str(ended.worker).startswith("stays@")
    assert_as_if_nothing_had_happened(kept)


def test_a_worker_killed_while_it_fans_out_loses_no_tick(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    # As such a worker leaves it: claimed, nothing inserted, nobody there.
    run_id = kept.scalar(
        "INSERT INTO upkeep.run (task, target, entry, slot, as_of, queue, max_attempts, attempt, state, worker,"
        " started_at, rung_at) SELECT %s, 'daily', 'daily', s, s, 'refresh', 4, 1, 'running', 'dead@test/1',"
        " now() - '1 min'::interval, now() - '1 min'::interval FROM date_bin('1 min', now(), 'epoch') s RETURNING id",
        TIER,
    )
    ended = kept.ended(run_id)
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 2)
    children = kept.children(run_id)
    assert {child.target for child in children} == {"public.quick", "public.slow"}
    for child in children:
        assert kept.ended(child.id).final


def test_a_bell_that_was_lost(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    # Rung long ago, as the row says, and nobody came.
    run_id = kept.scalar(
        "INSERT INTO upkeep.run (task, target, entry, as_of, queue, max_attempts, rung_at)"
        " VALUES (%s, 'public.quick', 'operator', now(), 'refresh', 1, now() - '1 min'::interval) RETURNING id",
        VIEW,
    )
    assert kept.ended(run_id).state == State.SUCCEEDED
    assert any(run_id in line["runs"] for line in worker.lines(event="reaper.rang"))


def test_what_waits_is_rung_for_when_it_is_due(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    run_id = kept.scalar(
        "INSERT INTO upkeep.run (task, target, entry, as_of, queue, max_attempts, attempt, state, not_before,"
        " rung_at) VALUES (%s, 'public.quick', 'operator', now(), 'refresh', 4, 1, 'waiting', now() + '2 s'::interval,"
        " now()) RETURNING id",
        VIEW,
    )
    ended = kept.ended(run_id)
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 2)
    assert kept.scalar(
        "SELECT started_at >= created_at + '2 s'::interval FROM upkeep.run WHERE id = %s", run_id
    )


def test_a_view_that_kills_its_worker_every_time_is_given_up(
    upkeep: Fleet, worker: Process, kept: Kept
) -> None:
    run_id = kept.scalar(
        "INSERT INTO upkeep.run (task, target, entry, as_of, queue, max_attempts, attempt, state, worker,"
        " started_at, rung_at) VALUES (%s, 'public.quick', 'operator', now(), 'refresh', 2, 2, 'running',"
        " 'dead@test/1', now() - '1 min'::interval, now() - '1 min'::interval) RETURNING id",
        VIEW,
    )
    ended = kept.ended(run_id)
    assert (ended.state, ended.attempt) == (State.LOST, 2)
    assert ended.reason == "attempts exhausted without an answer"
    said = worker.wait_line(event="run.lost", run_id=run_id)
    assert (said["level"], said["target"], said["attempts"]) == ("error", "public.quick", 2)


def test_a_last_attempt_that_fails_is_a_failure_and_no_database_that_is_away(
    upkeep: Fleet, worker: Process, kept: Kept
) -> None:
    task_id = upkeep.send(VIEW, database="kept", view="public.once", result=True)
    session = kept.wait_refreshing("public.once")
    kept.change("SELECT pg_terminate_backend(%s)", session)
    run = kept.final(task_id)
    assert (run.state, run.attempt, run.max_attempts) == (State.FAILED, 1, 1)
    assert run.error is not None
    assert (run.error["kind"], run.error["sqlstate"]) == ("transient", "57P01")
    meta = wait_until(lambda: (m := upkeep.result(task_id))["status"] in {"SUCCESS", "FAILURE"} and m)
    assert isinstance(meta["result"], TransientError)
    assert worker.lines(event="request.database_unreachable") == []


def test_sigterm_in_the_middle_of_a_refresh(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    """The last one: it ends the worker."""
    task_id, run, _ = begin(upkeep, kept)
    processes = descendants(worker.pid)
    assert worker.end(timeout=SLOW_S + 30) == 0
    ended = kept.final(task_id, timeout=1)
    assert (ended.state, ended.attempt, ended.worker) == (State.SUCCEEDED, 1, run.worker)
    wait_gone(processes, 2)
    assert_as_if_nothing_had_happened(kept)
    wait_until(lambda: kept.sessions() == [], 5, lambda: str(kept.sessions()))
    assert kept.scalar("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'upkeep/reaper'") == 0
    assert not [p for p in psutil.process_iter() if p.pid in {q.pid for q in processes} and p.is_running()]
