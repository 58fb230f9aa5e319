"""The periods of a policy's calendar as bounds of partitions, in the control column's own type, and their names.

A day begins at the first moment that a clock in the policy's time zone shows its date. Where summer time skips midnight
that is later than 00:00, and where it repeats it, the first of the two: so periods tile time without gap or overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from uuid import UUID
from zoneinfo import ZoneInfo

from psycopg import sql

from fleet.errors import PermanentError
from fleet.names import MAX_IDENTIFIER_BYTES, RelationName
from fleet.postgres.catalog.partitions import ControlType, Range, Value
from fleet.settings.partitions import Epoch, Interval, PartitionSet, fields_of
from fleet.spans import Span

_MONTHS: Mapping[Interval, int] = {"month": 1, "quarter": 3, "year": 12}
_DAYS: Mapping[Interval, int] = {"day": 1, "week": 7}
# How many of a unit, over how many microseconds.
_UNITS: Mapping[Epoch, tuple[int, int]] = {
    "seconds": (1, 1_000_000),
    "milliseconds": (1, 1_000),
    "microseconds": (1, 1),
    "nanoseconds": (1_000, 1),
}
_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# A UUID of version 7 begins with 48 bits of milliseconds since 1970 (RFC 9562).
_UUID_TIME_BITS, _UUID_OTHER_BITS = 48, 80


@dataclass(frozen=True, slots=True, order=True)
class Period:
    """One interval of the calendar: from its first day to the day after its last."""

    first: date
    after: date


@dataclass(frozen=True, slots=True)
class Calendar:
    """Turns days into values of the control column, and back."""

    control: ControlType
    interval: Interval
    timezone: str
    epoch: Epoch | None
    epoch_start: date
    epoch_shift: int

    @classmethod
    def of(cls, policy: PartitionSet, control: ControlType) -> Calendar:
        """The calendar of a policy for a column of this type.

        Raises:
            PermanentError: the two say different things about what is in the column.
        """
        if not _agree(policy.epoch, control):
            message, remedy = _contradiction(policy.epoch, control)
            raise PermanentError(message, remedy=remedy)
        return cls(
            control=control,
            interval=policy.interval,
            timezone=policy.timezone,
            epoch=policy.epoch,
            epoch_start=policy.epoch_start,
            epoch_shift=policy.epoch_shift,
        )

    def period_on(self, day: date) -> Period:
        """The period that has a day."""
        if self.interval in _DAYS:
            first = day - timedelta(days=day.weekday()) if self.interval == "week" else day
            return Period(first, first + timedelta(days=_DAYS[self.interval]))
        months = _MONTHS[self.interval]
        first = date(day.year, (day.month - 1) // months * months + 1, 1)
        return Period(first, _months_later(first, months))

    def following(self, period: Period) -> Period:
        """The next one."""
        return self.period_on(period.after)

    def period_of(self, value: Value) -> Period:
        """The period that has a value of the control column."""
        period = self.period_on(self._day(value))
        # A clock that is set back over midnight shows a date twice.
        while less(value, self.start_of(period.first)):
            period = self.period_on(period.first - timedelta(days=1))
        while not less(value, self.start_of(period.after)):
            period = self.following(period)
        return period

    def current(self, clock: datetime) -> Period:
        """The period that has a moment."""
        return self.period_of(self.value_at(clock))

    def range(self, period: Period) -> Range:
        """A period in the control column's own type."""
        return Range(lower=self.start_of(period.first), upper=self.start_of(period.after))

    def ahead(self, clock: datetime, premake: int) -> list[Period]:
        """The current period and the whole ones after it; a day that no clock has shown is none."""
        period = self.current(clock)
        found = [period]
        while len(found) <= premake:
            period = self.following(period)
            bounds = self.range(period)
            if bounds.lower != bounds.upper:
                found.append(period)
        return found

    def cut(self, lower: Value, upper: Value) -> Iterator[Range]:
        """A range in pieces, none of which is in two periods."""
        while less(lower, upper):
            end = self.start_of(self.period_of(lower).after)
            end = end if less(end, upper) else upper
            yield Range(lower=lower, upper=end)
            lower = end

    def cutoff(self, clock: datetime, age: Span) -> Value:
        """Before which value rows are older than that; counted from the beginning of the current period."""
        return self.start_of(age.before(self.current(clock).first))

    def start_of(self, day: date) -> Value:
        """The smallest value that a day can have."""
        match self.control:
            case ControlType.DATE:
                return day
            case ControlType.TIMESTAMP:
                return datetime.combine(day, time())
            case _:
                return self._from_instant(_midnight(day, self.timezone))

    def value_at(self, moment: datetime) -> Value:
        """What a row of this moment has in the control column, at least."""
        match self.control:
            case ControlType.DATE:
                return moment.astimezone(ZoneInfo(self.timezone)).date()
            case ControlType.TIMESTAMP:
                return moment.astimezone(ZoneInfo(self.timezone)).replace(tzinfo=None)
            case _:
                return self._from_instant(moment.astimezone(UTC))

    def moment_of(self, value: Value) -> datetime:
        """When a value begins, in UTC.

        Raises:
            OverflowError: before year 1, or after 9999.
        """
        match value:
            case datetime() if value.tzinfo is not None:
                return value.astimezone(UTC)
            case datetime():
                return value.replace(tzinfo=ZoneInfo(self.timezone)).astimezone(UTC)
            case date():
                return _midnight(value, self.timezone)
            case UUID():
                return _UNIX + timedelta(milliseconds=value.int >> _UUID_OTHER_BITS)
            case _:
                units, microseconds = _UNITS[self.epoch or "seconds"]
                return self._zero + timedelta(
                    microseconds=(value >> self.epoch_shift) * microseconds // units
                )

    def words(self, value: Value | None) -> str:
        """A bound as people read it: a date where a day begins, else with its time; numbers with what they mean."""
        if value is None:
            return "…"
        if isinstance(value, date) and not isinstance(value, datetime):
            return value.isoformat()
        try:
            shown = _shown(self.moment_of(value).astimezone(ZoneInfo(self.timezone)), self._begins_day(value))
        except (OverflowError, ValueError):
            return str(value)
        return f"{value} ({shown})" if isinstance(value, int | UUID) else shown

    def said(self, bounds: Range) -> str:
        """A range as people read it."""
        return f"{self.words(bounds.lower)} to {self.words(bounds.upper)}"

    @property
    def _zero(self) -> datetime:
        return datetime.combine(self.epoch_start, time(), UTC)

    def _day(self, value: Value) -> date:
        match value:
            case datetime() if value.tzinfo is None:
                return value.date()
            case date() if not isinstance(value, datetime):
                return value
            case _:
                return self.moment_of(value).astimezone(ZoneInfo(self.timezone)).date()

    def _begins_day(self, value: Value) -> bool:
        return self.start_of(self._day(value)) == value

    def _from_instant(self, instant: datetime) -> Value:
        match self.control:
            case ControlType.UUID:
                milliseconds = (instant - _UNIX) // timedelta(milliseconds=1)
                if not 0 <= milliseconds < 1 << _UUID_TIME_BITS:
                    raise PermanentError(
                        f"No UUID of version 7 is of {instant:%Y-%m-%d}", remedy="They begin in 1970"
                    )
                return UUID(int=milliseconds << _UUID_OTHER_BITS)
            case ControlType.INTEGER:
                units, microseconds = _UNITS[self.epoch or "seconds"]
                return ((instant - self._zero) // _MICROSECOND * units // microseconds) << self.epoch_shift
            case _:
                return instant


def less(one: Value, other: Value) -> bool:
    """Whether a value of a set's control column comes before another."""
    # All values of a set are of one type, which no signature can say.
    return one < other  # type: ignore[operator]


def name_of(policy: PartitionSet, calendar: Calendar, bounds: Range) -> RelationName:
    """What a new partition is called: by its period, and by its first moment too where it begins within one.

    Raises:
        PermanentError: it would have more bytes than PostgreSQL keeps of a name.
    """
    if bounds.lower is None:
        raise PermanentError("A partition without a beginning has no name", remedy="Give it one by hand")
    period = calendar.period_of(bounds.lower)
    name = _filled(policy.partition_name, policy.name.name, period.first)
    if bounds.lower != calendar.start_of(period.first):
        local = calendar.moment_of(bounds.lower).astimezone(ZoneInfo(calendar.timezone))
        begins = f"{local:%Y%m%d}" if local.time() == time() else f"{local:%Y%m%d_%H%M%S}"
        name = f"{name}_from_{begins}"
    return RelationName(policy.name.schema, fitting(name))


def subpartition_name(partition: RelationName, remainder: int) -> RelationName:
    """What a partition of a partition is called that is divided by hash.

    Raises:
        PermanentError: it would have more bytes than PostgreSQL keeps of a name.
    """
    return RelationName(partition.schema, fitting(f"{partition.name}_{remainder}"))


def fitting(name: str) -> str:
    """The name, if PostgreSQL keeps all of it: a longer one it would cut in silence."""
    size = len(name.encode())
    if size > MAX_IDENTIFIER_BYTES:
        raise PermanentError(
            f'The name "{name}" has {size} bytes, and PostgreSQL keeps {MAX_IDENTIFIER_BYTES}',
            remedy='Write a shorter partition_name, as in "tx_y{year}m{month}"',
        )
    return name


def text(value: Value) -> str:
    """A bound as PostgreSQL prints it under UTC and ISO dates, which it reads under every DateStyle."""
    match value:
        case datetime():
            fraction = f".{value.microsecond:06}".rstrip("0") if value.microsecond else ""
            zone = "" if value.tzinfo is None else "+00"
            shown = value if value.tzinfo is None else value.astimezone(UTC)
            # Not strftime: it gives years before 1000 fewer than four digits.
            return f"{shown.replace(tzinfo=None, microsecond=0).isoformat(sep=' ')}{fraction}{zone}"
        case date():
            return value.isoformat()
        case _:
            return str(value)


def clause(bounds: Range, *, columns: int = 1) -> sql.Composed:
    """FOR VALUES FROM (…) TO (…), for a key of so many columns, of which the first is the control column."""
    lower = _bound(bounds.lower, "MINVALUE", columns)
    upper = _bound(bounds.upper, "MAXVALUE", columns)
    return sql.SQL("FOR VALUES FROM ({}) TO ({})").format(lower, upper)


def _bound(value: Value | None, without: str, columns: int) -> sql.Composed:
    # After MINVALUE or MAXVALUE the server wants the same word; after a value MINVALUE is its very beginning.
    first: sql.Composable = sql.SQL("MINVALUE") if without == "MINVALUE" else sql.SQL("MAXVALUE")
    rest = first if value is None else sql.SQL("MINVALUE")
    if value is not None:
        first = sql.Literal(text(value))
    return sql.SQL(", ").join([first, *[rest] * (columns - 1)])


def _filled(pattern: str, table: str, first: date) -> str:
    iso_year, week, _ = first.isocalendar()
    fields = {
        "table": table,
        "year": f"{first.year:04}",
        "month": f"{first.month:02}",
        "day": f"{first.day:02}",
        "quarter": str((first.month + 2) // 3),
        "week": f"{week:02}",
        "iso_year": f"{iso_year:04}",
    }
    # Once over the pattern: a table's name may have braces too.
    filled, rest = [], pattern
    for field in fields_of(pattern):
        before, _, rest = rest.partition(f"{{{field}}}")
        filled += [before, fields[field]]
    return "".join([*filled, rest])


@lru_cache(maxsize=16_384)
def _midnight(day: date, timezone: str) -> datetime:
    """The first moment of a day in a zone, in UTC."""
    zone = ZoneInfo(timezone)
    wanted = datetime.combine(day, time())
    instant = wanted.replace(tzinfo=zone).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == wanted:
        return instant
    # The clock was set forward over it: it happened between what the two offsets make of it.
    low, high = wanted.replace(tzinfo=zone, fold=1).astimezone(UTC), instant
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
        if middle.astimezone(zone).replace(tzinfo=None) >= wanted:
            high = middle
        else:
            low = middle
    return high


def _months_later(day: date, months: int) -> date:
    year, index = divmod(day.year * 12 + day.month - 1 + months, 12)
    return date(year, index + 1, 1)


def _shown(local: datetime, whole_day: bool) -> str:
    if whole_day:
        return local.date().isoformat()
    return local.replace(tzinfo=None).isoformat(sep=" ", timespec="auto")


def _agree(epoch: Epoch | None, control: ControlType) -> bool:
    match control:
        case ControlType.UUID:
            return epoch == "uuidv7"
        case ControlType.INTEGER:
            return epoch is not None and epoch != "uuidv7"
        case _:
            return epoch is None


def _contradiction(epoch: Epoch | None, control: ControlType) -> tuple[str, str]:
    if control is ControlType.UUID:
        return (
            'The control column is a uuid, whose time only epoch = "uuidv7" can tell',
            'Add epoch = "uuidv7" if they are of version 7; others have no order in time',
        )
    if control is ControlType.INTEGER and epoch is None:
        return (
            "The control column is a number, and the policy does not say what it counts",
            'Add epoch = "milliseconds" (or seconds, microseconds, nanoseconds), and epoch_start if it is not 1970',
        )
    if control is ControlType.INTEGER:
        return (
            "The control column is a number, and epoch is for UUIDs",
            'Write epoch = "milliseconds", or its unit',
        )
    return f"The control column is a {control}, which counts no epoch", "Remove epoch"
