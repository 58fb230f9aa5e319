"""What is left of a range without some others; a missing end is MINVALUE or MAXVALUE."""

from __future__ import annotations

from collections.abc import Iterable

from fleet.postgres.catalog.partitions import Range, Value
from tasks.partitions.calendar import less


def overlap(one: Range, other: Range) -> bool:
    """Whether a value can be in both."""
    return _begins_before_end(one.lower, other.upper) and _begins_before_end(other.lower, one.upper)


def without(whole: Range, parts: Iterable[Range]) -> list[Range]:
    """What of a range is in none of these, in order."""
    left = [whole]
    for part in parts:
        left = [piece for each in left for piece in _cut_out(each, part)]
    return left


def covered(whole: Range, parts: Iterable[Range]) -> bool:
    """Whether all of a range is in these."""
    return not without(whole, parts)


def intersection(one: Range, other: Range) -> Range:
    """What two overlapping ranges have in common."""
    lowers = [each.lower for each in (one, other) if each.lower is not None]
    uppers = [each.upper for each in (one, other) if each.upper is not None]
    lower = None if not lowers else lowers[-1] if less(lowers[0], lowers[-1]) else lowers[0]
    upper = None if not uppers else uppers[0] if less(uppers[0], uppers[-1]) else uppers[-1]
    return Range(lower=lower, upper=upper)


def ends_by(bounds: Range, cutoff: Value) -> bool:
    """Whether nothing in a range is as late as a cutoff."""
    return bounds.upper is not None and not less(cutoff, bounds.upper)


def _cut_out(whole: Range, part: Range) -> list[Range]:
    if not overlap(whole, part):
        return [whole]
    pieces = []
    if part.lower is not None and (whole.lower is None or less(whole.lower, part.lower)):
        pieces.append(Range(lower=whole.lower, upper=part.lower))
    if part.upper is not None and (whole.upper is None or less(part.upper, whole.upper)):
        pieces.append(Range(lower=part.upper, upper=whole.upper))
    return pieces


def _begins_before_end(lower: Value | None, upper: Value | None) -> bool:
    return lower is None or upper is None or less(lower, upper)
