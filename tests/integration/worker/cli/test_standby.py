"""The commands on a server that is a standby: what reads works and says so, what writes is refused with the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
import redis
from celery import Celery

from fleet import ledger
from fleet.errors import PermanentError
from fleet.ledger import NewRun
from fleet.postgres.migrations import migrate
from fleet.settings import Database as Declared
from fleet.settings import load
from tests import servers
from tests.integration.worker.cli.conftest import SCHEMA, Upkeep
from tests.servers import Database
from tests.standby import Pair, streaming_pair
from worker.cli import following
from worker.embedded.server import free_port

pytestmark = pytest.mark.any_server

ALL = ("run", "upkeep.refresh.all")
SAYS = "The server is a standby (in recovery)"
REMEDY = "target_session_attrs=read-write"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with streaming_pair() as made:
        yield made


@pytest.fixture(scope="module")
def database(pair: Pair) -> Database:
    made = servers.create_database(pair.primary)
    with psycopg.connect(made.url, autocommit=True) as connection:
        connection.execute(SCHEMA)
    migrate(made.url)
    pair.wait_caught_up()
    return made


@pytest.fixture
def upkeep(pair: Pair, database: Database, upkeep_with: Callable[..., Upkeep]) -> Upkeep:
    """Pointed at the standby alone."""
    return upkeep_with(pair.alone(database.url))


@pytest.mark.postgres
def test_status(upkeep: Upkeep) -> None:
    said = upkeep("status")
    assert said.code == 0
    assert SAYS in said.out
    problems = upkeep("status", "--json").json["databases"][0]["problems"]
    assert [problem["level"] for problem in problems if SAYS in problem["message"]] == ["warning"]
    assert any(REMEDY in problem["remedy"] for problem in problems)


@pytest.mark.postgres
def test_check_and_plan_and_history(upkeep: Upkeep) -> None:
    document = upkeep("check", "--json").json
    found = [each for each in document["problems"] if SAYS in each["message"]]
    assert [(each["level"], each["key"]) for each in found] == [("warning", "databases.kept")]
    said = upkeep("plan", "refresh")
    assert SAYS in said.out
    assert upkeep("plan", "refresh", "--json").json["databases"][0]["standby"] is True
    assert upkeep("history").code == 0


@pytest.mark.postgres
def test_doctor(pair: Pair, database: Database, upkeep: Upkeep, upkeep_with: Callable[..., Upkeep]) -> None:
    said = upkeep("doctor", "--json")
    assert said.code == 1
    (found,) = [each for each in said.json["findings"] if "It is a standby" in each["message"]]
    assert (found["level"], found["object"]) == ("error", "server")
    assert REMEDY in found["remedy"]
    # With both servers in the URL all is well, and the one that nobody can reach is told in time.
    nobody = free_port()
    head, _, tail = pair.url(database.url).partition(f"/{database.name}")
    both = upkeep_with(f"{head},127.0.0.1:{nobody}/{database.name}{tail}")("doctor", "--json")
    members = {
        each["object"]: (each["level"], each["message"])
        for each in both.json["findings"]
        if each["object"].startswith("127.0.0.1:") and each["database"] == "kept"
    }
    assert members[f"127.0.0.1:{pair.primary.port}"] == ("ok", "It is a primary, on timeline 1")
    assert members[f"127.0.0.1:{pair.standby.port}"] == ("ok", "It is a standby, on timeline 1")
    level, message = members[f"127.0.0.1:{nobody}"]
    assert level == "warning"
    assert "would not be noticed" in message


@pytest.mark.postgres
def test_migrate(upkeep: Upkeep) -> None:
    said = upkeep("migrate")
    assert said.code == 1
    assert "is a standby (in recovery)" in said.err
    assert REMEDY in said.err
    assert upkeep("migrate", "--status").code == 0


@pytest.mark.postgres
def test_run_sends_and_says_that_it_waits(upkeep: Upkeep) -> None:
    said = upkeep(*ALL)
    assert said.code == 0
    assert "The request waits in Redis: 127.0.0.1:" in said.err
    assert "is a standby" in said.err
    document = upkeep(*ALL, "--json").json
    assert REMEDY in document["waits_for"]["remedy"]
    said = upkeep(*ALL, "--wait", "--timeout", "0.5")
    assert said.code == 1
    assert f"{SAYS}: nothing is done here until it is promoted; the request waits until then" in said.err
    with redis.Redis.from_url(upkeep.environment["UPKEEP_REDIS_URL"]) as client:
        assert client.llen("refresh") == 3


@pytest.mark.postgres
def test_init(pair: Pair, database: Database, upkeep: Upkeep) -> None:
    said = upkeep("init", pair.alone(database.url))
    assert said.code == 0
    assert "public.base" in said.out


class Followed:
    """A request whose run is in the ledger, and a command that follows it."""

    def __init__(self, database: Database, kept: Declared, redis_url: str) -> None:
        self.connection = database.connect()
        self.producer = Celery(broker=redis_url, backend=redis_url, set_as_current=False)
        self.run_id = self.insert()
        self.watch = following.Watch(load(), kept, "asked", self.producer)

    def insert(self, request_id: str | None = "asked") -> int:
        new = NewRun(
            task="upkeep.refresh.view",
            target="public.base",
            entry="operator",
            queue="refresh",
            request_id=request_id,
        )
        return ledger.insert(self.connection, new)[0]

    def acknowledge(self) -> None:
        self.producer.backend.store_result("asked", {"run": self.run_id, "state": "waiting"}, "SUCCESS")

    def lose(self) -> None:
        """As a failover to a server without the row does, where the number is used again."""
        self.connection.execute("DELETE FROM upkeep.run")
        self.connection.execute("SELECT setval('upkeep.run_id_seq', %s, false)", (self.run_id,))
        assert self.insert(request_id=None) == self.run_id


@pytest.fixture
def followed(system: Database, upkeep_with: Callable[..., Upkeep]) -> Iterator[Followed]:
    upkeep = upkeep_with(system.url)
    made = Followed(system, load().databases["kept"], upkeep.environment["UPKEEP_REDIS_URL"])
    with made.watch as watch:
        assert watch.look().run.id == made.run_id
        yield made
    made.producer.backend.client.connection_pool.disconnect()
    made.producer.close()


def test_a_run_that_is_gone_with_its_message_is_told(followed: Followed) -> None:
    followed.acknowledge()
    followed.lose()
    with pytest.raises(PermanentError, match=f"Run {followed.run_id} of public.base is gone"):
        followed.watch.look()


def test_a_run_that_is_gone_is_found_again_under_its_new_number(followed: Followed) -> None:
    followed.lose()
    assert followed.watch.look().run is None
    again = followed.insert()
    assert again != followed.run_id
    assert followed.watch.look().run.id == again
    followed.acknowledge()
    assert followed.watch.look().run.id == again
