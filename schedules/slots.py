"""When an entry is due: the slots of a cron expression in a time zone, right at both changes of the clocks.

A slot is an instant. It is asked for and given in UTC, so that two slots can be compared, stored and waited
for; the zone only decides which instants the expression means. The rules are cron's own since Vixie:

- A wall-clock time that is skipped in spring runs once, at the moment the clocks go forward. Several skipped
  times of one expression are one slot there. An expression that fires every hour skips nothing: the hours
  beside the gap are adjacent.
- A wall-clock time that happens twice in autumn runs at its first occurrence. An expression that fires
  several times an hour, or every hour, runs in both: neither `*/15` nor `0 * * * *` may pause for an hour.

croniter 7 alone, asked with an aware datetime, runs `30 1 * * *` twice on New York's autumn day, and
`0 */2 * * *` twice at Berlin's 02:00. So it only matches wall-clock times (`fleet.cron`), and the changes of
the clocks are walked here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from fleet import cron as crons

_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)


def next_slot(cron: str, zone: str, after: datetime) -> datetime:
    """The first slot after an instant, in UTC.

    Raises:
        ValueError: `after` is naive.
        ConfigurationError: the expression is not valid.

    """
    expression = crons.parse(cron)
    instant = _utc(after)
    offset = _offset(zone, instant)
    wall = instant + offset
    back = _change_before(zone, instant, wall)
    if back is not None and back.repeats and not expression.follows_elapsed_time:
        # Inside the second pass of a repeated hour, its times are already over.
        wall = max(wall, back.wall_before - _SECOND)
    match = expression.after(wall)
    while (change := _change_after(zone, instant, match)) is not None and match >= change.wall_before:
        if not change.repeats and match < change.wall_after:
            if not expression.every_hour:
                return change.at.replace(tzinfo=UTC)
            match = expression.after(change.wall_after - _SECOND)
        elif change.repeats and expression.follows_elapsed_time:
            match = expression.after(change.wall_after - _SECOND)
        instant, offset = change.at, change.after
    return (match - offset).replace(tzinfo=UTC)


def latest_slot(cron: str, zone: str, at: datetime) -> datetime:
    """The last slot at or before an instant, in UTC.

    Raises:
        ValueError: `at` is naive.
        ConfigurationError: the expression is not valid.

    """
    expression = crons.parse(cron)
    instant = _utc(at)
    offset = _offset(zone, instant)
    end = instant.replace(microsecond=0) + offset + _SECOND
    match = expression.before(end)
    while (change := _change_before(zone, instant, match)) is not None:
        first_pass_counts = change.repeats and not expression.follows_elapsed_time
        if match >= (change.wall_before if first_pass_counts else change.wall_after):
            break
        if not change.repeats and match >= change.wall_before and not expression.every_hour:
            return change.at.replace(tzinfo=UTC)
        if end < change.wall_before or match >= change.wall_before:
            match = expression.before(change.wall_before)
        end = change.wall_before
        instant, offset = change.at - _SECOND, change.before
    return (match - offset).replace(tzinfo=UTC)


def interval(cron: str, zone: str, at: datetime) -> timedelta:
    """The time between the slots around an instant: how old a view gets there when all goes well."""
    return next_slot(cron, zone, at) - latest_slot(cron, zone, at)


@dataclass(frozen=True, slots=True)
class _Change:
    """One change of a zone's offset from UTC. Walls are naive local times, instants naive UTC."""

    at: datetime
    before: timedelta
    after: timedelta

    @property
    def wall_before(self) -> datetime:
        """What the clock would have shown at the change, had it not been touched."""
        return self.at + self.before

    @property
    def wall_after(self) -> datetime:
        """What it was set to."""
        return self.at + self.after

    @property
    def repeats(self) -> bool:
        """Whether the clock went back."""
        return self.after < self.before


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} is naive: a slot needs a datetime with a time zone")
    return moment.astimezone(UTC).replace(tzinfo=None)


def _offset(zone: str, instant: datetime) -> timedelta:
    offset = instant.replace(tzinfo=UTC).astimezone(ZoneInfo(zone)).utcoffset()
    assert offset is not None
    return offset


def _change_after(zone: str, instant: datetime, match: datetime) -> _Change | None:
    """The first change after an instant, if there is one before a wall-clock match can be reached."""
    for year in range(instant.year, match.year + 2):
        for change in _changes(zone, year):
            if change.at > instant:
                return change
    return None


def _change_before(zone: str, instant: datetime, match: datetime) -> _Change | None:
    """The last change at or before an instant, if there is one after a wall-clock match."""
    for year in range(instant.year, match.year - 2, -1):
        for change in reversed(_changes(zone, year)):
            if change.at <= instant:
                return change
    return None


@functools.lru_cache(maxsize=4096)
def _changes(zone: str, year: int) -> tuple[_Change, ...]:
    """The changes of one year, found by looking: zoneinfo does not list them.

    A day is the step. No zone has changed twice within one.
    """
    found = []
    day = datetime(year, 1, 1)  # noqa: DTZ001 - UTC without the label
    before = _offset(zone, day)
    while day.year == year:
        after = _offset(zone, day + _DAY)
        if after != before:
            low, high = day, day + _DAY
            while high - low > _SECOND:
                middle = low + (high - low) // 2
                middle = middle.replace(microsecond=0)
                if _offset(zone, middle) == before:
                    low = middle
                else:
                    high = middle
            found.append(_Change(at=high, before=before, after=after))
        day, before = day + _DAY, after
    return tuple(found)
