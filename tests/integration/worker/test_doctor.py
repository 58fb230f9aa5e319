"""The doctor asks real servers: what is missing is found, with a statement that mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fleet import settings
from fleet.postgres import locks, migrations
from fleet.settings import Settings
from schedules import state
from schedules.entries import entries
from tests import servers
from tests.conftest import NewDatabase, NewRole
from tests.servers import Database
from worker.cli import examining
from worker.doctor import Finding, Level

SCHEMA = """
CREATE TABLE public.t AS SELECT i AS id, i % 7 AS n FROM generate_series(1, 60000) AS i;
CREATE MATERIALIZED VIEW public.good AS SELECT id, n FROM public.t ORDER BY id;
CREATE UNIQUE INDEX good_key ON public.good (id);
CREATE MATERIALIZED VIEW public.unordered AS SELECT id, n FROM public.t;
CREATE UNIQUE INDEX unordered_key ON public.unordered (id);
CREATE MATERIALIZED VIEW public.stamped AS SELECT n, count(*), now() AS last_updated FROM public.t GROUP BY n;
CREATE UNIQUE INDEX stamped_key ON public.stamped (n);
CREATE MATERIALIZED VIEW public.keyless AS SELECT n FROM public.t;
CREATE MATERIALIZED VIEW public.empty AS SELECT id FROM public.t WITH NO DATA;
CREATE UNIQUE INDEX empty_key ON public.empty (id);
ANALYZE;
"""
NAMES = ("good", "unordered", "stamped", "keyless", "empty", "gone")


@pytest.fixture
def kept(tmp_path: Path, redis_url: str) -> Callable[[str], Settings]:
    """Settings that declare all the views, for a URL."""

    def make(url: str) -> Settings:
        path = tmp_path / "upkeep.toml"
        views = "".join(f'[databases.kept.views."public.{name}"]\ntier = "daily"\n' for name in NAMES)
        path.write_text(f"[databases.kept]\n{views}", encoding="utf-8")
        return settings.load(path, {"UPKEEP_KEPT_URL": url, "UPKEEP_REDIS_URL": redis_url})

    return make


def examined(kept: Settings) -> dict[tuple[str, str], Finding]:
    """What is not fine, by level and object."""
    found = examining.examine(kept.home, kept)
    return {(f.level.value, f.object): f for f in found if f.level is not Level.OK}


def test_each_view_is_judged_and_a_good_one_is_left_in_peace(
    upkeep_database: Database, kept: Callable[[str], Settings]
) -> None:
    upkeep_database.connect().execute(SCHEMA)
    found = examined(kept(upkeep_database.url))
    assert set(found) == {
        ("warning", "scheduler"),
        ("info", "public.unordered"),
        ("warning", "public.stamped"),
        ("warning", "public.keyless"),
        ("warning", "public.empty"),
        ("error", "public.gone"),
    }
    assert "last_updated" in found["warning", "public.stamped"].message
    upkeep_database.connect().execute(found["warning", "public.empty"].remedy)
    assert ("warning", "public.empty") not in examined(kept(upkeep_database.url))


def test_the_statements_that_it_prints_mend_what_it_found(
    upkeep_database: Database, kept: Callable[[str], Settings], role: NewRole
) -> None:
    admin = upkeep_database.connect()
    admin.execute(SCHEMA)
    url = role(upkeep_database, "Odd Role")
    owner = role(upkeep_database, "poor owner")
    assert owner
    admin.execute(
        f'REVOKE TEMPORARY ON DATABASE "{upkeep_database.name}" FROM PUBLIC;'
        'ALTER MATERIALIZED VIEW public.good OWNER TO "poor owner";'
        "REVOKE USAGE ON SCHEMA public FROM PUBLIC;"
        'GRANT USAGE ON SCHEMA public TO "poor owner"; GRANT SELECT ON public.t TO "poor owner";'
    )
    settings_ = kept(url)
    for _ in range(4):  # each round may uncover the next: first the schema, then its tables
        mending = [
            f.remedy
            for f in examining.examine(settings_.home, settings_)
            if f.level in (Level.ERROR, Level.WARNING) and f.remedy.startswith(("GRANT", "REFRESH"))
        ]
        for remedy in mending:
            admin.execute(remedy)
    levels = {object_: level for level, object_ in examined(settings_)}
    assert "public.good" not in levels
    assert "schema upkeep" not in levels
    with psycopg.connect(url, autocommit=True) as stranger:
        stranger.execute("REFRESH MATERIALIZED VIEW CONCURRENTLY public.good")
        stranger.execute("SELECT count(*) FROM upkeep.run")


def test_a_database_without_upkeep_and_a_role_without_rights(
    database: Database, kept: Callable[[str], Settings], role: NewRole
) -> None:
    assert examined(kept(database.url))["error", "schema upkeep"].remedy == "upkeep migrate"
    found = examined(kept(role(database, "nobody")))
    assert 'CREATE SCHEMA upkeep AUTHORIZATION "nobody"' in found["error", "schema upkeep"].remedy


def test_a_server_that_is_away_is_one_finding(kept: Callable[[str], Settings]) -> None:
    (finding,) = examining.examine((found := kept("postgresql://me:geheim@127.0.0.1:1/x")).home, found)
    assert (finding.level, finding.object) == (Level.ERROR, "connection")
    assert "geheim" not in str(finding)


def test_a_question_that_fails_stops_no_other(
    upkeep_database: Database, kept: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep_database.connect().execute(SCHEMA)

    def broken(conn: psycopg.Connection[Any], *_: Any) -> Any:
        conn.execute("SELECT 1 / 0")

    monkeypatch.setattr(examining, "read_server", broken)
    monkeypatch.setattr(examining, "read_definitions", broken)
    found = examined(kept(upkeep_database.url))
    assert "division by zero" in found["error", "server"].message
    assert "division by zero" in found["error", "definitions"].message
    assert ("warning", "public.keyless") in found
    assert ("error", "public.gone") in found


def test_counters_and_limits_of_the_session_are_seen(
    upkeep_database: Database, kept: Callable[[str], Settings]
) -> None:
    name = upkeep_database.name
    upkeep_database.connect().execute(
        f'ALTER DATABASE "{name}" SET track_counts = off; ALTER DATABASE "{name}" CONNECTION LIMIT 6;'
    )
    found = examined(kept(upkeep_database.url))
    assert ("warning", "track_counts") in found
    assert f'ALTER DATABASE "{name}" CONNECTION LIMIT' in found["warning", "connections"].remedy


def test_a_pooler_that_drops_our_timeouts_is_seen_by_their_absence(
    upkeep_database: Database, kept: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pooled(conninfo: str, *, autocommit: bool = True, **_: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(conninfo, autocommit=autocommit)

    monkeypatch.setattr(examining, "connect", pooled)
    found = examined(kept(upkeep_database.url))
    assert set(found) == {("error", "connection")}
    assert "start-up options" in found["error", "connection"].message


def test_two_sessions_on_one_backend_are_a_pooler(
    upkeep_database: Database, kept: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examining, "_pid", lambda _: 4711)
    found = examined(kept(upkeep_database.url))
    assert set(found) == {("error", "connection")}


def test_a_scheduler_that_leads_is_found_with_its_session_and_one_that_is_missing_is_a_warning(
    upkeep_database: Database, kept: Callable[[str], Settings]
) -> None:
    settings_ = kept(upkeep_database.url)
    found = examined(settings_)["warning", "scheduler"]
    # daily, and the pruning of the ledger
    assert "nothing becomes due by itself (entries declared: 2)" in found.message
    assert found.remedy.startswith("celery -A worker.app beat")
    with upkeep_database.connect() as leader:
        assert locks.try_acquire(leader, state.LEADER)
        (found,) = (f for f in examining.examine(settings_.home, settings_) if f.object == "scheduler")
        assert found.level is Level.OK
        pid = leader.info.backend_pid
        assert (
            f"One leads: session {pid}, from 127.0.0.1, open since {datetime.now(UTC):%Y}-" in found.message
        )


def test_a_standby_is_not_asked_who_leads(
    upkeep_database: Database, kept: Callable[[str], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = examining.read_server
    monkeypatch.setattr(examining, "read_server", lambda c: replace(original(c), in_recovery=True))
    found = examined(kept(upkeep_database.url))
    assert ("error", "server") in found
    assert not [object_ for _, object_ in found if object_ == "scheduler"]


def test_a_row_of_a_newer_format_is_an_error_with_its_remedy(
    upkeep_database: Database, kept: Callable[[str], Settings]
) -> None:
    settings_ = kept(upkeep_database.url)
    connection = upkeep_database.connect()
    state.reconcile(connection, entries(settings_).values(), datetime.now(UTC))
    assert ("error", "upkeep.schedule_state") not in examined(settings_)
    connection.execute("UPDATE upkeep.schedule_state SET format = 2 WHERE entry = 'kept/daily'")
    found = examined(settings_)["error", "upkeep.schedule_state"]
    assert "kept/daily (format 2)" in found.message
    assert "Upgrade" in found.remedy


def test_an_older_schema_is_told_once(upkeep_database: Database, kept: Callable[[str], Settings]) -> None:
    connection = upkeep_database.connect()
    connection.execute("UPDATE upkeep.schema_version SET version_num = '0001'")
    connection.execute("DROP TABLE upkeep.schedule_state")
    found = examining.examine((settings_ := kept(upkeep_database.url)).home, settings_)
    assert [f.message for f in found if f.level is Level.ERROR and "public." not in f.object] == [
        "The schema upkeep in the database 'kept' is at 0001, this version needs " + migrations.head()
    ]


@pytest.fixture
def two(
    upkeep_database: Database, new_database: NewDatabase, tmp_path: Path, redis_url: str
) -> Callable[..., Settings]:
    """Settings of a fleet with a home and another database."""
    other = new_database(migrated=True)

    def make(home: str = "") -> Settings:
        path = tmp_path / "upkeep.toml"
        path.write_text('[fleet]\nhome = "home"\n[databases.home]\n[databases.other]\n', encoding="utf-8")
        environment = {
            "UPKEEP_HOME_URL": home or upkeep_database.url,
            "UPKEEP_OTHER_URL": other.url,
            "UPKEEP_REDIS_URL": redis_url,
        }
        return settings.load(path, environment)

    return make


def clocks(found: Settings, name: str) -> list[Finding]:
    return [f for f in examining.examine(found.database(name), found) if f.object == "clock"]


def test_a_kept_clock_that_is_not_the_homes_is_a_warning(
    two: Callable[..., Settings], upkeep_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = two()
    assert {f.level for f in clocks(found, "other")} == {Level.OK}
    assert len(clocks(found, "other")) == 2
    # What the home's server says is moved: nothing here can set a server's clock.
    original = examining._clock

    def moved(connection: psycopg.Connection[Any]) -> datetime:
        away = timedelta(seconds=90) if connection.info.dbname == upkeep_database.name else timedelta()
        return original(connection) - away

    monkeypatch.setattr(examining, "_clock", moved)
    (warning,) = (f for f in clocks(found, "other") if f.level is not Level.OK)
    assert warning.level is Level.WARNING
    assert "90.0 s ahead of the home database's" in warning.message
    assert "NTP" in warning.remedy
    # This host's own clock decides nothing.
    (note,) = clocks(found, "home")
    assert (note.level, "90.0 s behind this host's" in note.message) == (Level.INFO, True)
    # And only the home is asked who leads.
    assert not [f for f in examining.examine(found.database("other"), found) if f.object == "scheduler"]


def test_a_home_that_is_away_keeps_the_clocks_from_being_compared_and_nothing_else(
    two: Callable[..., Settings],
) -> None:
    found = two("postgresql://me:geheim@127.0.0.1:1/home")
    first, second = clocks(found, "other")
    assert (first.level, second.level) == (Level.OK, Level.INFO)
    assert "127.0.0.1:1/home" in second.message
    assert "geheim" not in second.message


def test_redis_is_asked(redis_url: str) -> None:
    found = list(examining.examine_redis(redis_url))
    assert {f.object for f in found} == {"redis", "maxmemory-policy", "appendonly", "clock"}
    assert {f.level for f in found} == {Level.OK}


def test_a_redis_that_forgets_or_is_away_is_an_error() -> None:
    with servers.new_redis(maxmemory_policy="allkeys-lru", maxmemory="100mb", appendonly="no") as server:
        levels = {f.object: f.level for f in examining.examine_redis(server.url())}
    assert (levels["maxmemory-policy"], levels["appendonly"]) == (Level.ERROR, Level.WARNING)
    (finding,) = examining.examine_redis("redis://:geheim@127.0.0.1:1/0")
    assert finding.level is Level.ERROR
    assert "geheim" not in str(finding)
