"""Cron expressions on a wall clock: what they match, before any time zone has its say.

croniter knows which wall-clock minutes an expression matches, month ends, leap days and `L`, `#` and `W`
included. What it does at a change of the clocks is not what a fleet wants (see `schedules.slots`), so it is
only ever asked about naive times.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise

from croniter import CroniterBadDateError, CroniterError, croniter

from fleet.errors import ConfigurationError

ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")

_REMEDY = 'Write five fields, minute hour day month weekday, as in "*/5 * * * *", or one of ' + ", ".join(
    ALIASES
)
_MINUTE, _HOUR = 0, 1
_DAY = timedelta(days=1)
# A step wider than its field silently means "once per field": */90 minutes is hourly, not every 90 minutes.
_WIDEST_STEP = {"minute": 59, "hour": 23, "day": 31, "month": 12, "weekday": 7}
# Any leap year; gaps are counted from here so that they do not depend on today.
_GAPS_FROM = datetime(2024, 1, 1)  # noqa: DTZ001 - wall clock


@dataclass(frozen=True, slots=True)
class Cron:
    """A valid expression that fires at least once in fifty years; made by `parse`."""

    expression: str
    _parsed: croniter = field(repr=False, compare=False)

    def after(self, wall: datetime) -> datetime:
        """The first match after this naive wall-clock time."""
        # croniter keeps its position inside itself; a shallow copy makes one parsed expression safe to share.
        found: datetime = copy.copy(self._parsed).get_next(datetime, start_time=wall)
        return found

    def before(self, wall: datetime) -> datetime:
        """The last match before this naive wall-clock time."""
        found: datetime = copy.copy(self._parsed).get_prev(datetime, start_time=wall)
        return found

    @property
    def every_hour(self) -> bool:
        """Whether no hour of a day is left out."""
        return self._times(_HOUR) == list(range(24))

    @property
    def follows_elapsed_time(self) -> bool:
        """Whether it fires several times an hour, or every hour: it is due in both of a repeated hour."""
        return len(self._times(_MINUTE)) > 1 or self.every_hour

    @property
    def shortest_gap(self) -> timedelta:
        """The least wall-clock time between two firings."""
        return _gaps(self)[0]

    @property
    def longest_gap(self) -> timedelta:
        """The most wall-clock time between two firings (of a leap day: four years)."""
        return _gaps(self)[1]

    def _times(self, index: int) -> list[int]:
        values = self._parsed.expanded[index]
        return list(range(60 if index == _MINUTE else 24)) if values == ["*"] else sorted(values)


@functools.lru_cache(maxsize=1024)
def parse(expression: str) -> Cron:
    """Read a cron expression.

    Five fields or an alias only: the seconds, years, hashed (`H`) and random (`R`) fields that croniter also
    knows would make a schedule that no reader of the file can predict.

    Raises:
        ConfigurationError: not an expression, or one that never fires.

    """
    fields = expression.lower().split()
    if not (len(fields) == len(_WIDEST_STEP) or (len(fields) == 1 and fields[0] in ALIASES)):
        counted = len(fields) > 1 or expression.isdigit()
        problem = f"has {len(fields)} fields, not five" if counted else "is not one"
        raise ConfigurationError(f"The cron expression {expression!r} {problem}", remedy=_REMEDY)
    for (name, widest), text in zip(_WIDEST_STEP.items(), fields, strict=False):
        if re.search(r"(?<![a-z])[hr](?![a-z])", text):
            raise ConfigurationError(
                f"The {name} of the cron expression {expression!r} is random or hashed",
                remedy="Write the times out",
            )
        for step in re.findall(r"/(\d+)", text):
            if int(step) > widest:
                raise ConfigurationError(
                    f"The cron expression {expression!r} steps by {step}, past the end of its {name} field",
                    remedy=f"A step starts again with each field: use at most {widest}, or list the times",
                )
    try:
        parsed = croniter(" ".join(fields), _GAPS_FROM)
    except (CroniterError, ValueError, TypeError, KeyError, IndexError) as exc:
        # croniter repeats the whole expression in brackets in front of most of its messages.
        said = re.sub(r"^\[.*?\] ", "", str(exc)) or type(exc).__name__
        raise ConfigurationError(f"The cron expression {expression!r}: {said}", remedy=_REMEDY) from exc
    cron = Cron(expression, parsed)
    try:
        cron.after(_GAPS_FROM)
    except CroniterBadDateError as exc:
        raise ConfigurationError(
            f"The cron expression {expression!r} never fires",
            remedy="No year has such a day; choose one that exists",
        ) from exc
    return cron


@functools.lru_cache(maxsize=1024)
def _gaps(cron: Cron) -> tuple[timedelta, timedelta]:
    # Every day that fires at all fires at the same times: the gaps inside a day and between days are all.
    minutes = [60 * hour + minute for hour in cron._times(_HOUR) for minute in cron._times(_MINUTE)]
    inside = [timedelta(minutes=later - earlier) for earlier, later in pairwise(minutes)]
    overnight = timedelta(minutes=minutes[0] - minutes[-1])
    between = [later - earlier + overnight for earlier, later in pairwise(_firing_days(cron))]
    return min(inside + between), max(inside + between)


def _firing_days(cron: Cron) -> Iterator[datetime]:
    # Fourteen months see every month end and its successor; a rarer expression is followed for a dozen days.
    last = _GAPS_FROM
    yielded = 0
    while last < _GAPS_FROM + timedelta(days=427) or yielded < 12:
        day = cron.after(last).replace(hour=0, minute=0)
        yield day
        yielded += 1
        last = day + _DAY - timedelta(minutes=1)
