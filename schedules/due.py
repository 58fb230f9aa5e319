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

    `run`: the slot to put into the queue. `since` and `last_slot`: up to where the entry had been dealt with, and
    will have been; the latter is None where there is nothing to do. `look_at`: when the next slot is due.
    """

    run: datetime | None = None
    since: datetime
    last_slot: datetime | None = None
    look_at: datetime


def due(entry: Entry, last_slot: datetime, now: datetime) -> Due:
    """Judge an entry: the latest slot whose time has come is run, older ones were missed.

    A last slot that lies in the future was dealt with before the clock went back; that there is one is for the
    leader to see to.
    """
    slot = latest_slot(entry.cron, entry.timezone, now)
    if entry.due_at(slot) > now:  # the jitter is shorter than the gap to the slot before
        slot = latest_slot(entry.cron, entry.timezone, slot - _MOMENT)
    following = next_slot(entry.cron, entry.timezone, max(slot, last_slot))
    look_at = entry.due_at(following)
    if slot <= last_slot:
        return Due(since=last_slot, look_at=look_at)
    late = entry.catch_up == "none" and now - entry.due_at(slot) > LATE
    return Due(run=None if late else slot, since=last_slot, last_slot=slot, look_at=look_at)


def missed(entry: Entry, found: Due) -> tuple[list[datetime], bool]:
    """The slots that went by, oldest first, at most MOST_MISSED of them, and whether there were older ones.

    Apart from `due`, because of a long outage every entry has many: whoever writes them down finds them.
    """
    slots: list[datetime] = []
    earlier = found.last_slot
    if earlier is not None and earlier == found.run:
        earlier = latest_slot(entry.cron, entry.timezone, earlier - _MOMENT)
    while earlier is not None and earlier > found.since:
        if len(slots) == MOST_MISSED:
            return slots[::-1], True
        slots.append(earlier)
        earlier = latest_slot(entry.cron, entry.timezone, earlier - _MOMENT)
    return slots[::-1], False
