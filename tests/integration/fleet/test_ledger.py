"""The ledger: keys that collapse duplicates, claims that only one worker gets, runs that are found again, pruning."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from fleet import ledger
from fleet.ledger import NewRun, State
from tests.servers import Database

SLOT = datetime(2026, 1, 1, 12, 5, tzinfo=UTC)


def new(**changes: Any) -> NewRun:
    return NewRun(
        **(
            {
                "task": "upkeep.refresh.view",
                "target": "public.v",
                "entry": "five_minutes",
                "queue": "refresh",
                "max_attempts": 2,
            }
            | changes
        )
    )


@pytest.fixture
def connection(upkeep_database: Database):
    with upkeep_database.connect() as opened:
        yield opened


def test_a_slot_is_inserted_once(connection):
    first, created = ledger.insert(connection, new(slot=SLOT))
    assert created
    assert ledger.insert(connection, new(slot=SLOT)) == (first, False)
    other, created = ledger.insert(connection, new(slot=SLOT + timedelta(minutes=5)))
    assert created
    assert other != first
    run = ledger.get(connection, first)
    assert run.as_of == SLOT


def test_a_request_is_inserted_once_and_its_as_of_is_the_databases_clock(connection):
    before = connection.execute("SELECT clock_timestamp()").fetchone()[0]
    first, _ = ledger.insert(connection, new(entry="operator", request_id="abc"))
    assert ledger.insert(connection, new(entry="operator", request_id="abc")) == (first, False)
    assert before <= ledger.get(connection, first).as_of
    another, created = ledger.insert(connection, new(entry="operator", request_id="def"))
    assert created
    assert another != first


def test_one_queued_event_run_per_view_and_one_more_while_it_runs(connection, upkeep_database):
    first, _ = ledger.insert(connection, new(entry="event"))
    assert ledger.insert(connection, new(entry="event")) == (first, False)
    with ledger.claim(connection, first, worker="w") as run:
        assert run.state == State.RUNNING
        with upkeep_database.connect() as other:
            second, created = ledger.insert(other, new(entry="event"))
            assert created
            assert ledger.insert(other, new(entry="event")) == (second, False)


def test_only_one_worker_gets_a_run(connection, upkeep_database):
    run_id, _ = ledger.insert(connection, new(slot=SLOT))
    with upkeep_database.connect() as other, ledger.claim(connection, run_id, worker="a") as mine:
        assert mine.attempt == 1
        with ledger.claim(other, run_id, worker="b") as theirs:
            assert theirs is None


def test_a_final_run_is_left_alone(connection):
    run_id, _ = ledger.insert(connection, new(slot=SLOT))
    ledger.finish(connection, run_id, State.SUCCEEDED, result={"rows_changed": 3})
    with ledger.claim(connection, run_id, worker="a") as run:
        assert run is None
    ledger.finish(connection, run_id, State.FAILED, reason="late")
    assert ledger.get(connection, run_id).state == State.SUCCEEDED


def test_a_waiting_run_is_not_claimed_before_its_time(connection):
    run_id, _ = ledger.insert(connection, new(slot=SLOT))
    with ledger.claim(connection, run_id, worker="a"):
        ledger.hand_back(connection, run_id, wait=timedelta(hours=1), reason="busy", waits_for="public.u")
    with ledger.claim(connection, run_id, worker="a") as run:
        assert run is None
    other, _ = ledger.insert(connection, new(slot=SLOT - timedelta(hours=1)))
    ledger.finish(connection, other, State.SUCCEEDED, wakes="public.w")
    with ledger.claim(connection, run_id, worker="a") as run:
        assert run is None
    another, _ = ledger.insert(connection, new(slot=SLOT - timedelta(hours=2)))
    ledger.finish(connection, another, State.SUCCEEDED, wakes="public.u")
    with ledger.claim(connection, run_id, worker="a") as run:
        assert (run.state, run.attempt, run.waits_for) == (State.RUNNING, 1, None)


def test_a_run_whose_attempts_are_used_up_is_lost(connection):
    run_id, _ = ledger.insert(connection, new(slot=SLOT))
    for attempt in (1, 2):
        with ledger.claim(connection, run_id, worker="a") as run:
            assert run.attempt == attempt  # and the worker dies: nothing is written
    with ledger.claim(connection, run_id, worker="a") as run:
        assert run.state == State.LOST
    assert ledger.get(connection, run_id).final


def test_a_retry_counts_and_a_hand_back_does_not(connection):
    run_id, _ = ledger.insert(connection, new(slot=SLOT))
    for counts, expected in ((False, 1), (True, 1), (False, 2)):
        with ledger.claim(connection, run_id, worker="a") as run:
            assert run.attempt == expected
            ledger.hand_back(connection, run_id, wait=timedelta(), reason="later", counts=counts)


def test_the_bell_is_rung_for_what_is_due_and_for_nothing_else(connection, upkeep_database):
    def due(**limits: timedelta) -> list[tuple[int, str]]:
        return [(d.id, d.state) for d in ledger.ring_due(connection, **limits)]

    fresh, _ = ledger.insert(connection, new(slot=SLOT))
    assert due() == []
    assert due(patience=timedelta()) == [(fresh, "queued")]
    assert due() == []  # rung a moment ago
    with upkeep_database.connect() as worker, ledger.claim(worker, fresh, worker="a"):
        assert due(grace=timedelta()) == []  # its lock is held
    assert due(grace=timedelta()) == [(fresh, "running")]  # its worker is gone
    with ledger.claim(connection, fresh, worker="a"):
        ledger.hand_back(connection, fresh, wait=timedelta(hours=1), reason="busy")
    assert due(patience=timedelta()) == []
    connection.execute("UPDATE upkeep.run SET not_before = clock_timestamp()")
    assert due() == [(fresh, "waiting")]
    assert due() == []


def test_the_lock_of_a_killed_session_is_free_for_the_next(connection, upkeep_database):
    run_id, _ = ledger.insert(connection, new(slot=SLOT))
    worker = upkeep_database.connect()
    with ledger.claim(worker, run_id, worker="a"):
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (worker.info.backend_pid,))
        with pytest.raises(psycopg.OperationalError):
            worker.execute("SELECT 1")
    assert [d.id for d in ledger.ring_due(connection, grace=timedelta())] == [run_id]
    with ledger.claim(connection, run_id, worker="b") as run:
        assert run.attempt == 2


def test_pruning_keeps_the_newest_of_every_target_and_sums_the_rest(connection):
    def finished(
        target: str, state: State, days_ago: int, rows: int = 0, entry: str = ledger.OPERATOR
    ) -> int:
        run_id, _ = ledger.insert(connection, new(target=target, entry=entry))
        ledger.finish(connection, run_id, state, result={"rows_changed": rows})
        connection.execute(
            "UPDATE upkeep.run SET finished_at = now() - %s, started_at = now() - %s - interval '2 s' WHERE id = %s",
            (timedelta(days=days_ago), timedelta(days=days_ago), run_id),
        )
        return run_id

    finished("public.a", State.SUCCEEDED, 100, rows=5)
    finished("public.a", State.SKIPPED, 10)
    finished("public.a", State.SKIPPED, 9)
    kept = [finished("public.a", State.FAILED, 95), finished("public.a", State.SKIPPED, 4)]
    kept.append(finished("public.a", State.SKIPPED, 1))
    only = finished("public.b", State.SUCCEEDED, 400)
    old_but_last_success = finished("public.c", State.SUCCEEDED, 200)
    kept_skip = finished("public.c", State.SKIPPED, 1)
    open_run, _ = ledger.insert(connection, new(target="public.d"))
    # Of refreshes after writes there may be several a second.
    finished("public.e", State.SUCCEEDED, 4, entry=ledger.EVENT)
    kept_events = {
        finished("public.e", State.FAILED, 4, entry=ledger.EVENT),
        finished("public.e", State.SUCCEEDED, 4),
        finished("public.e", State.SUCCEEDED, 1, entry=ledger.EVENT),
    }

    retention = {"keep_skipped": timedelta(days=3), "keep_runs": timedelta(days=90)}
    batches = []
    while batch := ledger.prune(connection, **retention, batch=2):
        batches.append(batch)
    left = {row[0] for row in connection.execute("SELECT id FROM upkeep.run")}

    assert batches == [2, 2, 1]
    assert left == {kept[0], kept[2], only, old_but_last_success, kept_skip, open_run, *kept_events}
    summary = connection.execute(
        "SELECT target, state, sum(runs), sum(rows_changed), max(duration_max)"
        " FROM upkeep.run_summary GROUP BY 1, 2 ORDER BY 1, 2"
    ).fetchall()
    assert summary == [
        ("public.a", "skipped", 3, 0, timedelta(seconds=2)),
        ("public.a", "succeeded", 1, 5, timedelta(seconds=2)),
        ("public.e", "succeeded", 1, 0, timedelta(seconds=2)),
    ]
