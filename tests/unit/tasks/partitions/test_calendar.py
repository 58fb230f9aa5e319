"""Periods as bounds: exact dates, every kind of control column, clocks that skip and repeat."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise, product
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import ControlType, Range
from fleet.spans import Span
from tasks.partitions.calendar import Calendar, Period, clause, name_of, subpartition_name, text
from tests.unit.tasks.partitions.subjects import policy

INTERVALS = ("day", "week", "month", "quarter", "year")
ZONES = ("UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Beirut", "America/Havana", "Pacific/Apia")


def calendar(control: ControlType = ControlType.DATE, **given: Any) -> Calendar:
    return Calendar.of(policy(premake=1, hot="3 years", **given), control)


def utc(*given: int) -> datetime:
    return datetime(*given, tzinfo=UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("interval", "day", "first", "after"),
    [
        ("day", "2024-02-29", "2024-02-29", "2024-03-01"),
        ("day", "2023-02-28", "2023-02-28", "2023-03-01"),
        ("week", "2024-12-31", "2024-12-30", "2025-01-06"),
        ("week", "2021-01-03", "2020-12-28", "2021-01-04"),
        ("week", "2024-02-26", "2024-02-26", "2024-03-04"),
        ("month", "2024-02-29", "2024-02-01", "2024-03-01"),
        ("month", "2024-12-31", "2024-12-01", "2025-01-01"),
        ("quarter", "2024-05-31", "2024-04-01", "2024-07-01"),
        ("quarter", "2024-10-01", "2024-10-01", "2025-01-01"),
        ("year", "2024-02-29", "2024-01-01", "2025-01-01"),
    ],
)
def test_the_period_of_a_day(interval: str, day: str, first: str, after: str) -> None:
    found = calendar(interval=interval).period_on(date.fromisoformat(day))
    assert found == Period(date.fromisoformat(first), date.fromisoformat(after))


@pytest.mark.parametrize(
    ("zone", "day", "begins"),
    [
        # São Paulo's clocks went from 00:00 to 01:00.
        ("America/Sao_Paulo", "2018-11-04", utc(2018, 11, 4, 3)),
        # And back from 00:00 to 23:00 of the day before: that hour is in February 17 both times.
        ("America/Sao_Paulo", "2018-02-18", utc(2018, 2, 18, 3)),
        ("America/Sao_Paulo", "2018-02-17", utc(2018, 2, 17, 2)),
        ("America/Sao_Paulo", "2024-01-01", utc(2024, 1, 1, 3)),
        # Beirut's too, to 01:00 in spring.
        ("Asia/Beirut", "2024-03-31", utc(2024, 3, 30, 22)),
        ("Asia/Beirut", "2024-10-27", utc(2024, 10, 26, 22)),
        ("Asia/Beirut", "2024-10-26", utc(2024, 10, 25, 21)),
        # Havana's go back from 01:00 to 00:00: midnight twice, and the day has both hours.
        ("America/Havana", "2024-11-03", utc(2024, 11, 3, 4)),
        ("America/Havana", "2024-11-04", utc(2024, 11, 4, 5)),
        ("Europe/Berlin", "2024-03-31", utc(2024, 3, 30, 23)),
        ("Europe/Berlin", "2024-04-01", utc(2024, 3, 31, 22)),
        # Samoa had no December 30.
        ("Pacific/Apia", "2011-12-30", utc(2011, 12, 30, 10)),
        ("Pacific/Apia", "2011-12-31", utc(2011, 12, 30, 10)),
        # Toronto's clocks once went from 23:30 to 00:30.
        ("America/Toronto", "1919-03-31", utc(1919, 3, 31, 4, 30)),
    ],
)
def test_when_a_day_begins(zone: str, day: str, begins: datetime) -> None:
    found = calendar(ControlType.TIMESTAMPTZ, timezone=zone).start_of(date.fromisoformat(day))
    assert found == begins
    shown = begins.astimezone(ZoneInfo(zone))
    before = (begins - timedelta(microseconds=1)).astimezone(ZoneInfo(zone))
    assert before.date() < date.fromisoformat(day) <= shown.date()


CONTROLS: dict[ControlType, dict[str, Any]] = {
    ControlType.DATE: {},
    ControlType.TIMESTAMPTZ: {},
    ControlType.TIMESTAMP: {},
    ControlType.INTEGER: {"epoch": "milliseconds", "epoch_start": date(2010, 11, 4), "epoch_shift": 22},
    ControlType.UUID: {"epoch": "uuidv7"},
}


@pytest.mark.parametrize(("control", "interval", "zone"), list(product(CONTROLS, INTERVALS, ZONES)))
def test_periods_tile_time(control: ControlType, interval: str, zone: str) -> None:
    kept = calendar(control, interval=interval, timezone=zone, **CONTROLS[control])
    period = kept.period_on(date(2010, 12, 25))
    found = []
    while period.first < date(2020, 1, 5):
        found.append(period)
        period = kept.following(period)
    ranges = [kept.range(each) for each in found]
    for one, other in pairwise(ranges):
        assert one.upper == other.lower
    for each, bounds in zip(found, ranges, strict=True):
        assert bounds.lower is not None
        assert bounds.upper is not None
        if bounds.lower == bounds.upper:
            assert (zone, each.first) == ("Pacific/Apia", date(2011, 12, 30))
            continue
        assert bounds.lower < bounds.upper  # type: ignore[operator]
        assert kept.period_of(bounds.lower) == each
        if (zone, each.first) != ("Pacific/Apia", date(2011, 12, 30)):
            assert kept.moment_of(bounds.lower) < kept.moment_of(bounds.upper)
    # Every moment is in one period, and in its range.
    for hours in range(0, 24 * 400, 5):
        moment = utc(2018, 1, 1) + timedelta(hours=hours, minutes=30)
        value = kept.value_at(moment)
        bounds = kept.range(kept.current(moment))
        assert bounds.lower <= value < bounds.upper  # type: ignore[operator]


@pytest.mark.parametrize(
    ("given", "day", "value"),
    [
        ({"epoch": "seconds"}, "2024-01-01", 1_704_067_200),
        ({"epoch": "milliseconds"}, "2024-01-01", 1_704_067_200_000),
        ({"epoch": "microseconds"}, "2024-01-01", 1_704_067_200_000_000),
        ({"epoch": "nanoseconds"}, "2024-01-01", 1_704_067_200_000_000_000),
        ({"epoch": "seconds", "timezone": "Europe/Berlin"}, "2024-01-01", 1_704_063_600),
        ({"epoch": "seconds", "epoch_start": date(2024, 1, 1)}, "2024-01-02", 86_400),
        ({"epoch": "seconds", "epoch_start": date(2024, 1, 2)}, "2024-01-01", -86_400),
        (
            {"epoch": "milliseconds", "epoch_start": date(2015, 1, 1), "epoch_shift": 22},
            "2015-01-02",
            86_400_000 << 22,
        ),
    ],
)
def test_numbers(given: dict[str, Any], day: str, value: int) -> None:
    kept = calendar(ControlType.INTEGER, **given)
    assert kept.start_of(date.fromisoformat(day)) == value
    assert kept.period_of(value).first <= date.fromisoformat(day)


def test_a_number_says_what_it_means() -> None:
    kept = calendar(ControlType.INTEGER, epoch="seconds", timezone="Europe/Berlin")
    assert kept.words(1_704_063_600) == "1704063600 (2024-01-01)"
    assert kept.words(1_704_067_200) == "1704067200 (2024-01-01 01:00:00)"
    assert kept.words(10**30) == str(10**30)
    assert kept.said(Range(lower=None, upper=None)) == "… to …"


def test_uuids_of_version_7() -> None:
    kept = calendar(ControlType.UUID, epoch="uuidv7")
    first = kept.start_of(date(2024, 1, 1))
    assert first == UUID("018cc251-f400-0000-0000-000000000000")
    made = UUID("018cc251-f400-7abc-8def-0123456789ab")
    assert first < made  # type: ignore[operator]
    assert kept.period_of(made).first == date(2024, 1, 1)
    assert kept.words(first) == f"{first} (2024-01-01)"
    with pytest.raises(PermanentError, match="1969"):
        kept.start_of(date(1969, 12, 31))


@pytest.mark.parametrize(
    ("control", "given", "said"),
    [
        (ControlType.INTEGER, {}, 'epoch = "milliseconds"'),
        (ControlType.INTEGER, {"epoch": "uuidv7"}, "UUIDs"),
        (ControlType.UUID, {}, "version 7"),
        (ControlType.UUID, {"epoch": "seconds"}, "uuidv7"),
        (ControlType.DATE, {"epoch": "seconds"}, "Remove epoch"),
        (ControlType.TIMESTAMPTZ, {"epoch": "uuidv7"}, "timestamptz"),
    ],
)
def test_contradictions(control: ControlType, given: dict[str, Any], said: str) -> None:
    with pytest.raises(PermanentError) as raised:
        calendar(control, **given)
    assert said in f"{raised.value.message} {raised.value.remedy}"


def test_the_current_period_and_whole_ones_ahead() -> None:
    found = calendar().ahead(utc(2023, 11, 30, 23, 59), 3)
    assert [each.first.isoformat() for each in found] == [
        "2023-11-01",
        "2023-12-01",
        "2024-01-01",
        "2024-02-01",
    ]
    # In Berlin it is December already.
    found = calendar(timezone="Europe/Berlin").ahead(utc(2023, 11, 30, 23, 59), 1)
    assert [each.first.isoformat() for each in found] == ["2023-12-01", "2024-01-01"]


def test_a_day_that_no_clock_has_shown_is_no_period_ahead() -> None:
    kept = calendar(ControlType.TIMESTAMPTZ, interval="day", timezone="Pacific/Apia")
    assert [each.first.day for each in kept.ahead(utc(2011, 12, 29, 12), 2)] == [29, 31, 1]


@pytest.mark.parametrize(
    ("interval", "clock", "age", "cutoff"),
    [
        ("month", utc(2024, 3, 31, 12), "13 months", "2023-02-01"),
        ("month", utc(2024, 3, 1), "1 month", "2024-02-01"),
        ("month", utc(2024, 2, 29, 23, 59), "1 year", "2023-02-01"),
        ("day", utc(2024, 2, 29, 12), "1 year", "2023-02-28"),
        ("week", utc(2024, 3, 6), "90 days", "2023-12-05"),
        ("quarter", utc(2024, 5, 31), "2 quarters", "2023-10-01"),
    ],
)
def test_cutoffs(interval: str, clock: datetime, age: str, cutoff: str) -> None:
    assert calendar(interval=interval).cutoff(clock, Span.parse(age)) == date.fromisoformat(cutoff)


def test_cut_at_the_ends_of_periods() -> None:
    found = list(calendar().cut(date(2024, 1, 15), date(2024, 3, 10)))
    assert [(each.lower, each.upper) for each in found] == [
        (date(2024, 1, 15), date(2024, 2, 1)),
        (date(2024, 2, 1), date(2024, 3, 1)),
        (date(2024, 3, 1), date(2024, 3, 10)),
    ]


@pytest.mark.parametrize(
    ("given", "lower", "name"),
    [
        ({}, date(2024, 2, 1), "t_y2024m02"),
        ({}, date(2024, 2, 15), "t_y2024m02_from_20240215"),
        ({"interval": "day"}, date(2024, 2, 9), "t_y2024m02d09"),
        ({"interval": "week"}, date(2024, 12, 30), "t_y2025w01"),
        ({"interval": "quarter"}, date(2024, 10, 1), "t_y2024q4"),
        ({"interval": "year"}, date(900, 1, 1), "t_y0900"),
        ({"partition_name": "{month}_{year}_{table}"}, date(2024, 2, 1), "02_2024_t"),
    ],
)
def test_names(given: dict[str, Any], lower: date, name: str) -> None:
    kept = policy(premake=1, hot="3 years", **given)
    found = name_of(kept, Calendar.of(kept, ControlType.DATE), Range(lower=lower, upper=None))
    assert found == RelationName("public", name)


def test_a_name_with_the_time_of_day() -> None:
    kept = policy(timezone="America/Sao_Paulo")
    found = name_of(
        kept, Calendar.of(kept, ControlType.TIMESTAMPTZ), Range(lower=utc(2024, 2, 15, 9, 30), upper=None)
    )
    assert found.name == "t_y2024m02_from_20240215_063000"


def test_braces_in_the_tables_own_name() -> None:
    kept = policy(name=RelationName("public", "{month}"))
    found = name_of(kept, Calendar.of(kept, ControlType.DATE), Range(lower=date(2024, 2, 1), upper=None))
    assert found.name == "{month}_y2024m02"


def test_names_that_postgresql_would_cut() -> None:
    fits = policy(name=RelationName("public", "ü" * 27))
    kept = Calendar.of(fits, ControlType.DATE)
    bounds = Range(lower=date(2024, 2, 1), upper=None)
    found = name_of(fits, kept, bounds)
    assert len(found.name.encode()) == 63
    with pytest.raises(PermanentError, match="65 bytes"):
        subpartition_name(found, 7)
    with pytest.raises(PermanentError, match="65 bytes") as raised:
        name_of(policy(name=RelationName("public", "ü" * 28)), kept, bounds)
    assert "partition_name" in raised.value.remedy


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (date(2024, 2, 1), "2024-02-01"),
        (date(900, 2, 1), "0900-02-01"),
        (utc(2024, 2, 1, 3), "2024-02-01 03:00:00+00"),
        (datetime(2024, 2, 1, 3, tzinfo=ZoneInfo("Europe/Berlin")), "2024-02-01 02:00:00+00"),
        (utc(900, 2, 1, 3, 0, 0, 250_000), "0900-02-01 03:00:00.25+00"),
        (datetime(2024, 2, 1), "2024-02-01 00:00:00"),  # noqa: DTZ001
        (-5, "-5"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    ],
)
def test_bounds_as_postgresql_prints_them(value: Any, shown: str) -> None:
    assert text(value) == shown


def test_the_clause() -> None:
    def shown(bounds: Range, columns: int = 1) -> str:
        return clause(bounds, columns=columns).as_string(None)

    assert shown(Range(lower=date(2024, 1, 1), upper=date(2024, 2, 1))) == (
        "FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')"
    )
    assert shown(Range(lower=None, upper=-1), 2) == "FOR VALUES FROM (MINVALUE, MINVALUE) TO ('-1', MINVALUE)"
    assert shown(Range(lower=3, upper=None), 2) == "FOR VALUES FROM ('3', MINVALUE) TO (MAXVALUE, MAXVALUE)"
