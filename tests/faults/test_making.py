"""Partitions in the making: killed at each statement, among locks and rivals, under a clock that runs.

Every row is always there, once, and every partition is made once.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, sql
from pydantic import SecretStr

from fleet import settings
from fleet.errors import TransientError
from fleet.names import RelationName
from fleet.postgres.connect import connect
from fleet.settings.partitions import PartitionSet
from tasks.partitions import drain
from tasks.partitions import keep as keeping
from tests.faults import making_child
from tests.faults.counting import counted, forking, nobody
from tests.faults.making_child import BATCH, CHILD, CLOCK, Clock, keep_table, watched
from tests.integration.tasks.partitions.cloning import Template, templates
from tests.integration.tasks.partitions.moving import (
    MONTHS,
    ROLE,
    ROWS,
    System,
    policy,
)
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres

# What a statement may wait beyond the budget, on two noisy cores: its own work, and the end of ours.
MARGIN_S = 0.6
BUDGET_S = policy().lock_budget.total_seconds()
# Rows of May, in the default partition.
LATER = 120
DEFAULT = """
CREATE TABLE public.transactions_default PARTITION OF public.transactions DEFAULT;
INSERT INTO public.transactions (id, partition_date, account_id, amount)
SELECT g, date '2024-05-01' + mod(g, 28), 1 + mod(g, 10), g FROM generate_series({first}, {last}) AS g
"""
MAY, JUNE = "transactions_y2024m05", "transactions_y2024m06"
HAND = "by_hand"
ALL = ROWS + LATER
WHOLE = {
    "SELECT count(*), count(DISTINCT id), sum(id)::bigint FROM public.transactions": (
        ALL,
        ALL,
        ALL * (ALL + 1) // 2,
    )
}
# Looked for where they belong, and nowhere else.
OF_MAY = {
    "SELECT count(*), count(DISTINCT id) FROM public.transactions"
    " WHERE partition_date >= '2024-05-01' AND partition_date < '2024-06-01'": (LATER, LATER)
}
# A snapshot from before a drain does not see them there: it is asked for all rows.
COUNTS = {IsolationLevel.READ_COMMITTED: WHOLE | OF_MAY, IsolationLevel.REPEATABLE_READ: WHOLE}


@pytest.fixture(scope="module")
def template(postgres_server: EmbeddedPostgres) -> Iterator[Template]:
    with templates(postgres_server, "making") as (made,):
        with made.system() as system:
            system.as_owner(DEFAULT.format(first=ROWS + 1, last=ROWS + LATER))
        yield made


@pytest.fixture
def system(template: Template) -> Iterator[System]:
    with template.cloned() as made:
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that keep finds, and small batches."""
    clock = Clock(CLOCK)
    monkeypatch.setattr(keeping, "_sql", clock)
    monkeypatch.setattr(drain, "BATCH", BATCH)
    return clock


def places(system: System) -> list[dict[str, Any]]:
    """In which table which rows are."""
    return system.rows(
        "SELECT tableoid::regclass::text AS place, count(*) AS rows, sum(id)::bigint AS ids"
        " FROM public.transactions GROUP BY 1 ORDER BY 1"
    )


def state(system: System) -> dict[str, Any]:
    return {**system.catalogue(), "places": places(system)}


def relations(system: System) -> set[str]:
    """All that has a name in the application's schema."""
    return {
        row["relname"]
        for row in system.rows(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " UNION ALL SELECT conname FROM pg_constraint WHERE conname LIKE 'upkeep%%'"
        )
    }


@pytest.fixture(scope="module")
def children() -> BaseContext:
    return forking("tests.faults.making_child")


def child(children: BaseContext, system: System, dies_at: int, notes: Path, sent: bool = False) -> int | None:
    process = children.Process(target=making_child.main, args=(system.url, dies_at, notes, sent))
    process.start()
    process.join(120)
    return process.exitcode


# What changes something, locks something, or ends what did; a look and a setting of the session do not.
EFFECT = re.compile(
    r"(?!SELECT|WITH RECURSIVE|BEGIN|SAVEPOINT|ROLLBACK|RELEASE|SET LOCAL|RESET|DEALLOCATE)|.* FOR UPDATE"
)


