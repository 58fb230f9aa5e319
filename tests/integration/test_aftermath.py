"""The look after a fault sees each of the things that it is there for."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from fleet.ledger import NewRun, State, finish, insert
from fleet.postgres import locks
from tests.faults.aftermath import Slot, assert_nothing_is_left, assert_nothing_is_lost
from tests.processes import TIER, VIEW, Kept, fleet
from tests.servers import Database

pytestmark = pytest.mark.any_server

SLOT = datetime(2026, 1, 5, 6, tzinfo=UTC)
TICK = Slot(task=TIER, target="daily", entry="daily", slot=SLOT)


@pytest.fixture
def connection(upkeep_database: Database) -> psycopg.Connection:
    """A database in which all is well: a tick with its view, a request, a skip."""
    made = upkeep_database.connect()
    made.execute("CREATE TABLE public.t (id int PRIMARY KEY, what json)")
    made.execute("INSERT INTO public.t VALUES (1, '{}'), (2, NULL)")
    made.execute("CREATE MATERIALIZED VIEW public.v AS SELECT id, what FROM public.t")
    made.execute("INSERT INTO upkeep.view_state (view, tier) VALUES ('public.v', 'daily')")
    tick = run(made, task=TIER, target="daily", entry="daily", slot=SLOT)
    finish(made, tick, State.SUCCEEDED, result={"views": 1})
    finish(made, run(made, entry="daily", slot=SLOT, parent_id=tick), State.SKIPPED, reason="already fresh")
    finish(made, run(made, request_id="asked"), State.SUCCEEDED)
    return made


def run(connection: psycopg.Connection, **changes) -> int:
    new = {"task": VIEW, "target": "public.v", "entry": "operator", "queue": "refresh"}
    return insert(connection, NewRun(**(new | changes)))[0]


@pytest.fixture
def kept(upkeep_database: Database, connection: psycopg.Connection) -> Kept:
    return Kept(
        database=upkeep_database, url=upkeep_database.url_for("somebody_else", "x"), password="unused"
    )


def look(kept: Kept, **expected) -> None:
    assert_nothing_is_lost(kept, requests=["asked"], slots=[TICK], timeout=0.3, **expected)


def test_all_is_well(kept: Kept) -> None:
    look(kept)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("DELETE FROM upkeep.run WHERE request_id = 'asked'", "request asked: 0 runs"),
        ("DELETE FROM upkeep.run WHERE target = 'daily'", "Slot.*0 runs"),
        ("DELETE FROM upkeep.run WHERE parent_id IS NOT NULL", "runs for 0 of 1 views"),
        ("UPDATE upkeep.run SET reason = NULL WHERE state = 'skipped'", "is skipped, and nothing says why"),
        ("UPDATE upkeep.run SET state = 'lost' WHERE request_id = 'asked'", "is lost, and nothing says why"),
        ("UPDATE upkeep.run SET state = 'failed', reason = 'x' WHERE request_id = 'asked'", "is failed"),
        (
            "UPDATE upkeep.run SET state = 'queued', finished_at = NULL WHERE request_id = 'asked'",
            "the end of",
        ),
        ("INSERT INTO upkeep.refresh_request (view) VALUES ('public.v')", "1 requests for public.v"),
        (
            "INSERT INTO upkeep.announcement (view, run_id, snapshot_at, tags) VALUES ('public.v', 1, now(), '{}')",
            "1 announcements of public.v",
        ),
        ("INSERT INTO public.t VALUES (3)", "public.v lacks 1 rows and has 0 too many"),
        ("DELETE FROM public.t WHERE id = 1", "public.v lacks 0 rows and has 1 too many"),
        ("UPDATE public.t SET what = '[]' WHERE id = 2", "public.v lacks 1 rows and has 1 too many"),
        ("REFRESH MATERIALIZED VIEW public.v WITH NO DATA", "public.v is not populated"),
        ("DROP MATERIALIZED VIEW public.v", "public.v is missing"),
        ("DELETE FROM upkeep.view_state", "no worker has told"),
    ],
)
def test_what_is_lost_is_seen(kept: Kept, connection: psycopg.Connection, fault: str, said: str) -> None:
    connection.execute(fault)
    with pytest.raises(AssertionError, match=said):
        look(kept)


def test_a_view_that_must_not_be_fresh_can_be_left_out(kept: Kept, connection: psycopg.Connection) -> None:
    connection.execute("TRUNCATE public.t")
    look(kept, stale=["public.v"])


@pytest.mark.parametrize("key", ["upkeep/refresh-slot/1", "relation", "run"])
def test_a_lock_of_work_is_seen(
    kept: Kept, connection: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr("tests.faults.aftermath.FREED_S", 0.3)
    names = {
        "relation": "SELECT 'upkeep/relation/' || 'public.v'::regclass::oid",
        "run": "SELECT 'upkeep/run/' || max(id) FROM upkeep.run",
    }
    held = connection.execute(names[key]).fetchone()[0] if key in names else key
    assert locks.try_acquire(connection, held)
    with pytest.raises(AssertionError, match=f"the release of .*{held}"):
        look(kept)
    locks.release(connection, held)
    assert locks.try_acquire(connection, "upkeep/leader")
    look(kept)


def test_what_is_left_is_seen(tmp_path: Path, kept: Kept) -> None:
    with fleet(tmp_path, "", {}, "redis://127.0.0.1:1/0") as upkeep:
        assert_nothing_is_left(upkeep, kept)
        with (
            psycopg.connect(kept.database.url, application_name="upkeep/stray"),
            pytest.raises(AssertionError, match="upkeep/stray"),
        ):
            assert_nothing_is_left(upkeep, kept, timeout=0.3)
        with psycopg.connect(kept.database.url) as holder:
            assert locks.try_acquire(holder, "upkeep/leader")
            with pytest.raises(AssertionError, match="every advisory lock"):
                assert_nothing_is_left(upkeep, kept, timeout=0.3)


def test_the_roles_sessions_are_left_whatever_they_call_themselves(
    tmp_path: Path, upkeep_database: Database, kept: Kept, role
) -> None:
    url = role(upkeep_database, "somebody_else")
    with (
        fleet(tmp_path, "", {}, "redis://127.0.0.1:1/0") as upkeep,
        psycopg.connect(url, application_name="psql"),
        pytest.raises(AssertionError, match="psql"),
    ):
        assert_nothing_is_left(upkeep, kept, timeout=0.3)


def test_a_process_that_does_not_end_well_is_seen(tmp_path: Path, kept: Kept) -> None:
    with fleet(tmp_path, "", {}, "redis://127.0.0.1:1/0") as upkeep:
        upkeep.start_command("fails", [sys.executable, "-c", "import signal; signal.pause()"])
        with pytest.raises(AssertionError, match="'fails': -15"):
            assert_nothing_is_left(upkeep, kept)


def test_a_view_with_a_name_that_needs_quotes(kept: Kept, connection: psycopg.Connection) -> None:
    name = sql.Identifier("public", 'V "x"')
    connection.execute(
        sql.SQL("CREATE MATERIALIZED VIEW {} AS SELECT id FROM public.t WHERE id % 2 = 1").format(name)
    )
    connection.execute(
        "INSERT INTO upkeep.view_state (view, tier) VALUES (%s, 'daily')", [name.as_string(connection)]
    )
    connection.execute("INSERT INTO upkeep.view_state (view, tier) VALUES ('public.gone', NULL)")
    look(kept)
