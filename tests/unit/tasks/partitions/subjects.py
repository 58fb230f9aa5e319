"""Policies and catalogues as the tests of partitions write them down."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import ControlType, Partition, PartitionedTable, Range
from fleet.settings.partitions import PartitionSet

NAME = RelationName("public", "t")
# A Tuesday in the middle of a month; the current month's window ends with June.
CLOCK = datetime(2024, 3, 12, 10, 30, tzinfo=UTC)


def policy(**given: Any) -> PartitionSet:
    return PartitionSet.model_validate({"name": NAME, **given})


def day(text: str) -> date:
    return date.fromisoformat(text)


def span(text: str) -> Range:
    """`2024-01-01/2024-02-01`; nothing before or after the stroke: without an end."""
    lower, _, upper = text.partition("/")
    return Range(lower=day(lower) if lower else None, upper=day(upper) if upper else None)


def partition(text: str, name: str = "", **more: Any) -> Partition:
    """One of a set by days; its name is the month that it begins with."""
    bounds = None if text == "default" else span(text)
    if not name:
        name = f"t_y{text[:4]}m{text[5:7]}" if bounds is not None and bounds.lower else f"t_{text}"
    schema = more.pop("schema", "public")
    return Partition(
        **{
            "oid": 1000 + sum(map(ord, name + text)),
            "name": RelationName(schema, name),
            "kind": "r",
            "range": bounds,
            "is_default": text == "default",
            "leaves": (RelationName(schema, name),),
            **more,
        }
    )


def months(first: str, count: int, **more: Any) -> tuple[Partition, ...]:
    """So many monthly partitions from a month on, as in 2024-01."""
    year, month = map(int, first.split("-"))
    found = []
    for index in range(count):
        starts, ends = (date((n := year * 12 + month - 1 + index + i) // 12, n % 12 + 1, 1) for i in (0, 1))
        found.append(partition(f"{starts}/{ends}", **more))
    return tuple(found)


def table(*partitions: Partition, **more: Any) -> PartitionedTable:
    """A table partitioned by a date `day`, as the reader gives it."""
    return PartitionedTable(
        **{
            "oid": 1,
            "name": NAME,
            "kind": "p",
            "owner": "app",
            "may_alter": True,
            "may_create_in_schema": True,
            "strategy": "range",
            "key": ("day",),
            "control_type": ControlType.DATE,
            "control_type_name": "date",
            "control_nullable": False,
            "columns": ("day", "id", "amount"),
            "partitions": partitions,
            **more,
        }
    )
