"""The proxy of the fault tests does to a connection what it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.proxy import Cut, Proxy, Way
from tests.servers import Database
from tests.waiting import wait_until
from worker.embedded.server import free_port

pytestmark = pytest.mark.any_server


class Echo:
    """A server that sends back what it gets, and remembers how its connections ended."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.ends: list[str] = []
        self.got = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(4096):
                    self.got += data
                    client.sendall(data)
                self.ends.append("FIN")
            except ConnectionError:
                self.ends.append("RST")


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.listener.shutdown(socket.SHUT_RDWR)
    made.listener.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.port) as made:
        yield made


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as made:
        said(made, b"before")
        yield made


def said(client: socket.socket, what: bytes) -> None:
    client.sendall(what)
    got = b""
    while len(got) < len(what):
        got += client.recv(len(what) - len(got))
    assert got == what


def silent(client: socket.socket) -> bool:
    client.settimeout(0.2)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)
    return False


def test_it_passes_everything_on_and_an_end_too(proxy: Proxy, echo: Echo, client: socket.socket) -> None:
    said(client, b"x" * 1_000_000)
    assert proxy.connections == 1
    # What has arrived may not have been written off yet.
    wait_until(lambda: proxy.held(Way.TO_CLIENT) == 0)
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    wait_until(lambda: echo.ends == ["FIN"] and proxy.connections == 0)


def test_a_stall_holds_bytes_back_until_it_is_over(proxy: Proxy, echo: Echo, client: socket.socket) -> None:
    proxy.stall()
    client.sendall(b"held")
    wait_until(lambda: proxy.held(Way.TO_SERVER) == 4)
    assert silent(client)
    assert echo.got == b"before"
    # New connections are taken, and told nothing.
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as second:
        second.sendall(b"too")
        assert silent(second)
    proxy.flow()
    assert client.recv(10) == b"held"
    wait_until(lambda: b"too" in echo.got)


def test_a_stall_in_one_direction_lets_the_other_pass(
    proxy: Proxy, echo: Echo, client: socket.socket
) -> None:
    proxy.stall(Way.TO_CLIENT)
    client.sendall(b"heard")
    wait_until(lambda: echo.got == b"beforeheard" and proxy.held(Way.TO_CLIENT) == 5)
    assert silent(client)
    proxy.flow()
    assert client.recv(10) == b"heard"


def test_a_delay(proxy: Proxy, client: socket.socket) -> None:
    proxy.delay(0.5)
    began = time.monotonic()
    said(client, b"later")
    assert time.monotonic() - began >= 1
    proxy.flow()
    began = time.monotonic()
    said(client, b"now")
    assert time.monotonic() - began < 0.5


def test_refusing_leaves_what_is_there(proxy: Proxy, client: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    said(client, b"still here")
    proxy.flow()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as again:
        said(again, b"back")


@pytest.mark.parametrize("stalled", [False, True])
@pytest.mark.parametrize("how", list(Cut))
def test_a_cut_is_seen_by_both(
    proxy: Proxy, echo: Echo, client: socket.socket, how: Cut, stalled: bool
) -> None:
    if stalled:
        proxy.stall()
    assert proxy.cut(how) == 1
    if how is Cut.RST:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    else:
        assert client.recv(1) == b""
    wait_until(lambda: echo.ends == [how.value], message=lambda: str(echo.ends))
    assert proxy.connections == 0


def test_a_server_that_is_not_there_and_one_elsewhere(proxy: Proxy, echo: Echo) -> None:
    proxy.aim(free_port())
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as lonely,
    ):
        lonely.recv(1)
    proxy.aim(echo.port)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as again:
        said(again, b"there")


def test_in_front_of_postgresql_and_redis(database: Database, redis_url: str) -> None:
    with Proxy(database.server.port) as proxy, psycopg.connect(proxy.url(database.url)) as connection:
        assert connection.execute("SELECT inet_server_port()").fetchone() == (database.server.port,)
        assert proxy.cut() == 1
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    port = int(redis_url.rpartition(":")[2].partition("/")[0])
    with (
        Proxy(port) as proxy,
        redis.Redis.from_url(proxy.url(redis_url), retry=Retry(NoBackoff(), 0)) as client,
    ):
        assert client.ping()
        proxy.refuse()
        assert proxy.cut(Cut.FIN) == 1
        with pytest.raises(redis.ConnectionError):
            client.ping()
