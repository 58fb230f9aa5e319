"""Durations as upkeep.toml writes them and messages show them: `250ms`, `30s`, `5m`, `2h`, `1d`."""

from __future__ import annotations

import re
from datetime import timedelta

from fleet.errors import ConfigurationError

_UNITS = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
_WRITTEN = re.compile(r"\s*(\d{1,12})\s*(ms|s|m|h|d)\s*", re.ASCII)
_LONGEST = timedelta(days=3650)
_REMEDY = 'Write a whole number and one unit, ms, s, m, h or d, as in "30s"'


def parse(text: object) -> timedelta:
    """Read a duration.

    A bare number is refused: 30 is seconds to one reader and milliseconds to PostgreSQL.

    Raises:
        ConfigurationError: anything else than one whole number with one unit, or more than ten years.

    """
    if not isinstance(text, str):
        kind = (
            "has no unit" if isinstance(text, int | float) and not isinstance(text, bool) else "is not text"
        )
        raise ConfigurationError(f"The duration {text!r} {kind}", remedy=_REMEDY)
    match = _WRITTEN.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{text!r} is not a duration", remedy=_REMEDY)
    count, unit = int(match[1]), _UNITS[match[2]]
    if count > _LONGEST // unit:
        raise ConfigurationError(
            f"The duration {text!r} is longer than ten years", remedy="Write a shorter one"
        )
    return count * unit


def format(duration: timedelta) -> str:
    """Write a duration in the largest unit that holds it exactly: `parse` reads it back.

    Less than a millisecond is rounded away.
    """
    sign = "-" if duration < timedelta(0) else ""
    rounded = round(abs(duration) / _UNITS["ms"]) * _UNITS["ms"]
    if not rounded:
        return "0s"
    for name, unit in _UNITS.items():
        if not rounded % unit:
            return f"{sign}{rounded // unit}{name}"
    raise AssertionError(duration)  # a whole number of milliseconds always divides by one
