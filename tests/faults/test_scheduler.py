"""Schedulers that are killed, stopped, cut off or started at once: every slot has exactly one run, whoever leads.

Each scheduler reaches its servers through proxies of its own. A slot is made due by moving the entry back in
upkeep.schedule_state; the tier's ticks come by the minute, through all of it.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from fleet.ledger import State
from schedules import state
from schedules.slots import latest_slot, next_slot
from tests.faults.aftermath import Slot, assert_nothing_is_left, assert_nothing_is_lost
from tests.processes import TIER, VIEW, Fleet, Kept, Process, fleet, keep
from tests.proxy import Cut, Proxy, Way
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

LEADERSHIP = frozenset(f"scheduler.{said}" for said in ("leads", "stands_by", "leads_no_longer", "home_away"))
# Of each database: a slot comes once only, so that every test takes new ones.
ENTRIES = 120
# What the issue promises of a takeover after SIGKILL; measured: 0.3 to 0.8 s.
TAKEOVER_S = 3.0
# A bell that was lost is rung again by the reaper of a worker.
BELL_S = 30.0
# A slot that was made due is in the ledger a heartbeat later, which is a second; this machine has two busy cores.
IN_TIME_S = 3.0
HOUR = timedelta(hours=1)
# Two minutes ago, and not again while these tests run; and another one.
CRON, OTHER_CRON = (f"{(datetime.now(UTC).minute - ago) % 60} * * * *" for ago in (2, 12))

SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY);
INSERT INTO public.t VALUES (1);
CREATE MATERIALIZED VIEW public.quick AS SELECT id FROM public.t;
CREATE UNIQUE INDEX quick_key ON public.quick (id);
"""
# Who notes that a slot was inserted passes here, if nobody holds the lock.
GATE = """
CREATE FUNCTION public.gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.last_slot > OLD.last_slot THEN
        PERFORM pg_advisory_xact_lock_shared(4711);
    END IF;
    RETURN NEW;
END $$
"""


def configuration(kept: int = ENTRIES, other: int = ENTRIES, **changed: str) -> str:
    """Two databases with a tier by the minute each, and entries that are due when a test says so."""
    lines = ['[fleet]\nhome = "kept"', '[tiers.minutely]\ncron = "* * * * *"']
    lines += [f'[databases.{name}.views."public.quick"]\ntier = "minutely"' for name in ("kept", "other")]
    for database, count in (("kept", kept), ("other", other)):
        lines += [
            f'[schedule.{database}_{n}]\ntask = "{VIEW}"\ndatabase = "{database}"\n'
            f'cron = "{changed.get(f"{database}_{n}", CRON)}"\narguments = {{ view = "public.quick" }}'
            for n in range(count)
        ]
    lines += [f'[jobs.far]\ndatabase = "kept"\nsql = "SELECT 1"\nqueue = "archive"\ncron = "{CRON}"']
    return "\n".join(lines)


@dataclass(kw_only=True)
class Scheduler:
    """One process of `celery beat`, and the ways that it has to its servers."""

    process: Process
    home: Proxy
    other: Proxy
    redis: Proxy

    @property
    def name(self) -> str:
        return self.process.name

    @property
    def alive(self) -> bool:
        return self.process.popen.poll() is None

    def said(self) -> list[str]:
        """What it has said of its leadership."""
        return [str(line["event"]) for line in self.process.lines() if line.get("event") in LEADERSHIP]

    @property
    def leads(self) -> bool:
        """By its own words."""
        return self.alive and self.said()[-1:] == ["scheduler.leads"]

    def signal(self, which: signal.Signals) -> None:
        os.kill(self.process.pid, which)


