"""What an application may ask for, checked before anything is sent, and the text that it becomes.

A mistake in the call is found here, in the call: not in a worker's log, and not only when Redis is there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from json import JSONEncoder
from typing import Any

from upkeep_client.errors import InvalidRequest, InvalidType

log = logging.getLogger("upkeep_client")

MAX_NAME = 255
"""Characters of a view's or a database's name; PostgreSQL's longest quoted schema.view is 255."""

MAX_KEYS = 10_000
"""Members in one call; more are no better than "all"."""

MAX_BYTES = 1024 * 1024
"""Bytes of members in one call: what a Redis that serves others may be handed at once."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_BIGINT = 2**63

_scalar = JSONEncoder(ensure_ascii=False).encode
_object = JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode
_body = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Key = str | int
"""What identifies a row: text or a whole number of 64 bits."""

Parameters = Mapping[str, Key] | Iterable[Mapping[str, Key]]
"""What fills the tags of cached results: one set of them, or several."""


@dataclass(frozen=True, slots=True)
class Request:
    """One view to refresh, checked. `None` means all keys, all parameters."""

    view: str
    database: str = ""
    keys: tuple[str, ...] | None = None
    parameters: tuple[str, ...] | None = None


def prepare(
    view: str | Iterable[str],
    *,
    database: str | None = None,
    keys: Iterable[Key] | None = None,
    parameters: Parameters | None = None,
) -> list[Request]:
    """Check a call of `request_refresh` and return what it asks for, one request per view.

    Raises:
        InvalidRequest: a wrong type or value.

    """
    views = (view,) if isinstance(view, str) else _several(view)
    where = "" if database is None else _database(database)
    members = None if keys is None else _keys(keys)
    sets = None if parameters is None else _parameters(parameters)
    return [Request(_name(each, "view"), where, members, sets) for each in dict.fromkeys(views)]


@lru_cache(maxsize=4096)
def plain_body(view: str, database: str | None) -> bytes:
    """The body of a request for a whole view; most are, and for the same few views."""
    return bodies(prepare(view, database=database))[0]


def merge(requests: Iterable[Request]) -> list[Request]:
    """One request per view: all keys of all of them, and everything where one of them wants everything."""
    merged: dict[tuple[str, str], Request] = {}
    for each in requests:
        place = (each.database, each.view)
        known = merged.get(place)
        merged[place] = (
            each
            if known is None
            else Request(
                each.view,
                each.database,
                _union(known.keys, each.keys),
                _union(known.parameters, each.parameters),
            )
        )
    return list(merged.values())


def bodies(requests: Sequence[Request]) -> list[bytes]:
    """What mark.lua takes: one JSON text per database.

    Keys and parameters that are too many or too large for one call are left out, which means all of them: a
    request is never lost because it said too much.
    """
    by_database: dict[str, list[dict[str, Any]]] = {}
    room = _Room()
    for each in requests:
        by_database.setdefault(each.database, []).append(
            {"view": each.view, "keys": room.take(each.keys), "parameters": room.take(each.parameters)}
        )
    if room.exceeded:
        _too_many()
    return [
        _body({"database": database, "requests": wanted}).encode() for database, wanted in by_database.items()
    ]


class _Room:
    """What is left of the limits of one call."""

    def __init__(self) -> None:
        self._members = MAX_KEYS
        self._bytes = MAX_BYTES
        self.exceeded = False

    def take(self, members: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if members is None:
            return None
        size = sum(len(member.encode()) for member in members) if len(members) <= self._members else 0
        if len(members) > self._members or size > self._bytes:
            self.exceeded = True
            return None
        self._members -= len(members)
        self._bytes -= size
        return members


def _union(one: tuple[str, ...] | None, other: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if one is None or other is None:
        return None
    both = tuple(dict.fromkeys((*one, *other)))
    if len(both) <= MAX_KEYS:
        return both
    _too_many()
    return None


def _too_many() -> None:
    log.warning(
        "A refresh was requested with over %d keys or %d bytes of them: requested for all keys instead.",
        MAX_KEYS,
        MAX_BYTES,
    )


def _several(views: object) -> tuple[str, ...]:
    if isinstance(views, bytes | bytearray | Mapping) or not isinstance(views, Iterable):
        raise InvalidType(
            f'A view is a string such as "public.sales", or a list of them, not {_type(views)}.'
        )
    found = tuple(views)
    if not found:
        raise InvalidRequest("The list of views is empty: name at least one.")
    for each in found:
        if not isinstance(each, str):
            raise InvalidType(f'A view is a string such as "public.sales", not {_type(each)}.')
    return found


def _name(name: object, what: str) -> str:
    if not isinstance(name, str):
        raise InvalidType(f"The {what} must be a string, not {_type(name)}.")
    if not name:
        raise InvalidRequest(f"The {what} is empty.")
    if len(name) > MAX_NAME:
        raise InvalidRequest(f"The {what}'s name has {len(name)} characters; {MAX_NAME} are the most.")
    return _text(name, f"The {what}'s name")


def _database(database: object) -> str:
    name = _name(database, "database")
    if ":" in name:
        # Two of Redis's keys could have one name.
        raise InvalidRequest("The database's name has a colon: give its name in upkeep.toml, not a URL.")
    return name


def _text(text: str, what: str) -> str:
    if "\0" in text:
        raise InvalidRequest(f"{what} has a NUL character, which PostgreSQL cannot hold.")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequest(f"{what} has half of a surrogate pair, which is no text.") from None
    return text


def _keys(keys: object) -> tuple[str, ...] | None:
    """The keys as JSON; once there are too many, those that follow are not looked at."""
    if isinstance(keys, str | bytes | bytearray | Mapping) or not isinstance(keys, Iterable):
        raise InvalidType(f"keys must be a list of strings and whole numbers, not {_type(keys)}.")
    found: dict[str, None] = {}
    size = 0
    for key in keys:
        _value(key, "A key")
        size += len(key) if isinstance(key, str) else 1
        found[_scalar(key)] = None
        if len(found) > MAX_KEYS or size > MAX_BYTES:
            _too_many()
            return None
    return tuple(found) or None


def _parameters(parameters: object) -> tuple[str, ...] | None:
    """The parameters as JSON; one set that is empty, and too many of them, mean all."""
    if isinstance(parameters, Mapping):
        return _set(parameters)
    if isinstance(parameters, str | bytes | bytearray) or not isinstance(parameters, Iterable):
        raise InvalidType(
            f'parameters must be a mapping such as {{"id": 42}}, or a list of them, not {_type(parameters)}.'
        )
    found: dict[str, None] = {}
    everything = False
    for each in parameters:
        one = _set(each)
        everything = everything or one is None
        found.update(dict.fromkeys(one or ()))
        if len(found) > MAX_KEYS:
            _too_many()
            return None
    return None if everything else tuple(found) or None


def _set(parameters: object) -> tuple[str, ...] | None:
    if not isinstance(parameters, Mapping):
        raise InvalidType(f'parameters must be a mapping such as {{"id": 42}}, not {_type(parameters)}.')
    for name, value in parameters.items():
        if not isinstance(name, str):
            raise InvalidType(f"The name of a parameter must be a string, not {_type(name)}.")
        if not _IDENTIFIER.fullmatch(name):
            raise InvalidRequest("The name of a parameter must be an identifier such as lp_id.")
        _value(value, f"The parameter {name}")
    return (_object(dict(parameters)),) if parameters else None


def _value(value: object, what: str) -> None:
    if isinstance(value, str):
        _text(value, what)
    elif isinstance(value, bool) or not isinstance(value, int):
        raise InvalidType(f"{what} must be a string or a whole number, not {_type(value)}: use str() of it.")
    elif not -_BIGINT <= value < _BIGINT:
        raise InvalidRequest(f"{what} is a number of more than 64 bits: give it as a string.")


def _type(value: object) -> str:
    return type(value).__name__
