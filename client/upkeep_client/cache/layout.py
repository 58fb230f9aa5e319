"""Tags, and the names of the cache's keys: every command and script touches one key, or two of one hash slot.

| key | |
|---|---|
| `<prefix>:value:<key>` | a cached result |
| `<prefix>:lock:<key>` | held by the one who computes it |
| `<prefix>:tag:{<tag>}` | sorted set of the results' keys by the time that they end |
| `<prefix>:tag:{<tag>}:dying` | the same, while it is being emptied |
| `<prefix>:family:{<template>}` | sorted set of the tags that came of a template |
| `<prefix>:generation:{<tag or template>}` | changes with every invalidation |
| `<prefix>:patterns`, `<prefix>:stats:<pattern>:<day>` | hits and misses |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from upkeep_client.errors import InvalidRequest, InvalidType

PREFIX = "upkeep:cache"
MAX_TAG = 200
MAX_KEY = 1024

_TEMPLATE = re.compile(r"(?:[^\s{}\x00-\x1f]|\{[A-Za-z_][A-Za-z0-9_]*\})+")
_NAME = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
# Braces say what a cluster hashes, so a value must not bring any.
_QUOTED = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})

Value = str | int


def names(template: str) -> tuple[str, ...]:
    """Return the parameters of a template, `("id",)` for `lp:{id}`.

    Raises:
        InvalidRequest: it is none.

    """
    if not isinstance(template, str):
        raise InvalidType(f'A tag is a string such as "lp:{{id}}", not {type(template).__name__}.')
    if len(template) > MAX_TAG or not _TEMPLATE.fullmatch(template):
        raise InvalidRequest(
            f"A tag is text of up to {MAX_TAG} printable characters, with names in its braces: "
            '"dashboard", "lp:{id}".'
        )
    return tuple(dict.fromkeys(_NAME.findall(template)))


def fill(template: str, parameters: Mapping[str, object]) -> str | None:
    """Return the tag that comes of a template, or None if a parameter is missing or no value for one."""
    wanted = names(template)
    values = {name: parameters.get(name) for name in wanted}
    if not all(isinstance(value, Value) and not isinstance(value, bool) for value in values.values()):
        return None
    return _NAME.sub(lambda match: str(values[match[1]]).translate(_QUOTED), template) or None


class Tag:
    """What a cached result belongs to: a template of the view's `invalidates`, filled, and how long it may be kept.

    `Tag("lp:{id}", ttl=600, id=42)`. `ttl` is in seconds, or a timedelta.
    """

    __slots__ = ("concrete", "template", "ttl_ms")

    def __init__(self, template: str, /, *, ttl: float | timedelta, **parameters: Value) -> None:
        wanted = names(template)
        filled = fill(template, parameters)
        if filled is None or set(parameters) != set(wanted):
            raise InvalidRequest(
                f'The tag "{template}" takes {", ".join(wanted) or "no parameters"}, as strings or whole numbers.'
            )
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.001 <= seconds < 10**9:
            raise InvalidRequest(f'The ttl of the tag "{template}" must be in seconds, and more than 0.')
        self.template = template
        self.concrete = filled
        self.ttl_ms = round(seconds * 1000)

    def __repr__(self) -> str:
        return f"Tag({self.concrete!r}, ttl={self.ttl_ms / 1000:g})"


@dataclass(frozen=True, slots=True)
class Layout:
    """The names under one prefix."""

    prefix: str = PREFIX

    def __post_init__(self) -> None:
        if not isinstance(self.prefix, str) or not self.prefix or set(self.prefix) & set("{} \0"):
            raise InvalidRequest("The prefix of a cache is text without braces and spaces.")

    def value(self, key: str) -> str:
        """Return where a result is."""
        return f"{self.prefix}:value:{key}"

    def lock(self, key: str) -> str:
        """Return what the one who computes a result holds."""
        return f"{self.prefix}:lock:{key}"

    def tag(self, concrete: str) -> str:
        """Return where the keys of a tag are filed."""
        return f"{self.prefix}:tag:{{{concrete}}}"

    def dying(self, concrete: str) -> str:
        """Return where they are while they are deleted."""
        return f"{self.prefix}:tag:{{{concrete}}}:dying"

    def family(self, template: str) -> str:
        """Return where the tags of a template are listed."""
        return f"{self.prefix}:family:{{{template}}}"

    def generation(self, tag: str) -> str:
        """Return what every invalidation of a tag or of a whole template changes."""
        return f"{self.prefix}:generation:{{{tag}}}"

    def generations(self, tags: Iterable[Tag]) -> list[str]:
        """Return all that an invalidation of these tags could change."""
        found = [name for tag in tags for name in dict.fromkeys((tag.concrete, tag.template))]
        return [self.generation(each) for each in dict.fromkeys(found)]

    @property
    def patterns(self) -> str:
        """Where the patterns with figures are listed, by their last time."""
        return f"{self.prefix}:patterns"

    def stats(self, pattern: str, day: str) -> str:
        """Return where the figures of a pattern and a day (in UTC) are."""
        return f"{self.prefix}:stats:{pattern}:{day}"
