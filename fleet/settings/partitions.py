"""Policies of partitioned tables: what is always there ahead of the clock, and where what is old goes.

The defaults are those of a platform that must keep seven years: thirteen months where the application works on them, up
to thirty-six in the archive of the same database, up to eighty-four outside of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationInfo, field_validator

from fleet.errors import ConfigurationError
from fleet.names import MAX_IDENTIFIER_BYTES, RelationName
from fleet.settings.values import (
    Condition,
    Name,
    Reason,
    Relation,
    Scalar,
    TableModel,
    Zone,
    as_tuple,
    between,
    refuse,
    refuse_as,
    relation,
    whole,
)
from fleet.spans import Span

Interval = Literal["day", "week", "month", "quarter", "year"]
Epoch = Literal["seconds", "milliseconds", "microseconds", "nanoseconds", "uuidv7"]

DEFAULT_PATTERNS: Mapping[str, str] = {
    "day": "{table}_y{year}m{month}d{day}",
    "week": "{table}_y{iso_year}w{week}",
    "month": "{table}_y{year}m{month}",
    "quarter": "{table}_y{year}q{quarter}",
    "year": "{table}_y{year}",
}
# What a name needs so that two partitions never have the same one.
_TELLS_APART: Mapping[str, tuple[frozenset[str], ...]] = {
    "day": (frozenset({"year", "month", "day"}),),
    "week": (frozenset({"iso_year", "week"}), frozenset({"year", "month", "day"})),
    "month": (frozenset({"year", "month"}),),
    "quarter": (frozenset({"year", "quarter"}), frozenset({"year", "month"})),
    "year": (frozenset({"year"}),),
}
_FIELDS = frozenset({"table", "year", "month", "day", "quarter", "week", "iso_year"})


def _rough_days(interval: Interval) -> float:
    return Span.parse(f"1 {interval}").rough_days


def _span(value: object) -> object:
    if isinstance(value, Span):
        return value
    try:
        return Span.parse(value)
    except ConfigurationError as exc:
        raise refuse_as(exc) from None


def _pattern(value: object) -> object:
    if not isinstance(value, str):
        raise refuse("a name pattern is text", 'Put it in quotes, as in "{table}_y{year}m{month}"')
    try:
        used = set(fields_of(value))
    except ValueError:
        raise refuse("its braces do not match", 'Write it as "{table}_y{year}m{month}"') from None
    unknown = sorted(used - _FIELDS)
    if unknown:
        raise refuse(
            f"it has no meaning for {{{unknown[0]}}}",
            f"Use {', '.join(f'{{{name}}}' for name in sorted(_FIELDS))}",
        )
    if "\x00" in value or len(value.encode()) > 2 * MAX_IDENTIFIER_BYTES:
        raise refuse("it makes no name that PostgreSQL could keep", "Write a shorter one")
    return value


def fields_of(pattern: str) -> list[str]:
    """The names in a pattern's braces; raises ValueError where these do not match."""
    found, rest = [], pattern
    while rest:
        before, opening, rest = rest.partition("{")
        if "}" in before:
            raise ValueError(pattern)
        if opening:
            name, closing, rest = rest.partition("}")
            if not closing or "{" in name:
                raise ValueError(pattern)
            found.append(name)
    return found


def _day(value: object) -> object:
    # A TOML datetime is a date as well, to Python.
    if type(value) is not date:
        raise refuse("it is not a date", "Write it without quotes, as in 2024-01-31")
    return value


CalendarSpan = Annotated[Span, BeforeValidator(_span), PlainSerializer(str, return_type=str)]
Day = Annotated[date, BeforeValidator(_day)]
Relations = Annotated[
    tuple[Annotated[Relation, BeforeValidator(relation)], ...],
    BeforeValidator(as_tuple),
    Field(max_length=20),
]


class LegalHold(TableModel):
    """One of `legal_holds`: rows of these days stay as they are, whatever their age."""

    from_: Annotated[Day, Field(alias="from")]
    to: Day
    """The day after the last one."""
    reason: Reason

    @field_validator("to")
    @classmethod
    def _after_its_beginning(cls, value: date, given: ValidationInfo) -> date:
        began = given.data.get("from_")
        if began is not None and value <= began:
            raise refuse(f"it ends before it begins, on {began}", "`to` is the day after the last one held")
        return value


class HashSubpartitions(TableModel):
    """`subpartitions`: each partition is divided by the hash of some columns."""

    columns: Annotated[tuple[Name, ...], BeforeValidator(as_tuple), Field(min_length=1, max_length=32)]
    count: Annotated[int, whole(2, 1024)]


