"""What a mark is in Redis: the script that sets one, and the names of its keys.

The fleet reads marks by the same names and runs the same script: this is their only copy.
"""

from __future__ import annotations

import hashlib
from importlib import resources

MARK_SCRIPT = resources.files("upkeep_client").joinpath("mark.lua").read_text(encoding="utf-8")
"""mark.lua. ARGV is one body per database (see the script); returns the number of marks."""

MARK_SHA = hashlib.sha1(MARK_SCRIPT.encode(), usedforsecurity=False).hexdigest()
"""What EVALSHA calls the script."""

MARKED = "upkeep:marked"
"""The set of all databases that ever had a mark; "" where the requester named none."""

SEQUENCE = "upkeep:mark-seq"
"""The counter of requests; it begins at the server's time in microseconds, so that no number comes twice."""

ALL = "*"
"""The single member of a set of keys or parameters that means: all of them."""


def marks(database: str) -> str:
    """The hash with the marks of a database: view -> "<sequence> <first_ms> <last_ms>"."""
    return f"upkeep:marks:{database}"


def keys(database: str, view: str) -> str:
    """The set of the keys that a mark is about: JSON scalars, or ALL."""
    return f"upkeep:marks:{database}:keys:{view}"


def parameters(database: str, view: str) -> str:
    """The set of the parameters that a mark is about: JSON objects with sorted keys, or ALL."""
    return f"upkeep:marks:{database}:parameters:{view}"