def deaths(statements: list[str]) -> Iterator[tuple[int, bool]]:
    """At which statements to die, and whether the server has got it; of parts and batches the last."""
    kinds = [re.sub(r"_p\d|remainder \d", "", each) for each in statements]
    for number, statement in enumerate(statements, 1):
        if statement == "COMMIT":
            yield from ((number, False), (number, True), (number + 1, False))
        elif number == len(statements) or (
            EFFECT.match(statement) and kinds[number - 1] not in kinds[number:]
        ):
            yield number, False


@pytest.mark.slow
@pytest.mark.any_server
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("clock")
def test_killed_at_each_statement(template: Template, children: BaseContext, tmp_path: Path) -> None:
    notes = tmp_path / "statements"
    with template.cloned() as system:
        before = relations(system)
        assert child(children, system, 0, notes) == 0
        statements = [*notes.read_text().splitlines(), "the end"]
        made = relations(system) - before
        undisturbed = state(system)
    months = {month: {each for each in made if month in each} for month in (MAY, JUNE)}
    assert made == months[MAY] | months[JUNE]
    assert {f"{month}_p{part}" for month in (MAY, JUNE) for part in range(2)} < made
    kinds = Counter(each.split()[0] for each in statements if EFFECT.match(each))
    assert kinds["CREATE"] == 6
    assert kinds["WITH"] == 3
    assert kinds["LOCK"] == 2
    assert kinds["COMMIT"] >= 2
    for number, sent in deaths(statements):
        where = f"{number}: {statements[number - 1]}"
        with template.cloned() as system:
            with counted(system, COUNTS):
                assert child(children, system, number, notes, sent) == -9, where
                wait_until(lambda: nobody(system, CHILD), 20, "the end of the session")
                found = relations(system) - before
                # Each month whole, or not at all.
                assert found in (set(), months[JUNE], made), where
                kept = keep_table(system.connection)
            assert kept.failures == [], where
            assert state(system) == undisturbed, where


def made_in_time(url: str, before: Callable[[str], None], **changes: Any) -> list[keeping.Kept]:
    """Maintain until everything is there: a run that finds no moment for it leaves it to the next one."""
    several = []
    for _ in range(8):
        with watched(url, before) as connection:
            several.append(keep_table(connection, **changes))
        assert [each for each in several[-1].failures if not isinstance(each, TransientError)] == []
        if not several[-1].failures:
            return several
    raise AssertionError(several[-1].failures)


@dataclass
class Storm:
    """Sessions that do the same over and over, and how long it took them at most."""

    url: str
    slowest_s: dict[str, float] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    errors: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, statement: str, held_s: float, pause_s: float) -> None:
        try:
            with psycopg.connect(self.url) as connection:
                while not self._stop.is_set():
                    began = time.monotonic()
                    cursor = connection.execute(statement)
                    if statement.startswith("UPDATE"):
                        assert cursor.rowcount == 1, statement
                    self._stop.wait(held_s)
                    connection.commit()
                    took = time.monotonic() - began - held_s
                    self.slowest_s[statement] = max(took, self.slowest_s.get(statement, 0))
                    self.done[statement] += 1
                    self._stop.wait(pause_s)
        except BaseException as exc:
            self.errors.append(exc)

    @contextmanager
    def raging(self, statements: dict[str, tuple[float, float]]) -> Iterator[None]:
        """Each statement with how long its transaction takes, and how long it is until the next one."""
        threads = [
            threading.Thread(target=self.run, args=(each, *times)) for each, times in statements.items()
        ]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: self.errors or len(self.done) == len(statements), message="all of the storm")
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        assert self.errors == []


