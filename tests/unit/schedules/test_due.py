"""What a look at one entry says: run the latest slot, write down what went by, run nothing twice."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from schedules.due import MOST_MISSED, due, missed
from schedules.entries import Entry

MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def entry(cron: str = "*/5 * * * *", **changes) -> Entry:
    return Entry(name="d/tier", database="d", task="t", label="tier", cron=cron, **changes)


def test_nothing_is_due_before_the_next_slot() -> None:
    found = due(entry(), NOON, NOON + 4 * MINUTE)
    assert (found.run, found.last_slot, missed(entry(), found)) == (None, None, ([], False))
    assert found.look_at == NOON + 5 * MINUTE


def test_a_slot_is_due_from_its_very_moment() -> None:
    found = due(entry(), NOON, NOON + 5 * MINUTE)
    assert (found.run, missed(entry(), found)) == (NOON + 5 * MINUTE, ([], False))
    assert found.look_at == NOON + 10 * MINUTE
    assert due(entry(), NOON, NOON + 5 * MINUTE - timedelta(microseconds=1)).run is None


def test_of_the_slots_that_went_by_the_latest_is_run_and_the_others_are_missed() -> None:
    found = due(entry(), NOON, NOON + 17 * MINUTE)
    assert found.run == NOON + 15 * MINUTE
    assert missed(entry(), found) == ([NOON + 5 * MINUTE, NOON + 10 * MINUTE], False)
    assert found.last_slot == found.run


def test_who_does_not_want_to_catch_up_does_not_but_forgives_a_takeover() -> None:
    strict = entry(catch_up="none")
    found = due(strict, NOON, NOON + 17 * MINUTE)
    assert found.run is None
    assert missed(strict, found) == ([NOON + 5 * MINUTE, NOON + 10 * MINUTE, NOON + 15 * MINUTE], False)
    assert found.last_slot == NOON + 15 * MINUTE
    assert found.look_at == NOON + 20 * MINUTE
    soon = due(strict, NOON, NOON + 15 * MINUTE + timedelta(seconds=30))
    assert soon.run == NOON + 15 * MINUTE
    assert missed(strict, soon) == ([NOON + 5 * MINUTE, NOON + 10 * MINUTE], False)


def test_a_month_away_is_not_written_down_slot_by_slot() -> None:
    found = due(entry(), NOON - timedelta(days=30), NOON)
    assert found.run == NOON
    slots, more = missed(entry(), found)
    assert (len(slots), more) == (MOST_MISSED, True)
    assert slots[-1] == NOON - 5 * MINUTE
    # Exactly as many as are written down are not "more".
    exact = due(entry(), NOON - 5 * MINUTE * (MOST_MISSED + 1), NOON)
    slots, more = missed(entry(), exact)
    assert (len(slots), more) == (MOST_MISSED, False)


def test_a_last_slot_in_the_future_is_left_there() -> None:
    found = due(entry(), NOON + 60 * MINUTE, NOON + 17 * MINUTE)
    assert found.last_slot is None
    assert found.look_at == NOON + 65 * MINUTE


@pytest.mark.parametrize("minutes", range(0, 25, 3))
def test_jitter_moves_the_moment_and_never_the_slot(minutes: int) -> None:
    spread = entry(jitter=timedelta(minutes=4, seconds=59))
    now = NOON + minutes * MINUTE
    found = due(spread, NOON - 5 * MINUTE, now)
    candidate = found.last_slot
    if candidate is not None:
        assert candidate.minute % 5 == 0
        assert spread.due_at(candidate) <= now
    following = (candidate or NOON - 5 * MINUTE) + 5 * MINUTE
    assert found.look_at == spread.due_at(following) > now


ZONES = {  # the day on which the clocks go forward, and back
    "America/New_York": ("2026-03-08", "2026-11-01"),
    "Europe/Berlin": ("2026-03-29", "2026-10-25"),
}
CHANGES = [(zone, day) for zone, days in ZONES.items() for day in days]


def midnight(zone: str, day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


@dataclass
class Walk:
    """A leader's day: it looks when a look has told it to, or by the minute; what it does when."""

    entry: Entry
    now: datetime
    ran: list[tuple[datetime, datetime]] = field(default_factory=list)
    missed: list[datetime] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.last_slot = self.now

    def until(self, end: datetime, step: timedelta | None = None) -> Walk:
        while self.now < end:
            found = due(self.entry, self.last_slot, self.now)
            if found.last_slot is not None:
                slots, more = missed(self.entry, found)
                assert not more
                self.missed += slots
                if found.run:
                    self.ran.append((found.run, self.now))
                self.last_slot = found.last_slot
            self.now = min(end, self.now + step if step else found.look_at)
        return self

    @property
    def slots(self) -> list[datetime]:
        return sorted([slot for slot, _ in self.ran] + self.missed)


