"""Spans of the calendar as upkeep.toml writes them: `90 days`, `13 months`, `7 years`.

Not durations: thirteen months before 31 March are 28 or 29 February of the year before, however many days that is.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import date, timedelta

from fleet.errors import ConfigurationError

_WRITTEN = re.compile(r"\s*([1-9]\d{0,4})\s*(day|week|month|quarter|year)s?\s*", re.ASCII)
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_DAYS = {"day": 1, "week": 7}
_LONGEST_MONTHS = 12 * 200
# What a span is compared by where one counts months and the other one days.
_DAYS_IN_A_MONTH = 146_097 / 4800


@dataclass(frozen=True, slots=True)
class Span:
    """A number of months, or of days."""

    months: int = 0
    days: int = 0

    @classmethod
    def parse(cls, text: object) -> Span:
        """Read a whole number with a unit.

        Raises:
            ConfigurationError: anything else, or more than two hundred years.
        """
        match = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ConfigurationError(
                f"{text!r} is no span of the calendar",
                remedy='Write a whole number of days, weeks, months, quarters or years, as in "13 months"',
            )
        count, unit = int(match[1]), match[2]
        span = cls(months=count * _MONTHS[unit]) if unit in _MONTHS else cls(days=count * _DAYS[unit])
        if span.rough_days > _LONGEST_MONTHS * _DAYS_IN_A_MONTH:
            raise ConfigurationError(
                f"{text!r} is longer than two hundred years", remedy="Write a shorter one"
            )
        return span

    @property
    def rough_days(self) -> float:
        """About how many days: good for comparing two spans, not for counting back."""
        return self.months * _DAYS_IN_A_MONTH + self.days

    def before(self, day: date) -> date:
        """The day that lies so far before another; the last of its month where that has no such day."""
        month = day.year * 12 + day.month - 1 - self.months
        year, index = divmod(month, 12)
        # Before year 1 there is no date: nothing is so old.
        if year < date.min.year:
            return date.min
        last = calendar.monthrange(year, index + 1)[1]
        shifted = date(year, index + 1, min(day.day, last))
        return shifted - timedelta(days=self.days) if (shifted - date.min).days >= self.days else date.min

    def __str__(self) -> str:
        for unit, each in (("year", 12), ("month", 1)):
            if self.months and not self.months % each:
                count = self.months // each
                return f"{count} {unit}{'' if count == 1 else 's'}"
        return f"{self.days} day{'' if self.days == 1 else 's'}"
