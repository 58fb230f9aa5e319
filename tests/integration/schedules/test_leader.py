"""The leader on real databases: every slot once, whoever leads, whatever is away, whatever was written before."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import structlog
from psycopg import sql
from psycopg.types.json import Jsonb
from pydantic import SecretStr

from fleet import ledger, settings
from fleet.ledger import NewRun, Run
from schedules import due as judging
from schedules import inserting, state
from schedules import leader as leading
from schedules.due import MOST_MISSED
from schedules.entries import Entry
from schedules.leader import Leader
from schedules.slots import latest_slot
from tests.servers import Database
from tests.waiting import wait_until

pytestmark = pytest.mark.any_server

TIER = "upkeep.refresh.tier"


HOUR = timedelta(hours=1)
# Two minutes ago, and not again while these tests run.
HOURLY = f"{(datetime.now(UTC).minute - 2) % 60} * * * *"


def entry(label: str = "hourly", database: str = "home", **changes: Any) -> Entry:
    values: dict[str, Any] = {"cron": HOURLY} | changes
    return Entry(name=f"{database}/{label}", database=database, task=TIER, label=label, **values)


def make_run(each: Entry, slot: datetime) -> NewRun:
    return NewRun(
        task=each.task,
        target=each.label,
        entry=each.label,
        slot=slot,
        queue="refresh",
        max_attempts=4,
        expires_at=each.expiry(slot),
    )


class Schedule:
    """Leaders of one fleet, in threads of this process, and what they did."""

    def __init__(self, home: Database, **others: Database) -> None:
        self.urls = {"home": home.url} | {name: other.url for name, other in others.items()}
        self.rung: list[tuple[str, int]] = []
        self.ring_waits = threading.Event()
        self.ring_waits.set()
        self._stops: list[tuple[threading.Event, threading.Thread, Leader]] = []

    def database(self, name: str) -> settings.Database:
        return settings.Database(name=name, url=SecretStr(self.urls[name]))

    def _ring(self, database: str, runs: Any) -> None:
        self.ring_waits.wait()
        self.rung += [(database, run) for run, _, _ in runs]

    def make(self, *entries: Entry) -> Leader:
        return Leader(
            self.database("home"),
            {name: self.database(name) for name in self.urls},
            {each.name: each for each in entries},
            make_run=make_run,
            ring=self._ring,
        )

    def start(self, *entries: Entry) -> Leader:
        made = self.make(*entries)
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                made.tick()
            made.release()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._stops.append((stop, thread, made))
        return made

    def end(self, which: Leader) -> None:
        for stop, thread, made in self._stops:
            if made is which:
                stop.set()
                thread.join(timeout=20)
                assert not thread.is_alive()
        self._stops = [each for each in self._stops if each[2] is not which]

    def close(self) -> None:
        self.ring_waits.set()
        for _, _, made in list(self._stops):
            self.end(made)

    @contextmanager
    def look(self, name: str = "home") -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.urls[name], autocommit=True) as connection:
            yield connection

    def known(self, *entries: Entry, ago: timedelta = timedelta(), **columns: Any) -> None:
        """As if these entries had been kept for some time, up to `ago`."""
        with self.look() as connection:
            state.reconcile(connection, entries, datetime.now(UTC) - ago)

    def runs(self, name: str = "home") -> list[Run]:
        with self.look(name) as connection:
            return sorted(ledger.history(connection, limit=1000), key=lambda run: (run.target, run.slot))

    def states(self) -> dict[str, state.EntryState]:
        with self.look() as connection:
            return state.read_states(connection)

    def session(self) -> int | None:
        with self.look() as connection:
            found = state.leader(connection)
        return found["pid"] if found else None


@pytest.fixture
def schedule(upkeep_database: Database) -> Iterator[Schedule]:
    made = Schedule(upkeep_database)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "STANDBY_S", 0.05)
    monkeypatch.setattr(leading, "RETRY_S", 0.2)
    monkeypatch.setattr(leading, "HEARTBEAT_S", 0.1)


def latest() -> datetime:
    return latest_slot(HOURLY, "UTC", datetime.now(UTC))


def test_a_slot_that_went_by_is_run_noted_and_rung(schedule: Schedule) -> None:
    tick = entry()
    schedule.known(tick, ago=HOUR)
    schedule.start(tick)
    run = wait_until(lambda: [r for r in schedule.runs() if r.state == "queued"])[0]
    assert run.slot == latest()
    assert (run.task, run.target, run.entry) == (TIER, "hourly", "hourly")
    assert (run.as_of, run.expires_at) == (run.slot, run.slot + HOUR)
    wait_until(lambda: ("home", run.id) in schedule.rung)
    # Noted before it was rung for: there is no bell without a note.
    assert schedule.states()[tick.name].last_slot == run.slot


def test_a_new_entry_begins_with_its_next_slot(schedule: Schedule) -> None:
    schedule.start(entry())
    wait_until(schedule.states)
    assert wait_until(schedule.session)
    assert schedule.runs() == []
    assert abs(schedule.states()["home/hourly"].last_slot - datetime.now(UTC)) < timedelta(seconds=10)


def test_slots_without_a_leader_are_missed_and_the_latest_is_run(schedule: Schedule) -> None:
    lax, strict = entry("lax", cron="*/5 * * * *"), entry("strict", catch_up="none", cron="0 * * * *")
    schedule.known(lax, ago=timedelta(minutes=20))
    schedule.known(lax, strict, ago=timedelta(hours=3))
    with schedule.look() as connection:
        connection.execute("UPDATE upkeep.schedule_state SET last_slot = now() - '3 h 1 min'::interval")
    with structlog.testing.capture_logs() as said:
        schedule.start(lax, strict)
        wait_until(lambda: len(schedule.runs()) >= 38)
        # Told after it is written: wait while the log is looked at.
        wait_until(lambda: [line for line in said if line.get("entry") == "home/lax"])
    runs = schedule.runs()
    # Three hours of five minutes; a slot that comes while we look is run as well.
    lax_states = [r.state for r in runs if r.target == "lax"]
    count = lax_states.count("missed")
    assert count in {35, 36}
    assert lax_states == ["missed"] * count + ["queued"] * (len(lax_states) - count)
    assert len(lax_states) - count in {1, 2}
    missed = [r for r in runs if r.state == "missed"]
    assert all(r.final and r.reason and "no scheduler led" in r.reason for r in missed)
    # A slot that is late by more than a moment is not run for who does not want it.
    if 2 <= datetime.now(UTC).minute < 59:
        assert {r.state for r in runs if r.target == "strict"} == {"missed"}
    (line,) = [each for each in said if each.get("entry") == "home/lax"]
    assert (line["log_level"], line["slots"]) == ("error", len([r for r in missed if r.target == "lax"]))


def test_a_long_outage_is_written_down_beside_the_clock(schedule: Schedule, monkeypatch: Any) -> None:
    """However long nobody led and however slowly the slots of that time are found: the heartbeat does not wait."""

    def slowly(*given: Any, original: Any = judging.latest_slot) -> datetime:
        threading.Event().wait(0.0025)
        return original(*given)

    monkeypatch.setattr(judging, "latest_slot", slowly)
    monkeypatch.setattr(leading, "SILENCE", "1s")
    monkeypatch.setattr(inserting, "ROWS", 150)
    entries = [entry(f"tier_{n}") for n in range(8)]
    schedule.known(*entries, ago=timedelta(days=30))
    with structlog.testing.capture_logs() as said:
        schedule.start(*entries)
        wait_until(lambda: [r for r in schedule.runs() if r.state == "queued"], 20)
        # What is written down counts at once: noted, rung for, and not begun again by the next leader.
        assert len(schedule.runs()) < 8 * (MOST_MISSED + 1)
        wait_until(lambda: schedule.rung)
        wait_until(lambda: len(schedule.rung) == 8, 20)
    events = [line["event"] for line in said]
    assert [each for each in events if each.startswith("scheduler.")] == ["scheduler.leads"]
    assert events.count("schedule.missed") == 8
    assert all(line["more"] for line in said if line["event"] == "schedule.missed")
    runs = schedule.runs()
    assert len(runs) == 8 * (MOST_MISSED + 1)
    assert len([r for r in runs if "older slots" in str(r.reason)]) == 8


def test_ever_so_many_entries_let_the_heart_beat(schedule: Schedule, monkeypatch: Any) -> None:
    def slowly(*given: Any, original: Any = leading.due) -> Any:
        threading.Event().wait(0.02)
        return original(*given)

    monkeypatch.setattr(leading, "due", slowly)
    monkeypatch.setattr(leading, "SILENCE", "1s")
    entries = [entry(f"tier_{n}") for n in range(100)]
    schedule.known(*entries, ago=HOUR)
    with structlog.testing.capture_logs() as said:
        schedule.start(*entries)
        wait_until(lambda: len(schedule.rung) == 100, 20)
    assert {line["event"] for line in said} == {"scheduler.leads", "schedule.inserted"}


def test_a_slot_that_a_dead_leader_inserted_was_not_missed(schedule: Schedule) -> None:
    tick = entry()
    slot = latest()
    schedule.known(tick, ago=3 * HOUR)
    with schedule.look() as connection:
        before, _ = ledger.insert(connection, make_run(tick, slot - HOUR))
        ledger.finish(connection, before, ledger.State.SUCCEEDED)
    with structlog.testing.capture_logs() as said:
        schedule.start(tick)
        wait_until(lambda: schedule.rung)
    assert [(r.slot, r.state) for r in schedule.runs()] == [
        (slot - 2 * HOUR, "missed"),
        (slot - HOUR, "succeeded"),
        (slot, "queued"),
    ]
    (told,) = [line for line in said if line["event"] == "schedule.missed"]
    assert (told["slots"], told["first"]) == (1, (slot - 2 * HOUR).isoformat())


def test_one_leads_and_the_other_takes_over_with_what_was_written_meanwhile(schedule: Schedule) -> None:
    tick = entry()
    first = schedule.start(tick)
    wait_until(lambda: first.leads)
    second = schedule.start(tick)
    pid = schedule.session()
    # Behind the standby's back: it must read this when it is promoted, not what it knew before.
    with schedule.look() as connection:
        connection.execute("UPDATE upkeep.schedule_state SET last_slot = now() - '1 h'::interval")
    assert not second.leads
    schedule.end(first)
    wait_until(lambda: second.leads)
    assert schedule.session() not in {None, pid}
    wait_until(lambda: len(schedule.runs()) == 1)
    # And again from the start: nothing is inserted a second time.
    with schedule.look() as connection:
        connection.execute("UPDATE upkeep.schedule_state SET last_slot = last_slot - '1 h'::interval")
    schedule.end(second)
    third = schedule.start(tick)
    wait_until(lambda: third.leads and schedule.states()[tick.name].last_slot == schedule.runs()[-1].slot)
    assert len([r for r in schedule.runs() if r.state == "queued"]) == len({r.slot for r in schedule.runs()})
    assert len(schedule.rung) == len(set(schedule.rung))


def test_two_that_both_believe_to_lead_run_nothing_twice(schedule: Schedule, monkeypatch: Any) -> None:
    monkeypatch.setattr(leading.locks, "try_acquire", lambda *_: True)
    monkeypatch.setattr(
        leading.state, "heartbeat", lambda c, beat=state.heartbeat: replace(beat(c), leads=True)
    )
    entries = [entry(f"tier_{n}") for n in range(50)]
    schedule.known(*entries, ago=HOUR)
    for _ in range(2):
        schedule.start(*entries)
    wait_until(lambda: len({r.target for r in schedule.runs()}) == 50)
    wait_until(lambda: all(s.last_slot >= latest() for s in schedule.states().values()))
    keys = [(r.target, r.slot) for r in schedule.runs()]
    assert len(keys) == len(set(keys))
    wait_until(lambda: len(schedule.rung) >= 50)
    assert len(schedule.rung) == len(set(schedule.rung))


def test_a_session_that_is_lost_is_leadership_lost_and_won_again(schedule: Schedule) -> None:
    only = schedule.start(entry())
    wait_until(lambda: only.leads)
    pid = schedule.session()
    with structlog.testing.capture_logs() as said, schedule.look() as connection:
        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        assert wait_until(lambda: (now := schedule.session()) != pid and now)
        wait_until(lambda: only.leads)
    assert [line["event"] for line in said if line["event"].startswith("scheduler.")] == [
        "scheduler.leads_no_longer",
        "scheduler.leads",
    ]


def test_the_server_ends_a_leader_that_says_nothing(schedule: Schedule, monkeypatch: Any) -> None:
    monkeypatch.setattr(leading, "SILENCE", "300ms")
    stuck = threading.Event()
    first = schedule.start(entry())
    wait_until(lambda: first.leads)
    # As SIGSTOP does: its session is open, it does nothing.
    monkeypatch.setattr(first, "tick", stuck.wait)
    second = schedule.start(entry())
    wait_until(lambda: second.leads)
    stuck.set()
    assert len({schedule.session()}) == 1


def test_the_server_ends_one_that_gets_the_lock_and_never_hears_of_it(
    schedule: Schedule, monkeypatch: Any
) -> None:
    monkeypatch.setattr(leading, "SILENCE", "300ms")
    stuck = threading.Event()
    first: list[threading.Thread] = []

    def acquire_and_stop(connection: Any, key: str, original: Any = leading.locks.try_acquire) -> bool:
        got = original(connection, key)
        first.append(threading.current_thread())
        if threading.current_thread() is first[0]:
            stuck.wait(20)
        return got

    monkeypatch.setattr(leading.locks, "try_acquire", acquire_and_stop)
    schedule.start(entry())
    assert wait_until(schedule.session)
    second = schedule.start(entry())
    wait_until(lambda: second.leads)
    stuck.set()


def test_a_database_that_is_away_holds_up_no_other_and_catches_up(
    schedule: Schedule, new_database: Any
) -> None:
    away = new_database(migrated=True)
    schedule.urls["away"] = away.url
    here, there = entry("here"), entry("there", "away")
    schedule.known(here, there, ago=2 * HOUR)
    with schedule.look() as connection, structlog.testing.capture_logs() as said:
        allow = sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {}")
        connection.execute(allow.format(sql.Identifier(away.name), sql.SQL("false")))
        schedule.start(here, there)
        wait_until(lambda: [r for r in schedule.runs() if r.target == "here" and r.state == "queued"])
        wait_until(lambda: [line for line in said if line["event"] == "schedule.database_away"])
        assert schedule.states()[there.name].last_slot < datetime.now(UTC) - HOUR
        connection.execute(allow.format(sql.Identifier(away.name), sql.SQL("true")))
        wait_until(lambda: [line for line in said if line["event"] == "schedule.database_back"])
        caught_up = wait_until(lambda: schedule.runs("away"))
        assert [r.state for r in caught_up] == ["missed"] * (len(caught_up) - 1) + ["queued"]
        wait_until(lambda: schedule.states()[there.name].last_slot == caught_up[-1].slot)
    # It was said once, however often it was tried.
    assert len([line for line in said if line["event"] == "schedule.database_away"]) == 1


def test_a_session_that_broke_while_it_lay_idle_makes_no_slot_late(
    schedule: Schedule, monkeypatch: Any
) -> None:
    monkeypatch.setattr(leading, "RETRY_S", 20)
    first, second = entry("first"), entry("second")
    schedule.known(first, second, ago=HOUR)
    with schedule.look() as connection, structlog.testing.capture_logs() as said:
        state.pause(connection, second.name, by="ada", reason=None)
        schedule.start(first, second)
        wait_until(lambda: schedule.rung)
        wait_until(
            lambda: connection.execute(
                "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
                " WHERE application_name = 'upkeep/schedule' AND datname = current_database()"
            ).fetchone()[0]
        )
        connection.execute(
            "UPDATE upkeep.schedule_state SET paused_at = NULL, last_slot = last_slot - '1 h'::interval"
            " WHERE entry = %s",
            (second.name,),
        )
        wait_until(lambda: len(schedule.rung) == 2, 10)
    assert "schedule.database_away" not in [line["event"] for line in said]


def test_a_tick_that_no_worker_starts_ends_with_the_next_one_and_is_told(schedule: Schedule) -> None:
    tick, slot = entry(), latest()
    schedule.known(tick, ago=HOUR)
    with schedule.look() as connection, structlog.testing.capture_logs() as said:
        expired = [
            replace(make_run(tick, slot - n * HOUR), target=f"tier_{n}")
            for n in range(1, ledger.RING_BATCH + 5)
        ]
        ledger.insert_all(connection, expired, worker="scheduler")
        # No reaper is here: this is what is done for a fleet without a single worker.
        schedule.start(tick)
        wait_until(lambda: len([r for r in schedule.runs() if r.state == "missed"]) == len(expired))
        wait_until(lambda: schedule.rung)
    told = [line for line in said if line["event"] == "run.missed"]
    assert len(told) == len({line["run_id"] for line in told}) == len(expired)
    assert {line["log_level"] for line in told} == {"error"}
    assert [r.slot for r in schedule.runs() if r.state == "queued"] == [slot]


def test_a_paused_entry_rests_and_goes_on_with_its_next_slot(schedule: Schedule) -> None:
    tick, other = entry(), entry("other")
    schedule.known(tick, other, ago=HOUR)
    with schedule.look() as connection:
        assert state.pause(connection, tick.name, by="ada", reason="a migration") is False
        assert state.pause(connection, tick.name, by="bob", reason=None) is True
        assert state.pause(connection, "home/unknown", by="bob", reason=None) is None
    schedule.start(tick, other)
    wait_until(lambda: [r for r in schedule.runs() if r.target == "other"])
    paused = schedule.states()[tick.name]
    assert (paused.paused_by, paused.pause_reason) == ("ada", "a migration")
    with schedule.look() as connection:
        assert state.resume(connection, tick.name) is True
        assert state.resume(connection, tick.name) is False
    resumed = schedule.states()[tick.name].last_slot
    assert resumed > datetime.now(UTC) - timedelta(seconds=10)
    # Pausing and resuming is seen by the leader without a restart: as if the next slot had come.
    with schedule.look() as connection:
        state.pause(connection, other.name, by="ada", reason=None)
    assert [r for r in schedule.runs() if r.target == tick.label] == []


def test_a_transaction_that_somebody_forgot_holds_up_no_other_entry(schedule: Schedule) -> None:
    held, other = entry("held"), entry("other")
    schedule.known(held, other, ago=HOUR)
    known = schedule.states()[held.name].last_slot
    with psycopg.connect(schedule.urls["home"]) as forgotten, structlog.testing.capture_logs() as said:
        forgotten.execute("SELECT 1 FROM upkeep.schedule_state WHERE entry = %s FOR UPDATE", (held.name,))
        first = schedule.start(held, other)
        # Sooner than a lock_timeout, both of taking over and of noting.
        wait_until(lambda: len(schedule.rung) == 2, 3)
        wait_until(lambda: schedule.states()[other.name].last_slot == schedule.runs()[-1].slot, 3)
        assert schedule.states()[held.name].last_slot == known
        schedule.end(first)
        second = schedule.start(held, other)
        wait_until(lambda: second.leads, 3)
        forgotten.rollback()
        wait_until(lambda: schedule.states()[held.name].last_slot == schedule.runs()[0].slot)
    assert {line["event"] for line in said} == {"scheduler.leads", "schedule.inserted"}
    assert len(schedule.runs()) == 2


def test_an_entry_that_changed_begins_anew_and_a_removed_one_is_kept_as_history(schedule: Schedule) -> None:
    tick, gone = entry(), entry("gone")
    schedule.known(tick, gone, ago=HOUR)
    changed = entry(cron="0 0 1 1 *")
    schedule.start(changed)
    wait_until(lambda: gone.name not in schedule.states())
    assert schedule.states()[tick.name].last_slot > datetime.now(UTC) - timedelta(seconds=20)
    assert schedule.runs() == []
    with schedule.look() as connection:
        assert connection.execute(
            "SELECT removed_at IS NOT NULL FROM upkeep.schedule_state WHERE entry = %s", (gone.name,)
        ).fetchone() == (True,)


def test_another_scheduler_that_undoes_what_this_one_declares_ends_no_process(schedule: Schedule) -> None:
    tick = entry()
    with schedule.look() as connection, structlog.testing.capture_logs() as said:
        # What another one does between our two statements.
        connection.execute(
            "CREATE FUNCTION public.undo() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN NEW.removed_at := now(); RETURN NEW; END $$"
        )
        connection.execute(
            "CREATE TRIGGER undo BEFORE INSERT ON upkeep.schedule_state FOR EACH ROW EXECUTE FUNCTION public.undo()"
        )
        only = schedule.start(tick)
        (line,) = wait_until(lambda: [each for each in said if each["event"] == "scheduler.home_away"])
        assert tick.name in line["error"]
        connection.execute("DROP TRIGGER undo ON upkeep.schedule_state")
        wait_until(lambda: only.leads)


def test_rows_of_a_newer_version_are_refused_with_the_remedy(schedule: Schedule) -> None:
    tick = entry()
    schedule.known(tick, ago=2 * HOUR)
    with schedule.look() as connection:
        connection.execute("UPDATE upkeep.schedule_state SET format = 2, definition = %s", (Jsonb({"x": 1}),))
    with structlog.testing.capture_logs() as said:
        only = schedule.start(tick)
        (line,) = wait_until(lambda: [each for each in said if each["event"] == "scheduler.home_away"])
    assert "newer version" in line["error"]
    assert "Upgrade" in line["remedy"]
    assert line["log_level"] == "error"
    assert not only.leads
    assert schedule.runs() == []


def test_bells_that_hang_cost_no_leadership(schedule: Schedule, monkeypatch: Any) -> None:
    monkeypatch.setattr(leading, "SILENCE", "500ms")
    first, second = entry("first"), entry("second")
    schedule.known(first, ago=HOUR)
    schedule.ring_waits.clear()
    only = schedule.start(first, second)
    wait_until(schedule.runs)
    pid = schedule.session()
    assert pid
    # Longer than the server would have borne with a leader that waits for its bell.
    with schedule.look() as connection:
        connection.execute("SELECT pg_sleep(1)")
    assert only.leads
    assert schedule.session() == pid
    schedule.ring_waits.set()
    wait_until(lambda: schedule.rung)


def test_bells_that_waited_too_long_are_left_to_the_reaper(schedule: Schedule, monkeypatch: Any) -> None:
    first, second, third = entry("first"), entry("second"), entry("third")
    schedule.known(first, second, third, ago=HOUR)
    with schedule.look() as connection:
        state.pause(connection, second.name, by="ada", reason=None)
        state.pause(connection, third.name, by="ada", reason=None)
        schedule.ring_waits.clear()
        only = schedule.start(first, second, third)
        wait_until(schedule.runs)

        def late(each: Entry) -> None:
            wait_until(lambda: each.name in only._paused)
            connection.execute(
                "UPDATE upkeep.schedule_state SET paused_at = NULL, last_slot = now() - '1 h'::interval"
                " WHERE entry = %s",
                (each.name,),
            )
            wait_until(lambda: only._last[each.name] == latest())

        late(second)
        with monkeypatch.context() as impatient, structlog.testing.capture_logs() as said:
            impatient.setattr(ledger, "LONG_RING_PATIENCE", timedelta())
            schedule.ring_waits.set()
            wait_until(lambda: [line for line in said if line["event"] == "schedule.bells_left_out"])
        late(third)
        wait_until(lambda: len(schedule.rung) == 2)
    rung = [run for _, run in schedule.rung]
    assert [r.target for r in schedule.runs() if r.id in rung] == ["first", "third"]


def test_what_is_inserted_while_its_leader_steps_down_is_rung_for(schedule: Schedule) -> None:
    first, second = entry("first"), entry("second")
    schedule.known(first, second, ago=HOUR)
    with schedule.look() as connection, psycopg.connect(schedule.urls["home"]) as holder:
        # Its insert waits until somebody has decided about one of its runs.
        ledger.insert(holder, make_run(first, latest()))
        only = schedule.start(first, second)
        wait_until(lambda: waits(connection))
        connection.execute("SELECT pg_terminate_backend(%s)", (schedule.session(),))
        wait_until(lambda: only._term == 2 and only.leads)
        holder.rollback()
    wait_until(lambda: len(schedule.rung) == 2)


def waits(connection: Any) -> bool:
    """Whether an insert waits for somebody else's."""
    found = connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'upkeep/schedule'"
        " AND wait_event = 'transactionid'"
    ).fetchone()
    return found[0] > 0


