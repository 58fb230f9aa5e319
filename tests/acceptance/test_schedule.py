"""The scheduler as it is started: on the minute, one run per slot, through two of them, kills and a missing broker."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from fleet.ledger import State
from schedules import state
from tests.processes import TIER, VIEW, Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY);
INSERT INTO public.t VALUES (1);
CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t;
CREATE UNIQUE INDEX v_key ON public.v (id);
"""
CONFIG = """
[databases.kept.tiers.minutely]
cron = "* * * * *"
[databases.kept.views."public.v"]
tier = "minutely"
"""
ENTRY = "kept/minutely"


@pytest.fixture
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture
def upkeep(tmp_path: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(tmp_path, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


def start_beat(upkeep: Fleet, name: str) -> Process:
    return upkeep.start(name, "beat", "-S", "schedules.scheduler:LeaderScheduler", "--pidfile=")


def ticks(kept: Kept) -> list[dict]:
    return kept.rows("SELECT * FROM upkeep.run WHERE task = %s AND entry = 'minutely' ORDER BY slot", TIER)


def a_minute_late(kept: Kept) -> None:
    """As if the scheduler had been away for a minute: the latest slot is due at once."""
    kept.change("UPDATE upkeep.schedule_state SET last_slot = last_slot - '1 min'::interval")


@pytest.mark.slow
def test_a_tier_ticks_on_the_minute_whoever_leads(upkeep: Fleet, kept: Kept) -> None:
    first = start_beat(upkeep, "beat-1")
    first.wait_line(event="scheduler.leads", timeout=60)
    second = start_beat(upkeep, "beat-2")
    second.wait_line(event="scheduler.stands_by", timeout=60)
    worker = upkeep.worker()
    worker.wait_ready()
    (tick,) = wait_until(lambda: ticks(kept), 70, lambda: f"a tick:\n{first.tail()}")
    # On its slot, not on a poll of some seconds; with an expiry, so that it is not run beside the next one.
    assert tick["created_at"] - tick["slot"] < timedelta(seconds=1)
    assert tick["expires_at"] == tick["slot"] + timedelta(minutes=1)
    view = wait_until(
        lambda: kept.rows("SELECT * FROM upkeep.run WHERE task = %s AND finished_at IS NOT NULL", VIEW), 20
    )[0]
    assert (view["state"], view["entry"], view["as_of"]) == (State.SUCCEEDED, "minutely", tick["slot"])
    # The leader is killed: the other one leads, from the same slot on, and inserts nothing twice.
    first.kill()
    second.wait_line(event="scheduler.leads", timeout=5)
    a_minute_late(kept)
    assert second.end(signal.SIGTERM) == 0
    third = start_beat(upkeep, "beat-3")
    third.wait_line(event="scheduler.leads", timeout=60)
    wait_until(
        lambda: (
            kept.scalar("SELECT last_slot FROM upkeep.schedule_state WHERE entry = %s", ENTRY) >= tick["slot"]
        )
    )
    slots = [each["slot"] for each in ticks(kept)]
    assert len(slots) == len(set(slots))


def test_a_slot_is_kept_while_the_broker_is_away(
    tmp_path: Path, kept: Kept, server: EmbeddedPostgres
) -> None:
    with fleet(tmp_path, CONFIG, {"kept": kept.url}, "redis://127.0.0.1:1/0") as upkeep:
        beat = start_beat(upkeep, "beat")
        beat.wait_line(event="scheduler.leads", timeout=60)
        beat.end()
        a_minute_late(kept)
        again = start_beat(upkeep, "beat-2")
        again.wait_line(event="bell.not_rung", timeout=60)
        # The slot is in the ledger, which is the queue; stock beat would have lost it.
        assert [each["state"] for each in ticks(kept)][-1] == "queued"
        assert again.lines(event="schedule.inserted", database="kept")


def test_sigterm_ends_it_at_once_and_leaves_no_lock(upkeep: Fleet, kept: Kept) -> None:
    beat = start_beat(upkeep, "beat")
    beat.wait_line(event="scheduler.leads", timeout=60)
    assert beat.end(signal.SIGTERM, timeout=5) == 0
    wait_until(lambda: kept.advisory_locks() == 0, 5)
    wait_until(lambda: kept.sessions() == [], 5)


@pytest.mark.parametrize("command", ["beat", "worker"])
@pytest.mark.parametrize(
    ("declared", "says"),
    [
        (
            '[schedule.nightly]\ntask = "upkeep.refresh.al"\ncron = "0 1 * * *"\n',
            ["schedule.nightly", "upkeep.refresh.all"],
        ),
        (
            '[schedule.nightly]\ntask = "upkeep.refresh.view"\ncron = "0 1 * * *"\narguments = { view = "public.w" }\n',
            ["schedule.nightly", "public.w", "not managed"],
        ),
        (
            '[schedule.nightly]\ntask = "upkeep.refresh.tier"\ncron = "0 1 * * *"\narguments = { teir = "daily" }\n',
            ["schedule.nightly", "teir"],
        ),
        (
            '[schedule.nightly]\ntask = "upkeep.refresh.all"\ncron = "0 25 * * *"\n',
            ["schedule.nightly.cron", "0 25"],
        ),
        (
            '[schedule.nightly]\ntask = "upkeep.refresh.all"\ncron = "0 1 * * *"\ntimezone = "Europe/Berlyn"\n',
            ["schedule.nightly.timezone", "Europe/Berlin"],
        ),
    ],
    ids=["unknown task", "unmanaged view", "wrong argument", "impossible cron", "unknown zone"],
)
def test_an_entry_that_makes_no_sense_stops_it_at_the_start(
    upkeep: Fleet, kept: Kept, declared: str, says: list[str], command: str
) -> None:
    broken = upkeep.folder / "broken.toml"
    broken.write_text(CONFIG + declared, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker.app", command],
        cwd=upkeep.folder,
        env={**upkeep.environment, "UPKEEP_CONFIG": str(broken)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode not in {0, -signal.SIGKILL}
    for word in says:
        assert word in done.stdout + done.stderr
    assert kept.rows("SELECT * FROM upkeep.run") == []


def test_a_newer_versions_state_is_refused(upkeep: Fleet, kept: Kept) -> None:
    kept.change(
        "INSERT INTO upkeep.schedule_state (entry, definition, last_slot, format) VALUES (%s, '{}', now(), %s)",
        ENTRY,
        state.FORMAT + 1,
    )
    beat = start_beat(upkeep, "beat")
    line = beat.wait_line(event="scheduler.home_away", timeout=60)
    assert line["level"] == "error"
    assert "newer version" in line["error"]
    assert "Upgrade" in line["remedy"]
    assert ticks(kept) == []
