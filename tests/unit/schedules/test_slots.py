"""Slots: both changes of the clocks, the calendar's edges, and the laws that hold for every expression."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from fleet import cron as crons
from fleet.errors import ConfigurationError
from schedules.slots import interval, latest_slot, next_slot

NEW_YORK = "America/New_York"
BERLIN = "Europe/Berlin"
LORD_HOWE = "Australia/Lord_Howe"  # goes forward and back by half an hour

# (zone, day the clocks go forward, day they go back, the hour that is skipped, the hour that happens twice)
SPRING = [(NEW_YORK, "2026-03-08"), (BERLIN, "2026-03-29")]
AUTUMN = [(NEW_YORK, "2026-11-01", 1), (BERLIN, "2026-10-25", 2)]


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]


def slots_on(cron: str, zone: str, day: str) -> list[str]:
    """All slots of a local day as "HH:MM+offset", found forwards and, as a check, backwards."""
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
    end = (datetime.fromisoformat(day) + timedelta(days=1)).replace(tzinfo=ZoneInfo(zone))
    forwards = []
    moment = start.astimezone(UTC) - timedelta(microseconds=1)
    while (moment := next_slot(cron, zone, moment)) < end:
        forwards.append(moment)
    backwards = []
    moment = end.astimezone(UTC) - timedelta(microseconds=1)
    while (moment := latest_slot(cron, zone, moment)) >= start:
        backwards.append(moment)
        moment -= timedelta(microseconds=1)
    assert forwards == backwards[::-1]
    return [slot.astimezone(ZoneInfo(zone)).isoformat()[11:16] for slot in forwards]


class TestClocksGoForward:
    """02:00 becomes 03:00 in both zones."""

    @pytest.mark.parametrize(("zone", "day"), SPRING)
    @pytest.mark.parametrize("cron", ["30 2 * * *", "0 2 * * *", "59 2 * * *", "*/15 2 * * *", "0 2,3 * * *"])
    def test_a_skipped_time_runs_once_when_the_clocks_change(self, cron: str, zone: str, day: str) -> None:
        assert slots_on(cron, zone, day) == ["03:00"]

    @pytest.mark.parametrize(("zone", "day"), SPRING)
    def test_times_beside_the_gap_are_untouched(self, zone: str, day: str) -> None:
        assert slots_on("59 1 * * *", zone, day) == ["01:59"]
        assert slots_on("0 3 * * *", zone, day) == ["03:00"]
        assert slots_on("30 1,2,3 * * *", zone, day) == ["01:30", "03:00", "03:30"]

    @pytest.mark.parametrize(("zone", "day"), SPRING)
    def test_quarters_and_hours_go_on_as_if_nothing_happened(self, zone: str, day: str) -> None:
        assert len(slots_on("*/15 * * * *", zone, day)) == 23 * 4
        assert len(slots_on("0 * * * *", zone, day)) == 23
        # Nothing extra at 03:00: half an hour has passed since 01:45.
        assert slots_on("45 * * * *", zone, day)[:3] == ["00:45", "01:45", "03:45"]

    @pytest.mark.parametrize(("zone", "day"), SPRING)
    def test_the_instant_is_the_change_itself(self, zone: str, day: str) -> None:
        change = datetime.fromisoformat(f"{day}T03:00").replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
        assert next_slot("30 2 * * *", zone, change - timedelta(seconds=1)) == change
        assert latest_slot("30 2 * * *", zone, change) == change
        nearly_a_day = timedelta(hours=23, minutes=30)
        assert next_slot("30 2 * * *", zone, change) == change + nearly_a_day
        assert latest_slot("30 2 * * *", zone, change - timedelta(seconds=1)) == change - nearly_a_day


class TestClocksGoBack:
    """New York repeats 01:00 to 02:00, Berlin 02:00 to 03:00."""

    @pytest.mark.parametrize(("zone", "day", "hour"), AUTUMN)
    @pytest.mark.parametrize("minute", [0, 30, 59])
    def test_a_repeated_time_runs_at_its_first_occurrence_only(
        self, minute: int, zone: str, day: str, hour: int
    ) -> None:
        assert slots_on(f"{minute} {hour} * * *", zone, day) == [f"0{hour}:{minute:02}"]
        midnight = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
        first = next_slot(f"{minute} {hour} * * *", zone, midnight)
        assert first.astimezone(ZoneInfo(zone)).fold == 0

    @pytest.mark.parametrize(("zone", "day", "hour"), AUTUMN)
    def test_quarters_and_hours_run_in_both(self, zone: str, day: str, hour: int) -> None:
        assert len(slots_on("*/15 * * * *", zone, day)) == 25 * 4
        assert len(slots_on("0 * * * *", zone, day)) == 25
        quarters = slots_on(f"*/15 {hour} * * *", zone, day)
        assert quarters == [f"0{hour}:{minute:02}" for minute in (0, 15, 30, 45)] * 2

    @pytest.mark.parametrize(("zone", "day", "hour"), AUTUMN)
    def test_every_second_hour_does_not_run_twice(self, zone: str, day: str, hour: int) -> None:
        assert slots_on("0 */2 * * *", zone, day) == [f"{each:02}:00" for each in range(0, 24, 2)]
        assert slots_on("30 */2 * * *", zone, day) == [f"{each:02}:30" for each in range(0, 24, 2)]

    @pytest.mark.parametrize(("zone", "day", "hour"), AUTUMN)
    def test_asked_in_the_second_pass_the_day_is_over(self, zone: str, day: str, hour: int) -> None:
        second = datetime.fromisoformat(f"{day}T0{hour}:10").replace(tzinfo=ZoneInfo(zone), fold=1)
        cron = f"30 {hour} * * *"
        first = (second.replace(fold=0) + timedelta(minutes=20)).astimezone(UTC)
        assert latest_slot(cron, zone, second) == first
        assert next_slot(cron, zone, second) == first + timedelta(hours=25)


def test_half_an_hour_of_change() -> None:
    assert slots_on("15 2 * * *", LORD_HOWE, "2026-10-04") == ["02:30"]
    assert slots_on("45 1 * * *", LORD_HOWE, "2026-04-05") == ["01:45"]
    assert len(slots_on("*/15 * * * *", LORD_HOWE, "2026-04-05")) == 24 * 4 + 2
    assert len(slots_on("*/15 * * * *", LORD_HOWE, "2026-10-04")) == 24 * 4 - 2


def test_a_day_that_a_zone_left_out() -> None:
    # Samoa crossed the date line: there was no 30 December 2011. Its noon runs at the change.
    assert next_slot("0 12 30 12 *", "Pacific/Apia", utc(2011, 12, 1)) == datetime(
        2011, 12, 30, 10, tzinfo=UTC
    )


class TestCalendar:
    def test_month_ends(self) -> None:
        assert next_slot("0 0 31 * *", "UTC", utc(2026, 1, 31)) == utc(2026, 3, 31)
        assert next_slot("0 6 L * *", "UTC", utc(2026, 2, 1)) == utc(2026, 2, 28, 6)
        assert next_slot("0 6 L * *", "UTC", utc(2028, 2, 1)) == utc(2028, 2, 29, 6)
        assert latest_slot("0 0 31 * *", "UTC", utc(2026, 7, 1)) == utc(2026, 5, 31)
        assert next_slot("59 23 31 12 *", "UTC", utc(2026, 12, 31, 23, 59)).year == 2027

    def test_leap_days(self) -> None:
        assert next_slot("0 0 29 2 *", "UTC", utc(2026, 1, 1)) == utc(2028, 2, 29)
        assert latest_slot("0 0 29 2 *", "UTC", utc(2026, 1, 1)) == utc(2024, 2, 29)
        # 2100 is not a leap year.
        assert next_slot("0 0 29 2 *", "UTC", utc(2096, 3, 1)) == utc(2104, 2, 29)
        assert interval("0 0 29 2 *", NEW_YORK, utc(2026, 1, 1)) == timedelta(days=1461)

    def test_a_rare_slot_keeps_its_zone_across_many_changes(self) -> None:
        # From summer over three winters: 05:00 UTC is New York's midnight in February.
        assert next_slot("0 0 29 2 *", NEW_YORK, utc(2025, 7, 1)) == utc(2028, 2, 29, 5)
        # Moscow gave up changing its clocks in 2014.
        assert latest_slot("0 0 29 2 *", "Europe/Moscow", utc(2015, 7, 1)) == datetime(
            2012, 2, 28, 20, tzinfo=UTC
        )

    def test_weekdays(self) -> None:
        assert next_slot("0 9 * * mon", "UTC", utc(2026, 3, 6, 12)) == utc(2026, 3, 9, 9)
        assert next_slot("0 0 * * 7", "UTC", utc(2026, 3, 6)) == utc(2026, 3, 8)
        # Day and weekday both given: cron takes either.
        assert next_slot("0 0 13 * fri", "UTC", utc(2026, 3, 1)) == utc(2026, 3, 6)


class TestEdges:
    def test_latest_includes_the_instant_and_next_does_not(self) -> None:
        slot = utc(2026, 3, 1, 6)
        assert latest_slot("0 6 * * *", "UTC", slot) == slot
        assert next_slot("0 6 * * *", "UTC", slot) == slot + timedelta(days=1)
        assert latest_slot("0 6 * * *", "UTC", slot - timedelta(microseconds=1)) == slot - timedelta(days=1)
        assert next_slot("0 6 * * *", "UTC", slot - timedelta(microseconds=1)) == slot
        assert latest_slot("0 6 * * *", "UTC", slot + timedelta(microseconds=1)) == slot

    def test_any_zone_in_utc_out(self) -> None:
        asked = datetime(2026, 7, 1, 1, 59, tzinfo=ZoneInfo("Asia/Tokyo"))
        answer = next_slot("0 6 * * *", BERLIN, asked)
        assert answer == utc(2026, 7, 1, 4)
        assert answer.tzinfo is UTC
        assert latest_slot("0 6 * * *", BERLIN, asked).tzinfo is UTC

    def test_naive_datetimes_are_refused(self) -> None:
        naive = datetime(2026, 1, 1)  # noqa: DTZ001
        for function in (next_slot, latest_slot, interval):
            with pytest.raises(ValueError, match="naive"):
                function("0 6 * * *", "UTC", naive)

    def test_a_bad_expression_says_so(self) -> None:
        with pytest.raises(ConfigurationError, match="never fires"):
            next_slot("0 0 30 2 *", "UTC", utc(2026, 1, 1))

    def test_interval(self) -> None:
        assert interval("*/5 * * * *", "UTC", utc(2026, 1, 1, 0, 2)) == timedelta(minutes=5)
        assert interval("*/5 * * * *", "UTC", utc(2026, 1, 1, 0, 5)) == timedelta(minutes=5)
        assert interval("0 2 * * *", NEW_YORK, utc(2026, 3, 7, 12)) == timedelta(hours=24)
        assert interval("0 6 * * *", NEW_YORK, utc(2026, 3, 7, 12)) == timedelta(hours=23)
        assert interval("0 6 * * *", NEW_YORK, utc(2026, 10, 31, 12)) == timedelta(hours=25)


EXPRESSIONS = [
    *(
        "*/5 * * * *",
        "*/15 * * * *",
        "0 * * * *",
        "45 * * * *",
        "7,37 * * * *",
        "* * * * *",
        "*/20 1-2 * * *",
    ),
    *("0 */2 * * *", "30 1 * * *", "30 2 * * *", "0 2 * * *", "0 3 * * *", "0 6 * * *", "30 1 * 3,11 *"),
    *("0 0 * * sun", "15 2 L * *", "0 0 29 2 *", "59 23 31 12 *", "0 12 1,15 * *", "0 9 * * 1#2"),
]
ZONES = ["UTC", NEW_YORK, BERLIN, LORD_HOWE, "Asia/Kathmandu", "America/Santiago", "Africa/Casablanca"]
# Around the changes of the zones above, where the mistakes are.
CHANGES = [(2, 15), (3, 8), (3, 22), (3, 29), (4, 5), (9, 6), (10, 4), (10, 25), (11, 1)]


@pytest.mark.parametrize("zone", ZONES)
def test_laws(zone: str) -> None:
    """latest ≤ at < next, each is the other's fixed point, and neither ever runs backwards."""
    rng = random.Random(zone)
    first = utc(2024, 1, 1)
    for _ in range(120):
        if rng.random() < 0.5:
            moment = first + timedelta(microseconds=rng.randrange(5 * 365 * 86_400 * 1_000_000))
        else:
            moment = utc(2026, *rng.choice(CHANGES)) + timedelta(seconds=rng.randrange(-20 * 3600, 30 * 3600))
        cron = rng.choice(EXPRESSIONS)
        told = f"{cron} {zone} {moment}"
        latest, following = latest_slot(cron, zone, moment), next_slot(cron, zone, moment)
        assert latest <= moment < following, told
        assert latest_slot(cron, zone, following) == following, told
        assert latest_slot(cron, zone, latest) == latest, told
        assert latest_slot(cron, zone, following - timedelta(microseconds=1)) == latest, told
        assert next_slot(cron, zone, latest) == following, told
        later = moment + timedelta(seconds=rng.randrange(7200))
        assert latest_slot(cron, zone, later) >= latest, told
        assert next_slot(cron, zone, later) >= following, told


