"""A bound's verdict: kept, missed, or worth nothing because of the machine, the rounds or the data."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.report import INCONCLUSIVE, Machine, Report, Verdict, at_least, at_most, judge
from benchmarks.timing import Deadline, interleave, percentile

LIMIT = at_most("overhead", 10, "ms", "a promise")
SPEED = at_least("speed", 2, "times faster", "a promise")


@pytest.mark.parametrize(
    ("value", "floor", "ok"),
    [
        (9.9, 0.5, True),
        (10.0, 2.0, True),
        (10.1, 0.5, False),
        # A floor over a fifth of the bound measures the machine: neither kept nor missed.
        (9.9, 2.1, INCONCLUSIVE),
        (99.0, 2.1, INCONCLUSIVE),
        (None, 0.5, INCONCLUSIVE),
    ],
)
def test_an_absolute_bound_is_judged_by_its_floor_first(
    value: float | None, floor: float, ok: Verdict
) -> None:
    assert judge(LIMIT, value, floor=floor).ok == ok


@pytest.mark.parametrize(("value", "ok"), [(2.0, True), (1.99, False)])
def test_a_ratio_must_reach_its_bound(value: float, ok: bool) -> None:
    assert judge(SPEED, value, rounds=5).ok is ok


def test_fewer_than_five_rounds_say_nothing() -> None:
    judged = judge(SPEED, 3.0, rounds=4)
    assert judged.ok == INCONCLUSIVE
    assert judged.why == "4 rounds only, 5 are needed"


def test_a_doubt_excuses_a_miss_and_takes_nothing_from_a_bound_that_is_kept() -> None:
    assert judge(SPEED, 1.0, doubt="small data").ok == INCONCLUSIVE
    assert judge(SPEED, 2.5, doubt="small data").ok is True
    assert judge(SPEED, 2.5, void="small data").ok == INCONCLUSIVE


@pytest.mark.parametrize(
    ("values", "ok", "code"),
    [((9.0, 2.0), True, 0), ((9.0, None), INCONCLUSIVE, 0), ((11.0, None), False, 1)],
)
def test_the_report_is_as_good_as_its_worst_bound(
    values: tuple[float | None, ...], ok: Verdict, code: int
) -> None:
    report = Report(benchmark="any", quick=False, machine=Machine.here())
    for bound, value in zip((LIMIT, SPEED), values, strict=True):
        report.hold(bound, value)
    assert report.to_json()["ok"] == ok
    assert report.exit_code == code


def test_a_part_that_broke_is_a_failure() -> None:
    report = Report(benchmark="any", quick=False, machine=Machine.here(), errors={"skip": "no server"})
    assert report.exit_code == 1
    assert report.to_json()["errors"] == {"skip": "no server"}


def test_contenders_take_turns_and_groups_keep_their_order() -> None:
    called: list[tuple[int, str]] = []

    def contender(name: str) -> Callable[[int], float]:
        def measure(number: int) -> float:
            called.append((number, name))
            return 1.0

        return measure

    first, second = {"a": contender("a"), "b": contender("b")}, {"c": contender("c")}
    timings = interleave(first, second, rounds=2, deadline=Deadline(), warm_up=1)
    assert called == [
        *((-1, name) for name in "bac"),
        *((0, name) for name in "abc"),
        *((1, name) for name in "bac"),
    ]
    assert timings.rounds == 2
    assert timings.ratio("a", "c") == 1.0


def test_what_does_not_fit_before_the_deadline_is_not_begun() -> None:
    timings = interleave({"a": lambda _: 1.0}, rounds=5, deadline=Deadline.after(-1), warm_up=1)
    assert timings.rounds == 0
    assert timings.ratio("a", "a") is None


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([7.0], 0.99) == 7.0