@pytest.mark.usefixtures("clock")
def test_a_storm_of_locks_and_updates_delays_and_breaks_nothing(system: System) -> None:
    storm = Storm(system.database.url)
    update = "UPDATE public.transactions SET amount = amount + 1 WHERE id = {} AND partition_date = '{}'"
    rows = system.rows("SELECT id, partition_date FROM public.transactions_default ORDER BY id")
    # Rows that nobody has written to are in the first batch.
    first, early, last = (update.format(*rows[each].values()) for each in (0, BATCH // 2, -1))
    locks = [
        "LOCK TABLE public.transactions IN ACCESS SHARE MODE",
        "LOCK TABLE ONLY public.transactions IN ROW EXCLUSIVE MODE",
        "LOCK TABLE ONLY public.transactions_default IN ROW EXCLUSIVE MODE",
        "LOCK TABLE ONLY public.transactions_default IN ACCESS SHARE MODE",
    ]
    before = system.scalar("SELECT sum(amount) FROM public.transactions")
    report = system.database.connect(autocommit=False)
    over = threading.Timer(1.5, report.rollback)
    late = threading.Thread(target=storm.run, args=(early, 0.0, 0.25))
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
    queued: list[float] = []

    def meet(statement: str) -> None:
        # Both in the moment in which it cannot be foreseen: who wants a row that is on its way, and who reads for long.
        if statement.startswith("WITH moved") and late.ident is None:
            late.start()
            wait_until(lambda: system.scalar(waiting), message="somebody who wants one of the rows")
        if statement.startswith('LOCK TABLE "public"."transactions_default"') and over.ident is None:
            report.execute("LOCK TABLE ONLY public.transactions_default IN ACCESS SHARE MODE")
            over.start()
            queued.append(time.monotonic())
        elif len(queued) == 1:
            queued.append(time.monotonic())

    with (
        counted(system, COUNTS) as checkers,
        storm.raging(dict.fromkeys(locks, (0.02, 0.03)) | dict.fromkeys((first, last), (0.0, 0.25))),
    ):
        seen = sum(storm.done.values())
        several = made_in_time(system.url, meet)
        assert sum(storm.done.values()) > seen + len(locks)
    assert len(queued) == 2
    late.join()
    over.join()
    assert storm.errors == []
    assert queued[1] - queued[0] < BUDGET_S + MARGIN_S
    assert Counter(each.name for kept in several for each in kept.created) == {MAY: 1, JUNE: 1}
    assert [rows for kept in several for rows in kept.drained.values()] == [LATER]
    assert max(storm.slowest_s.values()) < BUDGET_S + MARGIN_S, storm.slowest_s
    assert max(max(each.took) for each in checkers) < BUDGET_S + MARGIN_S
    # No update met a row that was on its way.
    after = system.scalar("SELECT sum(amount) FROM public.transactions")
    assert after == before + sum(storm.done[each] for each in (first, early, last))
    assert {f"public.{MAY}", f"public.{JUNE}"} <= {
        f"public.{each}" for each in system.partitions("transactions")
    }


@pytest.mark.usefixtures("clock")
def test_two_at_the_same_moment_make_one_set(template: Template, system: System) -> None:
    with template.cloned() as other:
        keep_table(other.connection)
        undisturbed = state(other)
    # Both have looked, and know that the other one has not made it yet.
    meetings = {f'CREATE TABLE "public"."{month}" (': threading.Barrier(2) for month in (JUNE, MAY)}
    found: list[keeping.Kept] = []
    errors: list[BaseException] = []

    def work() -> None:
        waiting = dict(meetings)

        def before(statement: str) -> None:
            for start in [each for each in waiting if statement.startswith(each)]:
                waiting.pop(start).wait(20)

        try:
            with watched(system.url, before) as connection:
                found.append(keep_table(connection))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(2)]
    with counted(system, COUNTS):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert [each for kept in found for each in kept.failures if not isinstance(each, TransientError)] == []
    assert Counter(each.name for kept in found for each in kept.created) == {MAY: 1, JUNE: 1}
    assert [rows for kept in found for rows in kept.drained.values()] == [LATER]
    assert keep_table(system.connection).created == []
    assert state(system) == undisturbed


BY_HAND = {
    "empty": "CREATE TABLE public.{name} PARTITION OF public.transactions"
    " FOR VALUES FROM ('2024-06-01') TO ('2024-07-01')",
    # As somebody who knows what he does, in a moment in which nobody can look.
    "drained": "BEGIN; LOCK TABLE ONLY public.transactions; LOCK TABLE public.transactions_default;"
    "CREATE TABLE public.{name} (LIKE public.transactions INCLUDING ALL);"
    "WITH moved AS (DELETE FROM public.transactions_default WHERE partition_date < '2024-06-01'"
    " RETURNING id, partition_date, status, account_id, amount)"
    " INSERT INTO public.{name} (id, partition_date, status, account_id, amount) SELECT * FROM moved;"
    "ALTER TABLE public.transactions ATTACH PARTITION public.{name} FOR VALUES FROM ('2024-05-01') TO ('2024-06-01');"
    "COMMIT",
}
# Before which statement of ours it is there, of the transaction that makes the month.
MOMENTS = {
    "looked": "SELECT pg_catalog.set_config('synchronous_commit'",
    "compared": "SET LOCAL ROLE",
    "divided": 'CREATE TABLE "public"."{month}_p1"',
    "made": 'ALTER TABLE "public"."{month}" ADD CONSTRAINT "upkeep_bound"',
    "ready": 'ALTER TABLE "public"."transactions" ATTACH',
}


@pytest.mark.any_server
@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("how", "month", "name", "moment"),
    [
        # With ours there already, uncommitted, nobody can use its name.
        *(("empty", JUNE, JUNE, moment) for moment in ("looked", "compared")),
        *(("empty", JUNE, HAND, moment) for moment in MOMENTS),
        *(("drained", MAY, MAY, moment) for moment in ("looked", "compared")),
        # And with its rows on their way nobody can have them.
        *(("drained", MAY, HAND, moment) for moment in MOMENTS if moment != "ready"),
    ],
)
def test_one_that_is_made_by_hand_meanwhile_is_enough(
    system: System, how: str, month: str, name: str, moment: str
) -> None:
    before = relations(system)
    seen: list[str] = []

    def by_hand(statement: str) -> None:
        # June is made before May is drained.
        if month == MAY and not any("COMMIT" in each for each in seen):
            seen.extend([statement] if statement == "COMMIT" else [])
        elif HAND not in seen and statement.startswith(MOMENTS[moment].format(month=month)):
            seen.append(HAND)
            system.as_owner(f"SET lock_timeout = '5s'; {BY_HAND[how].format(name=name)}")

    with counted(system, COUNTS), watched(system.url, by_hand) as connection:
        kept = keep_table(connection)
    assert HAND in seen
    assert kept.failures == []
    assert [each.name for each in kept.created] == [JUNE if month == MAY else MAY]
    assert kept.drained == ({} if month == MAY else {kept.created[0]: LATER})
    others = [f"transactions_y{each.replace('-', 'm')}" for each in MONTHS]
    others += ["transactions_default", kept.created[0].name]
    assert system.partitions("public.transactions") == sorted([name, *others])
    # Nothing else than those two is there, and of the one by hand nothing that it did not have.
    assert not [each for each in relations(system) - before if month in each and not each.startswith(name)]
    assert not [
        each for each in relations(system) if each.startswith((f"{month}_p0", f"{month}_p1", "upkeep"))
    ]
    again = keep_table(system.connection)
    assert (again.created, again.failures, again.default_rows) == ([], [], 0)


