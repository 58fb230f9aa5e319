"""What things of a new partition are called, from what its sibling's are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fleet.names import MAX_IDENTIFIER_BYTES

_CUT_DIGITS = 6


@dataclass(frozen=True)
class Names:
    """What becomes of the names of indexes, constraints and tables that were made from a table's name."""

    pairs: tuple[tuple[str, str], ...]
    """(old, new), the nearest table first."""

    def below(self, old: str, new: str) -> Names:
        """For a table that the first one is divided into."""
        return Names(((old, new), *self.pairs))

    def unique(self, name: str) -> str:
        """A name that no other object of the schema may have."""
        changed = self.if_derived(name)
        return fitting(f"{self.pairs[0][1]}_{name}") if changed == name else changed

    def if_derived(self, name: str) -> str:
        """The name itself, unless it was made from the table's."""
        for old, new in self.pairs:
            if old in name:
                return fitting(name.replace(old, new, 1))
        return name


def fitting(name: str) -> str:
    """A name that PostgreSQL need not cut; two long ones that begin alike stay two."""
    if len(name.encode()) <= MAX_IDENTIFIER_BYTES:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=_CUT_DIGITS // 2).hexdigest()
    kept = name.encode()[: MAX_IDENTIFIER_BYTES - _CUT_DIGITS - 1].decode(errors="ignore")
    return f"{kept}_{digest}"
