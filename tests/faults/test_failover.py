"""A standby is promoted while the fleet works: it goes on there, and what the primary took with it is done again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.ledger import NewRun, State, insert
from fleet.postgres.connect import connect
from schedules import state
from tests.faults.aftermath import Slot, assert_nothing_is_left, assert_nothing_is_lost
from tests.faults.conftest import CONFIG, SCHEMA
from tests.processes import ALL, QUEUES, TIER, VIEW, Fleet, Kept, Process, fleet, keep
from tests.servers import Database
from tests.standby import Pair, streaming_pair
from tests.waiting import wait_until
from worker.embedded.redis import EmbeddedRedis

# From the promotion until everything moves again: promised.
MOVING_S = 60.0
MINUTELY = """
[databases.kept.tiers.minutely]
cron = "* * * * *"
"""


@pytest.fixture
def pair() -> Iterator[Pair]:
    """For one test: a promotion cannot be taken back."""
    with streaming_pair() as made:
        yield made


@pytest.fixture
def kept(pair: Pair) -> Kept:
    made = keep(pair.primary, SCHEMA)
    pair.wait_caught_up()
    return made


@pytest.fixture
def upkeep(tmp_path: Path, pair: Pair, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(tmp_path, CONFIG, {"kept": pair.url(kept.url)}, broker.url()) as made:
        yield made


@pytest.fixture
def there(pair: Pair, kept: Kept) -> Kept:
    """The same database on the standby."""
    return replace(
        kept, database=Database(server=pair.standby, name=kept.database.name), url=pair.alone(kept.url)
    )


def promotions(kept: Kept) -> list[dict]:
    """The runs that refresh everything because of a promotion."""
    return kept.rows(
        "SELECT id, state, requested_by FROM upkeep.run WHERE task = %s AND request_id LIKE 'timeline/%%'",
        ALL,
    )


def start_beat(upkeep: Fleet, name: str) -> Process:
    return upkeep.start(name, "beat", "--pidfile=")


def leaders(kept: Kept) -> list[int]:
    """The sessions that hold the scheduler's lock."""
    found = kept.rows(
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1"
        " AND ((classid::bigint << 32) | objid::bigint) = hashtextextended(%s, 0)",
        state.LEADER,
    )
    return [row["pid"] for row in found]


@pytest.mark.slow
def test_a_standby_is_promoted_in_the_middle_of_a_refresh(
    upkeep: Fleet, pair: Pair, kept: Kept, there: Kept
) -> None:
    worker = upkeep.worker().wait_ready()
    before = upkeep.send(VIEW, database="kept", view="public.quick")
    assert kept.final(before).state == State.SUCCEEDED
    kept.execute("INSERT INTO public.t SELECT max(id) + 1 FROM public.t")
    running = upkeep.send(VIEW, database="kept", view="public.slow")
    kept.wait_refreshing("public.slow")
    queued = [upkeep.send(VIEW, database="kept", view="public.quick") for _ in range(4)]
    pair.wait_caught_up()
    promoted = pair.fail_over()
    after = [
        upkeep.send(VIEW, database="kept", view="public.quick", queue=name) for name in QUEUES.split(",")
    ]
    for task_id in after:
        assert there.final(task_id, timeout=MOVING_S).state in {State.SUCCEEDED, State.SKIPPED}
    assert time.monotonic() - promoted < MOVING_S
    assert there.final(running, timeout=MOVING_S).state == State.SUCCEEDED
    worker.wait_line(event="database.other_timeline")
    assert_nothing_is_lost(there, requests=[before, running, *queued, *after])
    assert time.monotonic() - promoted < MOVING_S
    # Told once each, however often it was tried.
    for event in ("reaper.database_away", "reaper.database_back", "database.other_timeline"):
        assert len(worker.lines(event=event)) == 1, event
    # Every view was refreshed anew: nothing that was recorded on the other timeline counts.
    assert there.rows("SELECT DISTINCT timeline FROM upkeep.view_state") == [{"timeline": 2}]
    assert [each["state"] for each in promotions(there)] == ["succeeded"]
    assert_nothing_is_left(upkeep, there)


