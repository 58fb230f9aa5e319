"""Every kind of control column from its policy to the archive: partitions, and the rows at both edges of each.

Periods come from the server's own calendar, and values of the control column from what their kind is defined as.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from psycopg import sql
from pydantic import SecretStr

from fleet import ledger, settings
from fleet.ledger import NewRun, Run, State
from fleet.settings import PartitionSet
from tasks.base import Delivery
from tasks.partitions.archive_tasks import Archive
from tasks.partitions.lines import Action
from tasks.partitions.look import look
from tasks.partitions.per_table import PerTable, TableArguments
from tasks.partitions.tasks import Maintain
from tasks.performing import perform
from tests.integration.tasks.partitions.creating import OWNER, TABLE, Kept, keep
from tests.servers import Database
from tests.waiting import wait_until

UNIX = datetime(1970, 1, 1, tzinfo=UTC)
SNOWFLAKES_BEGIN = date(2020, 1, 1)
ARCHIVE = f"archive.{TABLE.name}"
PERIODS = """
SELECT n, (current + n * step) AT TIME ZONE {zone}, (current + (n + 1) * step) AT TIME ZONE {zone}
  FROM (SELECT date_trunc({interval}, now() AT TIME ZONE {zone}) AS current, {step}::interval AS step) AS here,
       generate_series({oldest}, {newest}) AS n
"""
BOUNDS = """
SELECT c.oid::regclass::text, bound[1]::{type}, bound[2]::{type}
  FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid,
       LATERAL regexp_match(
           pg_get_expr(c.relpartbound, c.oid), $$FROM \\('?([^')]+)'?\\) TO \\('?([^')]+)'?\\)$$
       ) AS bound
 WHERE i.inhparent = {parent}::regclass AND bound IS NOT NULL
"""


def milliseconds(moment: datetime, since: datetime = UNIX) -> int:
    return (moment - since) // timedelta(milliseconds=1)


def snowflake(moment: datetime) -> int:
    """Milliseconds since an epoch of its own, above 22 bits that are something else."""
    since = datetime(SNOWFLAKES_BEGIN.year, SNOWFLAKES_BEGIN.month, SNOWFLAKES_BEGIN.day, tzinfo=UTC)
    return milliseconds(moment, since) << 22


def uuidv7(moment: datetime, rest: int) -> UUID:
    """As RFC 9562 has it: the time, 4 bits of version, 12 of the rest, 2 of variant, 62 of the rest."""
    return UUID(
        int=milliseconds(moment) << 80 | 7 << 76 | rest >> 62 << 64 | 0b10 << 62 | rest & (1 << 62) - 1
    )


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A control column: its policy, and what is in it at an instant."""

    type: str
    interval: str
    bound: Callable[[datetime], Any]
    first: Callable[[datetime], Any]
    last: Callable[[datetime], Any]
    """The greatest value before an instant."""
    timezone: str = "UTC"
    hot: int = 2
    """How many periods before the current one are in the table; `cold` more are in the archive."""
    cold: int = 2
    premake: int = 2
    clocks_change: bool = False
    """Of the past only these periods have rows."""
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def policy(self) -> PartitionSet:
        return PartitionSet.model_validate(
            {
                "name": TABLE,
                "interval": self.interval,
                "timezone": self.timezone,
                "premake": self.premake,
                "default": "drain",
                "hot": f"{self.hot} {self.interval}s",
                "warm": "20 years",
                "cold": "30 years",
                **self.given,
            }
        )


KINDS = {
    "milliseconds by day": Kind(
        type="bigint",
        interval="day",
        bound=milliseconds,
        first=milliseconds,
        last=lambda moment: milliseconds(moment) - 1,
        given={"epoch": "milliseconds"},
    ),
    "snowflakes by quarter": Kind(
        type="bigint",
        interval="quarter",
        bound=snowflake,
        first=snowflake,
        last=lambda moment: snowflake(moment) - 1,
        given={"epoch": "milliseconds", "epoch_start": SNOWFLAKES_BEGIN, "epoch_shift": 22},
    ),
    "uuidv7 by week": Kind(
        type="uuid",
        interval="week",
        # Version and variant of a real one come after the time, so that no bound needs them.
        bound=lambda moment: UUID(int=milliseconds(moment) << 80),
        first=lambda moment: uuidv7(moment, 0),
        last=lambda moment: uuidv7(moment - timedelta(milliseconds=1), (1 << 74) - 1),
        given={"epoch": "uuidv7"},
    ),
    # Whenever this runs, clocks change in a year ahead, in the table and in the archive.
    "timestamptz by month in New York": Kind(
        type="timestamptz",
        interval="month",
        timezone="America/New_York",
        bound=lambda moment: moment,
        first=lambda moment: moment,
        last=lambda moment: moment - timedelta(microseconds=1),
        hot=12,
        cold=12,
        premake=12,
        clocks_change=True,
    ),
    "timestamptz by day in New York": Kind(
        type="timestamptz",
        interval="day",
        timezone="America/New_York",
        bound=lambda moment: moment,
        first=lambda moment: moment,
        last=lambda moment: moment - timedelta(microseconds=1),
    ),
    "date by year": Kind(
        type="date",
        interval="year",
        bound=lambda moment: moment.date(),
        first=lambda moment: moment.date(),
        last=lambda moment: (moment - timedelta(days=1)).date(),
    ),
}


