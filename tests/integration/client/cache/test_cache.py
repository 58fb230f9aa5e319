"""The cache on a server and on a cluster, with everything that can come in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
import redis
import redis.cluster

import upkeep_client
from tests.waiting import wait_until
from upkeep_client import InvalidRequest
from upkeep_client.cache import AsyncCache, Cache, Layout, Tag, invalidate, invalidation, steps
from worker.embedded.server import free_port

PATIENT = 10.0
DASHBOARD = Tag("dashboard", ttl=300)


def lp(number, ttl=600):
    return Tag("lp:{id}", ttl=ttl, id=number)


@pytest.fixture
def cache(cache_url):
    with Cache(cache_url, timeout=PATIENT) as client:
        yield client


def test_a_result_is_computed_once(cache, compute):
    for _ in range(3):
        assert cache.get_or_compute("a", compute, [DASHBOARD]) == {"call": 1}
    assert compute.calls == 1


@pytest.mark.parametrize("value", [None, [], 0, "", "ü 🎉", [1, {"a": None}], 1.5])
def test_what_json_knows_comes_back_as_it_was(cache, value):
    cache.get_or_compute("a", lambda: value, [DASHBOARD])
    assert cache.get_or_compute("a", pytest.fail, [DASHBOARD]) == value


@pytest.mark.parametrize("value", [datetime(2026, 1, 1, tzinfo=UTC), {"sum": Decimal("1.50")}])
def test_what_json_does_not_know_is_refused_and_keeps_nobody_waiting(cache, reader, value):
    with pytest.raises(TypeError, match="dumps="):
        cache.get_or_compute("a", lambda: value, [DASHBOARD])
    assert reader.exists("upkeep:cache:value:a") == reader.exists("upkeep:cache:lock:a") == 0


def test_the_callers_own_encoding(cache_url):
    with Cache(
        cache_url, dumps=lambda value: str(value).encode(), loads=lambda text: Decimal(text.decode())
    ) as cache:
        for _ in range(2):
            assert cache.get_or_compute("a", lambda: Decimal("1.50"), [DASHBOARD]) == Decimal("1.50")


def test_a_result_lives_as_long_as_its_shortest_tag(cache, compute, reader):
    cache.get_or_compute("a", compute, [Tag("dashboard", ttl=300), lp(42, ttl=20)])
    assert 15_000 < reader.pttl("upkeep:cache:value:a") <= 20_000
    now = time.time() * 1000
    for filed in (
        "upkeep:cache:tag:{dashboard}",
        "upkeep:cache:tag:{lp:42}",
        "upkeep:cache:family:{lp:{id}}",
    ):
        ((_, score),) = reader.zrange(filed, 0, -1, withscores=True)
        assert now + 15_000 < score < now + 85_000
        assert reader.pexpiretime(filed) == score


def test_a_result_ends_with_its_ttl(cache, compute):
    cache.get_or_compute("a", compute, [Tag("dashboard", ttl=0.05)])
    wait_until(lambda: cache.get_or_compute("a", compute, [DASHBOARD]) == {"call": 2})


def test_what_expired_is_trimmed_when_something_is_filed(cache, compute, reader):
    reader.zadd("upkeep:cache:tag:{dashboard}", {f"upkeep:cache:value:old{n}": n + 1 for n in range(150)})
    cache.get_or_compute("a", compute, [DASHBOARD])
    assert reader.zcard("upkeep:cache:tag:{dashboard}") == 51
    cache.get_or_compute("b", compute, [DASHBOARD])
    assert set(reader.zrange("upkeep:cache:tag:{dashboard}", 0, -1)) == {
        "upkeep:cache:value:a",
        "upkeep:cache:value:b",
    }


def test_an_invalidation_takes_what_is_filed_and_nothing_else(cache, compute):
    cache.get_or_compute("a", compute, [DASHBOARD])
    cache.get_or_compute("b", compute, [lp(1)])
    cache.get_or_compute("c", compute, [lp(2), DASHBOARD])
    assert cache.invalidate(["lp:{id}"], [{"id": 1}]) == 1
    assert cache.get_or_compute("a", compute, [DASHBOARD]) == {"call": 1}
    assert cache.get_or_compute("c", compute, [lp(2)]) == {"call": 3}
    assert cache.get_or_compute("b", compute, [lp(1)]) == {"call": 4}
    assert cache.invalidate(["dashboard"]) == 2
    assert cache.invalidate(["dashboard"]) == 0


@pytest.mark.parametrize(
    "parameters", [None, [], [{}], [{"id": 1}, {"other": 2}], [{"id": None}], [{"id": 1.5}]]
)
def test_all_of_a_template_go_where_not_every_parameter_is_named(cache, compute, parameters):
    for number in range(5):
        cache.get_or_compute(f"k{number}", compute, [lp(number)])
    assert cache.invalidate(["lp:{id}"], parameters) == 5
    assert cache.invalidate(["lp:{id}"]) == 0
    cache.get_or_compute("k1", compute, [lp(1)])
    assert compute.calls == 6
    assert cache.invalidate(["lp:{id}"]) == 1


def test_numbers_and_text_are_the_same_tag(cache, compute):
    cache.get_or_compute("a", compute, [lp("42")])
    assert cache.invalidate(["lp:{id}"], [{"id": 42, "year": 2026}]) == 1


@pytest.mark.parametrize("value", ["}", "{", "a}b", "{x}", "%7D", " ", "ü", "}:dying"])
def test_values_with_braces_stay_in_their_slot_and_apart(cache, compute, value):
    cache.get_or_compute("a", compute, [lp(value)])
    cache.get_or_compute("b", compute, [lp("other")])
    assert cache.invalidate(["lp:{id}"], [{"id": value}]) == 1
    cache.get_or_compute("a", compute, [lp(value)])
    assert cache.invalidate(["lp:{id}"]) == 2


def test_the_function_that_takes_a_client(cache, cache_url, compute, reader):
    cache.get_or_compute("a", compute, [DASHBOARD])
    if "+cluster" in cache_url:
        with redis.cluster.RedisCluster.from_url(cache_url.replace("+cluster", "")) as client:
            assert invalidate(client, ["dashboard"]) == 1
    else:
        assert invalidate(reader, ["dashboard"]) == 1


def test_many_keys_go_in_batches(cache, reader, monkeypatch):
    monkeypatch.setattr(invalidation, "BATCH", 7)
    monkeypatch.setattr(invalidation, "TAGS", 3)
    for number in range(40):
        cache.get_or_compute(f"k{number}", lambda: 1, [DASHBOARD, lp(number % 10)])
    reader.config_resetstat()
    assert cache.invalidate(["lp:{id}", "dashboard"]) == 40
    assert not [key for key in reader.keys("*") if ":value:" in key or ":dying" in key]
    calls = reader.info("commandstats")
    assert not {"cmdstat_scan", "cmdstat_flushall"} & set(calls)
    assert calls.get("cmdstat_keys", {"calls": 1})["calls"] == 1, "the one of this test"


class Crash(Exception):
    pass


def test_a_crash_at_any_point_and_another_call_leave_nothing(cache, cache_url, compute):
    cluster = "+cluster" in cache_url
    point = 0
    # One key under two tags, the others under one each: nothing else would find them.
    tags = [[DASHBOARD], [DASHBOARD, lp(1)], [lp(2)], [lp(3)]]

    def fill():
        for number in range(4):
            cache.get_or_compute(f"k{number}", compute, tags[number])

    while True:
        fill()
        point += 1
        walk = invalidation.invalidate(Layout(), ["dashboard", "lp:{id}"], None, cluster=cluster)
        commands = next(walk)
        try:
            for _ in range(point):
                commands = walk.send([_answer(cache, command) for command in commands])
        except StopIteration:
            break
        walk.close()
        # Something is filed after the crash as well.
        cache.get_or_compute("k1", compute, [DASHBOARD, lp(1)])
        cache.invalidate(["dashboard", "lp:{id}"])
        before = compute.calls
        fill()
        assert compute.calls == before + 4, f"crashed after {point} round trips"
    assert point > 5


def _answer(cache, command):
    try:
        return cache._connected().execute_command(*command)
    except redis.ResponseError as exc:
        return exc


def test_callers_side_by_side_leave_nothing(cache, compute, reader, monkeypatch):
    monkeypatch.setattr(invalidation, "BATCH", 5)
    for number in range(60):
        cache.get_or_compute(f"k{number}", compute, [DASHBOARD])
    with ThreadPoolExecutor(4) as threads:
        deleted = list(threads.map(lambda _: cache.invalidate(["dashboard"]), range(4)))
    assert sum(deleted) == 60
    assert not [key for key in reader.keys("*") if ":value:" in key or ":tag:" in key]


@pytest.mark.parametrize("parameters", [[{"id": 42}], None])
def test_what_was_read_before_an_invalidation_is_not_kept(cache, compute, reader, parameters):
    def overtaken():
        cache.invalidate(["lp:{id}"], parameters)
        return "old"

    assert cache.get_or_compute("a", overtaken, [lp(42), DASHBOARD]) == "old"
    assert not reader.exists("upkeep:cache:value:a")
    assert cache.get_or_compute("a", compute, [lp(42)]) == {"call": 1}


def test_an_invalidation_between_filing_and_storing_is_seen(cache, reader):
    """Driven by hand, step by step, with an invalidation in each gap: no stale result is left by any of them."""
    entry = steps.Entry.check("a", [lp(42)], None)
    gap = 0
    while True:
        gap += 1
        lookup = steps.get_or_compute(cache._rules, entry, lambda pattern, field: None)
        step, computed = next(lookup), None
        try:
            for number in range(1, 50):
                if number == gap:
                    cache.invalidate(["lp:{id}"], [{"id": 42}])
                if isinstance(step, steps.Compute):
                    computed = number
                answer = "old" if isinstance(step, steps.Compute) else cache._ask(step.commands)
                step = lookup.send(answer)
        except StopIteration:
            pass
        if gap > number:
            break
        stored = reader.get("upkeep:cache:value:a")
        assert computed is not None
        # Before the computation began, the result is new enough to be kept.
        assert stored is None or gap <= computed, f"stale after an invalidation in gap {gap}"
        cache.invalidate(["lp:{id}"])
    assert gap > 5


def test_many_threads_and_one_computation(cache):
    calls = []
    started, go = threading.Event(), threading.Event()

    def slow():
        calls.append(1)
        started.set()
        assert go.wait(30)
        return "done"

    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(cache.get_or_compute, "a", slow, [DASHBOARD])
        assert started.wait(30)
        others = [threads.submit(cache.get_or_compute, "a", slow, [DASHBOARD]) for _ in range(7)]
        go.set()
        assert [each.result(30) for each in [first, *others]] == ["done"] * 8
    assert len(calls) == 1


def test_who_has_waited_long_enough_computes(cache_url, compute):
    with Cache(cache_url, wait=0.1, timeout=PATIENT) as cache:
        started, go = threading.Event(), threading.Event()

        def slow():
            started.set()
            assert go.wait(30)
            return "slow"

        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(cache.get_or_compute, "a", slow, [DASHBOARD])
            assert started.wait(30)
            assert cache.get_or_compute("a", compute, [DASHBOARD]) == {"call": 1}
            go.set()
            assert first.result(30) == "slow"


def test_a_function_that_fails_gives_its_lock_back(cache, compute, reader):
    with pytest.raises(ZeroDivisionError) as caught:
        cache.get_or_compute("a", lambda: 1 / 0, [DASHBOARD])
    assert caught.value.__context__ is None
    assert not reader.exists("upkeep:cache:lock:a")
    assert cache.get_or_compute("a", compute, [DASHBOARD]) == {"call": 1}


def test_a_lock_that_is_anothers_by_now_is_left_alone(cache_url, reader):
    with Cache(cache_url, lock=0.05, timeout=PATIENT) as cache:

        def slow():
            wait_until(lambda: not reader.exists("upkeep:cache:lock:a"))
            reader.set("upkeep:cache:lock:a", "another's")
            return 1

        cache.get_or_compute("a", slow, [DASHBOARD])
    assert reader.get("upkeep:cache:lock:a") == "another's"


def test_what_nobody_can_read_counts_as_nothing(cache, compute, reader):
    reader.set("upkeep:cache:value:a", "{no JSON")
    assert cache.get_or_compute("a", compute, [DASHBOARD]) == {"call": 1}
    assert json.loads(reader.get("upkeep:cache:value:a")) == {"call": 1}


def test_hits_and_misses_by_pattern(cache, reader):
    for number in (1, 2, 1, 1):
        cache.get_or_compute(f"lp:{number}:summary", lambda: 1, [lp(number)], pattern="lp:{id}:summary")
    cache.get_or_compute("a", lambda: 1, [DASHBOARD])
    found = cache.stats()
    assert (found["lp:{id}:summary"].hits, found["lp:{id}:summary"].misses) == (2, 2)
    assert found["lp:{id}:summary"].ratio == 0.5
    assert (found["dashboard"].hits, found["dashboard"].misses, found["dashboard"].ratio) == (0, 1, 0.0)
    assert cache.stats(days=8) == found
    day = datetime.now(UTC).date().isoformat()
    assert reader.hgetall(f"upkeep:cache:stats:dashboard:{day}") == {"misses": "1"}
    assert 0 < reader.ttl(f"upkeep:cache:stats:dashboard:{day}") <= 8 * 86_400


def test_figures_are_written_once_a_second_at_most(cache, reader):
    reader.config_resetstat()
    for _ in range(200):
        cache.get_or_compute("a", lambda: 1, [DASHBOARD])
    assert reader.info("commandstats").get("cmdstat_hincrby", {"calls": 0})["calls"] <= 4
    wait_until(
        lambda: (
            cache.get_or_compute("a", lambda: 1, [DASHBOARD])
            and reader.zscore("upkeep:cache:patterns", "dashboard")
        )
    )


AT_EXIT = """
import os, sys
from upkeep_client.cache import Cache, Tag
cache = Cache(sys.argv[1], timeout=10)
cache.get_or_compute("a", lambda: 1, [Tag("dashboard", ttl=60)])
if os.fork() == 0:
    cache.get_or_compute("a", lambda: 1, [Tag("dashboard", ttl=60)])
    sys.exit()