@pytest.mark.slow
def test_the_lost_tail_of_the_ledger_is_run_again(upkeep: Fleet, pair: Pair, kept: Kept, there: Kept) -> None:
    worker = upkeep.worker().wait_ready()
    assert kept.final(upkeep.send(VIEW, database="kept", view="public.quick")).state == State.SUCCEEDED
    kept.execute("INSERT INTO public.t SELECT max(id) + 1 FROM public.t")
    pair.wait_caught_up()
    pair.part()
    # Done, acknowledged, and known to nobody but the primary:
    forgotten = upkeep.send(VIEW, database="kept", view="public.quick", result=True)
    assert kept.final(forgotten).state == State.SUCCEEDED
    wait_until(lambda: upkeep.result(forgotten)["status"] == "SUCCESS")
    # Under way, with a row that only the primary has; and behind it.
    running = upkeep.send(VIEW, database="kept", view="public.slow")
    kept.wait_refreshing("public.slow")
    assert there.request(running) is None
    promoted = pair.fail_over()
    wait_until(lambda: promotions(there), MOVING_S, "the run that does everything again")
    assert_nothing_is_lost(there, requests=[running])
    assert time.monotonic() - promoted < MOVING_S
    # Nobody can know that it was asked for: the view is what it has to be, and the ledger says why.
    assert there.request(forgotten) is None
    (again,) = promotions(there)
    assert (again["state"], again["requested_by"]) == ("succeeded", "promotion to timeline 2")
    assert {run.target: run.state for run in there.children(again["id"])}.keys() == {
        "public.quick",
        "public.slow",
        "public.once",
    }
    (told,) = worker.lines(event="database.other_timeline")
    assert (told["why"], told["refresh"]) == ("promotion to timeline 2", again["id"])
    # A worker that starts later, and a reaper that loses its session, find nothing to do.
    there.change(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'upkeep/reaper'"
    )
    later = upkeep.worker("later").wait_ready()
    worker.wait_line(event="reaper.database_back")
    assert there.final(upkeep.send(VIEW, database="kept", view="public.quick")).state == State.SUCCEEDED
    assert len(promotions(there)) == 1
    assert later.lines(event="database.other_timeline") == []
    assert_nothing_is_left(upkeep, there)


@pytest.mark.slow
def test_the_number_of_a_lost_run_is_used_again(upkeep: Fleet, pair: Pair, kept: Kept, there: Kept) -> None:
    """Bells in Redis and workers know runs by numbers, which may mean another run after the loss of a tail."""
    worker = upkeep.worker().wait_ready()
    pair.wait_caught_up()
    pair.part()
    # Its only attempt: a worker that wrote its failure into another run would fail that for good.
    running = upkeep.send(VIEW, database="kept", view="public.once")
    number = wait_until(lambda: (run := kept.request(running)) and run.id)
    kept.wait_refreshing("public.once")
    # The new primary has runs of its own before the old one is gone, under the same numbers.
    pair.standby.promote()
    there.change("SELECT setval('upkeep.run_id_seq', %s, false)", number)
    with connect(there.url, application_name="test") as connection:
        same, another_task, third = (
            insert(connection, new)[0]
            for new in (
                NewRun(
                    task=VIEW, target="public.quick", entry="operator", queue="refresh", request_id="same"
                ),
                NewRun(task=ALL, target="kept", entry="operator", queue="refresh", request_id="all"),
                NewRun(
                    task=VIEW, target="public.slow", entry="operator", queue="refresh", request_id="third"
                ),
            )
        )
    assert same == number
    pair.primary.kill()
    told = worker.wait_line(event="request.database_unreachable", task_id=running)
    assert f"Run {number} of public.once is gone with the server that had it" in told["error"]
    # Bells of the old timeline: for a run of another view, of another task, and of none.
    for run_id in (same, third, another_task, 10_000):
        upkeep.send(VIEW, database="kept", run=run_id)
    assert there.final("third").state in {State.SUCCEEDED, State.SKIPPED}
    # Not what that bell asked for: it waits for its own, which the reaper rings after a while, here at once.
    worker.wait_line(event="run.left_alone", run_id=another_task)
    there.change("UPDATE upkeep.run SET rung_at = rung_at - '1 min'::interval WHERE id = %s", another_task)
    # What it was about is in the row, not in the bell.
    slow = there.rows(
        "SELECT run_id FROM upkeep.view_state WHERE view = 'public.slow' AND snapshot_at IS NOT NULL"
    )
    assert len(slow) == 1
    assert_nothing_is_lost(there, requests=["same", "all", "third", running])
    for request in ("same", "all", "third"):
        found = there.request(request)
        assert found is not None
        assert found.error is None, found
    again = there.request(running)
    assert again is not None
    assert again.id != number
    assert_nothing_is_left(upkeep, there)