@dataclass(frozen=True)
class Fleet:
    """One table of this kind under the fleet, whose runs are done here, and the periods that it is about."""

    kept: Kept
    kind: Kind
    periods: Mapping[int, tuple[datetime, datetime]]

    @property
    def database(self) -> settings.Database:
        policy = self.kind.policy
        return settings.Database(
            name="kept", url=SecretStr(self.kept.keeper_url), partitions={policy.name: policy}
        )

    def run(self, task: PerTable) -> Run:
        """What a worker does with a run for the table, as the ledger has it afterwards."""
        database = self.database
        with self.kept.keeper() as connection:
            run_id, _ = ledger.insert(
                connection,
                NewRun(
                    task=task.name, target=str(TABLE), entry="operator", queue=task.runs_in, max_attempts=1
                ),
            )
            with ledger.claim(connection, run_id, worker="test") as run:
                assert run is not None
                delivery = Delivery(
                    run=run,
                    arguments=TableArguments(table=str(TABLE)),
                    database=database,
                    connection=connection,
                    worker="test",
                )
                perform(
                    connection,
                    run,
                    lambda: task.work_on(database.partition_set(TABLE), delivery),
                    retries=(),
                    event=task.event,
                    doing=f"Working on {TABLE}",
                )
            ended = ledger.get(connection, run_id)
        assert ended is not None
        return ended

    def planned(self) -> list[tuple[Action, Any, Any]]:
        """The lines of `upkeep plan partitions`: what, from where to where."""
        with self.kept.keeper() as connection:
            (found,) = look(connection, self.database, clock=datetime.now(UTC))
        assert [each for each in found.contradictions if not each.warning] == []
        assert found.unknown == ()
        return [
            (line.action, *((line.range.lower, line.range.upper) if line.range else (None, None)))
            for line in found.lines
            if line.action is not Action.WARN
        ]

    def expected(self, *numbers: int) -> dict[int, tuple[Any, Any]]:
        """The bounds of periods, by their number from now."""
        return {
            number: (self.kind.bound(first), self.kind.bound(after))
            for number, (first, after) in self.periods.items()
            if number in numbers
        }

    def write(self) -> None:
        """Rows at both edges of every period, by the table's name."""
        insert = sql.SQL("INSERT INTO {} VALUES (%s, %s)").format(TABLE.identifier())
        with self.kept.owner() as application:
            for number, (first, after) in self.periods.items():
                for edge, value in (("first", self.kind.first(first)), ("last", self.kind.last(after))):
                    application.execute(insert, [f"{edge} of {number}", value])

    def places(self, parent: str) -> dict[str, tuple[Any, Any]]:
        """The bounds of the partition that each row is in."""
        with self.kept.database.connect() as connection:
            # Whose clock is at none of the bounds.
            connection.execute("SET TimeZone = 'Asia/Kathmandu'")
            bounds = {
                name: (lower, upper)
                for name, lower, upper in connection.execute(
                    sql.SQL(BOUNDS).format(type=sql.SQL(self.kind.type), parent=sql.Literal(parent))
                )
            }
            rows = connection.execute(
                sql.SQL("SELECT note, tableoid::regclass::text FROM {}").format(
                    sql.Identifier(*parent.split("."))
                )
            ).fetchall()
        return {note: bounds.get(name, (name, None)) for note, name in rows}

    def at_the_edges(self, *numbers: int) -> dict[str, tuple[Any, Any]]:
        """Where the rows of these periods belong."""
        return {
            f"{edge} of {number}": bounds
            for number, bounds in self.expected(*numbers).items()
            for edge in ("first", "last")
        }


@pytest.fixture
def kept(upkeep_database: Database, role: Any) -> Kept:
    kept = keep(upkeep_database, role)
    with upkeep_database.connect() as admin:
        admin.execute(
            'GRANT USAGE ON SCHEMA upkeep TO "up-keep"; GRANT ALL ON ALL TABLES IN SCHEMA upkeep TO "up-keep";'
            'GRANT ALL ON ALL SEQUENCES IN SCHEMA upkeep TO "up-keep"'
        )
        admin.execute(sql.SQL("CREATE SCHEMA archive AUTHORIZATION {}").format(sql.Identifier(OWNER)))
    return kept


