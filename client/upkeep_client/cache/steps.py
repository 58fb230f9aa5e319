"""How a result is looked up and computed, told once for threads and for asyncio.

A lookup is a generator: it yields what it needs (an answer of Redis, a pause, the result of the caller's function) and
is sent that. Whoever drives it knows how to wait.

Why no stale result survives an invalidation: the generations are read before the computation and again after the
result is stored. An invalidation changes them first and deletes what is filed second. So either the result was filed
and stored before the deletion, and goes with it, or the second look sees that the generation moved, and takes the
result back.
"""

from __future__ import annotations

import json
import random
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from upkeep_client.cache.layout import MAX_KEY, Layout, Tag
from upkeep_client.errors import InvalidRequest, InvalidType

FILE_SCRIPT = resources.files("upkeep_client.cache").joinpath("file.lua").read_text(encoding="utf-8")
UNLOCK_SCRIPT = resources.files("upkeep_client.cache").joinpath("unlock.lua").read_text(encoding="utf-8")

Command = tuple[Any, ...]


class CacheUnavailable(Exception):
    """Redis did not answer as it should; the result comes from the caller's function."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Commands for Redis; the answer is a list of theirs."""

    commands: Sequence[Command]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for a moment."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Compute:
    """Call the caller's function."""


Step = Ask | Pause | Compute
Lookup = Generator[Step, Any, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How a cache behaves."""

    layout: Layout
    dumps: Callable[[Any], str | bytes]
    loads: Callable[[Any], Any]
    wait_s: float
    """How long somebody waits for a result that another one computes, before computing it too."""
    lock_ms: int
    """After this a computation counts as dead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One result, and what it belongs to."""

    key: str
    tags: tuple[Tag, ...]
    pattern: str

    @classmethod
    def check(cls, key: str, tags: Sequence[Tag], pattern: str | None) -> Entry:
        """Refuse what could not be found again.

        Raises:
            InvalidRequest: a wrong type or value.

        """
        if not isinstance(key, str) or not key or len(key) > MAX_KEY:
            raise InvalidRequest(f"The key of a result is text of up to {MAX_KEY} characters.")
        found = tuple(tags)
        if not found or not all(isinstance(tag, Tag) for tag in found):
            raise InvalidType('A result needs at least one tag, such as Tag("lp:{id}", ttl=600, id=42).')
        if pattern is not None and (not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_KEY):
            raise InvalidRequest('A pattern is text such as "lp:{id}:summary": the keys that count as one.')
        return cls(key=key, tags=found, pattern=pattern or found[0].template)


def dumps_json(value: Any) -> str:
    """Encode as JSON, and refuse what would not come back as it was.

    Raises:
        TypeError: a datetime, a Decimal or anything else that JSON does not know.

    """
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except TypeError as exc:
        raise TypeError(
            f"A result cannot be cached as JSON: {exc}. "
            "Make it text in your function, or give the cache dumps= and loads=."
        ) from None


def get_or_compute(rules: Rules, entry: Entry, count: Callable[[str, str], None]) -> Lookup:
    """Look a result up, or compute and store it; `count` is told "hits", "misses" or "errors" of the pattern."""
    token: str | None = None
    before: Sequence[Any] | None = None
    try:
        (text,) = yield Ask([("GET", rules.layout.value(entry.key))])
        if text is None:
            text, token, before = yield from _claim(rules, entry)
        if text is not None:
            try:
                found = rules.loads(text)
            except ValueError:  # written by another version, say: as good as nothing
                before = yield Ask([("GET", each) for each in rules.layout.generations(entry.tags)])
            else:
                count(entry.pattern, "hits")
                return found
    except CacheUnavailable:
        before = None
    count(entry.pattern, "errors" if before is None else "misses")
    try:
        value = yield Compute()
        if before is None:
            return value
        text = rules.dumps(value)
    except GeneratorExit:
        raise
    except BaseException:
        yield from _unlock(rules, entry, token)
        raise
    yield from _store(rules, entry, text, before, token)
    return value


def _claim(rules: Rules, entry: Entry) -> Generator[Step, Any, tuple[Any, str | None, list[Any]]]:
    """Take the lock, or wait for what its holder computes: a result, or our token, and the generations of now."""
    token = secrets.token_hex(8)
    generations = rules.layout.generations(entry.tags)
    commands: list[Command] = [("GET", each) for each in generations]
    commands.append(("SET", rules.layout.lock(entry.key), token, "NX", "PX", rules.lock_ms))
    commands.append(("GET", rules.layout.value(entry.key)))
    deadline = time.monotonic() + rules.wait_s
    while True:
        *before, locked, text = yield Ask(commands)
        if text is not None:
            if locked:
                yield from _unlock(rules, entry, token)
            return text, None, before
        if locked:
            return None, token, before
        if time.monotonic() > deadline:
            return None, None, before
        yield Pause(random.uniform(0.01, 0.05))  # noqa: S311  (no secret: so that not all ask at once)


def _store(
    rules: Rules, entry: Entry, text: str | bytes, before: Sequence[Any], token: str | None
) -> Generator[Step, Any, None]:
    layout, ttl_ms = rules.layout, min(tag.ttl_ms for tag in entry.tags)
    value = layout.value(entry.key)
    filing: list[Command] = []
    for tag in entry.tags:
        filing.append(("EVAL", FILE_SCRIPT, 1, layout.tag(tag.concrete), value, ttl_ms))
        if tag.concrete != tag.template:
            filing.append(("EVAL", FILE_SCRIPT, 1, layout.family(tag.template), tag.concrete, ttl_ms))
    try:
        # The family before the tag, and both before the result: what is stored can be found.
        expires = yield Ask(filing[::-1])
        # A moment, not a duration: who was stopped in between stores nothing that outlives its filing.
        yield Ask([("SET", value, text, "PXAT", min(map(int, expires)))])
        after = yield Ask([("GET", each) for each in layout.generations(entry.tags)])
        if list(after) != list(before):
            yield Ask([("UNLINK", value)])
    except CacheUnavailable:
        return
    yield from _unlock(rules, entry, token)


def _unlock(rules: Rules, entry: Entry, token: str | None) -> Generator[Step, Any, None]:
    if token is None:
        return
    try:
        yield Ask([("EVAL", UNLOCK_SCRIPT, 1, rules.layout.lock(entry.key), token)])
    except CacheUnavailable:
        return  # it ends by itself
