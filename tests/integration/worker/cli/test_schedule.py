"""schedule list, pause, resume, run-now: what is due by itself, and what an operator may do about it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from fleet import ledger, settings
from fleet.ledger import NewRun, State
from fleet.postgres import locks
from schedules import entries, state
from tests.conftest import NewDatabase, NewRole
from tests.integration.worker.cli.conftest import Upkeep
from tests.servers import Database
from tests.waiting import wait_until

pytestmark = pytest.mark.any_server

MORE = """
[databases.kept.tiers.five_minutes]
jitter = "2m"
catch_up = "none"
[databases.kept.tiers.daily]
cron = "30 2 * * *"
timezone = "America/New_York"
[jobs.settle]
database = "kept"
sql = "SELECT 1"
cron = "0 3 * * *"
[schedule.nightly]
database = "kept"
task = "upkeep.refresh.view"
cron = "0 1 * * *"
arguments = { view = "public.base" }
[databases.other]
"""
TICK = "kept/five_minutes"
ALL = {
    "kept/five_minutes",
    "kept/daily",
    "kept/job.settle",
    "kept/schedule.nightly",
    "kept/ledger.prune",
    "other/ledger.prune",
}
REASON = """it's "urgent"; DROP TABLE upkeep.run; -- \\ %s [bold]"""


@pytest.fixture
def other(new_database: NewDatabase) -> Database:
    """A second kept database."""
    return new_database(migrated=True)


@pytest.fixture
def scheduled(upkeep: Upkeep, other: Database, monkeypatch: pytest.MonkeyPatch) -> Upkeep:
    """The command, for two databases and an entry of every kind."""
    monkeypatch.setenv("UPKEEP_OTHER_URL", other.url)
    upkeep.environment["UPKEEP_OTHER_URL"] = other.url
    upkeep.write(upkeep.config.read_text(encoding="utf-8") + MORE)
    return upkeep


def declared(upkeep: Upkeep) -> dict[str, entries.Entry]:
    return entries.entries(settings.load(upkeep.config))


def start_scheduler(upkeep: Upkeep, system: Database, *, ago: timedelta = timedelta()) -> None:
    """What a scheduler that begins to lead makes of this configuration."""
    state.reconcile(system.connect(), declared(upkeep).values(), datetime.now(UTC) - ago)


@contextmanager
def leading(system: Database) -> Iterator[int]:
    """A session that leads."""
    with system.connect(application_name="upkeep/scheduler") as connection:
        assert locks.try_acquire(connection, state.LEADER)
        yield connection.info.backend_pid


def listed(upkeep: Upkeep, *words: str) -> dict[str, dict[str, Any]]:
    said = upkeep("schedule", "list", "--json", *words)
    assert said.code == 0, said.err
    return {each["entry"]: each for each in said.json["entries"]}


def states(system: Database) -> dict[str, state.EntryState]:
    return state.read_states(system.connect())


def messages(upkeep: Upkeep, queue: str) -> list[dict[str, Any]]:
    """The keywords of the messages in a queue, the oldest first."""
    with redis.Redis.from_url(upkeep.environment["UPKEEP_REDIS_URL"]) as client:
        raw: Any = client.lrange(queue, 0, -1)
    return [json.loads(base64.b64decode(json.loads(each)["body"]))[1] for each in reversed(raw)]


# ---- list ----


def test_every_entry_is_listed_before_any_scheduler_ran_and_that_none_leads(scheduled: Upkeep) -> None:
    said = scheduled("schedule", "list", "--json")
    assert (said.code, said.json["leader"], said.json["errors"]) == (0, None, [])
    found = listed(scheduled)
    assert set(found) == ALL
    clock = datetime.fromisoformat(said.json["clock"])
    assert abs(clock - datetime.now(UTC)) < timedelta(seconds=10)
    tick, night = found[TICK], found["kept/daily"]
    assert (tick["task"], tick["target"], tick["arguments"]) == (
        "upkeep.refresh.tier",
        "five_minutes",
        {"tier": "five_minutes"},
    )
    assert (tick["cron"], tick["timezone"], tick["jitter_s"], tick["catch_up"]) == (
        "*/5 * * * *",
        "UTC",
        120,
        "none",
    )
    assert (night["timezone"], night["jitter_s"], night["catch_up"]) == ("America/New_York", 0, "latest")
    assert found["kept/job.settle"]["arguments"] == {"job": "settle"}
    assert found["kept/schedule.nightly"]["target"] == "public.base"
    for each in found.values():
        slot, due = (datetime.fromisoformat(each[key]) for key in ("next_slot", "next_due"))
        assert clock < slot <= due < slot + timedelta(minutes=2)
        assert (each["last_slot"], each["last_run"], each["paused"]) == (None, None, None)
    text = scheduled("schedule", "list").out
    assert text.startswith("No scheduler leads: nothing becomes due.\n→ celery -A worker.app beat\n")
    assert all(name in text for name in ALL)
    assert all(word in text for word in ("America/New_York", "jitter 2m", "catch_up none", "never"))
    assert "upkeep.refresh.view\nview=public.base" in text or "upkeep.refresh.view view=public.base" in text


