"""mark.lua on a real server, as the client sends it."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

import upkeep_client
from tests.waiting import wait_until
from upkeep_client import MARK_SCRIPT, MARK_SHA, AsyncUpkeep, Upkeep, marking

PROCESSES, EACH = 8, 1000
# Nothing here is about timeouts, and the machine may be busy.
PATIENT = 10.0


@pytest.fixture
def upkeep(redis_url):
    with Upkeep(redis_url, on_error="raise", timeout=PATIENT) as client:
        yield client


def test_a_request_leaves_a_mark_on_the_servers_clock(upkeep, marks):
    before = marks.redis.time()
    assert upkeep.request_refresh("public.v", database="shop") is True
    after = marks.redis.time()
    (mark,) = marks.of("shop").values()
    assert mark.first_ms == mark.last_ms
    assert before[0] * 1000 + before[1] // 1000 <= mark.first_ms <= after[0] * 1000 + after[1] // 1000
    assert marks.keys("public.v", "shop") == marks.parameters("public.v", "shop") == {"*"}
    assert marks.marked() == {"shop"}


def test_the_first_time_stays_and_the_last_moves_with_every_request(upkeep, marks):
    upkeep.request_refresh("public.v")
    first = marks.of()["public.v"]

    def moved():
        upkeep.request_refresh("public.v")
        return marks.of()["public.v"].last_ms > first.last_ms

    wait_until(moved)
    last = marks.of()["public.v"]
    assert last.first_ms == first.first_ms
    assert last.sequence > first.sequence
    assert marks.marked() == {""}


def test_a_mark_that_was_cleared_begins_anew(upkeep, marks):
    upkeep.request_refresh("public.v")
    first = marks.of()["public.v"]
    marks.redis.hdel("upkeep:marks:", "public.v")
    wait_until(lambda: int(time.time() * 1000) > first.first_ms + 5)
    upkeep.request_refresh("public.v")
    assert marks.of()["public.v"].first_ms > first.first_ms


def test_sequences_begin_at_the_servers_microseconds_and_no_number_comes_twice(upkeep, marks):
    upkeep.request_refresh("public.v")
    before = marks.of()["public.v"].sequence
    seconds, micros = marks.redis.time()
    assert abs(before - (seconds * 1_000_000 + micros)) < 60_000_000
    marks.redis.flushall()
    upkeep.request_refresh("public.v")
    assert marks.of()["public.v"].sequence > before


def test_many_views_are_one_command_and_share_a_sequence(upkeep, marks):
    upkeep.request_refresh("public.warm_up")
    marks.redis.config_resetstat()
    assert upkeep.request_refresh([f"public.v{n}" for n in range(200)], database="shop")
    found = marks.of("shop")
    assert set(found) == {f"public.v{n}" for n in range(200)}
    assert len({mark.sequence for mark in found.values()}) == 1
    assert marks.calls("evalsha") == 1


def test_requests_for_two_databases_are_one_command(upkeep, marks):
    upkeep.request_refresh("public.warm_up")
    marks.redis.config_resetstat()
    wanted = [*upkeep.prepare("public.v", database="a"), *upkeep.prepare("public.v", database="b", keys=[1])]
    assert upkeep.send(wanted)
    assert set(marks.of("a")) == set(marks.of("b")) == {"public.v"}
    assert (marks.keys("public.v", "a"), marks.keys("public.v", "b")) == ({"*"}, {"1"})
    assert marks.calls("evalsha") == 1


def test_names_of_any_script_and_keys_of_any_kind_come_through(upkeep, marks):
    view = 'rapports."bénéfice net %s — 収益 🎉"'
    upkeep.request_refresh(view, keys=["a", 42, -7, 'x"y', "ü", "\u2028\n"], parameters={"id": 42, "a": "ü"})
    assert set(marks.of()) == {view}
    assert {json.loads(member) for member in marks.keys(view)} == {"a", 42, -7, 'x"y', "ü", "\u2028\n"}
    assert marks.parameters(view) == {'{"a":"ü","id":42}'}


def test_keys_add_up_until_somebody_wants_all_of_them(upkeep, marks):
    upkeep.request_refresh("public.v", keys=[1, 2])
    upkeep.request_refresh("public.v", keys=[2, 3], parameters={"id": 1})
    assert marks.keys("public.v") == {"1", "2", "3"}
    assert marks.parameters("public.v") == {"*"}
    upkeep.request_refresh("public.v")
    assert marks.keys("public.v") == {"*"}
    upkeep.request_refresh("public.v", keys=[4])
    assert marks.keys("public.v") == {"*"}


def test_ten_thousand_keys_are_kept_and_one_more_is_all(upkeep, marks):
    upkeep.request_refresh("public.v", keys=range(10_000))
    assert len(marks.keys("public.v")) == 10_000
    upkeep.request_refresh("public.v", keys=[10_000])
    assert marks.keys("public.v") == {"*"}


def test_the_work_on_the_server_is_bounded(upkeep, marks):
    started = time.perf_counter()
    upkeep.request_refresh("public.v", keys=[f"{n:09}" for n in range(10_000)])
    upkeep.request_refresh("public.v", keys=[f"x{n:09}" for n in range(10_000)])
    assert marks.keys("public.v") == {"*"}
    assert time.perf_counter() - started < 1.0


def test_a_script_that_fails_has_written_nothing(marks):
    with pytest.raises(redis.ResponseError):
        marks.redis.eval(MARK_SCRIPT, 0, '{"database": "a", "requests": [{"view": "v"}]}', "no JSON")
    assert marks.redis.keys("*") == []


def test_the_script_is_called_by_its_name_and_sent_when_the_server_forgot_it(upkeep, marks):
    assert marks.redis.script_load(MARK_SCRIPT) == MARK_SHA
    for _ in range(3):
        marks.redis.script_flush()
        assert upkeep.request_refresh("public.v")
    marks.redis.config_resetstat()
    upkeep.request_refresh("public.v")
    assert (marks.calls("evalsha"), marks.calls("eval")) == (1, 0)


def test_the_names_of_the_keys_are_those_of_the_module(upkeep, marks):
    upkeep.request_refresh("public.v", database="shop")
    assert set(marks.redis.keys("*")) == {
        marking.MARKED,
        marking.SEQUENCE,
        marking.marks("shop"),
        marking.keys("shop", "public.v"),
        marking.parameters("shop", "public.v"),
    }


def test_an_instance_has_a_database_that_a_call_may_override(redis_url, marks):
    with Upkeep(redis_url, database="shop", on_error="raise") as client:
        client.request_refresh("public.v")
        client.request_refresh("public.w", database="other")
        client.request_refresh(["public.x"], keys=[1])
    assert set(marks.of("shop")) == {"public.v", "public.x"}
    assert set(marks.of("other")) == {"public.w"}


@pytest.mark.parametrize("decode_responses", [True, False])
def test_a_client_that_was_given_is_used_as_it_is_and_stays_open(redis_url, marks, decode_responses):
    with redis.Redis.from_url(redis_url, decode_responses=decode_responses) as given:
        with Upkeep(given, on_error="raise") as client:
            marks.redis.script_flush()
            assert client.request_refresh("public.v") is True
            assert client.request_refresh("public.v", keys=[1]) is True
        assert given.ping()
    assert set(marks.of()) == {"public.v"}


def test_a_socket_is_a_place_too(new_redis, tmp_path):
    server = new_redis(unixsocket=str(tmp_path / "redis.sock"))
    with Upkeep(f"unix://{tmp_path}/redis.sock?db=3", on_error="raise") as client:
        assert client.request_refresh("public.v")
    with redis.Redis.from_url(server.url(3)) as reader:
        assert reader.hlen("upkeep:marks:") == 1


def _write_from_a_process(url):
    with Upkeep(url, on_error="raise", timeout=PATIENT) as client:
        return sum(client.request_refresh(f"public.v{n % 3}") for n in range(EACH))


def test_eight_processes_lose_nothing(redis_url, marks):
    with Upkeep(redis_url, on_error="raise", timeout=PATIENT) as client:
        client.request_refresh("public.before")
    before = marks.of()["public.before"].sequence
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as processes:
        assert sum(processes.map(_write_from_a_process, [redis_url] * PROCESSES)) == PROCESSES * EACH
    found = marks.of()
    assert max(mark.sequence for mark in found.values()) == before + PROCESSES * EACH
    assert int(marks.redis.get("upkeep:mark-seq")) == before + PROCESSES * EACH


def test_threads_share_an_instance(upkeep, marks):
    upkeep.request_refresh("public.before")
    before = marks.of()["public.before"].sequence
    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(lambda n: upkeep.request_refresh(f"public.v{n % 5}"), range(1600)))
    assert int(marks.redis.get("upkeep:mark-seq")) == before + 1600


def _write_after_the_fork(client, queue):
    queue.put(all(client.request_refresh("public.child") for _ in range(50)))


def test_an_instance_survives_a_fork(upkeep, marks):
    upkeep.request_refresh("public.parent")
    before = marks.of()["public.parent"].sequence
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_write_after_the_fork, args=(upkeep, queue)) for _ in range(4)]
    for child in children:
        child.start()
    assert all(upkeep.request_refresh("public.parent") for _ in range(50))
    assert [queue.get(timeout=30) for _ in children] == [True] * 4
    for child in children:
        child.join(30)
    assert int(marks.redis.get("upkeep:mark-seq")) == before + 250


async def _many(url, count):
    async with AsyncUpkeep(url, on_error="raise", timeout=PATIENT) as client:
        await client.request_refresh("public.a")
        return await asyncio.gather(*(client.request_refresh("public.a", keys=[n]) for n in range(count)))


def test_asyncio_asks_for_the_same(redis_url, marks):
    marks.redis.script_flush()
    assert asyncio.run(_many(redis_url, 500)) == [True] * 500
    assert set(marks.of()) == {"public.a"}
    assert marks.keys("public.a") == {"*"}
    assert marks.redis.info("clients")["connected_clients"] < 30


ONE_LOOP_AFTER_ANOTHER = """
import asyncio, sys
from upkeep_client import AsyncUpkeep
client = AsyncUpkeep(sys.argv[1], on_error="raise", timeout=10)
for _ in range(3):
    assert asyncio.run(client.request_refresh("public.v")) is True
asyncio.run(client.close())
"""


def test_an_asyncio_client_serves_one_loop_after_another(redis_url, marks):
    # In a process of its own: what belonged to a loop that has ended cannot be closed any more, which would warn here.
    done = subprocess.run(
        [sys.executable, "-c", ONE_LOOP_AFTER_ANOTHER, redis_url],
        cwd=Path(upkeep_client.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert set(marks.of()) == {"public.v"}