@dataclass(kw_only=True)
class Clock:
    """The schedulers of a fleet, and the slots that were made due."""

    upkeep: Fleet
    kept: Kept
    other: Kept
    stack: ExitStack
    schedulers: list[Scheduler] = field(default_factory=list)
    numbers: dict[str, Iterator[int]] = field(
        default_factory=lambda: {"kept": itertools.count(), "other": itertools.count()}
    )

    # The processes

    def start(self, **environment: str) -> Scheduler:
        """Start one more; it may lead or stand by."""
        ports = [self.kept.database.server.port, self.other.database.server.port]
        ports.append(int(self.upkeep.redis_url.rpartition(":")[2].partition("/")[0]))
        home, other, broker = (self.stack.enter_context(Proxy(port)) for port in ports)
        process = self.upkeep.start(
            f"beat-{len(self.schedulers)}",
            "beat",
            "--pidfile=",
            environment={
                "UPKEEP_KEPT_URL": home.url(self.kept.url),
                "UPKEEP_OTHER_URL": other.url(self.other.url),
                "UPKEEP_REDIS_URL": broker.url(self.upkeep.redis_url),
                **environment,
            },
        )
        self.schedulers.append(Scheduler(process=process, home=home, other=other, redis=broker))
        return self.schedulers[-1]

    def up(self, scheduler: Scheduler) -> Scheduler:
        """Wait until it leads or stands by."""
        wait_until(scheduler.said, 60, lambda: f"a word of {scheduler.name}:\n{scheduler.process.tail()}")
        return scheduler

    def alive(self) -> list[Scheduler]:
        return [each for each in self.schedulers if each.alive]

    def leader(self, timeout: float = 10) -> Scheduler:
        """Wait until one leads, by its own words and by the server's."""

        def agreed() -> list[Scheduler]:
            found = [each for each in self.schedulers if each.leads]
            return found if self.session() and len(found) == 1 else []

        return wait_until(agreed, timeout, self.told)[0]

    def pair(self) -> tuple[Scheduler, Scheduler]:
        """One that leads and one that stands by: those that are there, and new ones."""
        while len(self.alive()) < 2:
            self.start()
        for each in self.alive():
            self.up(each)
        leader = self.leader()
        standby = next(each for each in self.alive() if each is not leader)
        wait_until(lambda: standby.said()[-1:] == ["scheduler.stands_by"], 10, self.told)
        return leader, standby

    def alone(self, scheduler: Scheduler) -> Scheduler:
        """End all others in order, so that this one leads."""
        self.up(scheduler)
        for each in self.alive():
            if each is not scheduler:
                assert each.process.end() == 0
        assert self.leader() is scheduler
        return scheduler

    def session(self) -> dict[str, Any] | None:
        """The session that leads, as the home database has it."""
        with psycopg.connect(self.kept.database.url, autocommit=True) as connection:
            return state.leader(connection)

    def told(self) -> str:
        return "\n".join(f"{each.name}: {each.said()}" for each in self.schedulers)

    # The slots

    def names(self, count: int = 1, database: str = "kept") -> list[str]:
        """Entries that no test has made due yet."""
        numbers = [next(self.numbers[database]) for _ in range(count)]
        assert numbers[-1] < ENTRIES, "the configuration has too few entries"
        return [f"{database}_{number}" for number in numbers]

    def behind(self, names: Iterable[str] = (), *, hours: int = 1, database: str = "kept") -> list[Slot]:
        """Move entries back by so many slots, for who leads next; returns the slots."""
        names = list(names) or self.names(database=database)
        slot = latest_slot(CRON, "UTC", datetime.now(UTC))
        self.kept.change(
            "UPDATE upkeep.schedule_state SET last_slot = %s, paused_at = NULL WHERE entry = ANY (%s)",
            slot - hours * HOUR,
            [f"{database}/schedule.{name}" for name in names],
        )
        return [
            Slot(task=VIEW, target="public.quick", entry=f"schedule.{name}", slot=slot - n * HOUR)
            for name in names
            for n in range(hours)
        ]

    def due(self, names: Iterable[str] = (), *, hours: int = 1, database: str = "kept") -> list[Slot]:
        """The same for who leads now, who reads this when an entry is resumed."""
        names = list(names) or self.names(database=database)
        self.kept.change(
            "UPDATE upkeep.schedule_state SET paused_at = now() WHERE entry = ANY (%s)",
            [f"{database}/schedule.{name}" for name in names],
        )
        self.heard()
        return self.behind(names, hours=hours, database=database)

    def due_job(self) -> dict[str, Any]:
        """The same for the job of which only one worker hears; returns its run."""
        self.kept.change("UPDATE upkeep.schedule_state SET paused_at = now() WHERE entry = 'kept/job.far'")
        self.heard()
        self.kept.change(
            "UPDATE upkeep.schedule_state SET paused_at = NULL, last_slot = last_slot - '1 hour'::interval"
            " WHERE entry = 'kept/job.far'"
        )
        return wait_until(
            lambda: self.kept.rows("SELECT id FROM upkeep.run WHERE target = 'far'"), IN_TIME_S, self.told
        )[0]

    def heard(self) -> None:
        """Wait until the leader has looked at the state since now."""
        now = self.kept.scalar("SELECT clock_timestamp()")
        wait_until(
            lambda: self.kept.rows(
                "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND query_start > %s",
                (self.session() or {"pid": 0})["pid"],
                now,
            ),
            10,
            self.told,
        )

    def runs(self, slots: list[Slot], database: str = "kept") -> list[dict[str, Any]]:
        """The runs of these slots."""
        kept = self.kept if database == "kept" else self.other
        return kept.rows(
            "SELECT r.* FROM upkeep.run r"
            " JOIN unnest(%s::text[], %s::timestamptz[]) AS s (entry, slot) USING (entry, slot)"
            " WHERE r.task = %s ORDER BY r.id",
            [each.entry for each in slots],
            [each.slot for each in slots],
            VIEW,
        )

    def inserted(
        self, slots: list[Slot], timeout: float = IN_TIME_S, database: str = "kept"
    ) -> list[dict[str, Any]]:
        """Wait for the runs of these slots."""
        return wait_until(
            lambda: (found := self.runs(slots, database)) and len(found) == len(slots) and found,
            timeout,
            lambda: f"{len(slots)} runs, of {len(self.runs(slots, database))}:\n{self.told()}",
        )

    def noted(self, slots: list[Slot], database: str = "kept") -> bool:
        """Whether the state says so too."""
        return all(
            self.kept.scalar(
                "SELECT last_slot >= %s FROM upkeep.schedule_state WHERE entry = %s",
                each.slot,
                f"{database}/{each.entry}",
            )
            for each in slots
        )

    def hurry(self) -> None:
        """As if the bells that were rung had been waited for long enough."""
        for kept in (self.kept, self.other):
            kept.change(
                "UPDATE upkeep.run SET rung_at = rung_at - '1 min'::interval WHERE finished_at IS NULL"
            )

    def all_is_well(self, *slots: Slot, other: tuple[Slot, ...] = ()) -> None:
        """After every fault: one leader, every slot its run, all of them ended and noted, every view right."""
        self.leader()
        self.hurry()
        assert_nothing_is_lost(self.kept, slots=slots)
        assert_nothing_is_lost(self.other, slots=other)
        wait_until(lambda: self.noted([*slots]) and self.noted([*other], "other"), 10, "the slots' notes")


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    made = keep(server, SCHEMA)
    made.change(GATE)
    made.change(
        "CREATE TRIGGER gate BEFORE UPDATE ON upkeep.schedule_state FOR EACH ROW EXECUTE FUNCTION public.gate()"
    )
    return made


