"""The reaper rings for exactly those runs that nobody works on, through real queues, and outlives what goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import redis
import structlog
from celery import Celery
from kombu import Queue
from pydantic import SecretStr

from fleet import ledger, settings
from fleet.ledger import NewRun
from fleet.names import RelationName
from fleet.postgres.connect import connect
from schedules.bell import ring
from tests.servers import Database
from tests.waiting import wait_until
from worker import reaper
from worker.reaper import Watch

pytestmark = pytest.mark.any_server

VIEW = "upkeep.refresh.view"
CONFIG = {RelationName("public", "v"): settings.View(name=RelationName("public", "v"), tier="daily")}


class Reaping:
    """A watch in a thread of this process, on a real ledger and a real broker."""

    def __init__(self, database: Database, redis_url: str) -> None:
        self.url = database.url
        self.redis = redis.Redis.from_url(redis_url)
        self.app = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
        self.app.conf.broker_transport_options = {"socket_connect_timeout": 1}
        self.kept = settings.Database(name="kept", url=SecretStr(database.url), views=CONFIG)
        self.connection = connect(database.url, application_name="upkeep/test")
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        watch = Watch(self.app, self.kept, self._stop)
        self._threads.append(threading.Thread(target=watch.run, daemon=True))
        self._threads[-1].start()

    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    def insert(self, **changes: Any) -> int:
        new = {"task": VIEW, "target": "public.v", "entry": "operator", "queue": "refresh", "max_attempts": 4}
        return ledger.insert(self.connection, NewRun(**(new | changes)))[0]

    def age(self, run_id: int, what: str = "1 min") -> None:
        """As if so much time had passed since it was made, begun and rung for."""
        self.connection.execute(
            "UPDATE upkeep.run SET created_at = created_at - %(t)s::interval, rung_at = rung_at - %(t)s::interval,"
            " started_at = started_at - %(t)s::interval, not_before = not_before - %(t)s::interval WHERE id = %(id)s",
            {"t": what, "id": run_id},
        )

    def rung(self, queue: str = "refresh") -> list[int]:
        """The runs whose bells are in a queue, in order."""
        found = []
        for raw in reversed(self.redis.lrange(queue, 0, -1)):
            message = json.loads(raw)
            assert message["headers"]["task"] == VIEW
            assert message["headers"]["ignore_result"] is True
            assert message["headers"]["expires"] is None
            assert message["headers"]["eta"] is None
            found.append(int(message["headers"]["kwargsrepr"].partition("'run': ")[2].rstrip("}")))
        return found

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=15)
            assert not thread.is_alive()
        self.connection.close()
        self.app.close()
        self.redis.close()


@pytest.fixture
def reaping(upkeep_database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reaping]:
    monkeypatch.setattr(reaper, "INTERVAL_S", 0.05)
    monkeypatch.setattr(reaper, "PAUSE_S", 0.2)
    made = Reaping(upkeep_database, redis_url)
    yield made
    made.close()


def test_it_rings_once_for_what_nobody_works_on_and_for_nothing_else(reaping: Reaping) -> None:
    # Bells that were lost, a worker that died, a wait that is over:
    lost = reaping.insert()
    died = reaping.insert()
    with psycopg.connect(reaping.url, autocommit=True) as dead, ledger.claim(dead, died, worker="dead"):
        pass
    waited = reaping.insert()
    ledger.hand_back(reaping.connection, waited, wait=timedelta(milliseconds=1), reason="its time has come")
    slow = reaping.insert(queue="refresh.slow")
    # Just rung, worked on at this moment, not due yet, over:
    fresh = reaping.insert()
    working = reaping.insert()
    later = reaping.insert()
    over = reaping.insert()
    with psycopg.connect(reaping.url, autocommit=True) as alive, ledger.claim(alive, working, worker="alive"):
        ledger.hand_back(reaping.connection, later, wait=ledger.RING_PATIENCE, reason="not yet")
        ledger.finish(reaping.connection, over, ledger.State.SUCCEEDED)
        for run_id in (lost, died, slow, working, over):
            reaping.age(run_id)
        reaping.start()
        wait_until(lambda: len(reaping.rung()) >= 3 and reaping.rung("refresh.slow"))
        # It has looked again since, if it rings for one that came later.
        marker = reaping.insert()
        reaping.age(marker, "10 min")
        wait_until(lambda: marker in reaping.rung())
        assert sorted(reaping.rung()) == sorted([lost, died, waited, marker])
        assert reaping.rung("refresh.slow") == [slow]
        assert not {fresh, working, later, over} & set(reaping.rung())
    # Its worker's session has ended without a word: its lock is free, and it is rung for.
    wait_until(lambda: working in reaping.rung())


def test_two_of_them_ring_once(reaping: Reaping) -> None:
    runs = [reaping.insert() for _ in range(50)]
    for run_id in runs:
        reaping.age(run_id)
    reaping.start()
    reaping.start()
    wait_until(lambda: len(reaping.rung()) >= len(runs))
    marker = reaping.insert()
    reaping.age(marker, "10 min")
    wait_until(lambda: marker in reaping.rung())
    assert sorted(reaping.rung()) == [*runs, marker]


def test_it_rings_again_for_what_is_not_in_its_queue_and_for_nothing_else(reaping: Reaping) -> None:
    reaping.app.conf.task_queues = [Queue("refresh"), Queue("refresh.slow")]
    waits, lost = reaping.insert(), reaping.insert()
    elsewhere = reaping.insert(queue="refresh.slow")
    ring(reaping.app, "kept", [(waits, VIEW, "refresh")])
    # Another database's run of the same number, and what a stranger sent.
    ring(reaping.app, "other", [(lost, VIEW, "refresh")])
    reaping.redis.rpush("refresh", "no message", json.dumps({"body": "x"}), json.dumps([]))
    for run_id in (waits, lost, elsewhere):
        reaping.age(run_id)
    reaping.start()
    wait_until(lambda: reaping.redis.llen("refresh") == 6 and reaping.rung("refresh.slow") == [elsewhere])
    # What was seen is as good as rung a moment ago.
    wait_until(lambda: ledger.ring_due(reaping.connection) == [] and reaping.redis.llen("refresh") == 6)
    newest = json.loads(reaping.redis.lindex("refresh", 0))
    assert f"'run': {lost}" in newest["headers"]["kwargsrepr"]
    # Drained without it: lost.
    reaping.redis.delete("refresh")
    reaping.age(waits)
    wait_until(lambda: reaping.rung() == [waits])


def test_a_queue_that_is_too_long_to_be_looked_through_is_trusted_for_longer(
    reaping: Reaping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.queues.MOST_MESSAGES", 2)
    reaping.app.conf.task_queues = [Queue("refresh"), Queue("refresh.slow")]
    reaping.redis.rpush("refresh", "one", "two", "three")
    patient, hasty = reaping.insert(), reaping.insert(queue="refresh.slow")
    for run_id in (patient, hasty):
        reaping.age(run_id)
    reaping.start()
    wait_until(lambda: reaping.rung("refresh.slow") == [hasty])
    assert reaping.redis.llen("refresh") == 3
    reaping.age(patient, "5 min")
    wait_until(lambda: reaping.redis.llen("refresh") == 4)


def test_a_tick_that_nobody_started_in_time_is_missed_and_told(reaping: Reaping) -> None:
    slot = datetime.now(UTC) - timedelta(minutes=10)
    tick = {"entry": "daily", "expires_at": slot + timedelta(minutes=5)}
    missed = reaping.insert(**tick, slot=slot)
    started = reaping.insert(**tick, slot=slot - timedelta(hours=1))
    waiting = reaping.insert(**tick, slot=slot - timedelta(hours=2))
    in_time = reaping.insert(
        entry="daily", slot=slot, target="public.w", expires_at=slot + timedelta(hours=1)
    )
    ledger.hand_back(reaping.connection, waiting, wait=timedelta(hours=1), reason="busy")
    with psycopg.connect(reaping.url, autocommit=True) as alive, ledger.claim(alive, started, worker="a"):
        with structlog.testing.capture_logs() as said:
            reaping.start()
            wait_until(lambda: ledger.get(reaping.connection, missed).final)
        assert [ledger.get(reaping.connection, run).state for run in (missed, started, waiting, in_time)] == [
            "missed",
            "running",
            "waiting",
            "queued",
        ]
    (line,) = [line for line in said if line["event"] == "run.missed"]
    assert (line["log_level"], line["run_id"], line["slot"]) == ("error", missed, slot)
    # Its bell finds nothing to do.
    with ledger.claim(reaping.connection, missed, worker="late") as run:
        assert run is None


def test_it_makes_the_declared_views_known(reaping: Reaping) -> None:
    reaping.start()
    wait_until(
        lambda: (
            reaping.connection.execute("SELECT view, tier FROM upkeep.view_freshness").fetchall()
            == [("public.v", "daily")]
        )
    )


def test_it_begins_while_somebody_holds_a_views_row(reaping: Reaping) -> None:
    """A refresh that ends, or a transaction that somebody forgot: what is right already is not waited for."""
    reaping.connection.execute("INSERT INTO upkeep.view_state (view, tier) VALUES ('public.v', 'daily')")
    run_id = reaping.insert()
    reaping.age(run_id)
    with psycopg.connect(reaping.url) as holder:
        holder.execute("SELECT FROM upkeep.view_state WHERE view = 'public.v' FOR UPDATE")
        reaping.start()
        wait_until(lambda: reaping.rung() == [run_id], 4)


def test_a_lost_session_is_told_once_and_made_again(reaping: Reaping) -> None:
    with structlog.testing.capture_logs() as said:
        reaping.start()
        first = wait_until(lambda: session(reaping))
        reaping.connection.execute("SELECT pg_terminate_backend(%s)", [first])
        wait_until(lambda: (again := session(reaping)) and again != first)
        run_id = reaping.insert()
        reaping.age(run_id)
        wait_until(lambda: reaping.rung() == [run_id])
        # Told after the look that rang.
        wait_until(lambda: [line for line in said if line["event"] == "reaper.database_back"])
    events = [line["event"] for line in said]
    assert events.count("reaper.database_away") == 1
    assert events.count("reaper.database_back") == 1


def test_an_error_that_nobody_foresaw_does_not_end_it(
    reaping: Reaping, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ledger.ring_due
    failures = iter([ValueError("nobody foresaw this")])

    def failing(*args: Any, **kwargs: Any) -> Any:
        for failure in failures:
            raise failure
        return original(*args, **kwargs)

    monkeypatch.setattr(reaper.ledger, "ring_due", failing)
    run_id = reaping.insert()
    reaping.age(run_id)
    with structlog.testing.capture_logs() as said:
        reaping.start()
        wait_until(lambda: reaping.rung() == [run_id])
    assert [line["log_level"] for line in said if line["event"] == "reaper.failed"] == ["error"]
    assert reaping.alive()


def test_ringing_subscribes_to_no_result(reaping: Reaping) -> None:
    """Celery's client keeps a subscription for every result that it may be asked for: a worker never asks."""
    assert ring(reaping.app, "kept", [(n, VIEW, "refresh") for n in range(1, 21)]) == 20
    assert reaping.rung() == list(range(1, 21))
    assert reaping.redis.pubsub_channels("celery-task-meta-*") == []


def session(reaping: Reaping) -> int | None:
    row = reaping.connection.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'upkeep/reaper'"
    ).fetchone()
    return row[0] if row else None
