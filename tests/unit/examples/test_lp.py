"""The histories of the LP system's funds: what the tables are made of, at any date and scale."""

from __future__ import annotations

from datetime import date
from itertools import pairwise

import pytest

from examples.lp import generate
from examples.lp.generate import Book, Volume, book, monthly_rate

AS_OF = date(2026, 3, 31)


@pytest.fixture(scope="module")
def small() -> Book:
    return book(Volume.at(0.05), seed=1, as_of=AS_OF)


def test_scale_one_has_the_documented_volumes() -> None:
    whole = book(Volume.at(1), seed=1, as_of=AS_OF)
    assert whole.volume == Volume(partners=10_000, funds=500)
    assert len(whole.commitments) == 100_000
    assert sum(len(fund.months) for fund in whole.funds) == 50_000
    # An event is one activity of every partner of its fund; how many those are is dealt, so this one is not exact.
    pledged = [after - first for first, after in pairwise(whole.first_commitment)]
    activities = sum(len(fund.events) * count for fund, count in zip(whole.funds, pledged, strict=True))
    assert abs(activities - 5_000_000) < 50_000


@pytest.mark.parametrize("scale", [1e-9, 0.001, 0.01, 0.05, 0.3])
def test_every_scale_has_partners_in_every_fund(scale: float) -> None:
    found = book(Volume.at(scale), seed=3, as_of=AS_OF)
    assert all(found.units(fund) > 0 for fund in found.funds)
    assert len(found.commitments) == 10 * found.volume.partners
    assert len({(each.partner, each.fund) for each in found.commitments}) == len(found.commitments)
    assert [each.id for each in found.commitments] == list(range(1, len(found.commitments) + 1))


def test_no_more_is_called_than_was_committed(small: Book) -> None:
    for fund in small.funds:
        last = fund.months[-1]
        fees = sum(event.share for event in fund.events if event.kind == "management_fee")
        assert last.contributed == last.called + fees
        assert 0 < last.contributed <= generate.SHARE


def test_nothing_is_left_in_a_fund_that_is_wound_up(small: Book) -> None:
    wound_up = [fund for fund in small.funds if fund.status == "closed"]
    assert len(wound_up) == 0.3 * len(small.funds)
    assert {fund.months[-1].nav for fund in wound_up} == {0}
    assert all(fund.months[-1].nav > 0 for fund in small.funds if fund.status == "active")


def test_sums_only_grow_and_every_event_moves_money(small: Book) -> None:
    for fund in small.funds:
        assert all(event.share > 0 for event in fund.events)
        for before, after in pairwise(fund.months):
            assert (before.contributed, before.called, before.distributed) <= (
                after.contributed,
                after.called,
                after.distributed,
            )
            assert after.nav >= 0


def test_figures_are_those_of_private_funds(small: Book) -> None:
    for row in generate.quarters(small):
        *_, net, gross, moic, dpi, rvpi = row.split("\t")
        assert -20 < float(net) < float(gross) < 40
        assert 0.5 < float(dpi) + float(rvpi) < float(moic) < 4


def test_a_fund_has_five_quarters_and_each_goes_on_where_the_last_one_ended(small: Book) -> None:
    by_fund: dict[int, list[list[str]]] = {}
    for row in generate.quarters(small):
        by_fund.setdefault(int(row.split("\t")[0]), []).append(row.split("\t"))
    assert len(by_fund) == len(small.funds)
    for rows in by_fund.values():
        assert [row[2] for row in rows] == [
            "2024-12-31",
            "2025-03-31",
            "2025-06-30",
            "2025-09-30",
            "2025-12-31",
        ]
        for before, after in pairwise(rows):
            assert after[3] == before[6]


@pytest.mark.parametrize("as_of", [date(2026, 3, 1), date(2026, 1, 1), date(2024, 2, 29), date(2025, 12, 31)])
def test_the_history_ends_with_the_last_whole_month(as_of: date) -> None:
    found = book(Volume.at(0.001), seed=2, as_of=as_of)
    days = [row.split("\t")[4] for row in generate.events(found)]
    assert days == sorted(days)
    assert days[-1] < as_of.isoformat()
    last = {fund.month_end(fund.age) for fund in found.funds}
    assert len(last) == 1
    assert 0 < (as_of - last.pop()).days <= 31


def test_activities_are_numbered_without_a_gap(small: Book) -> None:
    following = 1
    for row in generate.events(small):
        _, first, last, _, _, _, number = map(str, row.rstrip("\n").split("\t"))
        assert int(number) == following
        following += int(last) - int(first) + 1


@pytest.mark.parametrize(
    ("flows", "rate"),
    [
        ([-100, 110], 0.10),
        ([-100, 0, 121], 0.10),
        ([-100, 90], -0.10),
        ([-100, 0, 0, 0], None),
        ([-50, -50, 30, 30, 60], 0.0689),
    ],
)
def test_the_internal_rate_of_return(flows: list[int], rate: float | None) -> None:
    found = monthly_rate(flows)
    assert found > -1
    if rate is not None:
        assert found == pytest.approx(rate, abs=1e-4)
        value = sum(flow / (1 + found) ** month for month, flow in enumerate(flows))
        assert value == pytest.approx(0, abs=1e-6)
