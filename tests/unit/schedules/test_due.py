"""What a look at one entry says: run the latest slot, write down what went by, run nothing twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

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
