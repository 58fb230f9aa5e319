"""The doctor asks real servers: what is missing is found, with a statement that mends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fleet import settings
from fleet.settings import Settings
from tests import servers
from tests.conftest import NewRole
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
