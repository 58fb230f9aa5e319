"""Keeps one partitioned table ahead of the clock: finishes, makes, drains, analyses, and says how it stands.

Each step is a transaction of its own, and one that fails stops no other. Run it twice and the second has nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import structlog
from psycopg import errors, sql

from fleet.errors import PermanentError, UpkeepError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Partition, PartitionedTable, read_partitioned
from fleet.postgres.failures import explain
from fleet.postgres.patience import Deadline, Patience, patiently
from fleet.postgres.queries import load
from fleet.settings import Database, PartitionSet
from tasks.partitions.calendar import Calendar, less
from tasks.partitions.create import Maker
from tasks.partitions.lines import Action, Line
from tasks.partitions.look import Looked, contradicted, look
from tasks.partitions.plan import plan

log = structlog.get_logger(__name__)

_sql = load("tasks.partitions", "sql/keep.sql")

# Autovacuum analyses partitions, and never what they are partitions of. Daily runs come a little early or late.
ANALYZE_EVERY = timedelta(hours=20)
# By so much its rows may differ from what the last one saw.
NOTABLE_SHARE, NOTABLE_ROWS = 0.2, 1_000
ANALYZE_TIMEOUT = timedelta(minutes=5)
COUNT_TIMEOUT = timedelta(seconds=5)
# Until 17 the partitions are analysed with it.
ANALYZE_ONLY = 180_000
# A range without an end is far enough ahead for everybody.
FOREVER_DAYS = 36_500.0
# What a policy may have wrong without any harm to what has to be there tomorrow.
OF_THE_ARCHIVE = frozenset(
    {
        "archive",
        "archive_schema",
        "archive_tablespace",
        "companions",
        "hold",
        "legal_holds",
        "hot",
        "warm",
        "cold",
    }
)
WITHOUT_ROWS = frozenset({Action.FINALIZE, Action.CREATE, Action.WARN})
# Of what a run's result lists.
LISTED = 20


@dataclass(kw_only=True)
class Kept:
    """What was done to one table, and how it stands now."""

    finalized: list[RelationName] = field(default_factory=list)
    created: list[RelationName] = field(default_factory=list)
    drained: dict[RelationName, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    analyzed: bool = False
    why_not_analyzed: str = ""
    failures: list[UpkeepError] = field(default_factory=list)
    ahead_days: float = 0.0
    """For how long from now on there is a partition for every row."""
    default_rows: int | None = None
    """None: there is no default partition."""
    gaps: list[str] = field(default_factory=list)
    late: int = 0
    """Ranges with rows in the default partition that belong into the archive."""

    @property
    def idle(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.finalized or self.created or self.drained or self.analyzed)

    def to_json(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return {
            "finalized": [str(each) for each in self.finalized],
            "created": [str(each) for each in self.created],
            "drained": {str(name): rows for name, rows in self.drained.items()},
            "drained_rows": sum(self.drained.values()),
            "analyzed": self.analyzed or self.why_not_analyzed,
            "ahead_days": round(self.ahead_days, 2),
            "default_rows": self.default_rows,
            "gaps": self.gaps[:LISTED],
            "late": self.late,
            "notes": self.notes[:LISTED],
            "failures": [each.message for each in self.failures][:LISTED],
        }


def keep(
    connection: psycopg.Connection[Any],
    database: Database,
    policy: PartitionSet,
    *,
    patience: Patience | None = None,
) -> Kept:
    """Bring one table to where its policy wants it; hold its advisory lock, on a connection in autocommit mode.

    Raises:
        PermanentError: the policy and the table contradict each other; nothing was done.
    """
    kept, maker = Kept(), Maker(connection=connection, policy=policy, patience=patience or Patience())
    looked = _look(connection, database, policy, kept)
    for line in _of(looked, Action.FINALIZE):
        with _noting(kept, connection, line):
            _finalize(maker, line)
            kept.finalized.append(_partition(line))
    if kept.finalized:
        looked = _look(connection, database, policy, Kept())
    if policy.default == "drain" and looked.table is not None and looked.table.default is None:
        name = RelationName(policy.name.schema, f"{policy.name.name}_default")
        with _noting(kept, connection, Line(action=Action.CREATE, table=policy.name, partition=name)):
            if maker.make(name, None).created:
                kept.created.append(name)
    for line in _of(looked, Action.CREATE, Action.DRAIN):
        with _noting(kept, connection, line):
            _make(maker, line, kept)
    kept.failures += [
        PermanentError(f"{line.partition or line.table}: {line.reason}", remedy=line.remedy)
        for line in looked.lines
        if line.action is Action.REFUSE and _is_about_what_is_missing(line, looked)
    ]
    _say_how_it_stands(connection, database, policy, kept)
    return kept


def days_ahead(table: PartitionedTable, calendar: Calendar, clock: datetime) -> float:
    """For how many days from now on every row has a partition, the default one not counted."""
    end = calendar.value_at(clock)
    for each in table.partitions:
        if each.range is None or each.detach_pending:
            continue
        lower, upper = each.range.lower, each.range.upper
        if lower is not None and less(end, lower):
            break
        if upper is None:
            return FOREVER_DAYS
        if less(end, upper):
            end = upper
    try:
        ahead = calendar.moment_of(end) - clock
    except OverflowError:
        return FOREVER_DAYS
    return max(0.0, ahead / timedelta(days=1))


def _look(
    connection: psycopg.Connection[Any], database: Database, policy: PartitionSet, kept: Kept
) -> Looked:
    looked = next(iter(look(connection, database, [policy.name], clock=_sql.clock(connection))))
    wrong = [each for each in looked.contradictions if not each.warning]
    if not wrong:
        return looked
    error = contradicted(policy, wrong)
    if looked.table is None or any(each.setting not in OF_THE_ARCHIVE for each in wrong):
        raise error
    # What cannot be moved away is no reason to refuse the rows of tomorrow.
    lines = plan(policy, looked.table, archive=looked.archive, clock=_sql.clock(connection))
    kept.failures.append(error)
    return replace(looked, lines=tuple(line for line in lines if line.action in WITHOUT_ROWS))


def _of(looked: Looked, *actions: Action) -> list[Line]:
    return [line for line in looked.lines if line.action in actions]


def _partition(line: Line) -> RelationName:
    assert line.partition is not None  # a line of this kind has one
    return line.partition


@contextmanager
def _noting(kept: Kept, connection: psycopg.Connection[Any], line: Line) -> Iterator[None]:
    """A line that fails is told at the end, and stops no other."""
    try:
        yield
    except (UpkeepError, psycopg.Error) as exc:
        if connection.closed or connection.broken:
            raise
        error = (
            explain(exc, doing=f"To {line.action} {line.partition}")
            if isinstance(exc, psycopg.Error)
            else exc
        )
        log.warning(
            "partition.failed",
            table=str(line.table),
            partition=str(line.partition),
            action=line.action,
            error=error.message,
        )
        kept.failures.append(error)


def _finalize(maker: Maker, line: Line) -> None:
    """Finish somebody's DETACH … CONCURRENTLY: its rows are in no partition already."""
    table = read_partitioned(maker.connection, [line.table])[line.table]
    pending = next((each for each in table.partitions if each.name == line.partition), None)
    if pending is None or not pending.detach_pending:
        return

    def step(deadline: Deadline) -> None:
        deadline.execute(
            sql.SQL("ALTER TABLE {} DETACH PARTITION {} FINALIZE").format(
                table.name.identifier(), pending.name.identifier()
            )
        )

    patiently(
        maker.connection,
        step,
        budget=maker.policy.lock_budget,
        relations=[pending.oid],
        doing=f"Finishing the detach of {pending.name}",
        patience=maker.patience,
    )
    log.info("partition.finalized", table=str(table.name), partition=str(pending.name))