def test_a_signal_ends_it_wherever_it_is(schedule: Schedule, monkeypatch: Any) -> None:
    """Between any two lines of a standby's pass, and of one that fails."""
    monkeypatch.setattr(leading, "RETRY_S", 0.01)
    monkeypatch.setattr(leading, "STANDBY_S", 0.01)
    schedule.start(entry())
    assert wait_until(schedule.session)
    standby = schedule.make(entry())
    standby.tick()
    away = Leader(
        settings.Database(name="home", url=SecretStr("postgresql://127.0.0.1:1/none")),
        {},
        {},
        make_run=make_run,
        ring=lambda *_: None,
    )
    for victim in (standby, away):
        line, lines = 0, 1
        while line < lines:
            line += 1
            lines = wait_until(lambda: lines_of_a_tick(victim, line), 60, lambda: f"line {line} of {lines}")  # noqa: B023
        assert lines > 5
    standby.release()


def lines_of_a_tick(victim: Leader, signalled_at: int) -> int:
    """Run a tick, told to end at one of its lines or threading's; returns how many it had, 0 if it hangs."""
    seen = 0

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.endswith(("leader.py", "inserting.py", "threading.py", "queue.py")):
            return None
        if event == "line":
            seen += 1
            if seen == signalled_at:
                victim.close()
        return trace

    def tick() -> None:
        sys.settrace(trace)
        victim.tick()
        sys.settrace(None)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    # A lock that the signal's handler waits for is never free: this is patience with a busy machine.
    thread.join(timeout=20)
    return 0 if thread.is_alive() else seen


