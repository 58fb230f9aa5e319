"""The embedded Redis keeps what it promises: nothing left behind, and nothing forgotten that it acknowledged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests import servers
from tests.integration.worker.embedded.conftest import alive, listening
from worker.embedded import server as embedded_server
from worker.embedded.errors import ServerError
from worker.embedded.redis import EmbeddedRedis


@pytest.fixture
def own_redis(redis_server: EmbeddedRedis, temporary: Path) -> Iterator[EmbeddedRedis]:
    with servers.new_redis() as server:
        yield server


def test_a_clean_end_leaves_no_process_no_port_and_no_file(own_redis: EmbeddedRedis, temporary: Path) -> None:
    pid, port = own_redis.pid, own_redis.port
    assert pid is not None
    assert listening(port)
    own_redis.close()
    assert not alive(pid)
    assert not listening(port)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("way", ["restart", "kill"])
def test_what_it_acknowledged_survives(own_redis: EmbeddedRedis, way: str) -> None:
    url = own_redis.url(3)
    with redis.Redis.from_url(url) as client:
        client.rpush("queue", "a", "b")
    if way == "kill":
        own_redis.kill()
        own_redis.start()
    else:
        own_redis.restart()
    assert own_redis.url(3) == url
    with redis.Redis.from_url(url) as client:
        assert client.lrange("queue", 0, -1) == [b"a", b"b"]


def test_a_broker_forgets_nothing(own_redis: EmbeddedRedis) -> None:
    with redis.Redis.from_url(own_redis.url()) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_a_password_is_asked_for(own_redis: EmbeddedRedis) -> None:
    with EmbeddedRedis(own_redis.binary, password='p"a/s\\s :@') as server:
        with redis.Redis.from_url(server.url()) as client:
            assert client.ping()
        once = Retry(NoBackoff(), 0)
        with (
            redis.Redis(port=server.port, retry=once) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()
        assert 'p"a' not in Path(f"/proc/{server.pid}/cmdline").read_text()


def test_a_start_that_fails_shows_the_log(own_redis: EmbeddedRedis) -> None:
    with pytest.raises(ServerError, match="no-such-setting"):
        EmbeddedRedis(own_redis.binary, settings={"no-such-setting": "1"}).start()


def test_a_taken_port_is_passed_by(own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    free = embedded_server.free_port()
    ports = iter([own_redis.port, free])
    monkeypatch.setattr(embedded_server, "free_port", lambda: next(ports))
    with EmbeddedRedis(own_redis.binary) as other:
        assert other.port == free