def _make(maker: Maker, line: Line, kept: Kept) -> None:
    made = maker.make(_partition(line), line.range, drain=line.action is Action.DRAIN)
    if not made.created:
        return
    kept.created.append(made.name)
    if made.rows:
        kept.drained[made.name] = made.rows
    kept.notes += [f"{made.name} was not given its sibling's {each}" for each in made.beyond]
    log.info("partition.created", table=str(line.table), partition=str(made.name), rows=made.rows)


def _is_about_what_is_missing(line: Line, looked: Looked) -> bool:
    there = {each.name for each in looked.table.partitions} if looked.table is not None else set()
    return line.partition is None or line.partition not in there


def _say_how_it_stands(
    connection: psycopg.Connection[Any], database: Database, policy: PartitionSet, kept: Kept
) -> None:
    clock = _sql.clock(connection)
    looked = _look(connection, database, policy, Kept())
    table = looked.table
    # Or there would have been a contradiction.
    assert table is not None
    assert table.control_type is not None
    kept.ahead_days = days_ahead(table, Calendar.of(policy, table.control_type), clock)
    kept.late = len(_of(looked, Action.LATE))
    if table.default is not None:
        kept.default_rows = _count(connection, table.default)
    kept.gaps = [line.reason for line in _of(looked, Action.WARN) if line.reason.startswith("gap:")]
    kept.notes += looked.unknown
    with _noting(kept, connection, Line(action=Action.WARN, table=policy.name, partition=policy.name)):
        kept.why_not_analyzed = _analyze(connection, policy, table, clock)
        kept.analyzed = not kept.why_not_analyzed


