"""status and history: what the ledger says, for people and programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet import ledger
from fleet.ledger import NewRun, State
from fleet.settings import Tier
from tests.conftest import NewDatabase
from tests.integration.worker.cli.conftest import COMMAND, Upkeep
from tests.servers import Database
from worker import cli
from worker.cli.freshness import late

pytestmark = pytest.mark.any_server

VIEW = "upkeep.refresh.view"
DONE = {"strategy": "concurrently", "reason": "it had to", "rows_changed": 1234}


def add(database: Database, target: str, **changes: Any) -> int:
    new = {"task": VIEW, "target": target, "entry": "operator", "queue": "refresh", **changes}
    run_id, _ = ledger.insert(database.connect(), NewRun(**new))
    return run_id


def end(database: Database, run_id: int, state: State, **changes: Any) -> None:
    connection = database.connect()
    with ledger.claim(connection, run_id, worker="w"):
        ledger.finish(connection, run_id, state, **changes)


@pytest.fixture
def ran(system: Database) -> dict[str, int]:
    """Runs that succeeded, failed, wait for another attempt, are queued; and a tier with its child."""
    done = add(system, "public.base")
    end(
        system,
        done,
        State.SUCCEEDED,
        result=DONE,
    )
    failed = add(system, "public.top")
    end(
        system,
        failed,
        State.FAILED,
        reason="duplicate key",
        error={"kind": "permanent", "message": "duplicate key", "remedy": "Mend the data"},
    )
    waiting = add(system, "public.base", max_attempts=4)
    connection = system.connect()
    with ledger.claim(connection, waiting, worker="w"):
        ledger.hand_back(
            connection,
            waiting,
            wait=timedelta(hours=1),
            reason="attempt 1 of 4 failed: lock",
            error={"message": "lock", "remedy": "See who holds it"},
            counts=True,
        )
    parent = add(system, "daily", task="upkeep.refresh.tier")
    child = add(system, "public.top", parent_id=parent)
    return {"done": done, "failed": failed, "waiting": waiting, "parent": parent, "child": child}


def test_status_before_anything_ran(upkeep: Upkeep) -> None:
    said = upkeep("status", "--json")
    assert said.code == 0
    (database,) = said.json["databases"]
    assert {each["view"]: each["fresh_as_of"] for each in database["views"]} == {
        "public.base": None,
        "public.top": None,
    }
    assert all(datetime.fromisoformat(each["next_slot"]) > datetime.now(UTC) for each in database["views"])
    assert {each["level"] for each in database["problems"]} == {"info"}
    assert "never" in upkeep("status").out


def test_status_shows_what_writers_wait_for(upkeep: Upkeep, system: Database) -> None:
    assert upkeep("status", "--json").json["databases"][0]["requests"] == []
    with system.connect() as connection:
        for _ in range(3):
            connection.execute("SELECT upkeep.request_refresh('public.base')")
    (waiting,) = upkeep("status", "--json").json["databases"][0]["requests"]
    assert (waiting["view"], waiting["requests"]) == ("public.base", 3)
    assert "3 requests of writers for public.base, the oldest for" in upkeep("status").out


def test_status_shows_runs_queues_and_problems_with_their_remedies(
    upkeep: Upkeep, ran: dict[str, int]
) -> None:
    (database,) = upkeep("status", "--json").json["databases"]
    views = {each["view"]: each for each in database["views"]}
    assert views["public.base"]["last_run"]["id"] == ran["done"]
    assert views["public.base"]["open_run"]["id"] == ran["waiting"]
    assert views["public.top"]["last_run"]["state"] == "failed"
    assert {(each["state"], each["runs"]) for each in database["open_runs"]} == {
        ("queued", 2),
        ("waiting", 1),
    }
    said = upkeep("status")
    assert said.code == 0
    assert f"public.top: duplicate key (run {ran['failed']})" in said.out
    assert "→ Mend the data" in said.out
    assert "→ See who holds it" in said.out
    assert "2 runs queued in the queue refresh" in said.out
    assert "1,234" in said.out


@pytest.mark.parametrize("columns", ["80", "100", "120"])
def test_status_and_history_keep_to_the_width_and_lose_nothing(
    upkeep: Upkeep, ran: dict[str, int], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for command in ("status", "history"):
        said = upkeep(command).out
        assert max(map(len, said.splitlines())) <= int(columns)
        assert "public.base" in said
        assert "…" not in said


def test_history_is_newest_first_and_filters(upkeep: Upkeep, ran: dict[str, int]) -> None:
    def ids(*words: str) -> list[int]:
        said = upkeep("history", "--json", *words)
        assert said.code == 0
        return [run["id"] for run in said.json["runs"]]

    assert ids() == sorted(ran.values(), reverse=True)
    assert ids("--limit", "2") == sorted(ran.values(), reverse=True)[:2]
    assert ids("--view", "PUBLIC.top") == [ran["child"], ran["failed"]]
    assert ids("--target", "PUBLIC.top") == ids("--view", "PUBLIC.top")
    assert ids("--state", "failed") == [ran["failed"]]
    assert ids("--task", "upkeep.refresh.tier") == [ran["parent"]]
    assert ids("--task", "upkeep.nope") == []
    assert upkeep("history", "--state", "lost").out == "No run matches.\n"
    text = upkeep("history").out
    assert "concurrently: it had to" in text
    assert "duplicate key" in text
    assert "upkeep.refresh.tier daily (operator)" in text


def test_one_run_in_full(upkeep: Upkeep, ran: dict[str, int]) -> None:
    said = upkeep("history", "--run", str(ran["failed"]))
    assert said.code == 0
    assert "error remedy" in said.out
    assert "Mend the data" in said.out
    document = upkeep("history", "--run", str(ran["parent"]), "--json").json
    assert [child["id"] for child in document["children"]] == [ran["child"]]
    assert "public.top" in upkeep("history", "--run", str(ran["parent"])).out


@pytest.mark.parametrize("run", ["4711", str(2**63 - 1)])
def test_a_run_that_is_not_there(upkeep: Upkeep, run: str) -> None:
    said = upkeep("history", "--run", run)
    assert (said.code, f"no run {run}" in said.err) == (2, True)


def test_a_run_of_two_databases_needs_the_databases_name(
    upkeep: Upkeep, system: Database, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = new_database(migrated=True)
    monkeypatch.setenv("UPKEEP_OTHER_URL", other.url)
    upkeep.write(upkeep.config.read_text(encoding="utf-8") + "[databases.other]\n")
    first, second = add(system, "public.base"), add(other, "public.elsewhere")
    assert first == second
    said = upkeep("history", "--run", str(first))
    assert (said.code, "--database" in said.err) == (2, True)
    said = upkeep("history", "--run", str(first), "--database", "other", "--json")
    assert said.json["target"] == "public.elsewhere"
    said = upkeep("history")
    assert "other" in said.out
    assert "kept" in said.out


def test_a_database_that_cannot_be_read_hides_no_other(
    upkeep: Upkeep, ran: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPKEEP_AWAY_URL", "postgresql://me:geheim@127.0.0.1:1/away")
    upkeep.write(upkeep.config.read_text(encoding="utf-8") + "[databases.away]\n")
    for command in ("status", "history"):
        said = upkeep(command)
        assert said.code == 1
        assert "public.base" in said.out
        assert "127.0.0.1:1/away" in said.err
        assert "geheim" not in said.err
    assert "error" in upkeep("status", "--json").json["databases"][1]


def test_late_is_a_whole_interval_without_a_refresh() -> None:
    tier = Tier(name="five_minutes", cron="*/5 * * * *")
    now = datetime(2026, 7, 1, 12, 7, tzinfo=UTC)
    assert not late(tier, datetime(2026, 7, 1, 12, 5, tzinfo=UTC), now)
    assert not late(tier, datetime(2026, 7, 1, 12, 0, tzinfo=UTC), now)
    assert late(tier, datetime(2026, 7, 1, 11, 59, tzinfo=UTC), now)


def test_a_reader_that_has_gone_ends_it_quietly(upkeep: Upkeep, ran: dict[str, int]) -> None:
    for form in ([], ["--json"]):
        read, write = os.pipe()
        os.close(read)
        process = subprocess.Popen(
            [*COMMAND, "history", *form],
            env={**os.environ, **upkeep.environment},
            stdout=write,
            stderr=subprocess.PIPE,
        )
        os.close(write)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (cli.READER_GONE, b"")


def test_nothing_is_written_by_looking(upkeep: Upkeep, system: Database, ran: dict[str, int]) -> None:
    def position() -> Any:
        return (
            system.connect()
            .execute(
                "SELECT max(id), count(*), max(xmin::text::bigint), (SELECT count(*) FROM upkeep.schedule_state)"
                " FROM upkeep.run"
            )
            .fetchone()
        )

    before = position()
    looking = ["status", "history", f"history --run {ran['done']}", "check", "doctor", "schedule list --all"]
    for command in looking:
        assert upkeep(*command.split()).code in (0, 1)
    assert position() == before


def test_an_unmigrated_database_says_what_to_do(
    new_database: NewDatabase, upkeep_with: Callable[..., Upkeep]
) -> None:
    upkeep = upkeep_with(new_database().url)
    for command in ("status", "history"):
        said = upkeep(command)
        assert (said.code, "upkeep migrate" in said.err) == (1, True)