ZONE = "Europe/Berlin"
AHEAD = 2
RUNNING = RelationName("public", "running")
EMPTY = """
CREATE TABLE public.running (id bigint NOT NULL, created_at timestamptz NOT NULL, PRIMARY KEY (id, created_at))
  PARTITION BY RANGE (created_at)
"""
# Around the beginning of each period, and where summer time skips an hour or repeats it.
INSTANTS = """
SELECT (day + shift) AT TIME ZONE %(zone)s
  FROM generate_series(%(first)s::timestamp, %(last)s::timestamp, %(step)s::interval) AS day,
       unnest(array['-1 microsecond', '0', '2 hours 30 minutes']::interval[]) AS shift
 ORDER BY 1
"""
# What has to be there at an instant, by PostgreSQL's own calendar.
WANTED = """
SELECT to_char(local, %(name)s) AS name,
       extract(epoch FROM local AT TIME ZONE %(zone)s)::bigint AS lower,
       extract(epoch FROM (local + %(step)s::interval) AT TIME ZONE %(zone)s)::bigint AS upper
  FROM generate_series(date_trunc(%(interval)s, %(now)s::timestamptz AT TIME ZONE %(zone)s),
                       date_trunc(%(interval)s, %(now)s::timestamptz AT TIME ZONE %(zone)s)
                       + %(ahead)s * %(step)s::interval, %(step)s::interval) AS local
"""
THERE = r"""
SELECT c.relname AS name, extract(epoch FROM bound[1]::timestamptz)::bigint AS lower,
       extract(epoch FROM bound[2]::timestamptz)::bigint AS upper
  FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid,
       regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(.*)''\) TO \(''(.*)''\)') AS bound
 WHERE i.inhparent = 'public.running'::regclass ORDER BY 2
"""


