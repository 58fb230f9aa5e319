"""What a write sees of a Redis that does not take its request: nothing, by default, and that soon."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
import redis

from tests.processes import new_redis_with_password
from tests.proxy import Proxy, Way
from tests.waiting import wait_until
from upkeep_client import AsyncUpkeep, InvalidRequest, RequestNotSent, Upkeep
from worker.embedded.server import free_port

TIMEOUT = 0.3
# What a busy machine may add to a timeout.
SLACK = 0.6


class Timed:
    """The client under test, asynchronous or not, and how long its last call took."""

    def __init__(self, url, asynchronous, **settings):
        settings = {"timeout": TIMEOUT, **settings}
        self.runner = asyncio.Runner() if asynchronous else None
        self.client = AsyncUpkeep(url, **settings) if asynchronous else Upkeep(url, **settings)
        self.closed = False
        self.seconds = 0.0

    def request(self, view="public.v", **kwargs):
        started = time.monotonic()
        try:
            made = self.client.request_refresh(view, **kwargs)
            return self.runner.run(made) if self.runner else made
        finally:
            self.seconds = time.monotonic() - started

    def close(self):
        if self.runner is None:
            self.client.close()
        elif not self.closed:
            self.closed = True
            self.runner.run(self.client.close())
            self.runner.close()


@pytest.fixture(params=[False, True], ids=["sync", "asyncio"])
def timed(request):
    made = []

    def new(url, **settings):
        made.append(Timed(url, request.param, **settings))
        return made[-1]

    yield new
    for each in made:
        each.close()


def read(server):
    return redis.Redis.from_url(server.url(), decode_responses=True)


def test_nobody_listens(timed, caplog):
    client = timed(f"redis://:s3cr3t@127.0.0.1:{free_port()}/0")
    assert client.request() is False
    assert client.seconds < TIMEOUT + SLACK
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("upkeep_client", logging.WARNING)
    assert "s3cr3t" not in record.getMessage()


def test_raise_says_why_and_from_what(timed):
    client = timed(f"redis://:s3cr3t@127.0.0.1:{free_port()}/0", on_error="raise")
    with pytest.raises(RequestNotSent) as caught:
        client.request()
    assert isinstance(caught.value.__cause__, redis.ConnectionError)
    assert "s3cr3t" not in str(caught.value)
    assert "redis://" not in str(caught.value)
    with pytest.raises(RequestNotSent, match="a moment ago"):
        client.request()


def test_a_function_is_told(timed, caplog):
    told = []
    client = timed(f"redis://127.0.0.1:{free_port()}/0", on_error=told.append)
    assert client.request() is False
    assert [type(each) for each in told] == [RequestNotSent]
    assert not caplog.records


def test_a_mistake_is_raised_whatever_on_error_says(timed):
    client = timed(f"redis://127.0.0.1:{free_port()}/0", on_error=lambda error: None)
    for wrong in (
        {"view": ""},
        {"view": None},
        {"keys": "abc"},
        {"parameters": {"id": 1.5}},
        {"database": 1},
    ):
        with pytest.raises(InvalidRequest):
            client.request(**wrong)


@pytest.mark.parametrize("settings", [{"on_error": "ignore"}, {"timeout": 0}, {"database": "redis://h"}])
def test_wrong_settings_are_refused(settings):
    for kind in (Upkeep, AsyncUpkeep):
        with pytest.raises(InvalidRequest):
            kind("redis://127.0.0.1/0", **settings)


def test_a_redis_that_hangs_costs_the_timeout_once(timed, own_redis):
    client = timed(own_redis.url())
    assert client.request() is True
    assert own_redis.pid
    os.kill(own_redis.pid, signal.SIGSTOP)
    try:
        assert client.request() is False
        assert TIMEOUT * 0.9 < client.seconds < TIMEOUT + SLACK
        started = time.monotonic()
        for _ in range(100):
            assert client.request() is False
        assert time.monotonic() - started < TIMEOUT
    finally:
        os.kill(own_redis.pid, signal.SIGCONT)
    wait_until(client.request, 10)


def test_a_host_that_takes_no_connection_costs_the_timeout(timed):
    # A full backlog: the kernel drops the SYN, as a firewall does.
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        try:
            for _ in range(4):
                waiting.append(socket.socket())
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(full.getsockname())
            client = timed(f"redis://127.0.0.1:{full.getsockname()[1]}/0")
            assert client.request() is False
            assert client.seconds < TIMEOUT + SLACK
        finally:
            for each in waiting:
                each.close()


def test_a_redis_that_comes_back_is_asked_again(timed, own_redis):
    client = timed(own_redis.url())
    assert client.request() is True
    own_redis.kill()
    assert client.request() is False
    own_redis.start()
    wait_until(client.request, 20)
    with read(own_redis) as reader:
        assert reader.hlen("upkeep:marks:") == 1


def test_a_restart_between_two_requests_is_not_noticed(timed, own_redis):
    client = timed(own_redis.url(), on_error="raise")
    for _ in range(3):
        assert client.request() is True
        own_redis.restart()
    assert client.request() is True


def test_a_killed_connection_is_not_noticed(timed, own_redis):
    client = timed(own_redis.url(), on_error="raise")
    with read(own_redis) as reader:
        for _ in range(20):
            assert client.request() is True
            reader.client_kill_filter(_type="normal", skipme=True)
        assert client.request() is True


def test_a_connection_that_is_cut_before_the_answer_is_not_noticed(timed, own_redis):
    with Proxy(own_redis.port) as proxy:
        client = timed(proxy.url(own_redis.url()), on_error="raise", timeout=20)
        client.request("public.before")
        proxy.stall(Way.TO_SERVER)
        with ThreadPoolExecutor(1) as thread:
            made = thread.submit(client.request, "public.after")
            wait_until(lambda: proxy.held(Way.TO_SERVER))
            proxy.cut()
            proxy.flow(Way.TO_SERVER)
            assert made.result(30) is True
    with read(own_redis) as reader:
        assert set(reader.hkeys("upkeep:marks:")) == {"public.before", "public.after"}


def test_flushall_between_loses_only_what_was_there(timed, own_redis):
    client = timed(own_redis.url(), on_error="raise")
    client.request("public.a")
    with read(own_redis) as reader:
        before = int(reader.get("upkeep:mark-seq"))
        reader.flushall()
        client.request("public.b")
        assert reader.hkeys("upkeep:marks:") == ["public.b"]
        assert int(reader.get("upkeep:mark-seq")) > before


def test_a_replica_refuses_and_is_asked_again_at_once(timed, own_redis, new_redis):
    replica = new_redis(replicaof=f"127.0.0.1 {own_redis.port}")
    client = timed(replica.url(), on_error="raise")

    def linked():
        with read(replica) as reader:
            return reader.info("replication")["master_link_status"] == "up"

    wait_until(linked, 30)
    with pytest.raises(RequestNotSent, match="read only"):
        client.request()
    with read(replica) as reader:
        reader.replicaof("NO", "ONE")
    assert client.request() is True


def test_a_full_redis_refuses_and_keeps_nothing_half(timed, own_redis):
    client = timed(own_redis.url(), on_error="raise")
    with read(own_redis) as admin:
        admin.config_set("maxmemory", 1)
        with pytest.raises(RequestNotSent, match="memory"):
            client.request(["public.a", "public.b"], keys=[1])
        assert admin.keys("*") == []
        admin.config_set("maxmemory", 0)
    assert client.request() is True


def test_a_redis_that_is_loading_refuses(timed, new_redis):
    server = new_redis(
        enable_debug_command="yes", key_load_delay="2000", loading_process_events_interval_bytes="1024"
    )
    client = timed(server.url(), on_error="warn")
    with read(server) as admin, admin.pipeline(transaction=False) as pipeline:
        for n in range(3000):
            pipeline.set(f"filler:{n}", "x" * 100)
        pipeline.execute()
    with redis.Redis.from_url(server.url(), socket_timeout=60) as slow:
        pid = os.fork()
        if pid == 0:
            try:
                slow.execute_command("DEBUG", "RELOAD")
            finally:
                os._exit(0)

    def loading():
        with read(server) as reader:
            return int(reader.info("persistence")["loading"]) == 1

    try:
        wait_until(loading, 20)
        assert client.request() is False
        assert client.seconds < TIMEOUT + SLACK
    finally:
        os.waitpid(pid, 0)
    wait_until(client.request, 20)


def test_a_wrong_password_is_a_warning_without_it(timed, caplog):
    with new_redis_with_password() as server:
        right = server.url()
        secret = right.split(":", 2)[2].split("@")[0]
        client = timed(right.replace(secret, "wr0ng"))
        assert client.request() is False
        assert "wr0ng" not in caplog.text
        assert caplog.records
        assert timed(right, on_error="raise").request() is True
        assert timed(right.replace(f":{secret}@", "")).request() is False


def test_a_user_with_no_more_than_it_needs(timed, own_redis):
    password = "p@ss/w:rd %"
    commands = ["+eval", "+evalsha", "+time", "+incr", "+set", "+hget", "+hset"]
    commands += ["+sadd", "+scard", "+sismember", "+unlink"]
    with read(own_redis) as admin:
        admin.execute_command("ACL", "SETUSER", "app", "on", f">{password}", "~upkeep:mark*", *commands)
    url = f"redis://app:{quote(password, safe='')}@127.0.0.1:{own_redis.port}/0"
    client = timed(url, on_error="raise")
    assert client.request(["public.a", "public.b"], keys=range(20_000), parameters={"id": 1}) is True
    assert client.request("public.a", keys=[1]) is True
    with read(own_redis) as admin:
        admin.execute_command("ACL", "SETUSER", "app", "resetkeys")
    with pytest.raises(RequestNotSent, match=r"permission|can't access"):
        client.request()


def test_failures_are_one_line_a_minute_with_their_number(timed, caplog):
    client = timed(f"redis://127.0.0.1:{free_port()}/0")
    for _ in range(50):
        client.request()
    assert len(caplog.records) == 1
    client.close()
    assert [record.getMessage().split(":")[0] for record in caplog.records][1:] == [
        "A refresh was not requested; its view's tier will bring it up to date (49 since the last such line)"
    ]


def test_a_given_client_fails_in_the_same_words(caplog):
    port = free_port()
    with redis.Redis(port=port, socket_timeout=TIMEOUT) as given:
        assert Upkeep(given).request_refresh("public.v") is False
    assert caplog.records
