"""Cron expressions: which are taken, which are refused, and what they match on a wall clock."""

from __future__ import annotations

import threading
from datetime import datetime

import pytest

from fleet import cron
from fleet.errors import ConfigurationError


@pytest.mark.parametrize(
    "expression",
    [
        "* * * * *",
        "*/5 * * * *",
        "0 6 * * *",
        "0  6\t* * *",
        "0 6 * jan-mar MON,fri",
        "0 0 * * 7",
        "0 0 L * *",
        "0 0 * * fri#2",
        "0 0 15W * *",
        "0 0 29 2 *",
        "0 0 30 2 mon",  # the thirtieth never comes, Mondays in February do
        "55-5 * * * *",
        "@daily",
        "@Hourly",
        "@midnight",
    ],
)
def test_taken(expression: str) -> None:
    assert cron.parse(expression).expression == expression


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "is not one"),
        ("   ", "is not one"),
        ("daily", "is not one"),
        ("@reboot", "is not one"),
        ("@daily @daily", "has 2 fields"),
        ("5", "has 1 fields"),
        ("0 6 * *", "has 4 fields"),
        ("0 6 * * * 30", "has 6 fields"),
        ("0 6 * * * 30 2026", "has 7 fields"),
        ("60 * * * *", "out of range"),
        ("0 24 * * *", "out of range"),
        ("0 0 0 * *", "out of range"),
        ("0 0 * 13 *", "out of range"),
        ("0 0 * * 8", "out of range"),
        ("*/0 * * * *", "step '0'"),
        ("*/90 * * * *", "steps by 90"),
        ("0 */36 * * *", "steps by 36"),
        ("x * * * *", "not acceptable"),
        ("0 0 * * monday", "monday"),
        ("H * * * *", "random or hashed"),
        ("R(0-10) * * * *", "random or hashed"),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        ("1.5 * * * *", "1.5"),
        ("-1 * * * *", "-1"),
    ],
)
def test_refused_with_a_remedy(expression: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        cron.parse(expression)
    assert said in caught.value.message
    assert caught.value.remedy


def test_matches_on_a_wall_clock() -> None:
    parsed = cron.parse("*/15 9 * * *")
    wall = datetime(2026, 5, 5, 9, 15)  # noqa: DTZ001 - wall clock
    assert parsed.after(wall) == wall.replace(minute=30)
    assert parsed.before(wall) == wall.replace(minute=0)
    assert parsed.after(wall.replace(microsecond=1)) == wall.replace(minute=30)


@pytest.mark.parametrize(
    ("expression", "every_hour", "elapsed"),
    [
        ("0 * * * *", True, True),
        ("0 0-23 * * *", True, True),
        ("*/15 * * * *", True, True),
        ("*/15 2 * * *", False, True),
        ("0 */2 * * *", False, False),
        ("0 6 * * *", False, False),
        ("@hourly", True, True),
    ],
)
def test_what_a_change_of_the_clocks_does_not_interrupt(
    expression: str, *, every_hour: bool, elapsed: bool
) -> None:
    parsed = cron.parse(expression)
    assert (parsed.every_hour, parsed.follows_elapsed_time) == (every_hour, elapsed)


def test_one_parsed_expression_serves_many_threads() -> None:
    parsed = cron.parse("*/7 * * * *")
    wrong: list[datetime] = []

    def ask(day: int) -> None:
        wall = datetime(2026, 1, day, 3, 1)  # noqa: DTZ001 - wall clock
        for _ in range(300):
            if parsed.after(wall) != wall.replace(minute=7) or parsed.before(wall) != wall.replace(minute=0):
                wrong.append(wall)

    threads = [threading.Thread(target=ask, args=(day,)) for day in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
