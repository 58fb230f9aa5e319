"""Validating one table at a time, and keeping what was found wrong until all of them are through."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from fleet import durations, redaction
from fleet.settings.problems import Problem
from fleet.settings.values import closest

Key = tuple[str | int, ...]
Table = Mapping[str, object]
Model = TypeVar("Model", bound=BaseModel)

# What to do about pydantic's own findings; those of the models bring their remedy with them.
_REMEDIES = {
    "missing": "Add it",
    "string_type": "Put it in quotes",
    "bool_type": "Write true or false, without quotes",
    "tuple_type": 'Write a list, as in ["5s", "25s", "125s"]',
    "dict_type": 'Write a table, as in { tier = "daily" }',
    "too_long": "Ten retries at most",
    "literal_error": "Write one of these",
}
# A default that could not be derived because the value it depends on is wrong: that value is reported.
_CONSEQUENCE = "default_factory_not_called"
# Keys that look as if somebody meant to write a secret; nothing is known about an unknown key but its name.
_SUSPICIOUS = re.compile(r"pass|pw|secret|token|key|auth|cred|ur[il]|dsn|conn", re.IGNORECASE)
NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
# A value is there to be recognised, not to be read in full.
_LONGEST_VALUE = 80


class Rendered(str):
    """A value that is already as it may be shown."""

    __slots__ = ()


class Findings:
    """The errors and warnings of one pass."""

    def __init__(self) -> None:
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, key: Key, value: object, message: str, remedy: str) -> None:
        """Add an error; `value` is as in the document, None where there is none."""
        self.errors.append(_problem(key, value, message, remedy))

    def warn(self, key: Key, value: object, message: str, remedy: str) -> None:
        """Add a warning."""
        self.warnings.append(_problem(key, value, message, remedy))

    def model(
        self,
        model: type[Model],
        value: object,
        key: Key,
        *,
        given: Mapping[str, object] | None = None,
        handled: tuple[str, ...] = (),
    ) -> Model | None:
        """Validate one table.

        `given` are fields that do not come from it, `handled` keys in it that the caller reads.
        """
        given = given or {}
        table = self.table(value, key)
        allowed = [name for name in model.model_fields if name not in given and name not in handled]
        self.unknown(table, (*allowed, *handled), key)
        try:
            return model.model_validate({**{name: table[name] for name in allowed if name in table}, **given})
        except ValidationError as exc:
            for error in exc.errors(include_url=False):
                if error["type"] == _CONSEQUENCE:
                    continue
                location = (*key, *error["loc"])
                context = error.get("ctx", {})
                missing = error["type"] == "missing"
                message = "it is missing" if missing else context.get("said") or _lower(error["msg"])
                found = None if missing else error["input"]
                remedy = context.get("remedy") or _REMEDIES.get(error["type"], "Correct it")
                self.error(location, found, message, remedy)
            return None

    def table(self, value: object, key: Key) -> Table:
        """The value if it is a table, else an empty one and an error."""
        if isinstance(value, Mapping):
            return value
        self.error(key, value, "it must be a table", f"Write [{path(key)}]")
        return {}

    def name(self, name: str, key: Key, kind: str) -> None:
        """Refuse a name that a command line, a variable or a log would have to quote."""
        if not NAME.fullmatch(name):
            self.error(
                key,
                None,
                f"it is not a name for a {kind}",
                "Use a small letter, then small letters, digits and _, 31 characters at most",
            )

    def unknown(self, table: Table, known: Iterable[str], key: Key) -> None:
        """Refuse keys that nobody reads: an ignored setting is worse than a refused one."""
        known = tuple(known)
        for name in table:
            if name not in known:
                remedy = closest(name, known)
                if name == "views":
                    remedy = "Views belong to a database: [databases.NAME.views]"
                value = Rendered(redaction.MASK) if _SUSPICIOUS.search(name) else table[name]
                self.error((*key, name), value, "there is no such key", remedy)


def _problem(key: Key, value: object, message: str, remedy: str) -> Problem:
    # A message may quote a value, and a secret may have been written where a duration belongs.
    return Problem(path(key), _shown(key, value), redaction.text(message), redaction.text(remedy))


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def path(key: Key) -> str:
    """A key as TOML writes it."""
    path = ""
    for part in key:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            path += ("." if path else "") + (part if bare else json.dumps(part, ensure_ascii=False))
    return path


def _shown(key: Key, value: object) -> str:
    """A value as TOML writes it, short, with nothing in it that is a secret."""
    if value is None:
        return ""
    if isinstance(value, Rendered):
        return str(value)
    last = next((part for part in reversed(key) if isinstance(part, str)), "")
    if redaction.names_a_secret(last):
        return redaction.MASK
    shown = redaction.text(_toml(value))
    return shown if len(shown) <= _LONGEST_VALUE else shown[: _LONGEST_VALUE - 1] + "…"


def _toml(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{...}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, timedelta):
        return f'"{durations.format(value)}"'
    return value.isoformat() if isinstance(value, date | datetime | time) else str(value)
