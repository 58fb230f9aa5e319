"""Marks of applications in Redis: due, made into runs, cleared; and what is told after the refresh."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from fleet import ledger
from fleet.ledger import State
from tasks.refresh import announce, debounce, execute
from tasks.refresh.announce import Announcer
from tasks.refresh.dispatch import Dispatcher
from tests.integration.tasks.refresh.conftest import SCHEMA, System, view
from tests.servers import Database
from tests.waiting import wait_until
from upkeep_client import Upkeep, marking
from upkeep_client.cache import Cache, Tag

pytestmark = pytest.mark.any_server

SOON = {"delay": timedelta(milliseconds=1), "max_wait": timedelta(milliseconds=1)}
HOUR_MS = 3_600_000


@pytest.fixture
def broker(redis_url: str) -> Any:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def system(upkeep_database: Database, broker: redis.Redis) -> System:
    with upkeep_database.connect() as connection:
        connection.execute(SCHEMA)
    made = System(
        upkeep_database,
        [
            view("public.base", invalidates=("dashboard", "lp:{id}"), **SOON),
            view("public.top", "fifteen_minutes", **SOON),
            view("public.keyless", "daily", delay=timedelta(seconds=60), max_wait=timedelta(minutes=5)),
        ],
    )
    made.announcer = Announcer("kept", broker=broker, cache=Cache(broker))
    return made


@pytest.fixture
def client(broker: redis.Redis) -> Upkeep:
    return Upkeep(broker, database="kept", on_error="raise")


def dispatch(system: System, broker: redis.Redis, name: str = "public.base") -> ledger.Run:
    """Look until a run has been made; return it."""
    dispatcher = Dispatcher(system.settings, names=("kept", ""))
    look = wait_until(
        lambda: dispatcher.look_at_marks(broker, lambda: system.connection).created, message="a due mark"
    )
    assert [each.target for each in look] == [name]
    run = ledger.get(system.connection, look[0].id)
    assert run is not None
    return run


def marks(broker: redis.Redis, database: str = "kept") -> set[str]:
    return {mark.view for mark in debounce.read_marks(broker, database).marks}


class TestMarks:
    def test_a_burst_is_one_run_and_the_mark_is_gone(self, system, broker, client):
        for _ in range(100):
            client.request_refresh("public.base")
        run = dispatch(system, broker)
        assert (run.state, run.entry, run.arguments) == (State.QUEUED, "event", {})
        assert marks(broker) == set()
        assert system.deliver(run.id).state == State.SUCCEEDED

    def test_keys_and_parameters_go_with_the_run(self, system, broker, client):
        client.request_refresh("public.base", keys=[1, "two"], parameters={"id": 42})
        client.request_refresh("public.base", keys=[3], parameters={"id": 43})
        run = dispatch(system, broker)
        assert sorted(map(str, run.arguments["keys"])) == ["1", "3", "two"]
        assert sorted(each["id"] for each in run.arguments["parameters"]) == [42, 43]
        assert (
            broker.exists(marking.keys("kept", "public.base"), marking.parameters("kept", "public.base")) == 0
        )

    def test_one_request_without_limits_is_for_everything(self, system, broker, client):
        client.request_refresh("public.base", keys=[1], parameters={"id": 42})
        client.request_refresh("public.base")
        assert dispatch(system, broker).arguments == {}

    def test_a_mark_that_moved_stays(self, system, broker, client):
        client.request_refresh("public.base", keys=[1])
        read = debounce.read_marks(broker, "kept").marks
        client.request_refresh("public.base", keys=[2])
        assert debounce.clear(broker, "kept", read) == 0
        assert marks(broker) == {"public.base"}
        assert dispatch(system, broker).arguments["keys"] == [1, 2]

    def test_a_mark_that_moved_waits_anew_from_the_last_request_that_was_read(self, system, broker, client):
        client.request_refresh("public.base")
        sequence, first, last = broker.hget(marking.marks("kept"), "public.base").split()
        long_ago = int(first) - HOUR_MS
        broker.hset(marking.marks("kept"), "public.base", f"{sequence.decode()} {long_ago} {last.decode()}")
        read = debounce.read_marks(broker, "kept").marks
        client.request_refresh("public.base")
        assert debounce.clear(broker, "kept", read) == 0
        (moved,) = debounce.read_marks(broker, "kept").marks
        assert (moved.first_ms, moved.value.split()[0]) == (int(last), str(int(sequence) + 1).encode())
        # Another dispatcher, which read it before too, takes nothing more from it.
        assert debounce.clear(broker, "kept", read) == 0
        assert debounce.read_marks(broker, "kept").marks == (moved,)

    def test_a_mark_that_another_dispatcher_has_taken_meanwhile_is_no_request_for_everything(
        self, system, broker, client, monkeypatch
    ):
        client.request_refresh("public.base", parameters={"id": 42})
        client.request_refresh("public.top", parameters={"id": 43})
        taken: list[ledger.Run] = []

        def read_limits(*given, original=debounce.read_limits):
            # It has read the marks as we have, and is through with them before we are.
            monkeypatch.setattr(debounce, "read_limits", original)
            Dispatcher(system.settings).look_at_marks(broker, lambda: system.connection)
            taken.extend(ledger.history(system.connection))
            client.request_refresh("public.top", parameters={"id": 44})
            return original(*given)

        def both_due():
            found = debounce.read_marks(broker, "kept")
            return all(mark.last_ms + 1 < found.clock_ms for mark in found.marks)

        wait_until(both_due)
        monkeypatch.setattr(debounce, "read_limits", read_limits)

        def look():
            return Dispatcher(system.settings).look_at_marks(broker, lambda: system.connection)

        look()
        assert {run.target: run.arguments["parameters"] for run in taken} == {
            "public.base": [{"id": 42}],
            "public.top": [{"id": 43}],
        }
        wait_until(lambda: look() and not marks(broker), message="the end of the last mark")
        found = {run.target: run.arguments["parameters"] for run in ledger.history(system.connection)}
        assert found == {"public.base": [{"id": 42}], "public.top": [{"id": 43}, {"id": 44}]}

    def test_nothing_is_due_before_its_delay(self, system, broker, client):
        client.request_refresh("public.keyless")
        look = Dispatcher(system.settings).look_at_marks(broker, lambda: pytest.fail("nothing is due"))
        assert look.created == ()
        assert 55 < look.next_in <= 60
        assert marks(broker) == {"public.keyless"}

    def test_without_a_databases_name_where_there_is_one(self, system, broker):
        Upkeep(broker, on_error="raise").request_refresh("public.base")
        assert dispatch(system, broker).target == "public.base"

    @pytest.mark.parametrize("hours", [-1, 1])
    def test_a_clock_of_redis_that_was_set_makes_no_mark_wait_for_it(self, system, broker, client, hours):
        client.request_refresh("public.keyless")
        sequence, first, last = broker.hget(marking.marks("kept"), "public.keyless").split()
        moved = [int(ms) + hours * HOUR_MS for ms in (first, last)]
        broker.hset(marking.marks("kept"), "public.keyless", f"{sequence.decode()} {moved[0]} {moved[1]}")
        assert dispatch(system, broker, "public.keyless").target == "public.keyless"

    def test_flushed_in_between_no_new_mark_is_taken_for_the_old_one(self, system, broker, client):
        client.request_refresh("public.base")
        read = debounce.read_marks(broker, "kept").marks
        broker.flushdb()
        client.request_refresh("public.base")
        assert debounce.clear(broker, "kept", read) == 0
        assert marks(broker) == {"public.base"}

    def test_a_thousand_views(self, upkeep_database, broker, client):
        names = [f"public.v{i}" for i in range(1000)]
        many = System(upkeep_database, [view(name, **SOON) for name in names])
        client.request_refresh(names)
        dispatcher = Dispatcher(many.settings)
        created = wait_until(lambda: dispatcher.look_at_marks(broker, lambda: many.connection).created)
        assert len(created) == 1000
        assert marks(broker) == set()

    def test_a_strangers_field_stops_nobody(self, system, broker, client):
        broker.hset(marking.marks("kept"), "public.top", "not a mark")
        broker.hset(marking.marks("kept"), b"\xff\xfe", "1 2 3")
        client.request_refresh("public.base")
        assert dispatch(system, broker).target == "public.base"

    def test_what_nobody_manages_is_reported_once_and_kept_for_a_while(self, system, broker, client):
        client.request_refresh(["public.nobody", "no view; DROP TABLE t"])
        with capture_logs() as logs:
            for _ in range(2):
                for _ in range(2):  # another worker's dispatcher has told nobody yet
                    Dispatcher(system.settings).look_at_marks(broker, lambda: system.connection)
        told = [line["view"] for line in logs if line["event"] == "request.unknown"]
        assert sorted(told) == ["no view; DROP TABLE t", "public.nobody"]
        run = ledger.history(system.connection, target="public.nobody")[0]
        assert (run.state, run.entry) == (State.FAILED, "event")
        assert marks(broker) == {"public.nobody", "no view; DROP TABLE t"}
        value = broker.hget(marking.marks("kept"), "public.nobody").split()
        old = int(value[1]) - HOUR_MS
        broker.hset(marking.marks("kept"), "public.nobody", f"1 {old} {old}")
        Dispatcher(system.settings).look_at_marks(broker, lambda: system.connection)
        assert marks(broker) == {"no view; DROP TABLE t"}


class TestAfterwards:
    @pytest.fixture
    def cache(self, broker: redis.Redis) -> Cache:
        made = Cache(broker)
        for number in (42, 43):
            made.get_or_compute(
                f"lp:{number}:summary", lambda: {"fresh": True}, tags=[Tag("lp:{id}", ttl=600, id=number)]
            )
        made.get_or_compute("front", lambda: 1, tags=[Tag("dashboard", ttl=600)])
        return made

    def computes(self, cache: Cache, key: str, tag: Tag) -> bool:
        asked: list[bool] = []
        cache.get_or_compute(key, lambda: asked.append(True) or 1, tags=[tag])
        return bool(asked)

    def test_a_requests_parameters_decide_which_cached_results_go(self, system, broker, client, cache):
        system.refresh("public.base")  # everything goes
        assert self.computes(cache, "lp:42:summary", Tag("lp:{id}", ttl=600, id=42))
        assert self.computes(cache, "lp:43:summary", Tag("lp:{id}", ttl=600, id=43))
        assert self.computes(cache, "front", Tag("dashboard", ttl=600))
        client.request_refresh("public.base", parameters={"id": 42})
        system.deliver(dispatch(system, broker).id)
        assert self.computes(cache, "lp:42:summary", Tag("lp:{id}", ttl=600, id=42))
        assert not self.computes(cache, "lp:43:summary", Tag("lp:{id}", ttl=600, id=43))
        assert self.computes(cache, "front", Tag("dashboard", ttl=600))
        assert system.scalar("SELECT count(*)::int FROM upkeep.announcement") == 0

    def test_parameters_of_rows_too(self, system, broker, cache):
        system.refresh("public.base")
        self.computes(cache, "lp:42:summary", Tag("lp:{id}", ttl=600, id=42))
        self.computes(cache, "lp:43:summary", Tag("lp:{id}", ttl=600, id=43))
        system.connection.execute(
            "SELECT upkeep.request_refresh('public.base', '[{\"id\": 43}, {\"id\": 44}]')"
        )
        dispatcher = Dispatcher(system.settings)
        created = wait_until(lambda: dispatcher.look_at_rows(system.connection).created)
        system.deliver(created[0].id)
        assert not self.computes(cache, "lp:42:summary", Tag("lp:{id}", ttl=600, id=42))
        assert self.computes(cache, "lp:43:summary", Tag("lp:{id}", ttl=600, id=43))

    def test_somebody_elses_refresh_was_enough_but_not_for_the_cache(self, system, broker, client, cache):
        """The other one was asked for one LP; what this one is for must go all the same."""
        system.refresh("public.base")
        self.computes(cache, "lp:43:summary", Tag("lp:{id}", ttl=600, id=43))
        client.request_refresh("public.base", parameters={"id": 43})
        run = dispatch(system, broker)
        refreshed: list[bool] = []

        original = execute.held

        def held(connection: Any, key: str) -> Any:
            if not refreshed:
                refreshed.append(True)
                other = System(system.database, list(system.settings.views.values()))
                other.connection.execute("SELECT upkeep.request_refresh('public.base', '{\"id\": 42}')")
                made = wait_until(
                    lambda: Dispatcher(other.settings).look_at_rows(other.connection).created or 1
                )
                assert made == 1  # the open run stands for it
                other.refresh("public.base")
                self.computes(cache, "lp:43:summary", Tag("lp:{id}", ttl=600, id=43))
            return original(connection, key)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(execute, "held", held)
            ended = system.deliver(run.id)
        assert (ended.state, ended.reason) == (State.SKIPPED, "already fresh")
        assert self.computes(cache, "lp:43:summary", Tag("lp:{id}", ttl=600, id=43))

    def test_what_nobody_told_is_told_by_the_next_that_looks(self, system, broker, cache, monkeypatch):
        system.announcer = None  # killed between the commit and the cache
        system.refresh("public.base")
        assert not self.computes(cache, "front", Tag("dashboard", ttl=600))
        announcer = Announcer("kept", broker=broker, cache=cache)
        assert announcer.catch_up(system.connection) == 0  # its worker may be about to
        monkeypatch.setattr(announce, "PATIENCE", timedelta())
        assert announcer.catch_up(system.connection) == 1
        assert self.computes(cache, "front", Tag("dashboard", ttl=600))
        assert announcer.catch_up(system.connection) == 0

    @pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis+cluster://127.0.0.1:1"])
    def test_a_cache_that_is_away_fails_no_refresh(self, system, broker, url):
        away = redis.Redis(host="127.0.0.1", port=1)
        # redis-py's error for a cluster that it cannot reach is no RedisError.
        system.announcer = Announcer("kept", broker=away, cache=Cache(url))
        with capture_logs() as logs:
            assert system.refresh("public.base").state == State.SUCCEEDED
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
            "refresh.not_published",
            "cache.not_invalidated",
        ]
        assert system.scalar("SELECT count(*)::int FROM upkeep.announcement") == 1

    def test_postgresql_and_redis_tell_whoever_listens(self, system, broker):
        with broker.pubsub() as listening, system.database.connect() as listener:
            listening.subscribe(announce.CHANNEL)
            listening.get_message(timeout=5)
            listener.execute("LISTEN upkeep_refreshed")
            run = system.refresh("public.top")
            heard = [
                wait_until(lambda: listening.get_message(timeout=1), message="a message") for _ in range(2)
            ]
            said = [json.loads(each.payload) for each in listener.notifies(timeout=5, stop_after=2)]
        assert [json.loads(each["data"]) for each in heard] == said
        assert [each["view"] for each in said] == ["public.base", "public.top"]
        assert said[1] == {
            "database": "kept",
            "view": "public.top",
            "run": run.id,
            "snapshot_at": run.result["snapshot_at"],
        }