@pytest.fixture(params=KINDS)
def fleet(request: pytest.FixtureRequest, kept: Kept) -> Fleet:
    kind = KINDS[request.param]
    # A period that ends in the middle of the test would be another one afterwards.
    wait_until(lambda: not ends_soon(kind.timezone), 40, "midnight to be over")
    kept.set_up(
        sql.SQL(
            "CREATE TABLE {} (note text NOT NULL, at {} NOT NULL, PRIMARY KEY (note, at)) PARTITION BY RANGE (at)"
        )
        .format(TABLE.identifier(), sql.SQL(kind.type))
        .as_string()
    )
    with kept.database.connect() as connection:
        periods = connection.execute(
            sql.SQL(PERIODS).format(
                zone=kind.timezone,
                interval=kind.interval,
                step="3 months" if kind.interval == "quarter" else f"1 {kind.interval}",
                oldest=-kind.hot - kind.cold,
                newest=kind.premake,
            )
        ).fetchall()
    return Fleet(
        kept,
        kind,
        {
            number: (first.astimezone(UTC), after.astimezone(UTC))
            for number, first, after in periods
            if number >= 0 or not kind.clocks_change or hours_more(kind, first, after)
        },
    )


def hours_more(kind: Kind, first: datetime, after: datetime) -> float:
    """By how much a period is longer than its days."""
    zone = ZoneInfo(kind.timezone)
    days = (after.astimezone(zone).date() - first.astimezone(zone).date()).days
    return (after.astimezone(UTC) - first.astimezone(UTC)) / timedelta(hours=1) - 24 * days


def ends_soon(timezone: str) -> bool:
    here = datetime.now(ZoneInfo(timezone))
    return (here + timedelta(seconds=30)).date() != here.date()


def test_rows_at_both_edges_are_in_their_partition_before_and_after_the_archiving(fleet: Fleet) -> None:
    kind = fleet.kind
    ahead = [number for number in fleet.periods if number >= 0]
    past = [number for number in fleet.periods if number < 0]
    hot = [number for number in fleet.periods if number >= -kind.hot]
    cold = [number for number in fleet.periods if number < -kind.hot]
    if kind.clocks_change:
        # Out of summer time and into it, in each of the three.
        for numbers in (cold, past[len(cold) :], ahead):
            assert {hours_more(kind, *fleet.periods[number]) for number in numbers} >= {1, -1}

    assert fleet.planned() == [
        *((Action.CREATE, *bounds) for bounds in fleet.expected(*ahead).values()),
        (Action.CREATE, None, None),
    ]
    assert fleet.run(Maintain()).state == State.SUCCEEDED
    # On 14 what the server has counted comes a moment late, and another ANALYZE would be something to do.
    wait_until(
        lambda: fleet.kept.scalar(
            "SELECT last_analyze IS NOT NULL FROM pg_stat_user_tables WHERE relid = %s::regclass", str(TABLE)
        )
    )
    fleet.write()
    default = (f"{TABLE}_default", None)
    assert fleet.places(str(TABLE)) == {
        note: default if note in fleet.at_the_edges(*past) else bounds
        for note, bounds in fleet.at_the_edges(*fleet.periods).items()
    }
    drained = fleet.run(Maintain())
    assert drained.state == State.SUCCEEDED, drained.error
    assert drained.result["drained_rows"] == 2 * len(past)
    assert fleet.places(str(TABLE)) == fleet.at_the_edges(*fleet.periods)
    idle = fleet.run(Maintain())
    assert (idle.state, "0 rows in its default partition" in (idle.reason or "")) == (State.SKIPPED, True)

    assert fleet.planned() == [(Action.MOVE, *bounds) for bounds in fleet.expected(*cold).values()]
    moved = fleet.run(Archive())
    assert moved.state == State.SUCCEEDED, moved.error
    assert len(moved.result["moved"]) == len(cold)
    assert fleet.places(str(TABLE)) == fleet.at_the_edges(*hot)
    assert fleet.places(ARCHIVE) == fleet.at_the_edges(*cold)
    values = {
        f"{edge} of {number}": value
        for number, (first, after) in fleet.periods.items()
        for edge, value in (("first", fleet.kind.first(first)), ("last", fleet.kind.last(after)))
    }
    assert sorted(fleet.kept.rows(f"SELECT note, at, archived_at IS NOT NULL FROM {ARCHIVE}_all")) == sorted(
        (note, value, note in fleet.at_the_edges(*cold)) for note, value in values.items()
    )

    assert fleet.planned() == []
    for task, said in ((Archive(), "nothing is due"), (Maintain(), "0 rows in its default partition")):
        again = fleet.run(task)
        assert (again.state, said in (again.reason or "")) == (State.SKIPPED, True), again
