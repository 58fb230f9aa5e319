"""How what is filed under tags is deleted: in batches, without KEYS or SCAN, and to the end if it is called again.

The set of a tag is renamed before it is walked, so that what is filed meanwhile is in another one. A crash leaves the
renamed set, which the next call finishes first.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import redis

from upkeep_client.cache.layout import Layout, fill, names
from upkeep_client.cache.steps import Command
from upkeep_client.errors import InvalidType

GENERATION_MS = 86_400_000
"""Longer than any computation: whoever began before sees that it moved."""

BATCH = 1000
"""Keys of one tag in one round trip."""

TAGS = 100
"""Tags in one round trip."""

Walk = Generator[list[Command], list[Any], Any]
"""Yields commands, is sent their answers, errors among them; returns a number of keys."""


def invalidate(
    layout: Layout,
    tags: Iterable[str],
    parameters: Iterable[Mapping[str, object]] | None,
    *,
    cluster: bool,
) -> Generator[list[Command], list[Any], int]:
    """Delete what is filed under the tags of some templates; returns the number of keys that were deleted."""
    if isinstance(tags, str):
        raise InvalidType("tags is a list of tags, not one string.")
    sets = list(parameters or ())
    deleted = 0
    concrete: dict[str, None] = {}
    for template in tags:
        wanted = names(template)
        filled = [fill(template, each) for each in sets] if wanted else [template]
        if filled and all(filled):
            concrete.update((each, None) for each in filled if each)
        else:
            deleted += yield from _family(layout, template, cluster=cluster)
    found = list(concrete)
    for at in range(0, len(found), TAGS):
        deleted += yield from _tags(layout, found[at : at + TAGS], cluster=cluster)
    return deleted


def _family(layout: Layout, template: str, *, cluster: bool) -> Generator[list[Command], list[Any], int]:
    """Every tag that came of a template. It stays listed: a result may be filed under it at any moment."""
    # First, so that what is being computed under a tag that is not listed yet is taken back as well.
    yield from _asked([("SET", layout.generation(template), secrets.token_hex(8), "PX", GENERATION_MS)])
    deleted, cursor = 0, "0"
    while True:
        ((cursor, listed),) = yield from _asked([("ZSCAN", layout.family(template), cursor, "COUNT", BATCH)])
        # Pairs of a member and its score; redis-py makes tuples of them or leaves them flat.
        members = [each[0] for each in listed] if listed and isinstance(listed[0], tuple) else listed[::2]
        found = [_text(member) for member in members]
        for at in range(0, len(found), TAGS):
            deleted += yield from _tags(layout, found[at : at + TAGS], cluster=cluster)
        cursor = _text(cursor)
        if cursor == "0":
            return deleted


def _tags(layout: Layout, concrete: list[str], *, cluster: bool) -> Generator[list[Command], list[Any], int]:
    deleted = 0
    moved = [("SET", layout.generation(each), secrets.token_hex(8), "PX", GENERATION_MS) for each in concrete]
    yield from _asked(moved)
    waiting = concrete
    while waiting:
        # What a crash or another caller left comes first, because the new set takes its place.
        deleted += yield from _finish(layout, waiting, cluster=cluster)
        renamed = yield [("RENAMENX", layout.tag(each), layout.dying(each)) for each in waiting]
        taken = [each for each, reply in zip(waiting, renamed, strict=True) if _exists(reply)]
        again = [each for each, reply in zip(waiting, renamed, strict=True) if _exists(reply) and not reply]
        deleted += yield from _finish(layout, taken, cluster=cluster)
        waiting = again
    return deleted


def _finish(
    layout: Layout, concrete: list[str], *, cluster: bool
) -> Generator[list[Command], list[Any], int]:
    """Delete the keys in the dying sets; a member goes after its key, and the set goes with its last member."""
    deleted = 0
    left = concrete
    while left:
        members = yield from _asked([("ZRANGE", layout.dying(each), 0, BATCH - 1) for each in left])
        filled = [(each, keys) for each, keys in zip(left, members, strict=True) if keys]
        if not filled:
            return deleted
        unlink: list[Command] = []
        for _, keys in filled:
            # In a cluster every key has its own slot.
            unlink.extend([("UNLINK", key) for key in keys] if cluster else [("UNLINK", *keys)])
        deleted += sum((yield from _asked(unlink)))
        yield from _asked([("ZREM", layout.dying(each), *keys) for each, keys in filled])
        left = [each for each, keys in filled if len(keys) == BATCH]
    return deleted


def _asked(commands: list[Command]) -> Generator[list[Command], list[Any], list[Any]]:
    replies = yield commands
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _exists(reply: Any) -> bool:
    if isinstance(reply, redis.ResponseError) and "no such key" in str(reply).lower():
        return False
    if isinstance(reply, Exception):
        raise reply
    return True


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