def _count(connection: psycopg.Connection[Any], default: Partition) -> int:
    """How many rows are in the default partition; the planner's estimate where counting takes long."""
    try:
        with connection.transaction():
            _sql.bound_count(connection, statement_timeout=_ms(COUNT_TIMEOUT))
            row = connection.execute(
                sql.SQL("SELECT count(*) FROM {}").format(default.name.identifier())
            ).fetchone()
    except (errors.QueryCanceled, errors.LockNotAvailable):
        return default.rows
    assert row is not None  # an aggregate
    return int(row[0])


def _ms(value: timedelta) -> str:
    return f"{int(value.total_seconds() * 1000)}ms"


def _analyze(
    connection: psycopg.Connection[Any], policy: PartitionSet, table: PartitionedTable, clock: datetime
) -> str:
    """Bring the table's own statistics up to date; returns why not, where that is so."""
    rows = sum(each.rows for each in table.partitions)
    then = _sql.rows_analyzed(connection, oid=table.oid)
    last = table.last_analyzed
    if (
        last is not None
        and clock - last < ANALYZE_EVERY
        and abs(rows - then) <= NOTABLE_SHARE * then + NOTABLE_ROWS
    ):
        return f"it was at {last:%Y-%m-%d %H:%M} UTC, and its rows are about as many as then"
    only = "ANALYZE ONLY {}" if connection.info.server_version >= ANALYZE_ONLY else "ANALYZE {}"
    warnings: list[str] = []

    def hear(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.message_primary or "")

    connection.add_notice_handler(hear)
    try:
        _sql.bound_session(
            connection,
            lock_timeout=_ms(policy.lock_budget),
            statement_timeout=_ms(ANALYZE_TIMEOUT),
        )
        connection.execute(sql.SQL(only).format(table.name.identifier()))
    except errors.QueryCanceled:
        return f"it took longer than {ANALYZE_TIMEOUT}"
    except errors.LockNotAvailable:
        return "somebody else was vacuuming, analysing or altering it"
    finally:
        connection.remove_notice_handler(hear)
        if not (connection.closed or connection.broken):
            connection.execute("RESET lock_timeout; RESET statement_timeout")
    # What may not be analysed, or is busy, is a warning to PostgreSQL, and nothing was done.
    return "; ".join(warnings)
