"""For how long every row has a partition, told from bounds and the clock."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import ControlType, Partition, PartitionedTable, Range
from fleet.settings import PartitionSet
from tasks.partitions.calendar import Calendar
from tasks.partitions.keep import FOREVER_DAYS, days_ahead

TABLE = RelationName("app", "t")
CLOCK = datetime(2026, 1, 11, tzinfo=UTC)


def day(month: int, number: int) -> datetime:
    return datetime(2026, month, number, tzinfo=UTC)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ([], 0.0),
        ([(day(1, 1), day(2, 1))], 21.0),
        ([(day(1, 1), day(2, 1)), (day(2, 1), day(3, 1))], 49.0),
        # A gap: what comes behind it is of no use.
        ([(day(1, 1), day(2, 1)), (day(3, 1), day(4, 1))], 21.0),
        ([(day(2, 1), day(3, 1))], 0.0),
        ([(None, day(2, 1))], 21.0),
        ([(day(1, 1), None)], FOREVER_DAYS),
    ],
)
def test_days_ahead(ranges: list[tuple[datetime | None, datetime | None]], expected: float) -> None:
    calendar = Calendar.of(PartitionSet(name=TABLE), ControlType.TIMESTAMPTZ)
    partitions = tuple(
        Partition(oid=n, name=TABLE, kind="r", range=Range(lower=lower, upper=upper))
        for n, (lower, upper) in enumerate(ranges)
    )
    table = PartitionedTable(oid=1, name=TABLE, kind="p", partitions=partitions)
    assert days_ahead(table, calendar, CLOCK) == expected
