"""What a single value of upkeep.toml may be: types with their checks, each with the remedy in its error."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from fleet import cron as crons
from fleet import durations
from fleet.errors import ConfigurationError, UpkeepError
from fleet.names import RelationName

# Names of zones that differ from machine to machine, or mean "not set".
_NO_ZONES = frozenset({"localtime", "posixrules", "Factory"})
# As upkeep_client.cache files keys under: lp:{id}.
MAX_TAG_LENGTH = 200
_TAG = re.compile(r"(?:[^\s{}\x00-\x1f]|\{[A-Za-z_][A-Za-z0-9_]*\})+")


def closest(name: str, known: Iterable[str]) -> str:
    """What a mistyped name probably meant, as a remedy, or all that there are."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f'Did you mean "{near[0]}"?'
    return f"Known: {', '.join(names)}" if names else "There are none"


def refuse(message: str, remedy: str) -> PydanticCustomError:
    """What a validator raises, with what to do about it."""
    return PydanticCustomError("upkeep", "{said}", {"said": message, "remedy": remedy})


def refuse_as(error: UpkeepError) -> PydanticCustomError:
    """The same, as somebody else has said it."""
    return refuse(error.message, error.remedy)


def whole(least: int, most: int) -> BeforeValidator:
    """A whole number within bounds."""

    def check(value: object) -> object:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise refuse(f"it must be a whole number from {least} to {most}", f"Write one, as in {least}")
        return value

    return BeforeValidator(check)


def between(least: str, most: str) -> BeforeValidator:
    """A duration within bounds."""
    low, high = durations.parse(least), durations.parse(most)

    def check(value: object) -> object:
        try:
            duration = value if isinstance(value, timedelta) else durations.parse(value)
        except ConfigurationError as exc:
            raise refuse_as(exc) from None
        if not low <= duration <= high:
            raise refuse(f"it must be from {least} to {most}", "Write a duration in these bounds")
        return duration

    return BeforeValidator(check)


def _cron(value: object) -> object:
    if not isinstance(value, str):
        raise refuse("a cron expression is text", 'Put it in quotes, as in "*/5 * * * *"')
    try:
        crons.parse(value)
    except ConfigurationError as exc:
        raise refuse_as(exc) from None
    return value


def _zone(value: object) -> object:
    if not isinstance(value, str):
        raise refuse("a time zone is text", 'Put it in quotes, as in "Europe/Berlin"')
    if not _is_zone(value):
        names = available_timezones()
        same = [name for name in names if name.lower() == value.lower()]
        near = same or get_close_matches(value, names, n=1)
        remedy = f'Did you mean "{near[0]}"?' if near else 'Use an IANA name, as in "Europe/Berlin"'
        raise refuse(f'there is no time zone "{value}"', remedy)
    return value


def _is_zone(name: str) -> bool:
    try:
        return name not in _NO_ZONES and ZoneInfo(name) is not None
    except (ValueError, KeyError, OSError):  # a path, an unknown name, a directory such as "America"
        return False


def as_tuple(value: object) -> object:
    """A list of the document as what a frozen model keeps."""
    return tuple(value) if isinstance(value, list) else value


def text(kind: str, example: str) -> BeforeValidator:
    """Text that says something, and that PostgreSQL can keep; `kind` with its article."""

    def check(value: object) -> object:
        if not isinstance(value, str):
            raise refuse(f"{kind} is text", f'Put it in quotes, as in "{example}"')
        if not value.strip():
            raise refuse("it is empty", f'Write {kind}, as in "{example}"')
        return _storable(value)

    return BeforeValidator(check)


def relation(value: object) -> object:
    """A relation's name as people write it."""
    if isinstance(value, RelationName):
        return value
    try:
        return RelationName.parse(value)
    except UpkeepError as exc:
        raise refuse_as(exc) from None


def _wire_name(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][\w.]*", value):
        raise refuse("it is not the name of a task", 'Write it as "upkeep.refresh.all"')
    return value


def _scalar(value: object) -> object:
    if isinstance(value, str):
        return _storable(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise refuse("an argument is text, a number, true or false", "A message carries nothing else")
    return value


def _storable(text: str) -> str:
    if "\x00" in text:
        raise refuse("it has a NUL character, which PostgreSQL cannot take", "Take it out")
    return text


def _tag(value: object) -> object:
    if not isinstance(value, str) or len(value) > MAX_TAG_LENGTH or not _TAG.fullmatch(value):
        raise refuse(
            f"a tag is text of up to {MAX_TAG_LENGTH} printable characters, with names in its braces",
            'Write it as "dashboard" or "lp:{id}"',
        )
    return value


def _memory(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[1-9][0-9]{0,9}(kB|MB|GB)", value):
        raise refuse(
            "memory is a whole number with a unit PostgreSQL knows", 'Write kB, MB or GB, as in "64MB"'
        )
    return value


Cron = Annotated[str, BeforeValidator(_cron)]
Zone = Annotated[str, BeforeValidator(_zone)]
Memory = Annotated[str, BeforeValidator(_memory)]
Statement = Annotated[str, text("an SQL statement", "SELECT public.settle()")]
Condition = Annotated[str, text("a condition", "status = 'pending'")]
Reason = Annotated[str, text("a reason", "case 4711")]
Name = Annotated[str, text("a name", "archive")]
WireName = Annotated[str, BeforeValidator(_wire_name)]
Scalar = Annotated[str | int | bool | float, BeforeValidator(_scalar)]
StatementTimeout = Annotated[timedelta, between("1s", "7d")]
LockTimeout = Annotated[timedelta, between("1ms", "10m")]
Delay = Annotated[timedelta, between("1ms", "1h")]
MaxWait = Annotated[timedelta, between("1ms", "1d")]
Tags = Annotated[
    tuple[Annotated[str, BeforeValidator(_tag)], ...], BeforeValidator(as_tuple), Field(max_length=100)
]
Retries = Annotated[
    tuple[Annotated[timedelta, between("1ms", "1d")], ...],
    BeforeValidator(as_tuple),
    Field(max_length=10),
]
# Dumped as people write it: a dataclass would become a dict, which is no key.
Relation = Annotated[RelationName, PlainSerializer(str, return_type=str)]


class TableModel(BaseModel):
    """A table of upkeep.toml."""

    # Inputs may hold secrets: no error of pydantic's own may quote them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=False, hide_input_in_errors=True
    )
