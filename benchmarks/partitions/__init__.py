"""Partitions made ahead and moved out: what the application feels of it, what it writes, and how fast it is planned.

On Debian's PostgreSQL 15 where that is installed with pg_partman, otherwise on the wheel's. Every part is in a module
here: the bounds that it answers for, and a function that measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.bench import measured
from benchmarks.partitions import peer, planning, ratios, waits
from benchmarks.partitions.bench import Bench
from benchmarks.parts import by_name
from benchmarks.report import Report

_PARTS = by_name(waits.CREATE_PART, waits.MOVE_PART, ratios.PART, planning.PART)
PARTS: Sequence[str] = tuple(_PARTS)

# Loading makes thousands of tables in one transaction.
_SETTINGS = {"max_locks_per_transaction": "1024"}


def run(*, quick: bool, parts: Sequence[str], say: Callable[[str], None]) -> Report:
    """Measure the parts asked for, in their own order."""
    chosen = [part for name, part in _PARTS.items() if name in parts]
    return measured(
        "partitions",
        Bench,
        chosen,
        quick=quick,
        say=say,
        postgres_settings=_SETTINGS,
        postgres_bin=peer.server(),
    )
