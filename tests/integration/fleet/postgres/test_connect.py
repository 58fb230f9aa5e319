"""Connections: their timeouts, their names, what a refusal says, and what a pool hands out."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from psycopg import sql

from fleet.errors import PermanentError, TransientError
from fleet.postgres import connect as module
from fleet.postgres import locks
from fleet.postgres.connect import Pools, connect

LOCK_TIMEOUT = timedelta(seconds=5)


def shown(connection, name):
    return connection.execute("SELECT current_setting(%s)", (name,)).fetchone()[0]


def test_every_session_carries_its_timeouts_and_returns_to_them(database):
    with connect(
        database.url, application_name="upkeep/" + "é" * 60, lock_timeout=timedelta(milliseconds=250)
    ) as opened:
        expected = {
            "lock_timeout": "250ms",
            "statement_timeout": "1min",
            "client_connection_check_interval": "1s",
            "idle_session_timeout": "15min",
        }
        assert {name: shown(opened, name) for name in expected} == expected
        opened.execute("SET lock_timeout = 0")
        opened.execute("RESET ALL")
        assert shown(opened, "lock_timeout") == "250ms"
        assert shown(opened, "application_name").startswith("upkeep/")


def test_a_databases_own_defaults_do_not_change_what_a_refresh_sees(database):
    defaults = {"default_transaction_isolation": "serializable", "default_transaction_read_only": "on"}
    with database.connect() as admin:
        for name, value in defaults.items():
            admin.execute(
                sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                    sql.Identifier(database.name), sql.Identifier(name), sql.Literal(value)
                )
            )
    with connect(database.url, application_name="upkeep/test") as opened, opened.transaction():
        assert shown(opened, "transaction_isolation") == "read committed"
        assert shown(opened, "transaction_read_only") == "off"


def test_a_session_without_our_options_is_refused(database):
    with database.connect() as as_from_a_pooler, pytest.raises(PermanentError, match="pooler"):
        module._configure(as_from_a_pooler)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"dbname": "nowhere"}, PermanentError, "nowhere"),
        ({"password": "sEcReT"}, PermanentError, "password"),
        ({"user": "nobody-here"}, PermanentError, "nobody-here"),
        ({"port": "1"}, TransientError, "127.0.0.1:1/"),
    ],
)
def test_a_refusal_names_the_server_and_the_remedy_and_no_secret(monkeypatch, database, change, kind, says):
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 1)
    url = psycopg.conninfo.make_conninfo(database.url, **change)
    with pytest.raises(kind) as refused:
        connect(url, application_name="upkeep/test")
    assert says in str(refused.value)
    assert refused.value.remedy
    assert "sEcReT" not in str(refused.value)
    pools = Pools()
    with pytest.raises(kind), pools.connection("d", url, application_name="x", lock_timeout=LOCK_TIMEOUT):
        pass
    pools.close()


def test_a_pool_hands_out_sessions_without_locks_or_settings_of_the_last_user(database):
    pools = Pools()
    pids = []
    for _ in range(2):
        with pools.connection(
            "d", database.url, application_name="upkeep/a", lock_timeout=LOCK_TIMEOUT
        ) as opened:
            pids.append(opened.info.backend_pid)
            assert shown(opened, "work_mem") != "77MB"
            opened.execute("SET work_mem = '77MB'")
            assert locks.try_acquire(opened, "left behind")
        with database.connect() as other:
            assert locks.acquire_within(other, "left behind", timeout_s=5)
            # Closing only asks the server to end the session; its lock may outlive the close.
            locks.release(other, "left behind")
    assert len(set(pids)) == 1
    pools.close()


def test_a_pool_replaces_a_session_that_broke(database):
    pools = Pools()
    with pools.connection(
        "d", database.url, application_name="upkeep/a", lock_timeout=LOCK_TIMEOUT
    ) as opened:
        pid = opened.info.backend_pid
    with database.connect() as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with pools.connection(
        "d", database.url, application_name="upkeep/a", lock_timeout=LOCK_TIMEOUT
    ) as opened:
        assert opened.info.backend_pid != pid
    pools.close()