def test_fast_enough_to_ask_for_every_view_at_every_tick() -> None:
    """Budget: 100 µs a call; the bound is loose because a test machine is busy."""
    moment = utc(2026, 5, 5, 12, 3)
    next_slot("*/5 * * * *", NEW_YORK, moment)
    began = time.thread_time()
    for minutes in range(300):
        next_slot("*/5 * * * *", NEW_YORK, moment + timedelta(minutes=minutes))
    assert (time.thread_time() - began) / 300 < 0.001


def test_gaps_of_an_expression() -> None:
    def gaps(cron: str) -> tuple[timedelta, timedelta]:
        expression = crons.parse(cron)
        return expression.shortest_gap, expression.longest_gap

    def minutes(count: int) -> timedelta:
        return timedelta(minutes=count)

    def hours(count: int) -> timedelta:
        return timedelta(hours=count)

    def days(count: int) -> timedelta:
        return timedelta(days=count)

    assert gaps("*/5 * * * *") == (minutes(5), minutes(5))
    assert gaps("0,5 6 * * *") == (minutes(5), hours(24) - minutes(5))
    assert gaps("0 6 * * *") == (days(1), days(1))
    assert gaps("0 6 * * 1-5") == (days(1), days(3))
    assert gaps("*/5 8-18 * * 1-5") == (minutes(5), hours(61) + minutes(5))
    assert gaps("0 0 31 * *") == (days(31), days(61))
    assert gaps("0 0 29 2 *") == (days(1461), days(1461))