def test_a_clock_that_is_set_runs_nothing_twice(schedule: Schedule, monkeypatch: Any) -> None:
    ahead = timedelta()

    def beat(connection: Any, original: Any = state.heartbeat) -> state.Heartbeat:
        found = original(connection)
        return replace(found, clock=found.clock + ahead)

    monkeypatch.setattr(leading.state, "heartbeat", beat)
    tick = entry()
    with structlog.testing.capture_logs() as said:
        only = schedule.start(tick)
        wait_until(lambda: only.leads)
        ahead = HOUR
        wait_until(lambda: [r for r in schedule.runs() if r.state == "queued"])
        count = len(schedule.runs())
        ahead = timedelta()
        wait_until(lambda: len([x for x in said if x["event"] == "scheduler.clock_was_set"]) == 2)
        wait_until(lambda: only.leads)
    assert len(schedule.runs()) == count
    assert len({r.slot for r in schedule.runs()}) == count


def test_a_clock_that_was_far_ahead_stops_nothing_when_it_is_right_again(
    schedule: Schedule, monkeypatch: Any
) -> None:
    ahead = timedelta(days=30)

    def beat(connection: Any, original: Any = state.heartbeat) -> state.Heartbeat:
        found = original(connection)
        return replace(found, clock=found.clock + ahead)

    monkeypatch.setattr(leading.state, "heartbeat", beat)
    tick = entry()
    schedule.known(tick, ago=HOUR)
    with structlog.testing.capture_logs() as said:
        schedule.start(tick)
        wait_until(lambda: schedule.states()[tick.name].last_slot > datetime.now(UTC) + timedelta(days=29))
        ahead = timedelta()
        wait_until(lambda: schedule.states()[tick.name].last_slot < datetime.now(UTC))
        known = len(schedule.runs())
        ahead = HOUR
        wait_until(lambda: len(schedule.runs()) == known + 1)
    assert schedule.runs()[0].slot == latest() + HOUR
    (told,) = [line for line in said if line["event"] == "schedule.taken_back"]
    assert (told["log_level"], told["entries"], told["count"]) == ("warning", [tick.name], 1)