def test_who_leads_is_said_with_its_session(scheduled: Upkeep, system: Database) -> None:
    start_scheduler(scheduled, system)
    with leading(system) as pid:
        leader = scheduled("schedule", "list", "--json").json["leader"]
        assert (leader["pid"], leader["client"], leader["application_name"]) == (
            pid,
            "127.0.0.1",
            "upkeep/scheduler",
        )
        opened = datetime.fromisoformat(leader["backend_start"])
        assert abs(datetime.now(UTC) - opened) < timedelta(minutes=1)
        first = scheduled("schedule", "list").out.splitlines()[0]
        assert first.startswith(
            f"A scheduler leads: session {pid}, from 127.0.0.1, open since {opened:%Y-%m-%d}"
        )
    wait_until(lambda: "No scheduler leads" in scheduled("schedule", "list").out)


def test_a_leader_of_another_role_is_seen_though_not_where_it_is(
    scheduled: Upkeep, system: Database, role: NewRole, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = role(system, "reader")
    system.connect().execute(
        "GRANT USAGE ON SCHEMA upkeep TO reader; GRANT SELECT ON ALL TABLES IN SCHEMA upkeep TO reader"
    )
    monkeypatch.setenv("UPKEEP_KEPT_URL", url)
    with leading(system) as pid:
        said = scheduled("schedule", "list")
        assert (said.code, said.err) == (0, "")
        assert f"A scheduler leads: session {pid}, of a role that this one may not look at" in said.out
    # Looking is all that it may do.
    said = scheduled("schedule", "pause", TICK)
    assert (said.code, "permission denied" in said.err, "upkeep doctor" in said.err) == (1, True, True)


def test_a_standby_is_not_taken_for_a_fleet_without_a_leader(
    scheduled: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat = state.heartbeat
    monkeypatch.setattr(state, "heartbeat", lambda connection: replace(beat(connection), in_recovery=True))
    said = scheduled("schedule", "list")
    assert (said.code, "No scheduler leads" in said.out, "on a standby" in said.out) == (0, False, True)
    assert scheduled("schedule", "list", "--json").json["standby"] is True


def test_the_last_run_is_that_of_the_newest_slot_in_the_ledger_of_its_own_database(
    scheduled: Upkeep, system: Database, other: Database
) -> None:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)

    def add(database: Database, label: str, state_: State | None, ago_h: int, **changes: Any) -> int:
        connection = database.connect()
        new = {
            "task": "upkeep.ledger.prune",
            "target": "kept",
            "entry": label,
            "queue": "maintenance",
            "slot": hour - timedelta(hours=ago_h),
            **changes,
        }
        run_id, _ = ledger.insert(connection, NewRun(**new))
        if state_ is not None:
            ledger.finish(connection, run_id, state_, reason="as it happened")
        return run_id

    # Inserted in another order than that of their slots: an older one was caught up with.
    newest = add(system, "ledger.prune", State.MISSED, 1)
    add(system, "ledger.prune", State.SUCCEEDED, 25)
    # None of these is a slot of that entry.
    add(system, "operator", State.FAILED, 0, slot=None)
    add(system, "other.entry", State.FAILED, 0)
    add(system, "ledger.prune", State.FAILED, 0, target="elsewhere")
    add(system, "ledger.prune", State.FAILED, 0, target="other")
    there = add(other, "ledger.prune", None, 2, target="other")
    add(other, "ledger.prune", State.FAILED, 0, target="kept")
    start_scheduler(scheduled, system, ago=timedelta(hours=5))
    found = listed(scheduled)
    run = found["kept/ledger.prune"]["last_run"]
    assert (run["id"], run["state"], run["reason"]) == (newest, "missed", "as it happened")
    run = found["other/ledger.prune"]["last_run"]
    assert (run["id"], run["state"], run["finished_at"]) == (there, "queued", None)
    assert found[TICK]["last_run"] is None
    last_slot = datetime.fromisoformat(found["kept/ledger.prune"]["last_slot"])
    assert abs(datetime.now(UTC) - timedelta(hours=5) - last_slot) < timedelta(minutes=1)
    text = scheduled("schedule", "list").out
    assert text.index("missed") < text.index("other  ") < text.index("queued")


def test_slots_come_by_the_home_databases_clock(scheduled: Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    beat = state.heartbeat
    clock = datetime(2031, 3, 9, 6, 59, 59, tzinfo=UTC)
    monkeypatch.setattr(state, "heartbeat", lambda connection: replace(beat(connection), clock=clock))
    assert scheduled("schedule", "list", "--json").json["clock"] == clock.isoformat()
    # On that day New York has no half past two: it is run when the clocks go forward.
    assert listed(scheduled)["kept/daily"]["next_slot"] == "2031-03-09T07:00:00+00:00"


def test_a_slot_whose_jitter_runs_is_the_next_one(
    scheduled: Upkeep, system: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick = declared(scheduled)[TICK]
    hours = (datetime(2031, 3, 9, hour, tzinfo=UTC) for hour in range(24))
    slot = next(each for each in hours if tick.due_at(each) - each > timedelta(seconds=2))
    beat = state.heartbeat
    monkeypatch.setattr(
        state,
        "heartbeat",
        lambda connection: replace(beat(connection), clock=slot + timedelta(seconds=1)),
    )
    connection = system.connect()
    state.reconcile(connection, declared(scheduled).values(), slot - timedelta(minutes=5))
    found = listed(scheduled)[TICK]
    assert (found["next_slot"], found["next_due"]) == (slot.isoformat(), tick.due_at(slot).isoformat())
    assert "due 0" in scheduled("schedule", "list").out
    # Once it has been put into the ledger, or was before the entry's time, it is the one after it.
    state.advance(connection, {TICK: slot})
    assert listed(scheduled)[TICK]["next_slot"] == (slot + timedelta(minutes=5)).isoformat()


def test_what_is_declared_no_longer_is_listed_where_that_is_asked_for(
    scheduled: Upkeep, system: Database
) -> None:
    before = scheduled.config.read_text(encoding="utf-8")
    start_scheduler(scheduled, system)
    assert scheduled("schedule", "pause", "kept/job.settle").code == 0
    without = before.replace("[jobs.settle]", "[jobs.balance]")
    scheduled.write(without)
    # The scheduler that runs was started with the file as it was.
    text = scheduled("schedule", "list", "--all").out
    assert "by the scheduler's upkeep.toml" in " ".join(text.split())
    start_scheduler(scheduled, system)
    assert "kept/job.settle" not in listed(scheduled)
    assert "undeclared" not in scheduled("schedule", "list", "--json").json
    assert "kept/job.settle" not in scheduled("schedule", "list").out
    (gone,) = scheduled("schedule", "list", "--json", "--all").json["undeclared"]
    assert (gone["entry"], gone["paused"]["reason"]) == ("kept/job.settle", None)
    assert datetime.fromisoformat(gone["removed_at"]) <= datetime.now(UTC)
    text = scheduled("schedule", "list", "-a").out
    assert "not declared here" in text
    assert "kept/job.settle" in text


def test_a_scheduler_that_has_another_file_is_told(scheduled: Upkeep, system: Database) -> None:
    start_scheduler(scheduled, system)
    text = scheduled.config.read_text(encoding="utf-8")
    scheduled.write(
        text.replace("30 2 * * *", "40 2 * * *").replace("[schedule.nightly]", "[schedule.later]")
    )
    found = listed(scheduled)
    assert [name for name, each in found.items() if not each["known"]] == [
        "kept/daily",
        "kept/schedule.later",
    ]
    # Without one that leads there is nothing to restart.
    assert "Restart" not in scheduled("schedule", "list").out
    with leading(system):
        said = " ".join(scheduled("schedule", "list").out.split())
    assert "kept/daily: the scheduler that leads has another definition of it" in said
    assert "kept/schedule.later: the scheduler that leads does not know it" in said
    assert said.count("Restart the schedulers") == 2


def test_an_entry_that_makes_no_sense_is_shown_with_why(scheduled: Upkeep) -> None:
    text = scheduled.config.read_text(encoding="utf-8")
    scheduled.write(text.replace('"upkeep.refresh.view"', '"upkeep.refresh.vew"'))
    found = listed(scheduled)["kept/schedule.nightly"]
    assert found["problem"]["remedy"] == 'Did you mean "upkeep.refresh.view"?'
    assert (found["target"], found["last_run"]) == (None, None)
    said = scheduled("schedule", "list").out
    assert "kept/schedule.nightly: There is no task named 'upkeep.refresh.vew'" in said


def test_a_database_that_is_away_hides_no_other(scheduled: Upkeep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPKEEP_OTHER_URL", "postgresql://me:geheim@127.0.0.1:1/away")
    said = scheduled("schedule", "list")
    assert said.code == 1
    assert all(name in said.out for name in ALL)
    assert said.out.count("unknown") == 1
    assert "127.0.0.1:1/away" in said.err
    document = scheduled("schedule", "list", "--json")
    assert document.code == 1
    assert [each["database"] for each in document.json["errors"]] == ["other"]
    assert {each["entry"] for each in document.json["entries"]} == ALL
    assert "geheim" not in said.out + said.err + document.out


def test_a_home_that_is_away_hides_neither_the_entries_nor_the_other_ledgers(
    scheduled: Upkeep, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = other.connect()
    run_id, _ = ledger.insert(
        connection,
        NewRun(
            task="upkeep.ledger.prune",
            target="other",
            entry="ledger.prune",
            queue="maintenance",
            slot=datetime.now(UTC),
        ),
    )
    monkeypatch.setenv("UPKEEP_KEPT_URL", "postgresql://me:geheim@127.0.0.1:1/home")
    said = scheduled("schedule", "list")
    assert said.code == 1
    assert "Which scheduler leads, how far it is and what is paused are not known" in said.out
    assert "No scheduler leads" not in said.out
    assert "queued" in said.out
    assert "127.0.0.1:1/home" in said.err
    document = scheduled("schedule", "list", "--json").json
    assert [each["database"] for each in document["errors"]] == ["kept"]
    found = {each["entry"]: each for each in document["entries"]}
    assert found["other/ledger.prune"]["last_run"]["id"] == run_id
    assert datetime.fromisoformat(found[TICK]["next_slot"]) > datetime.now(UTC)


def test_the_list_keeps_to_the_width_and_loses_nothing(
    scheduled: Upkeep, system: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_scheduler(scheduled, system)
    assert scheduled("schedule", "pause", TICK, "--reason", "x " * 90).code == 0
    for columns in (60, 80, 100, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        said = scheduled("schedule", "list").out
        assert max(map(len, said.splitlines()[1:])) <= columns
        assert "…" not in said
        assert columns < 80 or all(name in said for name in ALL)
        assert said.count("x ") + said.count("x\n") >= 90


def test_a_pipe_gets_no_colours(scheduled: Upkeep) -> None:
    for words in (["list"], ["pause", "nope"]):
        done = scheduled.process("schedule", *words)
        assert "\x1b" not in done.stdout + done.stderr
        assert done.stdout + done.stderr


# ---- pause and resume ----


def test_an_entry_is_paused_before_any_scheduler_knows_it_and_stays_so(
    scheduled: Upkeep, system: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "o'ada")
    monkeypatch.setattr("socket.gethostname", lambda: 'ops"1')
    said = scheduled("schedule", "pause", TICK, "--reason", REASON, "--json")
    assert said.code == 0, said.err
    (done,) = said.json["entries"]
    assert (done["entry"], done["changed"], done["paused"]["by"]) == (TICK, True, "o'ada@ops\"1")
    assert done["paused"]["reason"] == REASON
    assert abs(datetime.fromisoformat(done["paused"]["since"]) - datetime.now(UTC)) < timedelta(seconds=10)
    assert set(states(system)) == {TICK}
    # Schedulers come and go, also with another definition of it.
    for text in ("*/5 * * * *", "*/7 * * * *"):
        before = scheduled.config.read_text(encoding="utf-8")
        scheduled.write(before.replace('jitter = "2m"', f'jitter = "2m"\ncron = "{text}"'))
        start_scheduler(scheduled, system)
        assert states(system)[TICK].definition["cron"] == text
        assert state.heartbeat(system.connect()).paused == {TICK}
        assert listed(scheduled)[TICK]["paused"] == done["paused"]
        scheduled.write(before)
    # Somebody else finds out by whom and since when, and changes nothing.
    monkeypatch.setenv("LOGNAME", "bob")
    said = scheduled("schedule", "pause", TICK, "--reason", "another")
    assert (said.code, said.err) == (0, "")
    assert f"{TICK} is paused already, since " in said.out
    assert f"by o'ada@ops\"1: {REASON}" in said.out
    (again,) = scheduled("schedule", "pause", TICK, "--json").json["entries"]
    assert (again["changed"], again["paused"]) == (False, done["paused"])
    for words in (["schedule", "list"], ["status"]):
        text = " ".join(scheduled(*words).out.split())
        assert f"five_minutes{' is paused' if words == ['status'] else ''} since" in text
        assert f"by o'ada@ops\"1: {REASON}" in text
        assert f"upkeep schedule resume {TICK}" in text


def test_a_pause_without_a_reason_gets_none_from_the_next_one(scheduled: Upkeep) -> None:
    assert scheduled("schedule", "pause", TICK, "--reason", "  ").code == 0
    assert scheduled("schedule", "pause", TICK, "--reason", "mine").code == 0
    assert listed(scheduled)[TICK]["paused"]["reason"] is None


def test_resuming_goes_on_with_the_next_slot(scheduled: Upkeep, system: Database) -> None:
    start_scheduler(scheduled, system, ago=timedelta(hours=1))
    assert scheduled("schedule", "pause", TICK, "kept/daily", "--reason", REASON).code == 0
    said = scheduled("schedule", "resume", TICK)
    assert said.code == 0
    assert f"{TICK} goes on with its next slot, " in said.out
    assert REASON in said.out
    found = states(system)
    assert found[TICK].last_slot > datetime.now(UTC) - timedelta(seconds=10)
    assert (found[TICK].paused_at, found[TICK].paused_by, found[TICK].pause_reason) == (None, None, None)
    assert found["kept/daily"].paused_at is not None
    # Not paused: said, and nothing else; a slot that is due is not skipped by it.
    before = states(system)
    said = scheduled("schedule", "resume", TICK, "kept/job.settle")
    assert (said.code, said.out) == (0, f"{TICK} is not paused\nkept/job.settle is not paused\n")
    assert states(system) == before
    (done,) = scheduled("schedule", "resume", "kept/daily", "--json").json["entries"]
    assert (done["changed"], done["was_paused"]["reason"]) == (True, REASON)
    assert datetime.fromisoformat(done["next_slot"]) > datetime.now(UTC)


def test_an_entry_that_comes_back_can_be_paused_before_the_scheduler_knows(
    scheduled: Upkeep, system: Database
) -> None:
    start_scheduler(scheduled, system, ago=timedelta(hours=3))
    whole = scheduled.config.read_text(encoding="utf-8")
    scheduled.write(whole.replace("[jobs.settle]", "[jobs.balance]"))
    start_scheduler(scheduled, system)
    scheduled.write(whole)
    found = listed(scheduled)["kept/job.settle"]
    assert (found["known"], found["last_slot"]) == (False, None)
    assert scheduled("schedule", "pause", "kept/job.settle").code == 0
    assert listed(scheduled)["kept/job.settle"]["paused"] is not None
    start_scheduler(scheduled, system)
    assert "kept/job.settle" in state.heartbeat(system.connect()).paused
    # What went by while it was not declared is nobody's.
    assert states(system)["kept/job.settle"].last_slot > datetime.now(UTC) - timedelta(minutes=1)


UNKNOWN = {
    "kept/five_minuts": 'Did you mean "kept/five_minutes"?',
    "five_minutes": 'Did you mean "kept/five_minutes"?',
    """kept/it's "daily"; DROP TABLE x""": "kept/daily",
    "": "Known: kept/daily",
    "zzz": "Known: kept/daily",
    "kept/weekly\udc80\n": "kept/",
}


@pytest.mark.parametrize("command", ["pause", "resume", "run-now"])
def test_an_unknown_entry_is_a_mistake_told_before_anything_is_done(
    scheduled: Upkeep, system: Database, command: str
) -> None:
    for name, remedy in UNKNOWN.items():
        names = ["kept/daily", name] if command != "run-now" else [name]
        said = scheduled("schedule", command, *names)
        assert (said.code, said.out) == (2, "")
        first, second = said.err.splitlines()
        assert first == f"error: There is no entry named {name!r} in the schedule"
        assert remedy in second
        error = scheduled("schedule", command, *names, "--json").json["error"]
        assert remedy in error["remedy"]
    assert states(system) == {}
    assert messages(scheduled, "refresh") == []


def test_a_reason_is_one_line_that_can_be_printed(scheduled: Upkeep, system: Database) -> None:
    for reason in ("two\nlines", "x" * 201, "half \udc80", "\x1b[31mred"):
        said = scheduled("schedule", "pause", TICK, "--reason", reason)
        assert (said.code, "--reason is one line" in said.err) == (2, True)
    assert states(system) == {}


def test_a_home_that_is_away_is_an_error_without_its_password(
    scheduled: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPKEEP_KEPT_URL", "postgresql://me:geheim@127.0.0.1:1/home")
    for command in ("pause", "resume"):
        said = scheduled("schedule", command, TICK)
        assert (said.code, "127.0.0.1:1/home" in said.err) == (1, True)
        assert "geheim" not in said.err
        assert "error" in scheduled("schedule", command, TICK, "--json").json
        # The command line is judged first.
        assert scheduled("schedule", command, "nope").code == 2


COMMANDS = (["list"], ["pause", TICK], ["resume", TICK])


def test_a_schema_that_is_missing_older_or_newer_is_told(
    scheduled: Upkeep, system: Database, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def says(text: str) -> None:
        for words in COMMANDS:
            said = scheduled("schedule", *words)
            assert (said.code, text in said.err) == (1, True), said.err
            assert "Traceback" not in said.err

    connection = system.connect()
    connection.execute("UPDATE upkeep.schema_version SET version_num = '0001'")
    says("is at 0001, this version needs")
    connection.execute("UPDATE upkeep.schema_version SET version_num = '9999'")
    says("does not know")
    monkeypatch.setenv("UPKEEP_KEPT_URL", new_database().url)
    says("has no schema upkeep")
    assert states(system) == {}


def test_rows_of_a_newer_version_are_not_touched(scheduled: Upkeep, system: Database) -> None:
    start_scheduler(scheduled, system)
    system.connect().execute("UPDATE upkeep.schedule_state SET format = 2 WHERE entry = 'kept/daily'")
    for words in COMMANDS:
        said = scheduled("schedule", *words)
        assert (said.code, "newer version" in said.err, "Upgrade" in said.err) == (1, True, True)
    assert all(each.paused_at is None for each in states(system).values())
    # Views can be looked at all the same.
    said = scheduled("status", "--json")
    assert said.code == 0
    problems = said.json["databases"][0]["problems"]
    assert any("whether tiers are paused is not known" in each["message"] for each in problems)


# ---- status ----


def test_status_tells_which_tiers_are_paused_and_whose_views_rest(
    scheduled: Upkeep, system: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_scheduler(scheduled, system)
    connection = system.connect()
    connection.execute("REFRESH MATERIALIZED VIEW public.top")
    for view, tier in (("public.base", "five_minutes"), ("public.top", "daily")):
        connection.execute(
            "INSERT INTO upkeep.view_state (view, tier, relation, snapshot_at)"
            " VALUES (%s, %s, %s::regclass, now() - '3 days'::interval)",
            (view, tier, view),
        )

    def kept() -> tuple[dict[str, Any], list[str]]:
        database = scheduled("status", "--json").json["databases"][0]
        views = {each["view"]: each for each in database["views"]}
        return views, [each["message"] for each in database["problems"]]

    views, messages_ = kept()
    assert all(each["late"] for each in views.values())
    assert {each["paused"] for each in views.values()} == {None}
    assert any("public.base: it missed a slot" in each for each in messages_)
    scheduled("schedule", "pause", TICK, "--reason", "migration 42")
    views, messages_ = kept()
    assert views["public.base"]["paused"]["reason"] == "migration 42"
    assert views["public.top"]["paused"] is None
    assert any(each.startswith("five_minutes is paused since ") for each in messages_)
    # It is known why: nobody is asked to look whether a scheduler runs.
    assert not any("public.base: it missed a slot" in each for each in messages_)
    text = scheduled("status").out
    assert "five_minutes  paused\n" in text
    assert "daily  next " in text
    # The pauses of every database are in the home database.
    monkeypatch.setenv("UPKEEP_KEPT_URL", "postgresql://127.0.0.1:1/home")
    said = scheduled("status", "--database", "other")
    assert (said.code, "whether tiers are paused is not known" in said.out) == (0, True)


# ---- run-now ----


@pytest.mark.parametrize(
    ("name", "queue", "task", "kwargs"),
    [
        (TICK, "refresh", "upkeep.refresh.tier", {"tier": "five_minutes"}),
        ("kept/job.settle", "maintenance", "upkeep.job.run", {"job": "settle"}),
        ("kept/schedule.nightly", "refresh", "upkeep.refresh.view", {"view": "public.base"}),
        ("kept/ledger.prune", "maintenance", "upkeep.ledger.prune", {}),
        ("other/ledger.prune", "maintenance", "upkeep.ledger.prune", {}),
    ],
)
def test_an_entry_is_sent_as_its_slot_would_be_by_an_operator(
    scheduled: Upkeep, name: str, queue: str, task: str, kwargs: dict[str, str]
) -> None:
    said = scheduled("schedule", "run-now", name, "--json")
    assert said.code == 0, said.err
    assert (said.json["entry"], said.json["task"], said.json["queue"]) == (name, task, queue)
    (sent,) = messages(scheduled, queue)
    assert sent.pop("requested_by").startswith("cli:")
    assert sent == {"database": name.partition("/")[0], **kwargs}
    assert f"Sent {task} for " in scheduled("schedule", "run-now", name).out


def test_an_entry_that_makes_no_sense_is_not_sent(scheduled: Upkeep) -> None:
    text = scheduled.config.read_text(encoding="utf-8")
    scheduled.write(text.replace('{ view = "public.base" }', '{ view = "public.\\"It\'s\\"" }'))
    said = scheduled("schedule", "run-now", "kept/schedule.nightly")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: schedule.nightly = upkeep.refresh.view: ")
    assert 'public."It\'s" is not managed' in said.err
    assert messages(scheduled, "refresh") == []


def test_a_timeout_is_for_waiting_and_redis_that_is_away_is_told(
    scheduled: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = scheduled("schedule", "run-now", TICK, "--timeout", "3")
    assert (said.code, "--timeout is for --wait" in said.err) == (2, True)
    said = scheduled("schedule", "run-now", TICK, "--wait", "--timeout", "0.3", "--json")
    assert (said.code, said.json["timed_out"], said.json["run"]["state"]) == (1, True, "queued")
    monkeypatch.setenv("UPKEEP_REDIS_URL", "redis://:geheim@127.0.0.1:1/0")
    said = scheduled("schedule", "run-now", TICK)
    assert (said.code, "127.0.0.1:1" in said.err, "geheim" in said.err) == (1, True, False)


@pytest.mark.parametrize(
    "words", [["schedule", "run-now", TICK], ["run", "upkeep.refresh.all", "database=kept"]]
)
def test_the_file_that_is_given_is_the_only_one_that_counts(
    scheduled: Upkeep, tmp_path: Path, words: list[str]
) -> None:
    moved = scheduled.config.rename(tmp_path / "moved.toml")
    done = scheduled.process(*words, "--config", str(moved), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(messages(scheduled, "refresh")) == 1


@pytest.mark.slow
def test_a_paused_entry_can_be_run_now(scheduled: Upkeep, system: Database, worker: Any) -> None:
    assert scheduled("schedule", "pause", TICK, "kept/job.settle").code == 0
    said = scheduled("schedule", "run-now", TICK, "--wait", "--timeout", "60", "--json")
    assert said.code == 0, said.err
    run = said.json["run"]
    assert (run["state"], run["entry"], run["slot"]) == ("succeeded", "operator", None)
    assert {each["target"]: each["state"] for each in said.json["children"]} == {"public.base": "succeeded"}
    said = scheduled("schedule", "run-now", "kept/job.settle", "--wait", "--timeout", "60")
    assert said.code == 0, said.err
    assert "succeeded" in said.out
    found = listed(scheduled)[TICK]
    assert found["paused"] is not None
    # An operator's run is none of its slots.
    assert found["last_run"] is None