STEPS = pytest.mark.parametrize("step", [None, MINUTE], ids=["when told to", "by the minute"])


@pytest.mark.parametrize(("zone", "day"), CHANGES)
class TestClocksAreChanged:
    @STEPS
    def test_quarters_and_hours_go_on(self, zone: str, day: str, step: timedelta | None) -> None:
        start = midnight(zone, day) - timedelta(hours=3)
        for cron, every in (("*/15 * * * *", 15 * MINUTE), ("0 * * * *", 60 * MINUTE)):
            walk = Walk(entry(cron, timezone=zone), start).until(start + timedelta(hours=12), step)
            # By the clock that nobody changes: each once, on time, in both of the hours that are called the same.
            assert walk.ran == [
                (at, at) for n in range(1, 12 * 60 // 15) if (at := start + n * every) < walk.now
            ]
            assert walk.missed == []

    @STEPS
    @pytest.mark.parametrize("cron", ["30 1 * * *", "30 2 * * *", "0 3 * * *"])
    def test_what_is_due_once_a_day_is_run_once_a_day(
        self, cron: str, zone: str, day: str, step: timedelta | None
    ) -> None:
        start = midnight(zone, day) - timedelta(days=1)
        walk = Walk(entry(cron, timezone=zone), start).until(start + timedelta(hours=72), step)
        days = [slot.astimezone(ZoneInfo(zone)).date() for slot, _ in walk.ran]
        assert days == [date.fromisoformat(day) + timedelta(days=n) for n in (-1, 0, 1)]
        assert walk.missed == []
        assert [slot for slot, _ in walk.ran] == [at for _, at in walk.ran]

    @pytest.mark.parametrize(
        "cron", ["*/15 * * * *", "30 * * * *", "30 1 * * *", "30 2 * * *", "30 1,2,3 * * *"]
    )
    def test_no_slot_is_lost_by_a_restart_at_any_minute(self, cron: str, zone: str, day: str) -> None:
        start, each = midnight(zone, day), entry(cron, timezone=zone)
        all_day = Walk(each, start).until(start + timedelta(hours=6)).slots
        for minute in range(30, 5 * 60, 7):
            left = start + minute * MINUTE
            walk = Walk(each, start).until(left)
            walk.now += 25 * MINUTE
            walk.until(start + timedelta(hours=6))
            assert walk.slots == all_day, minute
            # What fell into the time without a leader is run late, or told where another one has come since.
            assert all(left <= slot < left + 25 * MINUTE for slot in walk.missed), minute

    def test_jitter_lets_no_slot_overtake_the_next(self, zone: str, day: str) -> None:
        start = midnight(zone, day)
        for number in range(40):
            spread = entry("30 1,2,3 * * *", timezone=zone, jitter=59 * MINUTE)
            walk = Walk(replace(spread, name=f"d/tier_{number}"), start).until(start + timedelta(hours=8))
            assert walk.missed == []
            assert len(walk.ran) == 3
