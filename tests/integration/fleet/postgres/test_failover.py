"""Connections to a pair of servers: to the one that takes writes, whichever that is, and none of them stale."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import psycopg
import pytest
from psycopg import errors

from fleet.errors import PermanentError, TransientError
from fleet.postgres import connect as module
from fleet.postgres.catalog.server import read_server
from fleet.postgres.connect import Pools, connect
from fleet.postgres.migrations import current, migrate
from tests import servers
from tests.servers import Database
from tests.standby import Pair, streaming_pair
from worker.embedded.server import free_port

LOCK_TIMEOUT = timedelta(seconds=5)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """The last test of the module makes the primary read-only and promotes the standby."""
    with streaming_pair() as made:
        yield made


@pytest.fixture(scope="module")
def database(pair: Pair) -> Iterator[Database]:
    made = servers.create_database(pair.primary)
    pair.wait_caught_up()
    yield made
    made.close_connections()


@pytest.fixture
def pools() -> Iterator[Pools]:
    made = Pools()
    yield made
    made.close()


def port(connection: psycopg.Connection) -> int:
    return connection.execute("SELECT inet_server_port()").fetchone()[0]


def borrowed(pools: Pools, url: str, what: Callable[[psycopg.Connection], object] = port) -> object:
    with pools.connection("d", url, application_name="upkeep/test", lock_timeout=LOCK_TIMEOUT) as connection:
        return what(connection)


def turned(url: str, pair: Pair) -> str:
    """The standby first."""
    here, there = f"127.0.0.1:{pair.primary.port}", f"127.0.0.1:{pair.standby.port}"
    return url.replace(f"{here},{there}", f"{there},{here}")


@pytest.mark.postgres
@pytest.mark.parametrize("attributes", ["read-write", "primary", ""])
def test_the_primary_is_found_wherever_it_stands(
    pair: Pair, database: Database, pools: Pools, attributes: str
) -> None:
    url = turned(pair.url(database.url, target_session_attrs=attributes), pair)
    assert ("target_session_attrs" in url) == bool(attributes)
    with connect(url, application_name="upkeep/test") as opened:
        assert port(opened) == pair.primary.port
    assert borrowed(pools, url) == pair.primary.port


@pytest.mark.postgres
def test_a_standby_is_refused_with_what_to_do(
    pair: Pair, database: Database, pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 1)
    url = pair.alone(database.url)
    for refused in (lambda: connect(url, application_name="upkeep/test"), lambda: borrowed(pools, url)):
        with pytest.raises(TransientError) as told:
            refused()
        said = f"127.0.0.1:{pair.standby.port}/{database.name} is a standby (in recovery)"
        assert told.value.message.startswith(said)
        assert "waits until it is promoted" in told.value.remedy
        assert "target_session_attrs=read-write" in told.value.remedy
    with connect(url, application_name="upkeep/test", to_read=True) as opened:
        assert port(opened) == pair.standby.port
        assert read_server(opened).timeline == 1
    with pytest.raises(TransientError, match="is a standby"):
        migrate(url)
    assert current(url) is None


@pytest.mark.postgres
def test_any_server_may_be_a_standby_too(pair: Pair, database: Database) -> None:
    url = turned(pair.url(database.url, target_session_attrs="any"), pair)
    with pytest.raises(TransientError, match="is a standby"):
        connect(url, application_name="upkeep/test")


@pytest.mark.postgres
def test_without_a_primary_each_server_is_named_with_its_reason(pair: Pair, database: Database) -> None:
    nobody = free_port()
    url = pair.url(database.url).replace(f":{pair.primary.port}", f":{nobody}")
    with pytest.raises(TransientError) as told:
        connect(url, application_name="upkeep/test")
    said = told.value.message
    assert f"127.0.0.1:{nobody}: Connection refused" in said
    assert f"127.0.0.1:{pair.standby.port}: it takes no writes (a standby, or read-only)" in said
    assert "promote one" in told.value.remedy
    assert database.server.password not in str(told.value)
    # To read, the standby will do; and so it does where nobody has a word against it.
    with connect(url, application_name="upkeep/test", to_read=True) as opened:
        assert port(opened) == pair.standby.port


@pytest.mark.postgres
def test_what_one_server_may_forgive_is_tried_again(pair: Pair, database: Database) -> None:
    url = pair.url(database.url).replace(database.server.password, "sEcReT")
    with pytest.raises(PermanentError) as told:
        connect(url, application_name="upkeep/test")
    assert told.value.message.count("password authentication failed") == 2
    assert told.value.remedy
    assert "sEcReT" not in str(told.value)
    with pytest.raises(TransientError, match="password authentication failed"):
        connect(url.replace(f":{pair.primary.port}", f":{free_port()}"), application_name="upkeep/test")


@pytest.mark.any_server
@pytest.mark.postgres
def test_a_pool_is_back_as_soon_as_its_server(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's own pauses between its attempts would have grown to eight seconds meanwhile."""
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 1)
    monkeypatch.setattr(module, "POOL_RETRY_S", 1.0)
    with servers.new_postgres() as server:
        assert borrowed(pools, server.url()) == server.port
        server.stop()
        began = time.monotonic()
        while time.monotonic() - began < 9:
            with pytest.raises(TransientError, match="refused"):
                borrowed(pools, server.url())
        server.start()
        began = time.monotonic()
        assert borrowed(pools, server.url()) == server.port
        assert time.monotonic() - began < 3


@pytest.mark.postgres
def test_sessions_on_a_primary_that_takes_no_more_writes_are_discarded(
    pair: Pair, database: Database, pools: Pools
) -> None:
    """A switchover: the primary is fenced, not stopped, so that nothing breaks its sessions."""
    url = pair.url(database.url)

    def write(connection: psycopg.Connection) -> int:
        connection.execute("CREATE TABLE IF NOT EXISTS public.written ()")
        return port(connection)

    assert borrowed(pools, url, write) == pair.primary.port
    # Pages that the checkpoint after the promotion takes seconds to write.
    database.connect().execute("CREATE TABLE public.pages AS SELECT generate_series(1, 50000) AS n")
    pair.wait_caught_up()
    with servers.admin(pair.primary) as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
    pair.standby.promote()
    with pytest.raises(errors.ReadOnlySqlTransaction):
        borrowed(pools, url, write)
    assert borrowed(pools, url, write) == pair.standby.port
    # What was recorded before counts for nothing from the first moment on, long before the next checkpoint.
    with connect(url, application_name="upkeep/test") as opened:
        assert read_server(opened).timeline == 2
        checkpoint = opened.execute("SELECT timeline_id FROM pg_control_checkpoint()").fetchone()
        assert checkpoint == (1,), "the server was quicker than this test: it says nothing"
