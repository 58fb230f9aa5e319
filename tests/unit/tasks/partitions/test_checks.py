"""What a watcher is told, and when not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import ControlType, Range
from tasks.partitions.calendar import Period
from tasks.partitions.checks import Check, Finding, LastRuns, Severity, findings
from tasks.partitions.lines import DefaultRows
from tests.unit.tasks.partitions.subjects import CLOCK, NAME, months, partition, policy, table

FULL = months("2024-01", 6)


def found(*partitions: Any, clock: datetime = CLOCK, **more: Any) -> list[Finding]:
    return findings(policy(), table(*partitions), clock=clock, **more)


def test_all_is_well() -> None:
    assert found(*FULL) == []
    assert found(*FULL, partition("default"), default_rows=DefaultRows(periods={})) == []
    assert found(*FULL, moves=LastRuns(failed=0)) == []


@pytest.mark.parametrize(
    ("clock", "severity", "days"),
    [
        (datetime(2024, 6, 28, tzinfo=UTC), None, 3),
        (datetime(2024, 6, 28, 12, tzinfo=UTC), Severity.WARNING, 2.5),
        (datetime(2024, 6, 30, tzinfo=UTC), Severity.WARNING, 1),
        (datetime(2024, 6, 30, 12, tzinfo=UTC), Severity.CRITICAL, 0.5),
        (datetime(2024, 7, 5, tzinfo=UTC), Severity.CRITICAL, 0),
    ],
)
def test_partitions_that_run_out(clock: datetime, severity: Severity | None, days: float) -> None:
    lag = [each for each in found(*FULL, clock=clock) if each.check is Check.LAG]
    assert [(each.severity, each.value) for each in lag] == ([] if severity is None else [(severity, days)])
    assert all(each.threshold == (1 if severity is Severity.CRITICAL else 3) and each.remedy for each in lag)


def test_a_hole_ahead_ends_what_is_there() -> None:
    (lag,) = found(*FULL[:3], *FULL[4:], clock=datetime(2024, 3, 30, tzinfo=UTC))
    assert (lag.check, lag.severity, lag.value) == (Check.LAG, Severity.WARNING, 2)


def test_maxvalue_never_runs_out() -> None:
    assert found(partition("2024-01-01/", "rest")) == []


def test_a_pending_detach_has_no_rows() -> None:
    (lag,) = found(*FULL[:2], replace(FULL[2], detach_pending=True), *FULL[3:])
    assert lag.severity is Severity.CRITICAL


def test_rows_in_the_default_partition() -> None:
    rows = DefaultRows(periods={Period(date(2024, 3, 1), date(2024, 4, 1)): 5}, stray=2)
    (finding,) = found(*FULL, partition("default"), default_rows=rows)
    assert (finding.check, finding.value, finding.object) == (
        Check.DEFAULT,
        7,
        RelationName("public", "t_default"),
    )
    assert "drain" in finding.remedy


def test_gaps() -> None:
    (finding,) = found(FULL[0], *FULL[2:])
    assert (finding.check, finding.value) == (Check.GAP, 1)
    assert "2024-02-01 to 2024-03-01" in finding.message
    archive = table(partition("2024-02-01/2024-03-01"), name=RelationName("archive", "t"))
    assert found(FULL[0], *FULL[2:], archive=archive) == []


def test_moves_that_fail() -> None:
    (finding,) = found(*FULL, moves=LastRuns(failed=2, message="no lock", remedy="Wait"))
    assert (finding.check, finding.object, finding.value, finding.remedy) == (Check.MOVE, NAME, 2, "Wait")


def test_the_worst_comes_first() -> None:
    said = found(FULL[0], moves=LastRuns(failed=1, message="no lock"))
    assert [each.severity for each in said] == [Severity.CRITICAL, Severity.WARNING, Severity.WARNING]


def test_numbers_and_moments() -> None:
    seconds = replace(FULL[0], range=Range(lower=0, upper=int(CLOCK.timestamp()) + 86_400 * 2))
    kept = policy(epoch="seconds")
    (lag,) = findings(kept, table(seconds, control_type=ControlType.INTEGER), clock=CLOCK)
    assert lag.value == 2
    assert findings(policy(), table(seconds, control_type=ControlType.INTEGER), clock=CLOCK) == []
