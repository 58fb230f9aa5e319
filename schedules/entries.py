"""What is due and when, from what is declared: tiers, jobs, scheduled tasks, partitions, the pruning of ledgers.

No Celery here: the scheduler puts the entries' slots into the ledger, `upkeep` prints them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal, Protocol

from fleet.settings import Database, Settings
from schedules.slots import next_slot

REFRESH_TIER = "upkeep.refresh.tier"
RUN_JOB = "upkeep.job.run"
PRUNE = "upkeep.ledger.prune"
# At night where most databases are, and beside the full and half hours that other jobs like.
PRUNE_CRON = "30 3 * * *"
MAINTAIN_PARTITIONS = "upkeep.partitions.maintain"
ARCHIVE_PARTITIONS = "upkeep.partitions.archive"
# In this order: what is late goes to the archive, for which there is room by then.
MAINTAIN_CRON, ARCHIVE_CRON = "0 1 * * *", "0 2 * * *"


class Timing(Protocol):
    """When something declared is due."""

    @property
    def cron(self) -> str | None: ...  # noqa: D102
    @property
    def timezone(self) -> str: ...  # noqa: D102
    @property
    def jitter(self) -> timedelta: ...  # noqa: D102
    @property
    def catch_up(self) -> Literal["latest", "none"]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the schedule."""

    name: str
    """`database/tier`, `database/job.NAME`, `database/schedule.NAME`, `database/partitions.maintain`, `.archive`,
    `database/ledger.prune`."""
    database: str
    task: str
    label: str
    """The entry of its runs in the ledger: the tier's own name, or the last part of `name`."""
    cron: str
    timezone: str = "UTC"
    jitter: timedelta = timedelta()
    catch_up: Literal["latest", "none"] = "latest"
    arguments: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def expiry(self, slot: datetime) -> datetime:
        """When a tick is not worth starting any more: at the next slot, whatever the clocks do between.

        With jitter when the next one is there in any case: one that came late is not missed because that comes early.
        """
        return next_slot(self.cron, self.timezone, slot) + self.jitter

    def due_at(self, slot: datetime) -> datetime:
        """When a slot is put into the ledger: the same for every scheduler, another for every slot."""
        if not self.jitter:
            return slot
        # Where the clocks skip an hour, slots are closer than the wall clock says: none may overtake the next.
        room = min(self.jitter, next_slot(self.cron, self.timezone, slot) - slot)
        digest = hashlib.blake2b(f"{self.name} {slot.isoformat()}".encode(), digest_size=4).digest()
        return slot + room * (int.from_bytes(digest) / 2**32)

    @property
    def definition(self) -> dict[str, Any]:
        """What makes it the same entry as before: a change of these begins anew, without catching up."""
        return {
            "task": self.task,
            "arguments": dict(self.arguments),
            "cron": self.cron,
            "timezone": self.timezone,
        }


def entries(settings: Settings) -> dict[str, Entry]:
    """All entries by name: what a fleet with these settings does by itself."""
    found = [
        entry
        for database in settings.databases.values()
        for entry in (
            *_refreshes(database),
            *_unless_scheduled(settings, (*_partitions(database), _prune(database))),
        )
    ]
    found += _jobs(settings)
    found += _scheduled(settings)
    return {entry.name: entry for entry in found}


def _refreshes(database: Database) -> Iterator[Entry]:
    # A tier that no view is in would only wake up a worker to find that out.
    used = {view.tier for view in database.views.values()}
    for tier in database.tiers.values():
        if tier.name in used:
            yield _entry(database.name, tier.name, REFRESH_TIER, tier, {"tier": tier.name})


def _unless_scheduled(settings: Settings, built_in: Iterable[Entry]) -> Iterator[Entry]:
    """What runs by itself at hours of ours, but for what somebody has put into the schedule at hours of his own."""
    declared = {(each.database, each.task) for each in settings.schedule.values() if not each.arguments}
    return (each for each in built_in if (each.database, each.task) not in declared)


def _partitions(database: Database) -> Iterator[Entry]:
    if not database.partitions:
        return
    due = [(MAINTAIN_PARTITIONS, MAINTAIN_CRON)]
    if any(policy.archive != "none" for policy in database.partitions.values()):
        due.append((ARCHIVE_PARTITIONS, ARCHIVE_CRON))
    for task, cron in due:
        label = task.removeprefix("upkeep.")
        yield Entry(
            name=f"{database.name}/{label}", database=database.name, task=task, label=label, cron=cron
        )


def _prune(database: Database) -> Entry:
    return Entry(
        name=f"{database.name}/ledger.prune",
        database=database.name,
        task=PRUNE,
        label="ledger.prune",
        cron=PRUNE_CRON,
    )


def _jobs(settings: Settings) -> Iterator[Entry]:
    for job in settings.jobs.values():
        if job.cron is not None:
            yield _entry(job.database, f"job.{job.name}", RUN_JOB, job, {"job": job.name})


def _scheduled(settings: Settings) -> Iterator[Entry]:
    for each in settings.schedule.values():
        yield _entry(each.database, f"schedule.{each.name}", each.task, each, each.arguments)


def _entry(database: str, label: str, task: str, timing: Timing, arguments: Mapping[str, Any]) -> Entry:
    assert timing.cron is not None  # without one it is no entry
    return Entry(
        name=f"{database}/{label}",
        database=database,
        task=task,
        label=label,
        cron=timing.cron,
        timezone=timing.timezone,
        jitter=timing.jitter,
        catch_up=timing.catch_up,
        arguments=MappingProxyType(dict(arguments)),
    )