@pytest.fixture(scope="module")
def other(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, other: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, configuration(), {"kept": kept.url, "other": other.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def clock(upkeep: Fleet, kept: Kept, other: Kept) -> Iterator[Clock]:
    with ExitStack() as stack:
        yield Clock(upkeep=upkeep, kept=kept, other=other, stack=stack)


@pytest.fixture(scope="module")
def worker(upkeep: Fleet) -> Process:
    return upkeep.worker().wait_ready()


@contextmanager
def gate_closed(kept: Kept) -> Iterator[psycopg.Connection[Any]]:
    """Inside the block whoever wants to note a slot waits."""
    with psycopg.connect(kept.database.url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(4711)")
        yield holder


def waiting(kept: Kept, application: str, event: str) -> list[int]:
    """The schedulers' sessions that wait for a lock of some kind."""
    found = kept.rows(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND wait_event = %s"
        " AND datname = current_database()",
        application,
        event,
    )
    return [row["pid"] for row in found]


def states(runs: list[dict[str, Any]]) -> list[str]:
    """By slot, the oldest first."""
    return [run["state"] for run in sorted(runs, key=lambda run: run["slot"])]


def test_three_that_start_at_once(clock: Clock, worker: Process) -> None:
    for each in clock.alive():
        each.process.end()
    three = [clock.up(each) for each in [clock.start() for _ in range(3)]]
    leader = clock.leader()
    rest = [each for each in three if each is not leader]
    wait_until(lambda: all(each.said() == ["scheduler.stands_by"] for each in rest), 10, clock.told)
    assert leader.said()[-1:] == ["scheduler.leads"]
    clock.all_is_well()


def test_a_leader_killed_while_it_rests(clock: Clock, worker: Process) -> None:
    leader, _ = clock.pair()
    slots = clock.behind(hours=3)
    leader.process.kill()
    began = time.monotonic()
    clock.leader()
    assert time.monotonic() - began < TAKEOVER_S
    # Nobody led when they were due, as far as the new leader knows: the latest is run, the others are told of.
    runs = clock.inserted(slots)
    assert states(runs)[:2] == [State.MISSED, State.MISSED]
    said = clock.leader().process.wait_line(event="schedule.missed", entry=f"kept/{slots[0].entry}")
    assert (said["level"], said["slots"], said["more"]) == ("error", 2, False)
    clock.all_is_well(*slots)


def test_killed_after_the_insert_and_before_the_note(clock: Clock, kept: Kept, worker: Process) -> None:
    leader, _ = clock.pair()
    with gate_closed(kept):
        slots = clock.due(clock.names(5))
        runs = clock.inserted(slots)
        wait_until(lambda: waiting(kept, "upkeep/scheduler", "advisory"), 5, clock.told)
        assert not clock.noted(slots)
        leader.process.kill()
        began = time.monotonic()
    clock.leader()
    assert time.monotonic() - began < TAKEOVER_S
    clock.all_is_well(*slots)
    assert [run["id"] for run in clock.runs(slots)] == [run["id"] for run in runs]


def test_killed_after_the_insert_of_a_slot_that_is_followed_by_another(
    clock: Clock, kept: Kept, worker: Process
) -> None:
    leader, _ = clock.pair()
    with gate_closed(kept):
        (slot,) = clock.due()
        clock.inserted([slot])
        wait_until(lambda: waiting(kept, "upkeep/scheduler", "advisory"), 5, clock.told)
        leader.process.kill()
        # As if the next slot had come before the next leader: the one that was inserted is an hour older now.
        kept.change(
            "UPDATE upkeep.run SET slot = slot - '1 hour'::interval WHERE entry = %s AND slot = %s",
            slot.entry,
            slot.slot,
        )
        clock.behind([slot.entry.removeprefix("schedule.")], hours=2)
    both = [slot, Slot(task=slot.task, target=slot.target, entry=slot.entry, slot=slot.slot - HOUR)]
    clock.inserted(both, TAKEOVER_S)
    clock.all_is_well(*both)
    # It was not missed, so nobody is told that it was.
    assert State.MISSED not in states(clock.runs(both))
    assert clock.leader().process.lines(event="schedule.missed", entry=f"kept/{slot.entry}") == []


def test_killed_after_the_note_and_before_the_bell(clock: Clock, kept: Kept, worker: Process) -> None:
    leader, _ = clock.pair()
    leader.redis.stall()
    slots = clock.due(clock.names(3))
    clock.inserted(slots)
    wait_until(lambda: clock.noted(slots), 5, clock.told)
    wait_until(lambda: leader.redis.held(Way.TO_SERVER), 5, "a bell on its way")
    leader.process.kill()
    began = time.monotonic()
    clock.leader()
    assert time.monotonic() - began < TAKEOVER_S
    assert states(clock.inserted(slots)) == [State.QUEUED] * 3
    clock.all_is_well(*slots)


def test_killed_while_a_standby_is_starting(clock: Clock, worker: Process) -> None:
    leader, _ = clock.pair()
    clock.alone(leader)
    starting = clock.start()
    leader.process.kill()
    slots = clock.behind(hours=2)
    assert starting.said() == []
    assert clock.up(starting).said() == ["scheduler.leads"]
    assert states(clock.inserted(slots))[0] == State.MISSED
    clock.all_is_well(*slots)


@pytest.mark.slow
def test_a_leader_that_is_stopped_for_long(clock: Clock, kept: Kept, worker: Process) -> None:
    leader, standby = clock.pair()
    slots = clock.due(clock.names(3))
    clock.inserted(slots)
    more = clock.behind(clock.names(3))
    leader.signal(signal.SIGSTOP)
    began = time.monotonic()
    wait_until(lambda: standby.leads, 10, clock.told)
    # The server bears five seconds of silence, the standby looks twice a second.
    assert 3.5 < time.monotonic() - began < 5 + TAKEOVER_S
    clock.inserted(more)
    leader.signal(signal.SIGCONT)
    wait_until(
        lambda: leader.said()[-2:] == ["scheduler.leads_no_longer", "scheduler.stands_by"], 10, clock.told
    )
    assert standby.leads
    clock.all_is_well(*slots, *more)


def test_a_leader_that_is_stopped_for_a_moment(clock: Clock, kept: Kept, worker: Process) -> None:
    leader, standby = clock.pair()
    session = clock.session()
    before = [leader.said(), standby.said()]
    assert session is not None
    leader.signal(signal.SIGSTOP)
    wait_until(
        lambda: kept.rows(
            "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state_change < clock_timestamp() - '2.5 s'::interval",
            session["pid"],
        ),
        10,
        "a silence",
    )
    leader.signal(signal.SIGCONT)
    slots = clock.due()
    clock.inserted(slots)
    assert [leader.said(), standby.said(), clock.session()] == [*before, session]
    clock.all_is_well(*slots)


def test_two_that_lead_at_one_moment(clock: Clock, kept: Kept, worker: Process) -> None:
    """The old leader's insert is under way when the new one begins with the same slots."""
    leader, standby = clock.pair()
    names = clock.names(20)
    with psycopg.connect(kept.database.url) as holder:
        # Somebody else inserts one of them, and does not say yet whether he means it.
        holder.execute(
            "INSERT INTO upkeep.run (task, target, entry, slot, as_of, queue, max_attempts)"
            " VALUES (%s, 'public.quick', %s, %s, now(), 'refresh', 1)",
            (VIEW, f"schedule.{names[0]}", latest_slot(CRON, "UTC", datetime.now(UTC))),
        )
        slots = clock.due(names)
        wait_until(lambda: len(waiting(kept, "upkeep/schedule", "transactionid")) == 1, 5, clock.told)
        session = clock.session()
        assert session is not None
        kept.change("SELECT pg_terminate_backend(%s)", session["pid"])
        wait_until(lambda: standby.leads, TAKEOVER_S, clock.told)
        wait_until(lambda: len(waiting(kept, "upkeep/schedule", "transactionid")) == 2, 5, clock.told)
        holder.rollback()
    clock.inserted(slots)
    wait_until(lambda: leader.said()[-1:] == ["scheduler.stands_by"], 10, clock.told)
    clock.all_is_well(*slots)
    for each in (leader, standby):
        assert each.process.lines(event="schedule.database_away") == []


@pytest.mark.slow
def test_the_home_database_crashes(
    clock: Clock, server: EmbeddedPostgres, kept: Kept, worker: Process
) -> None:
    clock.pair()
    slots = clock.behind(clock.names(3), hours=2)
    server.restart("immediate")
    began = time.monotonic()
    clock.leader(timeout=15)
    assert time.monotonic() - began < 5
    clock.inserted(slots)
    clock.all_is_well(*slots)
    more = clock.behind(clock.names(3))
    server.kill()
    wait_until(lambda: all("scheduler.home_away" in x.said() for x in clock.alive()), 10, clock.told)
    server.start()
    began = time.monotonic()
    clock.leader(timeout=15)
    assert time.monotonic() - began < 5
    clock.inserted(more)
    clock.all_is_well(*slots, *more)
    # The databases' sessions died with the server, unused: no slot waits for a second attempt because of that.
    assert clock.leader().process.lines(event="schedule.database_away") == []


@pytest.mark.slow
def test_the_way_to_the_home_database_is_cut_and_then_stalls(
    clock: Clock, kept: Kept, worker: Process
) -> None:
    leader, standby = clock.pair()
    slots = clock.behind(clock.names(2))
    assert leader.home.cut(Cut.RST) > 0
    clock.leader()
    clock.inserted(slots, IN_TIME_S + TAKEOVER_S)
    clock.all_is_well(*slots)
    # No byte passes, nobody hears of an end: the server gives the silent one up.
    leader, standby = clock.pair()
    more = clock.behind(clock.names(2))
    leader.home.stall()
    began = time.monotonic()
    wait_until(lambda: standby.leads, 10, clock.told)
    assert time.monotonic() - began < 5 + TAKEOVER_S
    clock.inserted(more)
    leader.home.flow()
    wait_until(lambda: leader.said()[-1:] == ["scheduler.stands_by"], 10, clock.told)
    clock.all_is_well(*slots, *more)
    for each in clock.alive():
        # What was cut while nobody used it makes no slot late.
        assert each.process.lines(event="schedule.database_away") == []


@pytest.mark.slow
def test_a_standby_that_is_cut_off_at_the_moment_of_its_promotion(
    clock: Clock, kept: Kept, worker: Process
) -> None:
    leader, standby = clock.pair()
    third = clock.up(clock.start())
    slots = clock.behind()
    # Its question whether the lock is free reaches the server, once it is free; the answer never comes back.
    third.home.stall(Way.TO_SERVER)
    wait_until(lambda: third.home.held(Way.TO_SERVER), 5, "a question on its way")
    standby.signal(signal.SIGSTOP)
    leader.process.kill()
    wait_until(lambda: clock.session() is None, TAKEOVER_S, "the end of the leader's session")
    third.home.stall(Way.TO_CLIENT)
    third.home.flow(Way.TO_SERVER)
    wait_until(clock.session, 5, "a session that leads and does not know it")
    standby.signal(signal.SIGCONT)
    wait_until(lambda: standby.leads, 5 + TAKEOVER_S, clock.told)
    clock.inserted(slots)
    third.home.flow()
    wait_until(lambda: third.said()[-1:] == ["scheduler.stands_by"], 10, clock.told)
    clock.all_is_well(*slots)


@pytest.mark.slow
def test_the_way_to_another_database_stalls(clock: Clock, kept: Kept, other: Kept, worker: Process) -> None:
    leader, _ = clock.pair()
    before = leader.said()
    first = clock.due(database="other")
    clock.inserted(first, database="other")
    leader.other.stall()
    there = clock.due(clock.names(2, "other"), database="other")
    wait_until(lambda: leader.other.held(Way.TO_SERVER), 5, "an insert on its way")
    # Everybody else's slots come in time.
    here = clock.due(clock.names(4))
    clock.inserted(here)
    assert clock.runs(there, "other") == []
    leader.other.flow()
    clock.inserted(there, database="other")
    leader.other.refuse()
    assert leader.other.cut() > 0
    more = clock.due(database="other", hours=2)
    leader.process.wait_line(event="schedule.database_away", database="other")
    here += clock.due(clock.names(2))
    clock.inserted(here)
    leader.other.flow()
    clock.inserted(more, 5, database="other")
    leader.process.wait_line(event="schedule.database_back", database="other")
    assert leader.said() == before
    clock.all_is_well(*here, other=(*first, *there, *more))
    assert len(leader.process.lines(event="schedule.database_away")) == 1


@pytest.mark.slow
def test_redis_dies_forgets_and_stalls(
    clock: Clock, kept: Kept, broker: EmbeddedRedis, upkeep: Fleet, worker: Process
) -> None:
    leader, _ = clock.pair()
    before, session = leader.said(), clock.session()
    broker.kill()
    slots = clock.due(clock.names(2))
    clock.inserted(slots)
    leader.process.wait_line(event="bell.not_rung", database="kept")
    broker.start()
    # A worker that says nothing for a moment: its bells stay in Redis, until that forgets them.
    pool = [worker.pid, *worker.pool()]
    for pid in pool:
        os.kill(pid, signal.SIGSTOP)
    forgotten = clock.due(clock.names(2))
    clock.inserted(forgotten)
    with redis.Redis.from_url(upkeep.redis_url) as client:
        wait_until(lambda: client.llen("refresh") >= 2, 5, "bells in Redis")
        client.flushall()
    for pid in pool:
        os.kill(pid, signal.SIGCONT)
    leader.redis.stall()
    stalled = clock.due(clock.names(2))
    clock.inserted(stalled)
    more = clock.due(clock.names(2))
    clock.inserted(more)
    leader.redis.flow()
    began = time.monotonic()
    slots += [*forgotten, *stalled, *more]
    # Here nobody hurries the reaper.
    wait_until(lambda: all(run["finished_at"] for run in clock.runs(slots)), BELL_S, clock.told)
    assert time.monotonic() - began < BELL_S
    assert (leader.said(), clock.session()) == (before, session)
    clock.all_is_well(*slots)


@pytest.mark.slow
def test_no_worker_for_longer_than_a_slot(clock: Clock, kept: Kept, upkeep: Fleet, worker: Process) -> None:
    leader, _ = clock.pair()
    pool = [worker.pid, *worker.pool()]
    for pid in pool:
        os.kill(pid, signal.SIGSTOP)
    late = clock.due(clock.names(3))
    runs = clock.inserted(late)
    assert states(runs) == [State.QUEUED] * 3
    # As if their next slot had come, which is the moment when another one is inserted.
    kept.change(
        "UPDATE upkeep.run SET expires_at = clock_timestamp() WHERE id = ANY (%s)",
        [run["id"] for run in runs],
    )
    following = clock.due()
    clock.inserted(following)
    # They do not pile up until a worker comes, and somebody is told without one.
    wait_until(
        lambda: states(clock.runs(late)) == [State.MISSED] * 3, IN_TIME_S, lambda: str(clock.runs(late))
    )
    for run in runs:
        said = leader.process.wait_line(event="run.missed", run_id=run["id"])
        assert (said["level"], said["database"], said["slot"] is not None) == ("error", "kept", True)
    for pid in pool:
        os.kill(pid, signal.SIGCONT)
    clock.all_is_well(*late, *following)
    assert clock.runs(following)[0]["state"] in {State.SUCCEEDED, State.SKIPPED}
    told = [x for each in [leader.process, worker] for x in each.lines(event="run.missed")]
    assert sorted(x["run_id"] for x in told if x["run_id"] in {r["id"] for r in runs}) == [
        r["id"] for r in runs
    ]


@pytest.fixture(autouse=True)
def _everything_goes_on(clock: Clock, worker: Process) -> Iterator[None]:
    """A test that fails leaves nothing stopped behind for the next one."""
    yield
    for each in clock.schedulers:
        for proxy in (each.home, each.other, each.redis):
            proxy.flow()
    for process in clock.upkeep.processes:
        if process.popen.poll() is None:
            for pid in (process.pid, *process.pool()):
                os.kill(pid, signal.SIGCONT)


# time.time and datetime.now of a process, so many seconds away from the truth once a file is there.
WRONG_CLOCK = """
import datetime, os, time

true_time, true_time_ns, Datetime = time.time, time.time_ns, datetime.datetime


def away():
    return float(os.environ["WRONG_BY_S"]) if os.path.exists(os.environ["WRONG_FROM"]) else 0.0


time.time = lambda: true_time() + away()
time.time_ns = lambda: true_time_ns() + int(away() * 1e9)


class Kind(type(Datetime)):
    def __instancecheck__(cls, instance):
        return isinstance(instance, Datetime)

    def __subclasscheck__(cls, subclass):
        return issubclass(subclass, Datetime)


class Wrong(Datetime, metaclass=Kind):
    @classmethod
    def now(cls, tz=None):
        return Datetime.now(tz) + datetime.timedelta(seconds=away())

    @classmethod
    def utcnow(cls):
        return Datetime.utcnow() + datetime.timedelta(seconds=away())

    def __new__(cls, *args, **kwargs):
        return Datetime.__new__(Datetime, *args, **kwargs)


datetime.datetime = Wrong
"""


def ahead_of_us(line: dict[str, Any]) -> timedelta:
    """By how much the clock that stamped a line is."""
    return datetime.fromisoformat(line["timestamp"]) - datetime.now(UTC)


def told(scheduler: Scheduler, slot: Slot) -> dict[str, Any]:
    """Wait for the line about the insert of a slot."""
    return wait_until(
        lambda: [
            line
            for line in scheduler.process.lines(event="schedule.inserted")
            if f"kept/{slot.entry}" in line["entries"]
        ],
        5,
        scheduler.process.tail,
    )[0]


@pytest.mark.slow
def test_clocks_of_hosts_that_are_wrong(
    clock: Clock, kept: Kept, upkeep: Fleet, worker: Process, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WRONG_CLOCK, encoding="utf-8")
    jumps = tmp_path / "the clock has jumped"

    def wrong(hours: int, since: Path = tmp_path) -> dict[str, str]:
        path = os.pathsep.join([str(tmp_path), upkeep.environment["PYTHONPATH"]])
        return {"PYTHONPATH": path, "WRONG_BY_S": str(hours * 3600), "WRONG_FROM": str(since)}

    # It alone listens to this queue. Redis would deliver again what is unacknowledged for less than this.
    strange = upkeep.start(
        "strange", "worker", "--queues", "archive", "--hostname", "strange@test", environment=wrong(2)
    )
    ahead = clock.alone(clock.start(**wrong(1, jumps)))
    behind = clock.up(clock.start(**wrong(-1)))
    # It leads while its clock jumps.
    slots = clock.due(hours=2)
    clock.inserted(slots)
    assert abs(ahead_of_us(told(ahead, slots[0]))) < timedelta(minutes=1)
    jumps.touch()
    more = clock.due(hours=2)
    clock.inserted(more)
    assert ahead_of_us(told(ahead, more[0])) > timedelta(minutes=59)
    assert ahead.said()[-1] == "scheduler.leads"
    last = clock.behind(hours=2)
    ahead.process.kill()
    wait_until(lambda: behind.leads, TAKEOVER_S, clock.told)
    clock.inserted(last)
    assert ahead_of_us(told(behind, last[0])) < timedelta(minutes=-59)
    for each in (slots, more, last):
        assert states(clock.runs(each))[0] == State.MISSED
    strange.wait_ready()
    run = kept.ended(clock.due_job()["id"], timeout=20)
    assert (run.state, str(run.worker).partition("@")[0], run.attempt) == (State.SUCCEEDED, "strange", 1)
    assert ahead_of_us(strange.wait_line(event="job.run.succeeded", run_id=run.id)) > timedelta(minutes=119)
    # No slot before its time, by the clock that counts.
    assert kept.scalar("SELECT count(*) FROM upkeep.run WHERE slot > created_at") == 0
    clock.all_is_well(*slots, *more, *last)
    for process in (strange, behind.process):
        assert process.end() == 0


def test_a_pause_while_nobody_leads(clock: Clock, kept: Kept, worker: Process) -> None:
    leader, standby = clock.pair()
    paused, running = clock.behind(hours=2), clock.behind(hours=2)
    entry = f"kept/{paused[0].entry}"
    standby.signal(signal.SIGSTOP)
    leader.process.kill()
    with psycopg.connect(kept.database.url, autocommit=True) as connection:
        assert state.pause(connection, entry, by="ada", reason="a migration") is False
    standby.signal(signal.SIGCONT)
    clock.inserted(running, TAKEOVER_S)
    clock.heard()
    assert clock.runs(paused) == []
    with psycopg.connect(kept.database.url, autocommit=True) as connection:
        assert state.resume(connection, entry) is True
    clock.heard()
    # A slot that comes after that is run, those of the pause are not made up for.
    more = clock.due()
    clock.inserted(more)
    assert clock.runs(paused) == []
    clock.all_is_well(*running, *more)


@pytest.mark.slow
def test_another_configuration_leads_and_then_the_old_one_again(
    clock: Clock, kept: Kept, worker: Process, tmp_path: Path
) -> None:
    clock.pair()
    stays, changes, goes = clock.names(3)
    file = tmp_path / "upkeep.toml"
    file.write_text(
        configuration(kept=int(goes.removeprefix("kept_")), **{changes: OTHER_CRON}), encoding="utf-8"
    )
    new = clock.alone(clock.start(UPKEEP_CONFIG=str(file)))
    old = clock.up(clock.start())

    def known(name: str) -> dict[str, Any]:
        (row,) = kept.rows(
            "SELECT definition ->> 'cron' AS cron, removed_at, last_slot > now() - '1 min'::interval AS anew"
            " FROM upkeep.schedule_state WHERE entry = %s",
            f"kept/schedule.{name}",
        )
        return row

    assert known(goes)["removed_at"] is not None
    assert known(changes)["cron"] == OTHER_CRON
    slots = clock.behind([stays], hours=2)
    clock.behind([changes, goes], hours=2)
    new.process.kill()
    wait_until(lambda: old.leads, TAKEOVER_S, clock.told)
    clock.inserted(slots)
    # What is declared otherwise, or again, begins anew.
    for name in (changes, goes):
        assert kept.rows("SELECT id FROM upkeep.run WHERE entry = %s", f"schedule.{name}") == []
        assert known(name) == {"cron": CRON, "removed_at": None, "anew": True}
    clock.all_is_well(*slots)


@pytest.mark.slow
def test_somebody_forgets_a_transaction_on_the_state(clock: Clock, kept: Kept, worker: Process) -> None:
    leader, _ = clock.pair()
    before = leader.said()
    with psycopg.connect(kept.database.url) as forgotten:
        held = clock.due()
        forgotten.execute(
            "SELECT 1 FROM upkeep.schedule_state WHERE entry = %s FOR UPDATE", (f"kept/{held[0].entry}",)
        )
        clock.inserted(held)
        # Longer than lock_timeout: the others' slots are inserted, noted and rung for all the same.
        began = time.monotonic()
        slots: list[Slot] = []
        while time.monotonic() - began < 6:
            more = clock.due()
            clock.inserted(more)
            wait_until(lambda: clock.noted(more), IN_TIME_S, clock.told)  # noqa: B023
            slots += more
        assert leader.said() == before
        leader.process.kill()
        began = time.monotonic()
        clock.leader()
        assert time.monotonic() - began < TAKEOVER_S
        more = clock.due()
        clock.inserted(more)
        forgotten.rollback()
    clock.all_is_well(*held, *slots, *more)


@pytest.mark.slow
def test_every_minute_of_all_this_has_its_tick(
    clock: Clock, upkeep: Fleet, kept: Kept, other: Kept, worker: Process
) -> None:
    """The last one: the tier ticked by the minute, through everything above."""
    clock.pair()
    for each in (kept, other):
        each.execute("INSERT INTO public.t SELECT max(id) + 1 FROM public.t")
    latest = latest_slot("* * * * *", "UTC", datetime.now(UTC))
    leader = clock.leader()
    slots = [Slot(task=TIER, target="minutely", entry="minutely", slot=latest + timedelta(minutes=1))]
    for each in (kept, other):
        tick = wait_until(
            lambda: each.rows(  # noqa: B023
                "SELECT * FROM upkeep.run WHERE task = %s AND slot = %s", TIER, slots[0].slot
            ),
            70,
            leader.process.tail,
        )[0]
        assert tick["created_at"] - tick["slot"] < timedelta(seconds=1)
    began = kept.scalar("SELECT min(slot) FROM upkeep.run WHERE task = %s", TIER)
    slot = began
    while slot <= latest:
        slots.append(Slot(task=TIER, target="minutely", entry="minutely", slot=slot))
        slot = next_slot("* * * * *", "UTC", slot)
    clock.all_is_well(*slots, other=tuple(slots))
    for process in upkeep.processes:
        said = [x for x in process.lines() if x.get("level") == "critical" or "Traceback" in str(x)]
        assert said == [], process.name
    assert_nothing_is_left(upkeep, kept, other)
