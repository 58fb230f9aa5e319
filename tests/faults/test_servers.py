"""PostgreSQL and Redis that are away, restart or forget: the fleet waits, says so, and goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from fleet.ledger import State
from tests import servers
from tests.faults.aftermath import assert_nothing_is_left, assert_nothing_is_lost
from tests.faults.conftest import CONFIG, DIFFERENCE, SCHEMA
from tests.processes import ALL, VIEW, Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def worker(upkeep: Fleet, server: EmbeddedPostgres) -> Process:
    """Started while PostgreSQL is down; the first test starts the server again."""
    server.stop()
    return upkeep.worker().wait_ready()


@pytest.mark.slow
def test_postgresql_is_down_when_the_worker_starts(
    upkeep: Fleet, worker: Process, kept: Kept, server: EmbeddedPostgres
) -> None:
    told = worker.lines(event="database.not_ready", database="kept")
    assert len(told) == 1
    assert "refused" in told[0]["error"]
    assert "server up and reachable" in told[0]["remedy"]
    task_id = upkeep.send(VIEW, database="kept", view="public.quick")
    waiting = worker.wait_line(event="request.database_unreachable", task_id=task_id)
    assert (waiting["database"], waiting["level"]) == ("kept", "warning")
    assert len(worker.lines(event="reaper.database_away")) == 1
    server.start()
    run = kept.final(task_id, timeout=40)
    assert (run.state, run.attempt) == (State.SUCCEEDED, 1)
    worker.wait_line(event="reaper.database_back", database="kept")
    assert not [line for line in worker.lines() if line.get("level") in {"error", "critical"}]


@pytest.mark.slow
def test_postgresql_crashes_in_the_middle_of_a_refresh(
    upkeep: Fleet, worker: Process, kept: Kept, server: EmbeddedPostgres
) -> None:
    kept.execute("INSERT INTO public.t SELECT max(id) + 1 FROM public.t")
    task_id = upkeep.send(VIEW, database="kept", view="public.slow")
    kept.wait_refreshing("public.slow")
    server.restart("immediate")
    run = kept.final(task_id, timeout=25)
    assert run.state == State.SUCCEEDED, run
    # The first attempt was noticed and tried again, whether or not the crash forgot the claim, which is not waited for.
    assert run.attempt in {1, 2}
    # It was noticed; by a message that came again where the server was not up in time to be told.
    wait_until(
        lambda: (
            worker.lines(event="view.refresh.retrying", task_id=task_id)
            or worker.lines(event="request.database_unreachable", task_id=task_id)
        )
    )
    assert kept.rows(DIFFERENCE) == []
    wait_until(lambda: kept.advisory_locks() == 0, 10)
    assert worker.popen.poll() is None


@pytest.mark.slow
def test_redis_is_killed_in_the_middle_of_a_refresh(
    upkeep: Fleet, worker: Process, kept: Kept, broker: EmbeddedRedis
) -> None:
    running = upkeep.send(VIEW, database="kept", view="public.slow")
    kept.wait_refreshing("public.slow")
    # Behind it in the queue: acknowledged by Redis, so it must survive its death.
    queued = [upkeep.send(VIEW, database="kept", view="public.quick") for _ in range(4)]
    broker.kill()
    run = kept.final(running)
    assert (run.state, run.attempt) == (State.SUCCEEDED, 1)
    broker.start()
    for task_id in queued:
        assert kept.final(task_id, timeout=40).state in {State.SUCCEEDED, State.SKIPPED}
    assert worker.popen.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("back", ["at once", "after the refresh"])
def test_redis_is_killed_under_a_lone_refresh(tmp_path: Path, server: EmbeddedPostgres, back: str) -> None:
    """Nothing behind it in the queue: then kombu puts its message back on a connection that is closed already."""
    kept = keep(server, SCHEMA)
    with servers.new_redis() as broker, fleet(tmp_path, CONFIG, {"kept": kept.url}, broker.url()) as upkeep:
        worker = upkeep.worker("alone").wait_ready()
        running = upkeep.send(VIEW, database="kept", view="public.slow")
        kept.wait_refreshing("public.slow")
        broker.kill()
        if back == "at once":
            broker.start()
        run = kept.final(running)
        assert (run.state, run.attempt) == (State.SUCCEEDED, 1)
        if back != "at once":
            broker.start()
        later = upkeep.send(VIEW, database="kept", view="public.quick")
        assert kept.final(later, timeout=40).state == State.SUCCEEDED
        assert worker.popen.poll() is None
        # Its message could not be acknowledged, and will find its run final when it comes again.
        assert "Unrecoverable" not in worker.stderr


@pytest.mark.slow
def test_what_becomes_due_while_redis_is_down_is_rung_for_afterwards(
    upkeep: Fleet, worker: Process, kept: Kept, broker: EmbeddedRedis
) -> None:
    broker.stop()
    run_id = kept.scalar(
        "INSERT INTO upkeep.run (task, target, entry, as_of, queue, max_attempts, rung_at)"
        " VALUES (%s, 'public.quick', 'operator', now(), 'refresh', 4, now() - '1 min'::interval) RETURNING id",
        VIEW,
    )
    worker.wait_line(event="bell.not_rung", run_id=run_id)
    broker.start()
    # Its bell counts as rung for half a minute; here that has passed.
    kept.change("UPDATE upkeep.run SET rung_at = rung_at - '1 min'::interval WHERE id = %s", run_id)
    assert kept.ended(run_id, timeout=40).state == State.SUCCEEDED


@pytest.mark.slow
def test_redis_forgets_everything_while_runs_are_queued(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    # Both places of the worker are taken, so that the bells of what follows stay in Redis.
    with psycopg.connect(kept.database.url) as holder:
        before = kept.scalar("SELECT coalesce(max(id), 0) FROM upkeep.run")
        holder.execute("COMMENT ON MATERIALIZED VIEW public.quick IS 'locked: SHARE UPDATE EXCLUSIVE'")
        upkeep.send(VIEW, database="kept", view="public.quick")
        upkeep.send(VIEW, database="kept", view="public.slow")
        kept.wait_refreshing("public.slow")
        wait_until(lambda: kept.refreshing("public.quick"))
        queued = [
            kept.scalar(
                "INSERT INTO upkeep.run (task, target, entry, as_of, queue, max_attempts, rung_at)"
                " VALUES (%s, %s, 'operator', now(), 'refresh', 4, now()) RETURNING id",
                VIEW,
                view,
            )
            for view in ("public.quick", "public.slow")
        ]
        for run_id in queued:
            upkeep.send(VIEW, database="kept", run=run_id)
        with redis.Redis.from_url(upkeep.redis_url) as client:
            client.flushall()
            assert client.llen("refresh") == 0
        holder.rollback()
    # Half a minute without an answer makes the reaper ring again; here it has passed.
    kept.change("UPDATE upkeep.run SET rung_at = rung_at - '1 min'::interval WHERE id = ANY(%s)", queued)
    for run_id in queued:
        assert kept.ended(run_id).state in {State.SUCCEEDED, State.SKIPPED}
    # Ways that use bindings in Redis, which are forgotten too: a fan-out, and the answer to an operator's ping.
    fan_out = kept.final(upkeep.send(ALL, database="kept"))
    for child in kept.children(fan_out.id):
        assert kept.ended(child.id).final
    wait_until(
        lambda: (
            kept.scalar("SELECT count(*) FROM upkeep.run WHERE id > %s AND finished_at IS NULL", before) == 0
        ),
        20,
    )


@pytest.mark.slow
def test_redis_is_down_when_the_worker_starts(tmp_path: Path, kept: Kept) -> None:
    with servers.new_redis() as late, fleet(tmp_path, CONFIG, {"kept": kept.url}, late.url()) as made:
        late.stop()
        # Due already: its bell cannot be rung, and the thread that should must live on.
        run_id = kept.scalar(
            "INSERT INTO upkeep.run (task, target, entry, as_of, queue, max_attempts, rung_at)"
            " VALUES (%s, 'public.quick', 'operator', now(), 'maintenance', 4, now() - '1 min'::interval) RETURNING id",
            VIEW,
        )
        waits = made.worker("waits")
        wait_until(
            lambda: [
                line for line in waits.lines() if "Cannot connect to redis://" in str(line.get("event"))
            ],
            30,
            waits.tail,
        )
        assert waits.popen.poll() is None
        began = time.monotonic()
        late.start()
        waits.wait_ready()
        assert time.monotonic() - began < 30
        task_id = made.send(VIEW, database="kept", view="public.quick")
        assert kept.final(task_id).state == State.SUCCEEDED
        kept.change("UPDATE upkeep.run SET rung_at = rung_at - '1 min'::interval WHERE id = %s", run_id)
        assert kept.ended(run_id).final
        assert waits.end() == 0


def test_nothing_is_lost_or_left_after_all_this(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    """The last one: it ends the worker. What the faults hit is stale no longer, and nobody asked for public.once."""
    assert_nothing_is_lost(kept, stale=["public.once"])
    assert_nothing_is_left(upkeep, kept)