def test_a_slow_answer_is_no_clock_that_was_set(schedule: Schedule, monkeypatch: Any) -> None:
    monkeypatch.setattr(leading, "CLOCK_JUMP", timedelta(milliseconds=50))
    answers: list[state.Heartbeat] = []

    def beat(connection: Any, original: Any = state.heartbeat) -> state.Heartbeat:
        answers.append(original(connection))
        if len(answers) % 3 == 0:
            threading.Event().wait(0.3)
        return answers[-1]

    monkeypatch.setattr(leading.state, "heartbeat", beat)
    with structlog.testing.capture_logs() as said:
        schedule.start(entry())
        wait_until(lambda: len(answers) > 9)
    assert [line["event"] for line in said] == ["scheduler.leads"]


def test_what_is_resumed_while_its_slot_is_on_its_way_begins_with_the_next_one(schedule: Schedule) -> None:
    tick, slot = entry(), latest()
    schedule.known(tick)
    with schedule.look() as connection, psycopg.connect(schedule.urls["home"]) as holder:
        connection.execute("UPDATE upkeep.schedule_state SET last_slot = %s", (slot - 3 * HOUR,))
        # Its insert waits until somebody has decided about one of its runs.
        ledger.insert(holder, make_run(tick, slot - HOUR))
        only = schedule.start(tick)
        wait_until(lambda: waits(connection))
        state.pause(connection, tick.name, by="ada", reason=None)
        wait_until(lambda: tick.name in only._paused)
        state.resume(connection, tick.name)
        wait_until(lambda: tick.name not in only._paused)
        holder.rollback()
    wait_until(lambda: schedule.rung)
    assert only._last[tick.name] > slot


def test_many_entries_of_one_slot_go_in_one_statement(schedule: Schedule, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        leading, "HEARTBEAT_S", 5.0
    )  # as many as a heartbeat has time for, on a busy machine too
    entries = [entry(f"tier_{n}") for n in range(300)]
    schedule.known(*entries, ago=HOUR)
    schedule.start(*entries)
    wait_until(lambda: len(schedule.rung) >= 300)
    with schedule.look() as connection:
        (transactions,) = connection.execute(
            "SELECT count(DISTINCT xmin::text) FROM upkeep.run WHERE state = 'queued'"
        ).fetchone()
    assert transactions == 1
