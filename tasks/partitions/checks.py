"""What to raise the alarm about: partitions that run out, rows in the default one, gaps, runs that fail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Partition, PartitionedTable, Value
from fleet.settings.partitions import PartitionSet
from tasks.partitions.calendar import Calendar, less
from tasks.partitions.draft import Draft, counted
from tasks.partitions.lines import Batch, DefaultRows, Known

# Days of partitions ahead of the clock.
LAG_WARNING, LAG_CRITICAL = 3.0, 1.0


class Severity(StrEnum):
    """How soon somebody must look."""

    WARNING = "warning"
    CRITICAL = "critical"


class Check(StrEnum):
    """What was looked at."""

    LAG = "partition_lag"
    DEFAULT = "default_partition"
    GAP = "partition_gap"
    MOVE = "partition_move"
    MAINTAIN = "partition_maintain"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be; `value` and `threshold` are in `unit`."""

    check: Check
    severity: Severity
    object: RelationName
    value: float
    threshold: float
    unit: str
    message: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class LastRuns:
    """How the newest runs of a task for a table ended, as the ledger has them."""

    failed: int
    """How many in a row, the newest first."""
    message: str = ""
    remedy: str = ""


def findings(
    policy: PartitionSet,
    table: PartitionedTable,
    *,
    clock: datetime,
    archive: PartitionedTable | None = None,
    batches: Iterable[Batch] = (),
    default_rows: DefaultRows | None = None,
    moves: LastRuns | None = None,
    maintained: LastRuns | None = None,
) -> list[Finding]:
    """What is to be said about one table, the worst first; empty where all is well, or no calendar speaks of it."""
    if table.control_type is None or table.strategy != "range":
        return []
    try:
        calendar = Calendar.of(policy, table.control_type)
    except PermanentError:
        return []
    draft = Draft(
        policy=policy,
        table=table,
        archive=archive,
        batches=tuple(batches),
        clock=clock,
        known=Known(default_rows=default_rows),
        calendar=calendar,
    )
    found = [*_lag(draft), *_default(draft), *_gaps(draft)]
    found += _failed(draft, Check.MAINTAIN, "run of upkeep.partitions.maintain for", maintained)
    found += _failed(draft, Check.MOVE, "move of", moves)
    return sorted(found, key=lambda each: each.severity is not Severity.CRITICAL)


def _lag(draft: Draft) -> Iterator[Finding]:
    ahead = _ahead(draft.calendar, draft.present, draft.clock)
    if ahead is None or ahead >= LAG_WARNING:
        return
    severity, threshold = (
        (Severity.CRITICAL, LAG_CRITICAL) if ahead < LAG_CRITICAL else (Severity.WARNING, LAG_WARNING)
    )
    yield Finding(
        check=Check.LAG,
        severity=severity,
        object=draft.table.name,
        value=round(ahead, 2),
        threshold=threshold,
        unit="days",
        message=f"{draft.table.name} has partitions for {ahead:.1f} more days",
        remedy=f"upkeep plan partitions --table {draft.table.name} says what is in the way; "
        "upkeep run upkeep.partitions.maintain makes them",
    )


def days_ahead(policy: PartitionSet, table: PartitionedTable, clock: datetime) -> float | None:
    """For how many days from now every moment has a partition, the default one not counted; None: for ever.

    Raises:
        PermanentError: no calendar speaks of it.
    """
    if table.control_type is None or table.strategy != "range":
        raise PermanentError(f"{table.name} is not partitioned by the range of a column of time")
    present = [each for each in table.partitions if not each.is_default]
    return _ahead(Calendar.of(policy, table.control_type), present, clock)


def _ahead(calendar: Calendar, present: Iterable[Partition], clock: datetime) -> float | None:
    end: Value = calendar.value_at(clock)
    usable = [each.range for each in present if each.range is not None and not each.detach_pending]
    for bounds in usable:
        begun = bounds.lower is None or not less(end, bounds.lower)
        if begun and bounds.upper is None:
            return None
        if begun and bounds.upper is not None and less(end, bounds.upper):
            end = bounds.upper
    try:
        ahead = calendar.moment_of(end) - clock
    except (OverflowError, ValueError):
        return None
    # A date begins before the clock of its own day.
    return max(0.0, ahead / timedelta(days=1))


def _default(draft: Draft) -> Iterator[Finding]:
    default, found = draft.table.default, draft.known.default_rows
    if default is None or found is None:
        return
    count = sum(found.periods.values()) + found.stray
    if count:
        yield Finding(
            check=Check.DEFAULT,
            severity=Severity.WARNING,
            object=default.name,
            value=count,
            threshold=0,
            unit="rows",
            message=f"{default.name} has {counted(count)}",
            remedy=f"upkeep plan partitions --table {draft.table.name} says where they belong"
            + ("" if draft.policy.default == "drain" else '; default = "drain" moves them there'),
        )


def _gaps(draft: Draft) -> Iterator[Finding]:
    gaps = draft.gaps()
    if gaps:
        shown = ", ".join(draft.calendar.said(each) for each in gaps[:3])
        yield Finding(
            check=Check.GAP,
            severity=Severity.WARNING,
            object=draft.table.name,
            value=len(gaps),
            threshold=0,
            unit="ranges",
            message=f"{draft.table.name} has no partition for {shown}{' and others' if len(gaps) > 3 else ''}",
            remedy="Make one with these bounds if there should be rows of it",
        )


def _failed(draft: Draft, check: Check, what: str, runs: LastRuns | None) -> Iterator[Finding]:
    if runs is not None and runs.failed:
        yield Finding(
            check=check,
            severity=Severity.WARNING,
            object=draft.table.name,
            value=runs.failed,
            threshold=0,
            unit="runs",
            message=f"the last {runs.failed} {what.replace(' ', 's ', 1)} {draft.table.name} failed: {runs.message}"
            if runs.failed > 1
            else f"the last {what} {draft.table.name} failed: {runs.message}",
            remedy=runs.remedy or "upkeep history shows the run",
        )
