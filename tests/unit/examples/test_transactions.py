"""The plan of the transactions' months: what the server makes the rows of, at any moment and scale."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise

import pytest

from examples.transactions import generate
from examples.transactions.generate import Volume, following, history, months
from examples.transactions.partitions import name

AS_OF = datetime(2026, 3, 16, 12, tzinfo=UTC)  # half of March is over


def test_scale_one_has_two_million_a_month_and_what_the_last_one_can_have() -> None:
    planned = history(Volume.at(1), as_of=AS_OF)
    assert len(planned) == 26
    assert {month.rows for month in planned[:-1]} == {2_000_000}
    assert abs(planned[-1].rows - 1_000_000) <= 1


def test_ids_run_on_from_month_to_month() -> None:
    planned = history(Volume.at(0.003), as_of=AS_OF)
    assert planned[0].first_id == 1
    assert all(after.first_id == before.first_id + before.rows for before, after in pairwise(planned))


def test_only_the_oldest_month_but_one_is_held() -> None:
    planned = history(Volume.at(0.003), as_of=AS_OF)
    held = [month.starts_on for month in planned if month.held_from < month.rows]
    assert held == [date(2024, 3, 1)]
    assert [month.starts_on for month in planned if month.has_open] == [date(2026, 2, 1), date(2026, 3, 1)]


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2026, 3, 1, tzinfo=UTC),
        datetime(2026, 3, 1, microsecond=1, tzinfo=UTC),
        datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
)
@pytest.mark.parametrize("scale", [0.00001, 0.0007, 1, 7.3])
def test_nothing_is_made_beyond_its_month_or_the_moment(moment: datetime, scale: float) -> None:
    for month in history(Volume.at(scale), as_of=moment):
        ends_us = month.rows * month.step_us  # no row is made at its end, or after it
        length = following(month.starts_on) - month.starts_on
        assert month.rows >= 0
        assert ends_us <= month.age_us
        assert ends_us <= length // timedelta(microseconds=1)


def test_the_months_are_those_of_utc() -> None:
    east = timezone(timedelta(hours=5, minutes=45))
    found = months(datetime(2026, 3, 1, 5, 44, tzinfo=east))
    assert (found[0], found[-1]) == (date(2024, 1, 1), date(2026, 2, 1))
    assert all(following(before) == after for before, after in pairwise(found))


def test_partitions_are_named_as_documented() -> None:
    assert name("transactions", date(2026, 1, 1)) == "transactions_y2026m01"


@pytest.mark.parametrize("seed", [0, -1, 1 << 80])
def test_any_seed_becomes_one_that_the_server_takes(seed: int) -> None:
    assert 0 <= generate.hash_seed(seed) < 1 << 62
    assert generate.hash_seed(seed) != generate.hash_seed(seed + 1)
