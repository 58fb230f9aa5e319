"""Durations: what is written, what is refused, and that writing and reading agree."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from fleet import durations
from fleet.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("250ms", timedelta(milliseconds=250)),
        ("30s", timedelta(seconds=30)),
        ("5m", timedelta(minutes=5)),
        ("2h", timedelta(hours=2)),
        ("1d", timedelta(days=1)),
        ("0s", timedelta(0)),
        (" 90 s ", timedelta(seconds=90)),
    ],
)
def test_parse(text: str, duration: timedelta) -> None:
    assert durations.parse(text) == duration


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a duration"),
        ("5", "not a duration"),
        ("m", "not a duration"),
        ("-5m", "not a duration"),
        ("1.5h", "not a duration"),
        ("1h30m", "not a duration"),
        ("5M", "not a duration"),
        ("5 minutes", "not a duration"),
        ("\u0665m", "not a duration"),
        ("5m\n5m", "not a duration"),
        ("4000d", "longer than ten years"),
        ("999999999999d", "longer than ten years"),
        (30, "has no unit"),
        (0.5, "has no unit"),
        (True, "not text"),
        (None, "not text"),
        (["5s"], "not text"),
    ],
)
def test_refused_with_a_remedy(text: object, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        durations.parse(text)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(0), "0s"),
        (timedelta(milliseconds=1500), "1500ms"),
        (timedelta(seconds=90), "90s"),
        (timedelta(minutes=60), "1h"),
        (timedelta(hours=48), "2d"),
        (timedelta(hours=25), "25h"),
        (timedelta(microseconds=1400), "1ms"),
        (timedelta(microseconds=3), "0s"),
        (timedelta(minutes=-5), "-5m"),
    ],
)
def test_format(duration: timedelta, text: str) -> None:
    assert durations.format(duration) == text


def test_what_is_written_is_read_back() -> None:
    rng = random.Random(2)
    for _ in range(500):
        duration = timedelta(milliseconds=rng.randrange(10 ** rng.randrange(1, 11)))
        assert durations.parse(durations.format(duration)) == duration
