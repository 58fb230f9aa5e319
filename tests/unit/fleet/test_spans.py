"""Spans of the calendar: what is written, what is refused, and counting back."""

from __future__ import annotations

from datetime import date

import pytest

from fleet.errors import ConfigurationError
from fleet.spans import Span


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90 days", Span(days=90)),
        ("1 day", Span(days=1)),
        ("2 weeks", Span(days=14)),
        ("13 months", Span(months=13)),
        ("3 quarters", Span(months=9)),
        ("7 years", Span(months=84)),
        (" 1year ", Span(months=12)),
        ("200 years", Span(months=2400)),
    ],
)
def test_parse(text: str, span: Span) -> None:
    assert Span.parse(text) == span


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no span"),
        ("13", "no span"),
        ("months", "no span"),
        ("0 months", "no span"),
        ("-1 month", "no span"),
        ("1.5 years", "no span"),
        ("1 year 2 months", "no span"),
        ("1 Month", "no span"),
        ("30m", "no span"),
        ("\u0665 days", "no span"),
        ("1 day\n1 day", "no span"),
        (13, "no span"),
        (None, "no span"),
        ("201 years", "two hundred years"),
        ("99999 days", "two hundred years"),
    ],
)
def test_refused_with_a_remedy(text: object, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        Span.parse(text)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "day", "before"),
    [
        ("13 months", "2024-03-01", "2023-02-01"),
        ("13 months", "2024-03-31", "2023-02-28"),
        ("13 months", "2025-03-31", "2024-02-29"),
        ("1 month", "2024-03-31", "2024-02-29"),
        ("1 month", "2024-01-31", "2023-12-31"),
        ("1 year", "2024-02-29", "2023-02-28"),
        ("4 years", "2024-02-29", "2020-02-29"),
        ("1 day", "2024-03-01", "2024-02-29"),
        ("2 weeks", "2024-01-01", "2023-12-18"),
        ("200 years", "0150-01-01", "0001-01-01"),
        ("1000 days", "0002-01-01", "0001-01-01"),
    ],
)
def test_before(text: str, day: str, before: str) -> None:
    assert Span.parse(text).before(date.fromisoformat(day)) == date.fromisoformat(before)


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (Span(months=12), "1 year"),
        (Span(months=84), "7 years"),
        (Span(months=13), "13 months"),
        (Span(months=1), "1 month"),
        (Span(days=14), "14 days"),
        (Span(days=1), "1 day"),
    ],
)
def test_as_people_write_it(span: Span, text: str) -> None:
    assert str(span) == text
    assert Span.parse(text) == span


def test_rough_days_compare_what_is_counted_differently() -> None:
    assert (
        Span.parse("30 days").rough_days < Span.parse("1 month").rough_days < Span.parse("31 days").rough_days
    )
    assert round(Span.parse("400 years".replace("400", "200")).rough_days * 2) == 146_097