os.wait()
"""


def test_what_was_counted_is_written_at_the_end_and_by_each_process_its_own(cache, cache_url):
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, cache_url],
        cwd=Path(upkeep_client.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = cache.stats()["dashboard"]
    assert (found.hits, found.misses) == (1, 1)


def test_asyncio_shares_what_threads_have_cached(cache, cache_url, compute, reader):
    async def run():
        async with AsyncCache(cache_url, timeout=PATIENT) as other:

            async def computed():
                await asyncio.sleep(0)
                return compute()

            found = await asyncio.gather(*(other.get_or_compute("a", computed, [lp(1)]) for _ in range(20)))
            assert found == [{"call": 1}] * 20
            assert cache.get_or_compute("a", compute, [lp(1)]) == {"call": 1}
            assert await other.invalidate(["lp:{id}"], [{"id": 1}]) == 1
            assert await other.get_or_compute("a", computed, [lp(1)]) == {"call": 2}
            stats = await other.stats()
            assert (stats["lp:{id}"].hits, stats["lp:{id}"].misses) == (19, 2)
            with pytest.raises(ZeroDivisionError):
                await other.get_or_compute("b", failing, [lp(1)])

            never = asyncio.create_task(other.get_or_compute("c", asyncio.Event().wait, [lp(1)]))
            while not reader.exists("upkeep:cache:lock:c"):
                await asyncio.sleep(0.01)
            never.cancel()
            with pytest.raises(asyncio.CancelledError):
                await never
            assert not reader.exists("upkeep:cache:lock:b")
            assert not reader.exists("upkeep:cache:lock:c")

    async def failing():
        return 1 / 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("key", "tags", "pattern"),
    [
        ("", [DASHBOARD], None),
        (None, [DASHBOARD], None),
        ("x" * 1025, [DASHBOARD], None),
        ("a", [], None),
        ("a", ["dashboard"], None),
        ("a", [DASHBOARD], ""),
        ("a", [DASHBOARD], 3),
    ],
)
def test_wrong_calls_are_refused(cache, compute, key, tags, pattern):
    with pytest.raises(InvalidRequest):
        cache.get_or_compute(key, compute, tags, pattern)
    assert compute.calls == 0


def test_a_string_is_no_list_of_tags(cache):
    with pytest.raises(InvalidRequest):
        cache.invalidate("dashboard")


@pytest.fixture(params=[False, True], ids=["sync", "asyncio"])
def hanging(request, own_redis):
    """Looks something up in a Redis that can be stopped; returns the result and the seconds."""
    runner = asyncio.Runner()
    cache = (AsyncCache if request.param else Cache)(own_redis.url(), timeout=0.3)

    def look_up(compute):
        async def computed():
            return compute()

        started = time.monotonic()
        if request.param:
            found = runner.run(cache.get_or_compute("a", computed, [DASHBOARD]))
        else:
            found = cache.get_or_compute("a", compute, [DASHBOARD])
        return found, time.monotonic() - started

    yield look_up
    closed = cache.close()
    if request.param:
        runner.run(closed)
    runner.close()


def test_a_cache_that_hangs_costs_the_timeout_once(hanging, own_redis, compute, caplog):
    assert hanging(compute)[0] == {"call": 1}
    assert own_redis.pid
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        found, seconds = hanging(compute)
        assert found == {"call": 2}
        assert seconds < 0.9
        started = time.monotonic()
        for _ in range(50):
            hanging(compute)
        assert time.monotonic() - started < 0.5
        assert compute.calls == 52
        assert len(caplog.records) == 1
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)
    wait_until(lambda: hanging(compute)[0] == {"call": 1})


def test_a_cache_that_is_gone_or_refuses_is_no_error(hanging, own_redis, compute, caplog):
    with redis.Redis.from_url(own_redis.url()) as admin:
        admin.config_set("maxmemory", 1)
        assert hanging(compute)[0] == {"call": 1}
        assert hanging(compute)[0] == {"call": 2}
        assert len(caplog.records) == 1
    own_redis.kill()
    assert hanging(compute)[0] == {"call": 3}
    own_redis.start()
    wait_until(lambda: hanging(compute)[0] == hanging(compute)[0])


def test_an_error_of_redis_is_counted_apart(own_redis, compute):
    with Cache(own_redis.url(), timeout=PATIENT) as cache:
        with redis.Redis.from_url(own_redis.url()) as admin:
            admin.lpush("upkeep:cache:value:a", "no text")
        cache.get_or_compute("a", compute, [DASHBOARD])
        found = cache.stats()["dashboard"]
        assert (found.hits, found.misses, found.errors, found.ratio) == (0, 0, 1, None)


def test_a_cluster_that_is_away_is_no_error(compute):
    with Cache(f"redis+cluster://127.0.0.1:{free_port()}", timeout=0.3) as cache:
        assert cache.get_or_compute("a", compute, [DASHBOARD]) == {"call": 1}
        with pytest.raises((redis.RedisError, redis.exceptions.RedisClusterException)):
            cache.invalidate(["dashboard"])
