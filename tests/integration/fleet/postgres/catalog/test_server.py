"""Who the server is, and what about its session decides a result."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from fleet.postgres.catalog.server import FORMAT_SETTINGS, read_server
from tests.conftest import NewRole
from tests.servers import Database


def test_the_server(database: Database) -> None:
    with database.connect() as conn:
        server = read_server(conn)
        assert server.version_num == conn.info.server_version
    assert int(server.system_identifier) > 0
    assert server.timeline == 1
    assert not server.in_recovery
    assert abs(server.clock - datetime.now(UTC)) < timedelta(minutes=1)
    assert server.clock.tzinfo is UTC


def test_needs_no_privilege(database: Database, role: NewRole) -> None:
    with (
        psycopg.connect(role(database, "nobody_special"), autocommit=True) as conn,
        database.connect() as admin,
    ):
        assert read_server(conn).system_identifier == read_server(admin).system_identifier


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Niue", "UTC", "Asia/Kathmandu"])
def test_today_is_the_sessions(conn: psycopg.Connection[Any], zone: str) -> None:
    conn.execute(
        "SELECT set_config('TimeZone', %s, false), set_config('DateStyle', 'German, DMY', false)", [zone]
    )
    server = read_server(conn)
    assert server.timezone == zone
    assert server.today == server.clock.astimezone(ZoneInfo(zone)).date()
    row = conn.execute("SELECT to_char(CURRENT_DATE, 'YYYY-MM-DD')").fetchone()
    assert row == (server.today.isoformat(),)


def test_the_clock_moves_within_a_transaction(database: Database) -> None:
    with database.connect(autocommit=False) as conn:
        first, second = read_server(conn), read_server(conn)
        assert second.clock > first.clock
        conn.rollback()


OTHER_VALUES = {
    "TimeZone": "Asia/Tokyo",
    "timezone_abbreviations": "Australia",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "-3",
    "bytea_output": "escape",
    "xmlbinary": "hex",
    "xmloption": "document",
    "default_text_search_config": "pg_catalog.german",
    "quote_all_identifiers": "on",
}


@pytest.mark.parametrize("setting", FORMAT_SETTINGS)
def test_hash_changes_with_every_setting(conn: psycopg.Connection[Any], setting: str) -> None:
    before = read_server(conn).settings_hash
    if setting.startswith("lc_"):
        # Which locales there are depends on the machine; C and POSIX are spelled differently everywhere.
        row = conn.execute("SELECT current_setting(%s)", [setting]).fetchone()
        value = "POSIX" if row == ("C",) else "C"
    else:
        value = OTHER_VALUES[setting]
    conn.execute("SELECT set_config(%s, %s, false)", [setting, value])
    assert read_server(conn).settings_hash != before
    conn.execute("RESET ALL")
    assert read_server(conn).settings_hash == before


def test_hash_does_not_change_with_others(conn: psycopg.Connection[Any]) -> None:
    before = read_server(conn).settings_hash
    conn.execute("SET search_path = ''; SET work_mem = '1MB'; SET application_name = 'x'")
    assert read_server(conn).settings_hash == before
