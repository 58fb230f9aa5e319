"""The clock against stock beat, RedBeat and plain Celery: takeover, lateness, idling, and recovery of work.

Every part is a module here: the bounds that it answers for, and a function that measures. All of them run
real processes: `celery -A worker.app beat` and `worker`, and for the peers `celery -A benchmarks.clock.peer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.bench import measured
from benchmarks.clock import batch, idle, lateness, recovery, takeover
from benchmarks.clock.bench import Bench
from benchmarks.parts import by_name
from benchmarks.report import Report

_PARTS = by_name(takeover.PART, idle.PART, lateness.PART, batch.PART, recovery.PART)
PARTS: Sequence[str] = tuple(_PARTS)

# So that the server itself says when a run was there for everybody: its commit, not the statement before it.
POSTGRES_SETTINGS = {"track_commit_timestamp": "on"}


def run(*, quick: bool, parts: Sequence[str], say: Callable[[str], None]) -> Report:
    """Measure the parts asked for, in their own order."""
    chosen = [part for name, part in _PARTS.items() if name in parts]
    return measured("clock", Bench, chosen, quick=quick, say=say, postgres_settings=POSTGRES_SETTINGS)
