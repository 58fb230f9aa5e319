"""What `upkeep doctor` says of tables whose partitions the fleet keeps; as pure as `worker.doctor`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tasks.partitions.checks import Severity
from tasks.partitions.watch import Standing
from worker.doctor import About, Finding, Level

_LEVELS = {Severity.WARNING: Level.WARNING, Severity.CRITICAL: Level.ERROR}


def judge_partitions(database: str, standings: Iterable[Standing]) -> Iterator[Finding]:
    """Judge partitions that run out, rows in default ones, gaps and runs that failed; without policies nothing."""
    fine, least = 0, None
    for each in standings:
        about = About(database, str(each.name))
        wrong = [said for said in each.looked.contradictions if not said.warning]
        for said in wrong:
            yield about.error(f"Nothing is done for its partitions: {said.message}", said.remedy)
        for found in each.findings:
            yield About(database, str(found.object)).says(
                _LEVELS[found.severity], found.message, found.remedy
            )
        for unknown in each.looked.unknown:
            yield about.says(Level.INFO, unknown)
        if not wrong and not each.findings:
            fine += 1
            if each.days_ahead is not None:
                least = each.days_ahead if least is None else min(least, each.days_ahead)
    if fine:
        ahead = "" if least is None else f", for {least:.0f} days ahead or more"
        yield About(database, "partitions").ok(f"Tables that have the partitions they need: {fine}{ahead}")
