"""What is due and when, from what is declared: each tier of each database, and the pruning of each ledger.

No Celery here: `worker.app` turns the entries into a beat schedule, `upkeep` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from fleet import cron as crons
from fleet.settings import Database, Settings
from schedules.slots import next_slot

REFRESH_TIER = "upkeep.refresh.tier"
PRUNE = "upkeep.ledger.prune"
# At night where most databases are, and beside the full and half hours that other jobs like.
PRUNE_CRON = "30 3 * * *"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the schedule."""

    name: str
    """`database/tier`, or `database/ledger.prune`: no tier's name has a dot."""
    task: str
    kwargs: Mapping[str, str]
    cron: str
    timezone: str
    queue: str
    expires: timedelta
    """After this time in the queue a tick is not worth running: the next one is there."""

    def expiry(self, slot: datetime) -> datetime:
        """When the tick of one slot expires: at the next slot, whatever the clocks do between."""
        return next_slot(self.cron, self.timezone, slot)


def entries(settings: Settings) -> dict[str, Entry]:
    """All entries by name: what a fleet with these settings does by itself."""
    return {
        entry.name: entry
        for database in settings.databases.values()
        for entry in (*_refreshes(database), _prune(database))
    }


def _refreshes(database: Database) -> list[Entry]:
    # A tier that no view is in would only wake up a worker to find that out.
    used = {view.tier for view in database.views.values()}
    return [
        _entry(
            name=f"{database.name}/{tier.name}",
            task=REFRESH_TIER,
            kwargs={"database": database.name, "tier": tier.name},
            cron=tier.cron,
            timezone=tier.timezone,
            queue="refresh",
        )
        for tier in database.tiers.values()
        if tier.name in used
    ]


def _prune(database: Database) -> Entry:
    return _entry(
        name=f"{database.name}/ledger.prune",
        task=PRUNE,
        kwargs={"database": database.name},
        cron=PRUNE_CRON,
        timezone="UTC",
        queue="maintenance",
    )


def _entry(*, name: str, task: str, kwargs: Mapping[str, str], cron: str, timezone: str, queue: str) -> Entry:
    # The longest gap, for an uneven expression: a tick that expired early would be missed until the next day,
    # one that comes twice finds the views fresh and skips.
    return Entry(
        name=name,
        task=task,
        kwargs=MappingProxyType(dict(kwargs)),
        cron=cron,
        timezone=timezone,
        queue=queue,
        expires=crons.parse(cron).longest_gap,
    )
