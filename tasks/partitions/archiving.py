"""Archives what is due of one table, partition by partition, then what came late; what cannot go stops nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
import structlog

from fleet.errors import PermanentError, TransientError, UpkeepError
from fleet.names import RelationName
from fleet.postgres import locks
from fleet.postgres.catalog.partitions import PartitionedTable, read_partitioned
from fleet.postgres.failures import explain
from fleet.postgres.queries import load
from fleet.settings.partitions import PartitionSet, leaders
from tasks import interruption
from tasks.partitions import foreign_keys, late
from tasks.partitions.hold import Held
from tasks.partitions.lines import Action, Known, Line
from tasks.partitions.move import move
from tasks.partitions.pending import finalize_pending
from tasks.partitions.plan import plan
from tasks.partitions.tablespace import settle
from tasks.performing import Done, Outcome, Skip, Wait

log = structlog.get_logger(__name__)

_sql = load("tasks.partitions", "sql/move.sql")

# Longer would keep a worker's place; the run is handed back and tried again.
BUSY_WAIT_S = 1.0
HAND_BACK = timedelta(seconds=10)
# Many partitions, the first time: others have their turn in between, and no time limit strikes.
LONGEST_STAY = timedelta(minutes=5)


@dataclass(kw_only=True)
class _Report:
    moved: list[str] = field(default_factory=list)
    rows: int = 0
    companions: int = 0
    late: int = 0
    cold: int = 0
    finalized: list[str] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    failures: list[UpkeepError] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        return {
            "moved": self.moved,
            "rows": self.rows,
            "companion_rows": self.companions,
            "late": self.late,
            "late_cold": self.cold,
            "finalized": self.finalized,
            "held": self.held,
        }

    @property
    def nothing(self) -> bool:
        return not (self.moved or self.late or self.cold or self.finalized or self.held)


def archive(
    connection: psycopg.Connection[Any],
    policies: Mapping[RelationName, PartitionSet],
    policy: PartitionSet,
    *,
    run_id: int | None = None,
    stay: timedelta = LONGEST_STAY,
    told: Callable[[str], object] = lambda step: None,
) -> Outcome:
    """Everything of a table that is due, on a connection in autocommit mode.

    Raises:
        PermanentError, TransientError: something could not be moved; what could be was.
    """
    if policy.archive == "none":
        return Skip(reason=f'the policy of {policy.name} has archive = "none"')
    names = [policy.name, *(each for each in policy.companions if each in policies)]
    tables = read_partitioned(connection, names)
    if policy.name not in tables:
        raise PermanentError(f"There is no table {policy.name}", remedy="Take it out of upkeep.toml")
    keys = [locks.relation_key(oid) for oid in sorted(each.oid for each in tables.values())]
    taken: list[str] = []
    try:
        for key in keys:
            if not locks.acquire_within(connection, key, timeout_s=BUSY_WAIT_S):
                reason = f"something else works on {policy.name} or a companion of it"
                return Wait(reason=reason, wait=HAND_BACK)
            taken.append(key)
        return _archive(connection, policies, policy, run_id=run_id, stay=stay, told=told)
    finally:
        locks.release(connection, *reversed(taken))


def _archive(
    connection: psycopg.Connection[Any],
    policies: Mapping[RelationName, PartitionSet],
    policy: PartitionSet,
    *,
    run_id: int | None,
    stay: timedelta,
    told: Callable[[str], object],
) -> Outcome:
    report, began = _Report(), time.monotonic()
    table = read_partitioned(connection, [policy.name])[policy.name]
    report.finalized = [str(name) for name in finalize_pending(connection, table, policy)]
    _tried(connection, report, lambda: foreign_keys.validate(connection), policy.name)
    for line in due(connection, policies, policy):
        if line.action is Action.REFUSE:
            report.failures.append(PermanentError(f"{line.partition}: {line.reason}", remedy=line.remedy))
        elif line.action is Action.HOLD:
            report.held[str(line.partition)] = line.reason
        elif line.action is Action.MOVE and line.partition is not None:
            if time.monotonic() - began >= stay.total_seconds():
                return Wait(
                    reason=f"{len(report.moved)} moved so far; others have their turn", wait=timedelta()
                )
            _tried(
                connection,
                report,
                lambda name=line.partition: _move(  # type: ignore[misc]
                    connection, policies, policy, name, report=report, run_id=run_id, told=told
                ),
                line.partition,
            )
    _tried(connection, report, lambda: _settle(connection, policy), policy.name)
    _tried(
        connection,
        report,
        lambda: _late(connection, policies, policy, report=report, run_id=run_id, told=told),
        policy.name,
    )
    if report.failures:
        # One that may pass is tried again; what is done already needs nothing then.
        first = next(
            (each for each in report.failures if isinstance(each, TransientError)), report.failures[0]
        )
        done = f"; {len(report.moved)} were moved" if report.moved else ""
        raise type(first)(
            "; ".join(each.message for each in report.failures) + done, remedy=first.remedy
        ) from first
    if report.nothing:
        return Skip(reason="nothing is due")
    return Done(result=report.result())


def due(
    connection: psycopg.Connection[Any],
    policies: Mapping[RelationName, PartitionSet],
    policy: PartitionSet,
) -> list[Line]:
    """What a plan says of partitions that are no longer hot; whether rows hold or refer to them, a move finds out."""
    place = RelationName(policy.archive_schema, policy.name.name)
    above = leaders(policies, policy.name)
    read: Mapping[RelationName, PartitionedTable] = read_partitioned(connection, [policy.name, place, *above])
    lines = plan(
        policy,
        read[policy.name],
        archive=read.get(place),
        leaders=[read[name] for name in above if name in read],
        clock=_sql.clock(connection),
        # Nothing is known to be held or referred to, of any of them: the move itself looks, with better questions.
        known=Known(held={}, referenced={each.name: {} for each in read[policy.name].partitions}),
    )
    there = {each.name for each in read[policy.name].partitions}
    wanted = (Action.MOVE, Action.HOLD, Action.REFUSE)
    return [line for line in lines if line.action in wanted and line.partition in there]


def _tried(
    connection: psycopg.Connection[Any], report: _Report, work: Callable[[], object], what: RelationName
) -> None:
    try:
        work()
    except Held as exc:
        report.held[str(what)] = exc.message
        log.info("partition.held", partition=str(what), reason=exc.message)
    except UpkeepError as exc:
        if interruption.behind(exc) is not None:
            raise
        report.failures.append(exc)
        log.warning("partition.not_moved", partition=str(what), error=exc.message, remedy=exc.remedy)
    except psycopg.Error as exc:
        if connection.closed or connection.broken or interruption.behind(exc) is not None:
            raise
        report.failures.append(explain(exc, doing=f"Moving {what}"))


def _move(
    connection: psycopg.Connection[Any],
    policies: Mapping[RelationName, PartitionSet],
    policy: PartitionSet,
    name: RelationName,
    *,
    report: _Report,
    run_id: int | None,
    told: Callable[[str], object],
) -> None:
    moved = move(connection, policies, policy, name, run_id=run_id, told=told)
    report.moved.append(str(name))
    report.rows += moved.rows
    report.companions += sum(moved.companions.values())
    log.info("partition.moved", partition=str(name), archived=str(moved.archived), batch=str(moved.batch))


def _settle(connection: psycopg.Connection[Any], policy: PartitionSet) -> None:
    """What a killed run has moved and not copied."""
    place = RelationName(policy.archive_schema, policy.name.name)
    if policy.archive_tablespace is not None:
        archive = read_partitioned(connection, [place]).get(place)
        for each in archive.partitions if archive is not None else ():
            settle(connection, policy, each.name)


def _late(
    connection: psycopg.Connection[Any],
    policies: Mapping[RelationName, PartitionSet],
    policy: PartitionSet,
    *,
    report: _Report,
    run_id: int | None,
    told: Callable[[str], object],
) -> None:
    found = late.take_in(connection, policies, policy, run_id=run_id, told=told)
    report.late, report.cold = sum(found.moved.values()), found.cold
    report.companions += sum(found.companions.values())
    report.held |= {f"late rows {number}": each.message for number, each in enumerate(found.held, 1)}
    report.failures += found.refused


__all__ = ["archive", "due"]
