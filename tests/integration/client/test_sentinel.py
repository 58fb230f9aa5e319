"""A primary, a replica and three Sentinels, which promote the replica when the primary is gone."""

from __future__ import annotations

import asyncio

import pytest
import redis

from tests.sentinels import PASSWORD, watched_primary
from tests.waiting import wait_until
from upkeep_client import AsyncUpkeep, RequestNotSent, Upkeep
from upkeep_client.connections import connect
from worker.embedded.server import free_port

PATIENT = 10.0


@pytest.fixture
def watched(tmp_path):
    with watched_primary(tmp_path) as found:
        yield found


def views(server):
    with redis.Redis.from_url(server.url(), decode_responses=True) as reader:
        return set(reader.hkeys("upkeep:marks:"))


def test_requests_follow_the_primary(watched):
    with Upkeep(watched.url(), on_error="warn", timeout=1) as client:
        assert client.request_refresh("public.before") is True
        assert views(watched.primary) == {"public.before"}
        wait_until(lambda: views(watched.replica) == {"public.before"}, 30)
        watched.primary.kill()
        wait_until(lambda: client.request_refresh("public.after"), 60, "a request that the new primary takes")
        assert watched.named() == watched.replica.port
        assert views(watched.replica) == {"public.before", "public.after"}


def test_a_primary_that_was_demoted_is_left_at_once(watched):
    """A connection that stays open to what is a replica by now must not go on being used."""
    with Upkeep(watched.url(), on_error="raise", timeout=PATIENT) as client:
        client.request_refresh("public.before")
        wait_until(lambda: views(watched.replica) == {"public.before"}, 30)

        def failed_over():
            try:
                with watched.sentinel() as sentinel:
                    sentinel.execute_command("SENTINEL", "FAILOVER", "main")
            except redis.ResponseError as exc:
                return "INPROG" in str(exc)
            return True

        wait_until(failed_over, 30)
        wait_until(lambda: watched.named() == watched.replica.port, 60)

        def demoted():
            with redis.Redis.from_url(watched.primary.url()) as old:
                return old.info("replication")["role"] == "slave"

        wait_until(demoted, 60)
        assert client.request_refresh("public.after") is True
        assert "public.after" in views(watched.replica)


def test_asyncio_finds_the_primary_too_and_one_sentinel_is_enough(watched):
    url = watched.url().replace("127.0.0.1:", f"127.0.0.1:{free_port()},127.0.0.1:", 1)

    async def run():
        async with AsyncUpkeep(url, on_error="raise", timeout=PATIENT) as client:
            return await client.request_refresh("public.v")

    assert asyncio.run(run()) is True
    assert views(watched.primary) == {"public.v"}
    with connect(url, timeout=PATIENT) as client:
        assert client.ping()


def test_what_the_sentinels_do_not_know_is_said(watched):
    for url in (watched.url(service="unknown"), watched.url(password="wr0ng")):
        with (
            Upkeep(url, on_error="raise", timeout=PATIENT) as client,
            pytest.raises(RequestNotSent) as caught,
        ):
            client.request_refresh("public.v")
        assert PASSWORD not in str(caught.value)
        assert "wr0ng" not in str(caught.value)
