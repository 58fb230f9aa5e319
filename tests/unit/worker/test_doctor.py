"""The doctor's judgements, one fact at a time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from fleet.errors import PermanentError, TransientError, UpkeepError
from fleet.names import RelationName
from fleet.postgres.addresses import Address
from fleet.postgres.catalog.definition import Definition, DefinitionClass
from fleet.postgres.catalog.server import Server
from fleet.postgres.catalog.views import MaterializedView
from worker import doctor, doctor_views
from worker.doctor import Facts, Finding, Level, Skew

FACTS = Facts(
    role="upkeep",
    database="lending",
    track_counts=True,
    max_connections=100,
    reserved=3,
    connected=7,
    role_limit=-1,
    role_connected=1,
    database_limit=-1,
    database_connected=2,
    may_create=True,
    installed=True,
    may_use=True,
)
VIEW = MaterializedView(
    oid=1,
    name=RelationName("public", "v"),
    owner='Own"er',
    populated=True,
    definition_hash="x",
    filenode=1,
    size_bytes=8192,
    row_estimate=60_000,
    unique_index="v_key",
    unique_key=("a", "b"),
    owner_has_temp=True,
    may_refresh=True,
)
DEFINITION = Definition(
    oid=1, kind=DefinitionClass.DATA, evidence=(), stored_timestamps=(), ordered_by=("a", "b", "c")
)


def judged(
    view: MaterializedView = VIEW, definition: Definition = DEFINITION, **changes: Any
) -> list[Finding]:
    given: dict[str, Any] = {"facts": FACTS, "version_num": 180_000, "allow_blocking": False, **changes}
    return doctor_views.judge_view("lending", view, definition, **given)


@pytest.mark.parametrize(
    ("version", "level", "said"),
    [
        (180_004, Level.OK, "PostgreSQL 18.4"),
        (170_000, Level.OK, "PostgreSQL 17.0"),
        (160_002, Level.OK, "16.2"),
        (160_001, Level.WARNING, "CVE-2024-0985"),
        (150_005, Level.WARNING, "CVE-2024-0985"),
        (140_011, Level.OK, "14.11"),
        (140_010, Level.WARNING, "CVE-2024-0985"),
        (130_022, Level.ERROR, "too old"),
    ],
)
def test_versions_with_the_known_hole_and_too_old_ones_are_found(
    version: int, level: Level, said: str
) -> None:
    finding = doctor.judge_version("lending", version)
    assert finding.level is level
    assert said in finding.message
    assert bool(finding.remedy) is (level is not Level.OK)


def test_a_standby_is_an_error() -> None:
    assert doctor.judge_recovery("lending", True).level is Level.ERROR
    assert doctor.judge_recovery("lending", False).level is Level.OK


@pytest.mark.parametrize(
    ("offset_s", "uncertainty_s", "level", "said"),
    [
        (0.2, 0.001, Level.OK, "agrees"),
        (1.5, 0.001, Level.WARNING, "1.5 s ahead of"),
        (-90.0, 0.001, Level.WARNING, "90.0 s behind"),
        (1.5, 0.8, Level.OK, "agrees"),  # a slow round trip cannot tell
    ],
)
def test_a_clock_is_off_only_by_more_than_the_round_trip_explains(
    offset_s: float, uncertainty_s: float, level: Level, said: str
) -> None:
    skew = Skew(offset=timedelta(seconds=offset_s), uncertainty=timedelta(seconds=uncertainty_s))
    # Between databases it decides what is fresh; this host's clock decides nothing.
    finding = doctor.judge_home_clock("trading", skew)
    assert (finding.level, said in finding.message) == (level, True)
    finding = doctor.judge_clock(None, skew)
    expected = Level.INFO if level is Level.WARNING else level
    assert (finding.level, said in finding.message) == (expected, True)


def test_two_clocks_are_compared_by_a_third_with_both_uncertainties() -> None:
    mine = Skew(offset=timedelta(seconds=3), uncertainty=timedelta(milliseconds=20))
    theirs = Skew(offset=timedelta(seconds=5), uncertainty=timedelta(milliseconds=30))
    assert mine - theirs == Skew(offset=timedelta(seconds=-2), uncertainty=timedelta(milliseconds=50))


def test_nobody_who_leads_is_a_warning_where_something_is_declared() -> None:
    assert doctor.judge_leader("home", None, entries=0).level is Level.OK
    finding = doctor.judge_leader("home", None, entries=3)
    assert (finding.level, "3" in finding.message) == (Level.WARNING, True)
    session: dict[str, Any] = {"pid": 7, "backend_start": None, "client": None}
    finding = doctor.judge_leader("home", session, entries=3)
    # Another role's session says neither: no reason to claim that it is a local one.
    assert (finding.level, "local" in finding.message) == (Level.OK, False)
    session["backend_start"] = datetime(2026, 7, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    finding = doctor.judge_leader("home", session, entries=3)
    assert "session 7, from a local socket, open since 2026-07-01 12:00:00 UTC" in finding.message


@pytest.mark.parametrize(
    ("changes", "said", "remedy"),
    [
        ({"connected": 90}, "max_connections leaves room for 7", "ALTER SYSTEM SET max_connections = 103;"),
        ({"connected": 110}, "room for 0 more", "ALTER SYSTEM SET max_connections = 123;"),
        ({"role_limit": 5}, "limit of the role upkeep", 'ALTER ROLE "upkeep" CONNECTION LIMIT 11;'),
        ({"database_limit": 4}, "limit of the database", 'ALTER DATABASE "lending" CONNECTION LIMIT 12;'),
    ],
)
def test_the_narrowest_limit_on_connections_is_named(changes: dict[str, int], said: str, remedy: str) -> None:
    *_, finding = doctor.judge_facts("lending", replace(FACTS, **changes), concurrency=4)
    assert finding.level is Level.WARNING
    assert said in finding.message
    assert finding.remedy.startswith(remedy)


def test_counters_that_are_off_are_a_warning_with_the_statement() -> None:
    first, second = doctor.judge_facts("lending", replace(FACTS, track_counts=False), concurrency=4)
    assert (first.level, second.level) == (Level.WARNING, Level.OK)
    assert first.remedy.startswith("ALTER SYSTEM SET track_counts = on")


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"installed": False}, "upkeep migrate"),
        ({"installed": False, "may_create": False}, 'CREATE SCHEMA upkeep AUTHORIZATION "upkeep"'),
        ({"may_use": False}, 'GRANT USAGE ON SCHEMA upkeep TO "upkeep"'),
    ],
)
def test_a_schema_that_cannot_be_used_is_an_error(changes: dict[str, bool], remedy: str) -> None:
    (finding,) = doctor.judge_schema("lending", replace(FACTS, **changes), outdated=None, grants=())
    assert finding.level is Level.ERROR
    assert remedy in finding.remedy


def test_every_missing_grant_and_an_old_schema_are_told_together() -> None:
    old = PermanentError("It is at 0000", remedy="Run `upkeep migrate`")
    grants = [("run", ["INSERT", "UPDATE"]), ("view_state", ["SELECT"])]
    findings = list(doctor.judge_schema("lending", FACTS, outdated=old, grants=grants))
    assert [f.object for f in findings] == ["upkeep.run", "upkeep.view_state", "schema upkeep"]
    assert findings[0].remedy == 'GRANT INSERT, UPDATE ON upkeep."run" TO "upkeep";'
    assert findings[2].message == "It is at 0000"


@pytest.mark.parametrize(
    ("mine", "other", "pooled"),
    [([7], 8, False), ([7, 7, 7], 8, False), ([7], 7, True), ([7, 9], 8, True)],
)
def test_a_pooler_shows_in_backend_ids(mine: list[int], other: int, pooled: bool) -> None:
    why = doctor.pooled(mine, other)
    assert (why is not None) is pooled
    assert doctor.judge_pooler("lending", why).level is (Level.ERROR if pooled else Level.OK)


def test_a_view_in_order_is_fine() -> None:
    (finding,) = judged()
    assert finding.level is Level.OK
    assert "v_key" in finding.message


@pytest.mark.parametrize(
    ("version", "usable", "remedy"),
    [
        (180_000, True, 'GRANT MAINTAIN ON public.v TO "upkeep";'),
        (160_000, True, 'GRANT "Own""er" TO "upkeep";'),
        (
            180_000,
            False,
            'GRANT USAGE ON SCHEMA "public" TO "upkeep"; GRANT MAINTAIN ON public.v TO "upkeep";',
        ),
    ],
)
def test_the_grant_for_a_foreign_view_is_the_narrowest_there_is(
    version: int, usable: bool, remedy: str
) -> None:
    (finding,) = judged(replace(VIEW, may_refresh=False), version_num=version, usable=usable)
    assert (finding.level, finding.remedy) == (Level.ERROR, remedy)


def test_what_keeps_a_view_from_concurrently_is_a_warning_unless_blocking_is_allowed() -> None:
    bare = replace(VIEW, unique_index=None, unique_key=(), owner_has_temp=False)
    findings = judged(bare)
    assert [f.level for f in findings] == [Level.WARNING, Level.WARNING]
    assert findings[0].remedy.startswith("CREATE UNIQUE INDEX ON public.v")
    assert findings[1].remedy == 'GRANT TEMPORARY ON DATABASE "lending" TO "Own""er";'
    assert {f.level for f in judged(bare, allow_blocking=True)} == {Level.INFO}


def test_an_unpopulated_view_and_a_stored_timestamp_are_warnings() -> None:
    stamped = replace(DEFINITION, stored_timestamps=("last_updated",))
    findings = judged(replace(VIEW, populated=False), stamped)
    assert [f.level for f in findings] == [Level.WARNING, Level.WARNING]
    assert findings[0].remedy == "REFRESH MATERIALIZED VIEW public.v;"
    assert "last_updated" in findings[1].message


@pytest.mark.parametrize(
    ("rows", "order", "advised"),
    [
        (60_000, (), True),
        (60_000, ("a", "b"), False),
        (60_000, ("a", "b", "c"), False),
        (60_000, ("b", "a"), True),
        (100, (), False),
        (None, (), False),
    ],
)
def test_order_is_advised_for_large_views_that_lack_it(
    rows: int | None, order: tuple[str, ...], advised: bool
) -> None:
    findings = judged(replace(VIEW, row_estimate=rows), replace(DEFINITION, ordered_by=order))
    assert any('ORDER BY "a", "b"' in f.remedy for f in findings) is advised


def test_a_definition_that_could_not_be_read_does_not_hide_the_rest() -> None:
    (finding,) = doctor_views.judge_view(
        "lending",
        replace(VIEW, populated=False),
        None,
        facts=FACTS,
        version_num=180_000,
        allow_blocking=False,
    )
    assert finding.level is Level.WARNING


@pytest.mark.parametrize(
    ("info", "levels"),
    [
        ({"redis_version": "7.2.4", "aof_enabled": 1, "maxmemory_policy": "noeviction"}, "ok ok ok"),
        ({"redis_version": "6.2.0", "valkey_version": "9.1.0", "aof_enabled": 0}, "ok ok warning"),
        ({"redis_version": "6.0.16", "aof_enabled": 1}, "error ok ok"),
        (
            {"redis_version": "7.0.0", "aof_enabled": 1, "maxmemory_policy": "allkeys-lru", "maxmemory": 0},
            "ok warning ok",
        ),
        (
            {"redis_version": "7.0.0", "aof_enabled": 1, "maxmemory_policy": "allkeys-lru", "maxmemory": 1},
            "ok error ok",
        ),
        ({}, "error ok warning"),  # a managed service that says nothing
    ],
)
def test_redis_must_be_new_enough_keep_everything_and_survive_a_restart(
    info: dict[str, Any], levels: str
) -> None:
    assert [f.level.value for f in doctor.judge_redis(info)] == levels.split()


PRIMARY = Server(
    version_num=180_000,
    system_identifier="7",
    timeline=3,
    in_recovery=False,
    timezone="UTC",
    settings_hash="x",
    today=date(2026, 1, 1),
    clock=datetime(2026, 1, 1, tzinfo=UTC),
)
STANDBY = replace(PRIMARY, in_recovery=True)


def members(*found: Server | UpkeepError) -> dict[str, tuple[Level, str]]:
    asked = {Address(host=f"db{n}", hostaddr="", port="5432"): each for n, each in enumerate(found, 1)}
    return {each.object: (each.level, each.message) for each in doctor.judge_members("lending", asked)}


def test_the_servers_of_one_url() -> None:
    assert members() == {}
    assert members(PRIMARY, STANDBY) == {
        "db1:5432": (Level.OK, "It is a primary, on timeline 3"),
        "db2:5432": (Level.OK, "It is a standby, on timeline 3"),
    }


def test_a_server_that_cannot_be_asked_is_told_before_it_is_needed() -> None:
    level, said = members(PRIMARY, TransientError("refused"))["db2:5432"]
    assert level == Level.WARNING
    assert "would not be noticed: refused" in said


def test_two_primaries_are_an_error_on_both() -> None:
    found = members(PRIMARY, replace(PRIMARY, timeline=2), STANDBY)
    assert [level for level, _ in found.values()] == [Level.ERROR, Level.ERROR, Level.OK]
    assert "so does another server" in found["db1:5432"][1]


def test_a_server_of_another_cluster_is_an_error() -> None:
    found = members(PRIMARY, replace(STANDBY, system_identifier="8"))
    assert {level for level, _ in found.values()} == {Level.ERROR}
    assert "another cluster" in found["db2:5432"][1]


def test_no_primary_at_all_is_an_error() -> None:
    found = members(STANDBY, TransientError("refused"))
    assert found["server"][0] == Level.ERROR