@pytest.mark.any_server
@pytest.mark.parametrize(
    ("interval", "name", "first", "last", "lengths"),
    [
        (
            "month",
            '"running_y"YYYY"m"MM',
            "2027-12-01",
            "2028-11-01",
            {
                "running_y2028m02": 29 * 86_400,
                "running_y2028m03": 31 * 86_400 - 3_600,
                "running_y2028m10": 31 * 86_400 + 3_600,
            },
        ),
        (
            "week",
            '"running_y"IYYY"w"IW',
            "2028-03-13",
            "2028-04-03",
            {"running_y2028w12": 7 * 86_400 - 3_600},
        ),
        (
            "day",
            '"running_y"YYYY"m"MM"d"DD',
            "2028-02-28",
            "2028-03-02",
            {"running_y2028m02d29": 86_400},
        ),
        (
            "day",
            '"running_y"YYYY"m"MM"d"DD',
            "2028-03-25",
            "2028-03-28",
            {"running_y2028m03d26": 86_400 - 3_600},
        ),
        (
            "day",
            '"running_y"YYYY"m"MM"d"DD',
            "2028-10-28",
            "2028-10-31",
            {"running_y2028m10d29": 86_400 + 3_600},
        ),
    ],
    ids=[
        "months of a leap year",
        "weeks to summer time",
        "29 February",
        "to summer time",
        "from summer time",
    ],
)
def test_a_clock_that_runs_over_the_ends_of_periods(
    system: System, clock: Clock, interval: str, name: str, first: str, last: str, lengths: dict[str, int]
) -> None:
    system.as_owner(EMPTY)
    # Neither the server's zone nor the policy's.
    system.admin.execute(
        sql.SQL("ALTER ROLE {} IN DATABASE {} SET timezone = 'America/New_York'").format(
            sql.Identifier(ROLE), sql.Identifier(system.database.name)
        )
    )
    own = PartitionSet.model_validate(
        {"name": RUNNING, "interval": interval, "timezone": ZONE, "premake": AHEAD, "archive": "none"}
    )
    declared = settings.Database(name="kept", url=SecretStr(system.url), partitions={RUNNING: own})
    asked = {"zone": ZONE, "step": f"1 {interval}", "interval": interval, "name": name, "ahead": AHEAD}
    wanted: dict[str, tuple[int, int]] = {}
    with (
        connect(system.url, application_name="upkeep/test") as connection,
        system.database.connect() as admin,
    ):
        for (instant,) in admin.execute(INSTANTS, asked | {"first": first, "last": last}).fetchall():
            clock.moment = instant
            due = {
                each: (lower, upper)
                for each, lower, upper in admin.execute(WANTED, asked | {"now": instant}).fetchall()
            }
            assert len(due) == AHEAD + 1
            kept = keeping.keep(connection, declared, own)
            assert (kept.failures, kept.gaps) == ([], []), instant
            # Made once, when they are due, and never again.
            assert {each.name for each in kept.created} == due.keys() - wanted.keys(), instant
            wanted |= due
            there = admin.execute(THERE).fetchall()
            assert {each: (lower, upper) for each, lower, upper in there} == wanted, instant
            assert kept.ahead_days == pytest.approx((there[-1][2] - instant.timestamp()) / 86_400, abs=1e-4)
        # Each begins where the one before ends.
        assert all(one[2] == other[1] for one, other in itertools.pairwise(there))
        assert {each: upper - lower for each, lower, upper in there if each in lengths} == lengths
        for each, lower, upper in there:
            found = admin.execute(
                "INSERT INTO public.running VALUES (1, to_timestamp(%s)), (1, to_timestamp(%s) - interval '1 us')"
                " RETURNING tableoid::regclass::text",
                [lower, upper],
            ).fetchall()
            assert found == [(each,), (each,)]
