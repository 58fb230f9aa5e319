"""What the other tests stand on: fresh databases, plain roles, an empty Redis, a wait that says what for."""

from __future__ import annotations

from typing import ClassVar

import psycopg
import pytest
import redis

from tests import servers
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres

pytestmark = pytest.mark.any_server


class TestFixtures:
    left_behind: ClassVar[list[str]] = []

    def test_a_database_is_fresh_and_a_role_is_plain(
        self, request: pytest.FixtureRequest, database: servers.Database, role
    ) -> None:
        connection = database.connect()
        self.left_behind.append(database.name)
        assert connection.autocommit
        assert connection.execute(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchone() == (0,)
        connection.execute("CREATE TABLE owned ()")
        url = role(database, "odd \"role'")
        connection.execute('ALTER TABLE owned OWNER TO "odd ""role\'"')
        with psycopg.connect(url) as as_role:
            assert as_role.execute(
                "SELECT current_user, rolsuper FROM pg_roles WHERE rolname = current_user"
            ).fetchone() == ("odd \"role'", False)
        # left for the teardown: connections, a prepared transaction, a replication slot, an owned table
        connection.execute("SELECT pg_create_logical_replication_slot('left', 'pgoutput')")
        connection.execute("BEGIN; CREATE TABLE pending (); PREPARE TRANSACTION 'left';")
        assert request.node.get_closest_marker("postgres")

    def test_the_roles_and_databases_of_the_last_test_are_gone(
        self, postgres_server: EmbeddedPostgres
    ) -> None:
        with servers.admin(postgres_server) as admin:
            assert admin.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'odd%'").fetchone() == (0,)
            assert self.left_behind
            found = admin.execute(
                "SELECT datname FROM pg_database WHERE datname = ANY (%s)", (self.left_behind,)
            )
            assert found.fetchall() == []

    def test_an_upkeep_database_is_migrated(self, upkeep_database: servers.Database) -> None:
        assert upkeep_database.connect().execute(
            "SELECT count(*) > 0 FROM pg_class WHERE relnamespace = 'upkeep'::regnamespace"
        ).fetchone() == (True,)

    def test_two_databases_are_two(self, new_database) -> None:
        first, second = new_database(), new_database(migrated=True)
        assert first.name != second.name

    @pytest.mark.parametrize("turn", [1, 2])
    def test_a_redis_database_is_empty(
        self, request: pytest.FixtureRequest, redis_url: str, turn: int
    ) -> None:
        with redis.Redis.from_url(redis_url) as client:
            assert client.dbsize() == 0
            client.set("left", turn)
        assert request.node.get_closest_marker("redis")
        assert not request.node.get_closest_marker("postgres")

    def test_waiting_says_what_for(self) -> None:
        found = iter([0, None, "there"])
        assert wait_until(lambda: next(found)) == "there"
        with pytest.raises(AssertionError, match="the rain to stop"):
            wait_until(lambda: False, timeout=0.05, message="the rain to stop")