class PartitionSet(TableModel):
    """`[databases.NAME.partitions."schema.table"]`: one range-partitioned table that the fleet keeps."""

    name: Relation
    column: Name | None = None
    """The control column; None is the table's own partition key."""
    interval: Interval = "month"
    timezone: Zone = "UTC"
    """Where a day begins, for a control column that is a moment or an id made from one."""
    epoch: Epoch | None = None
    """What a number in the control column counts since `epoch_start`; uuidv7 for time-ordered UUIDs."""
    epoch_start: Day = date(1970, 1, 1)
    epoch_shift: Annotated[int, whole(0, 62)] = 0
    """How many low bits of an id are not time: 22 in a snowflake."""
    premake: Annotated[int, whole(1, 1000)] = 3
    """Whole intervals ahead, besides the current one."""
    partition_name: Annotated[str, BeforeValidator(_pattern)] = Field(
        default_factory=lambda given: DEFAULT_PATTERNS[given.get("interval", "month")]
    )
    subpartitions: HashSubpartitions | None = None
    """Of new partitions; None: as the newest one that is there has them."""
    default: Literal["none", "drain"] = "none"
    """Whether there is a default partition, whose rows are moved to where they belong."""
    tablespace: Name | None = None
    """Of new partitions; None: as the newest one that is there."""
    storage_parameters: Mapping[str, Scalar] = Field(default_factory=dict)
    """Of new leaves, beside those of the newest one that is there."""
    archive: Literal["none", "schema"] = "schema"
    """Where partitions go that are no longer hot: nowhere, or to a table of the same name in `archive_schema`."""
    archive_schema: Name = "archive"
    archive_tablespace: Name | None = None
    hot: CalendarSpan = Field(default=Span(months=13), validate_default=True)
    """How long rows stay in the table itself."""
    warm: CalendarSpan = Field(default=Span(months=36), validate_default=True)
    """Until what age they stay in the archive of this database."""
    cold: CalendarSpan = Field(default=Span(months=84), validate_default=True)
    """Until what age they are kept at all."""
    hold: Condition | None = None
    """A condition of rows that must not be moved yet, as after WHERE."""
    legal_holds: Annotated[tuple[LegalHold, ...], BeforeValidator(as_tuple)] = ()
    companions: Relations = ()
    """Tables with a foreign key to this one whose rows move with the rows that they refer to."""
    lock_budget: Annotated[timedelta, between("10ms", "5s")] = timedelta(milliseconds=200)
    """For how long all locks of one step together may keep the application waiting."""

    @field_validator("partition_name")
    @classmethod
    def _tells_apart(cls, value: str, given: ValidationInfo) -> str:
        interval = given.data.get("interval")
        used = set(fields_of(value))
        if interval is not None and not any(each <= used for each in _TELLS_APART[interval]):
            needed = " and ".join(f"{{{each}}}" for each in sorted(_TELLS_APART[interval][0]))
            raise refuse(
                f"partitions of a {interval} each would share names",
                f"It needs {needed}, for a {interval} each",
            )
        return value

    @field_validator("hot")
    @classmethod
    def _longer_than_ahead(cls, value: Span, given: ValidationInfo) -> Span:
        interval, premake = given.data.get("interval"), given.data.get("premake")
        if interval is None or premake is None:
            return value
        ahead = _rough_days(interval) * premake
        # A month in which one day is missing is no reason.
        if value.rough_days < ahead * 0.95:
            raise refuse(
                f"it is shorter than premake = {premake} {interval}s: more would be kept ahead than behind",
                "Write a longer one, or a smaller premake",
            )
        return value

    @field_validator("warm", "cold")
    @classmethod
    def _in_order(cls, value: Span, given: ValidationInfo) -> Span:
        before = {"warm": "hot", "cold": "warm"}[given.field_name or ""]
        earlier = given.data.get(before)
        if earlier is not None and value.rough_days < earlier.rough_days:
            raise refuse(
                f"rows would be {given.field_name} before they are {before} no longer ({before} = {earlier})",
                f"Write at least {earlier}, or a shorter {before}",
            )
        return value


def leaders(policies: Mapping[RelationName, PartitionSet], name: RelationName) -> list[RelationName]:
    """The tables that name this one as a companion: its partitions go when theirs of the same range go."""
    return sorted(each.name for each in policies.values() if name in each.companions)


class Retention(TableModel):
    """`[databases.NAME.retention."schema.table"]`: how long the law wants a table's rows to be kept."""

    name: Relation
    years: Annotated[int, whole(1, 200)]
    archive_after_months: Annotated[int, whole(1, 2400)]
    framework: Reason
    """Whose rule it is: SOX, PCI-DSS, GDPR."""


__all__ = [
    "DEFAULT_PATTERNS",
    "CalendarSpan",
    "Epoch",
    "HashSubpartitions",
    "Interval",
    "LegalHold",
    "PartitionSet",
    "Retention",
    "fields_of",
    "leaders",
]
