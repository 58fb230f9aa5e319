"""Which slot of an entry is to be run now, and which went by: pure, from the last slot that was dealt with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from schedules.entries import Entry
from schedules.slots import latest_slot, next_slot

# With catch_up = "none" a slot that is later than this is not run; every takeover is quicker.
LATE = timedelta(seconds=60)
# Slots that went by are written down one by one, but not for a month of five minutes.
MOST_MISSED = 100
_MOMENT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What a look at one entry says.

    `run`: the slot to put into the queue. `missed`: slots that went by, oldest first, at most MOST_MISSED of
    them; `more_missed`: there were older ones. `look_at`: when the next slot is due. Where neither is
    anything, there is nothing to record.
    """

    run: datetime | None = None
    missed: tuple[datetime, ...] = ()
    more_missed: bool = False
    look_at: datetime

    @property
    def last_slot(self) -> datetime | None:
        """Up to where the entry will have been dealt with."""
        return self.run or (self.missed[-1] if self.missed else None)


def due(entry: Entry, last_slot: datetime, now: datetime) -> Due:
    """Judge an entry: the latest slot whose time has come is run, older ones were missed.

    A last slot that lies in the future was dealt with before the clock went back; it stays so.
    """
    slot = latest_slot(entry.cron, entry.timezone, now)
    if entry.due_at(slot) > now:  # the jitter is shorter than the gap to the slot before
        slot = latest_slot(entry.cron, entry.timezone, slot - _MOMENT)
    following = next_slot(entry.cron, entry.timezone, max(slot, last_slot))
    look_at = entry.due_at(following)
    if slot <= last_slot:
        return Due(look_at=look_at)
    missed: list[datetime] = []
    earlier = latest_slot(entry.cron, entry.timezone, slot - _MOMENT)
    while earlier > last_slot and len(missed) < MOST_MISSED:
        missed.append(earlier)
        earlier = latest_slot(entry.cron, entry.timezone, earlier - _MOMENT)
    more = earlier > last_slot
    run: datetime | None = slot
    if entry.catch_up == "none" and now - entry.due_at(slot) > LATE:
        missed.insert(0, slot)
        run = None
    return Due(run=run, missed=tuple(reversed(missed)), more_missed=more, look_at=look_at)