@pytest.mark.slow
def test_one_scheduler_leads_after_the_promotion_and_no_slot_is_lost(
    tmp_path: Path, pair: Pair, kept: Kept, there: Kept, broker: EmbeddedRedis
) -> None:
    config = MINUTELY + CONFIG.replace('tier = "daily"', 'tier = "minutely"', 1)
    url = pair.url(kept.url)
    with fleet(tmp_path, config, {"kept": url}, broker.url()) as upkeep:
        first = start_beat(upkeep, "first")
        first.wait_line(event="scheduler.leads", timeout=60)
        assert first.end() == 0
        # The latest slot is due again when the next one leads, and only the primary will know of it.
        kept.change("UPDATE upkeep.schedule_state SET last_slot = last_slot - '1 min'::interval")
        pair.wait_caught_up()
        pair.part()
        worker = upkeep.worker().wait_ready()
        beats = [start_beat(upkeep, "second"), start_beat(upkeep, "third")]
        ticks = "SELECT slot FROM upkeep.run WHERE task = %s AND entry = 'minutely' AND state = 'succeeded'"
        lost = wait_until(lambda: kept.rows(ticks, TIER), 70, worker.tail)[0]["slot"]
        for beat in beats:
            wait_until(
                lambda b=beat: b.lines(event="scheduler.leads") or b.lines(event="scheduler.stands_by"), 60
            )
        assert there.rows("SELECT id FROM upkeep.run") == []
        promoted = pair.fail_over()
        # One leads, and what the other had put into the ledger is there once, run or explained.
        wait_until(lambda: leaders(there), MOVING_S)
        slot = Slot(task=TIER, target="minutely", entry="minutely", slot=lost)
        wait_until(
            lambda: there.rows("SELECT id FROM upkeep.run WHERE task = %s AND slot = %s", TIER, lost),
            MOVING_S,
        )
        wait_until(lambda: there.rows(ticks, TIER), MOVING_S, worker.tail)
        assert time.monotonic() - promoted < MOVING_S
        assert_nothing_is_lost(there, slots=[slot], stale=["public.slow", "public.once"])
        assert len(leaders(there)) == 1
        assert_nothing_is_left(upkeep, there)


@pytest.mark.slow
def test_a_fleet_that_is_pointed_at_a_replica_waits_and_says_so(
    tmp_path: Path, pair: Pair, kept: Kept, there: Kept, broker: EmbeddedRedis
) -> None:
    with fleet(tmp_path, CONFIG, {"kept": there.url}, broker.url()) as upkeep:
        worker = upkeep.worker(concurrency=1).wait_ready()
        beat = start_beat(upkeep, "beat")
        asked = [upkeep.send(VIEW, database="kept", view=view) for view in ("public.quick", "public.slow")]
        told = [
            worker.wait_line(event="database.not_ready"),
            worker.wait_line(event="reaper.database_away"),
            *(worker.wait_line(event="request.database_unreachable", task_id=task_id) for task_id in asked),
            beat.wait_line(event="scheduler.home_away", timeout=60),
        ]
        for line in told:
            said = f"{line['error']} {line.get('remedy', '')}"
            assert "is a standby (in recovery)" in said, line
            assert "target_session_attrs=read-write" in said, line
            assert "waits until it is promoted" in said, line
        # Both have gone round since, and everybody has looked again: nothing is told twice.
        third = upkeep.send(VIEW, database="kept", view="public.quick")
        worker.wait_line(event="request.database_unreachable", task_id=third)
        for event in ("database.not_ready", "reaper.database_away"):
            assert len(worker.lines(event=event)) == 1
        for task_id in asked:
            assert len(worker.lines(event="request.database_unreachable", task_id=task_id)) == 1
        assert len(beat.lines(event="scheduler.home_away")) == 1
        assert [line for line in worker.lines() if line.get("level") in {"error", "critical"}] == []
        assert [
            line for line in worker.lines() if line.get("logger") in {"celery.app.trace", "psycopg.pool"}
        ] == []
        # Promoted, it works on by itself, and nothing was lost.
        kept.execute("INSERT INTO public.t SELECT max(id) + 1 FROM public.t")
        pair.wait_caught_up()
        promoted = pair.fail_over()
        for task_id in (*asked, third):
            assert there.final(task_id, timeout=MOVING_S).state in {State.SUCCEEDED, State.SKIPPED}
        wait_until(lambda: len(leaders(there)) == 1, MOVING_S)
        assert time.monotonic() - promoted < MOVING_S
        worker.wait_line(event="reaper.database_back")
        assert_nothing_is_lost(there, requests=[*asked, third], stale=["public.once"])
        assert_nothing_is_left(upkeep, there)
