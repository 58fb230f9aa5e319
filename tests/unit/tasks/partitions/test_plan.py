"""Every rule of the plan, on catalogues that are written down."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import (
    ControlType,
    ForeignKey,
    Partition,
    PartitionedTable,
    Range,
)
from fleet.settings.partitions import PartitionSet
from tasks.partitions.calendar import Period
from tasks.partitions.plan import Action, Batch, DefaultRows, Known, Line, plan
from tests.unit.tasks.partitions.subjects import CLOCK, NAME, months, partition, policy, span, table

# From the cutoff of hot (13 months before March 2024) to three months ahead: nothing to do.
KEPT = months("2023-02", 17)
FOREVER = {"hot": "100 years", "warm": "100 years", "cold": "100 years"}
META = RelationName("public", "meta")
ACCOUNT = RelationName("public", "account")


def archive(*partitions: Partition, **more: Any) -> PartitionedTable:
    return table(*partitions, oid=2, name=RelationName("archive", "t"), **more)


def rows(stray: int = 0, **periods: int) -> DefaultRows:
    """`m2024_01=5`: five rows of January."""
    found = {}
    for name, count in periods.items():
        year, month = map(int, name.removeprefix("m").split("_"))
        found[Period(date(year, month, 1), date(year + month // 12, month % 12 + 1, 1))] = count
    return DefaultRows(periods=found, stray=stray)


def planned(
    kept: PartitionSet | None = None,
    *partitions: Partition,
    clock: datetime = CLOCK,
    known: Known | None = None,
    archived: PartitionedTable | None = None,
    batches: tuple[Batch, ...] = (),
    **more: Any,
) -> list[Line]:
    return plan(
        kept or policy(),
        table(*partitions, **more),
        archive=archived,
        batches=batches,
        clock=clock,
        known=known or Known(),
    )


def shown(lines: list[Line]) -> list[tuple[str, str, str]]:
    """Action, partition and range of each."""
    return [
        (
            line.action.value,
            line.partition.name if line.partition else "",
            f"{line.range.lower}/{line.range.upper}" if line.range else "",
        )
        for line in lines
    ]


def only(lines: list[Line], action: Action) -> list[Line]:
    return [line for line in lines if line.action is action]


def key(referencing: RelationName, referenced: RelationName, name: str = "k") -> ForeignKey:
    return ForeignKey(
        oid=7,
        name=name,
        referencing=referencing,
        referenced=referenced,
        columns=("id",),
        referenced_columns=("id",),
        validated=True,
        deferrable=False,
    )


def test_nothing_to_do() -> None:
    assert planned(None, *KEPT) == []


def test_the_window_of_a_new_set() -> None:
    assert shown(planned()) == [
        ("create", "t_y2024m03", "2024-03-01/2024-04-01"),
        ("create", "t_y2024m04", "2024-04-01/2024-05-01"),
        ("create", "t_y2024m05", "2024-05-01/2024-06-01"),
        ("create", "t_y2024m06", "2024-06-01/2024-07-01"),
    ]


def test_whole_months_ahead_on_the_last_day_of_one() -> None:
    found = planned(None, *KEPT, clock=datetime(2024, 3, 31, 23, 59, tzinfo=UTC))
    assert found == []
    found = planned(None, *KEPT, clock=datetime(2024, 4, 1, tzinfo=UTC))
    assert ("create", "t_y2024m07", "2024-07-01/2024-08-01") in shown(found)


def test_a_partition_that_stands_far_ahead_does_not_stop_what_is_between() -> None:
    found = planned(policy(**FOREVER), *months("2024-03", 1), partition("2025-01-01/2025-02-01"))
    assert [each[1] for each in shown(found)] == ["t_y2024m04", "t_y2024m05", "t_y2024m06"]


def test_a_misaligned_end_gets_a_bridge() -> None:
    found = planned(policy(**FOREVER), partition("2024-03-01/2024-04-20", "odd_end"))
    assert shown(only(found, Action.CREATE)) == [
        ("create", "t_y2024m04_from_20240420", "2024-04-20/2024-05-01"),
        ("create", "t_y2024m05", "2024-05-01/2024-06-01"),
        ("create", "t_y2024m06", "2024-06-01/2024-07-01"),
    ]
    assert "what others leave" in found[0].reason


def test_holes_in_the_window_are_filled_exactly() -> None:
    found = planned(
        policy(**FOREVER),
        *months("2024-03", 1),
        partition("2024-04-10/2024-05-20", "by_hand"),
        *months("2024-06", 1),
    )
    assert shown(only(found, Action.CREATE)) == [
        ("create", "t_y2024m04", "2024-04-01/2024-04-10"),
        ("create", "t_y2024m05_from_20240520", "2024-05-20/2024-06-01"),
    ]
    (said,) = only(found, Action.WARN)
    assert "by_hand" in said.reason


def test_a_year_that_covers_the_window() -> None:
    found = planned(policy(**FOREVER), partition("2024-01-01/2025-01-01", "whole_year"))
    assert [line.action for line in found] == [Action.WARN]


def test_a_gap_in_the_past() -> None:
    without = [each for each in KEPT if each.name.name not in ("t_y2023m05", "t_y2023m06")]
    (line,) = planned(None, *without)
    assert shown([line]) == [("warn", "", "2023-05-01/2023-07-01")]
    assert line.reason.startswith("gap: ")
    assert "are refused" in line.reason
    (line,) = planned(None, *without, partition("default"))
    assert "go to t_default" in line.reason.replace("public.", "")


def test_a_gap_between_the_last_one_and_now() -> None:
    found = planned(policy(**FOREVER), *months("2023-10", 3))
    assert shown(only(found, Action.WARN)) == [("warn", "", "2024-01-01/2024-03-01")]
    assert len(only(found, Action.CREATE)) == 4


def test_an_archived_range_is_no_gap() -> None:
    gone = Batch(
        partition=RelationName("archive", "t_y2022m11"), range=span("2022-11-01/2022-12-01"), cold=True
    )
    warm = months("2022-12", 2, schema="archive")
    assert planned(None, *KEPT, archived=archive(*warm), batches=(gone,)) == []
    (line,) = planned(None, *KEPT, archived=archive(*warm[1:]), batches=(gone,))
    assert shown([line]) == [("warn", "", "2022-12-01/2023-01-01")]


def test_odd_bounds_are_not_made_twice() -> None:
    odd = partition("default", "strange", is_default=False, odd="FROM ('2024-04-10', 5)")
    odd = replace(odd, hull=span("2024-04-10/2024-04-20"))
    found = planned(policy(**FOREVER), *months("2024-03", 1), odd)
    assert [each[1] for each in shown(only(found, Action.CREATE))] == ["t_y2024m05", "t_y2024m06"]
    assert [line.reason.split(":")[0] for line in only(found, Action.WARN)] == [
        "overlap",
        "outside of the policy",
    ]


def test_nothing_can_be_made_ahead_of_maxvalue() -> None:
    (line,) = planned(policy(**FOREVER), partition("2024-03-01/", "t_rest"))
    assert (line.action, line.partition) == (Action.WARN, RelationName("public", "t_rest"))
    assert "MAXVALUE" in line.reason


def test_a_name_that_somebody_has() -> None:
    found = planned(
        policy(**FOREVER), *months("2024-03", 3), known=Known(taken={RelationName("public", "t_y2024m06")})
    )
    assert shown(found) == [("refuse", "t_y2024m06", "2024-06-01/2024-07-01")]
    assert "rename" in found[0].remedy
    # A partition of another range has it.
    found = planned(
        policy(**FOREVER), *months("2024-03", 3), partition("2024-07-01/2024-08-01", "t_y2024m06")
    )
    assert shown(only(found, Action.REFUSE)) == [("refuse", "t_y2024m06", "2024-06-01/2024-07-01")]


def test_a_name_that_postgresql_would_cut() -> None:
    kept = policy(
        name=RelationName("public", "x" * 52),
        subpartitions={"columns": ["id"], "count": 8},
        **FOREVER,
    )
    assert all(line.action is Action.CREATE for line in planned(kept))
    kept = kept.model_copy(update={"subpartitions": kept.subpartitions.model_copy(update={"count": 11})})  # type: ignore[union-attr]
    found = planned(kept)
    assert {line.action for line in found} == {Action.REFUSE}
    assert "64 bytes" in found[0].reason


def test_a_pending_detach_comes_first() -> None:
    pending = replace(KEPT[0], detach_pending=True, rows=12)
    found = planned(None, pending, *KEPT[1:-1])
    assert [line.action for line in found] == [Action.FINALIZE, Action.CREATE]
    assert found[0].rows == 12
    assert found[0].locks == ((NAME, "SHARE UPDATE EXCLUSIVE"), (pending.name, "ACCESS EXCLUSIVE"))


def test_one_that_is_due_and_pending_is_only_finished() -> None:
    found = planned(None, replace(partition("2022-12-01/2023-01-01"), detach_pending=True), *KEPT)
    assert [line.action for line in found if line.action is not Action.WARN] == [Action.FINALIZE]


# The default partition.

DRAINED = policy(default="drain")


def test_rows_of_the_default_are_drained_into_what_is_made_for_them() -> None:
    found = planned(DRAINED, *KEPT[:-1], partition("default"), known=Known(default_rows=rows(m2024_06=5)))
    assert shown(found) == [("drain", "t_y2024m06", "2024-06-01/2024-07-01")]
    assert found[0].rows == 5
    assert found[0].locks == (
        (NAME, "SHARE UPDATE EXCLUSIVE"),
        (RelationName("public", "t_default"), "ACCESS EXCLUSIVE"),
    )


def test_rows_of_a_gap_are_drained_too() -> None:
    without = [each for each in KEPT if each.name.name != "t_y2023m05"]
    found = planned(DRAINED, *without, partition("default"), known=Known(default_rows=rows(m2023_05=1)))
    assert shown(found) == [("drain", "t_y2023m05", "2023-05-01/2023-06-01")]


def test_rows_far_ahead_wait_for_their_time() -> None:
    (line,) = planned(DRAINED, *KEPT, partition("default"), known=Known(default_rows=rows(m2099_01=3)))
    assert (line.action, line.rows) == (Action.WARN, 3)


def test_rows_without_a_period() -> None:
    (line,) = planned(DRAINED, *KEPT, partition("default"), known=Known(default_rows=rows(stray=3)))
    assert (line.action, line.rows) == (Action.WARN, 3)
    assert "NULL" in line.reason


def test_late_rows_of_an_archived_range_open_no_month_again() -> None:
    warm = archive(*months("2023-01", 1, schema="archive"))
    (line,) = planned(
        DRAINED, *KEPT, partition("default"), archived=warm, known=Known(default_rows=rows(m2023_01=2))
    )
    assert shown([line]) == [("late", "t_y2023m01", "2023-01-01/2023-02-01")]
    assert line.partition == RelationName("archive", "t_y2023m01")
    assert line.locks == (
        (RelationName("public", "t_default"), "ROW EXCLUSIVE"),
        (RelationName("archive", "t_y2023m01"), "ROW EXCLUSIVE"),
    )


def test_late_rows_of_a_cold_range_wait_for_a_supplement() -> None:
    cold = Batch(
        partition=RelationName("archive", "t_y2020m01"), range=span("2020-01-01/2023-02-01"), cold=True
    )
    (line,) = planned(
        DRAINED, *KEPT, partition("default"), batches=(cold,), known=Known(default_rows=rows(m2020_01=2))
    )
    assert (line.action, line.partition) == (Action.LATE, None)
    assert "supplement" in line.reason


def test_a_policy_that_drains_nothing_says_so() -> None:
    found = planned(
        None,
        *KEPT[:-1],
        partition("default"),
        known=Known(default_rows=rows(m2024_06=5, m2023_01=2)),
    )
    assert [line.action for line in found] == [Action.REFUSE, Action.WARN]
    assert all("drain" in line.remedy for line in found)


def test_a_default_that_should_be_there() -> None:
    (line,) = planned(DRAINED, *KEPT)
    assert (line.action, line.partition, line.range) == (
        Action.CREATE,
        RelationName("public", "t_default"),
        None,
    )
    (line,) = planned(DRAINED, *KEPT, known=Known(taken=[RelationName("public", "t_default")]))
    assert line.action is Action.REFUSE


# What is old.


def test_partitions_wholly_older_than_hot_move() -> None:
    found = planned(None, *months("2022-12", 2, rows=2_000), *KEPT)
    assert shown(found) == [
        ("move", "t_y2022m12", "2022-12-01/2023-01-01"),
        ("move", "t_y2023m01", "2023-01-01/2023-02-01"),
    ]
    assert found[0].rows == 2_000


def test_the_locks_of_a_move() -> None:
    old = replace(
        partition("2023-01-01/2023-02-01"),
        leaves=(RelationName("public", "t_y2023m01_0"), RelationName("public", "t_y2023m01_1")),
    )
    (line,) = planned(
        policy(companions=["public.meta"]),
        old,
        *KEPT,
        partition("default"),
        archived=archive(partition("default", "a_default", schema="archive")),
        foreign_keys=(key(META, NAME), key(NAME, ACCOUNT)),
    )
    assert [(str(name), mode) for name, mode in line.locks] == [
        ("public.t", "ACCESS EXCLUSIVE"),
        ("public.t_default", "ACCESS EXCLUSIVE"),
        ("public.t_y2023m01", "ACCESS EXCLUSIVE"),
        ("public.t_y2023m01_0", "ACCESS EXCLUSIVE"),
        ("public.t_y2023m01_1", "ACCESS EXCLUSIVE"),
        ("public.meta", "ACCESS EXCLUSIVE"),
        ("public.account", "SHARE ROW EXCLUSIVE"),
        ("archive.t", "SHARE UPDATE EXCLUSIVE"),
        ("archive.a_default", "ACCESS EXCLUSIVE"),
    ]


def test_a_companion_that_is_partitioned_alike_goes_along() -> None:
    alike = table(
        partition("2023-01-01/2023-02-01", "meta_y2023m01"),
        partition("2023-02-01/2023-03-01", "meta_y2023m02"),
        name=META,
    )
    (line,) = plan(policy(companions=["public.meta"]), table(OLD, *KEPT), companions=[alike], clock=CLOCK)
    assert [(str(name), mode) for name, mode in line.locks][-2:] == [
        ("public.meta", "ACCESS EXCLUSIVE"),
        ("public.meta_y2023m01", "ACCESS EXCLUSIVE"),
    ]


def test_the_locks_of_a_new_partition() -> None:
    found = planned(
        None,
        *KEPT[:-1],
        partition("default"),
        foreign_keys=(key(META, NAME), key(NAME, ACCOUNT), key(NAME, NAME)),
    )
    assert [(str(name), mode) for name, mode in found[0].locks] == [
        ("public.t", "SHARE UPDATE EXCLUSIVE"),
        ("public.t_default", "ACCESS EXCLUSIVE"),
        ("public.account", "SHARE ROW EXCLUSIVE"),
    ]


OLD = partition("2023-01-01/2023-02-01", rows=10)


def test_rows_older_than_anything_that_is_kept_make_no_partition() -> None:
    known = Known(default_rows=rows(m1970_01=2, m2018_01=1))
    found = planned(policy(default="drain"), *KEPT, partition("default"), known=known)
    assert [(line.action, line.rows, line.remedy.partition(":")[0]) for line in found] == [
        (Action.DRAIN, 1, ""),
        (Action.WARN, 2, "They are older than cold = 7 years"),
    ]


def test_a_companion_goes_when_what_it_belongs_to_goes() -> None:
    """Its own plan leaves a partition where it is while the leader has one of the same range, held or not."""
    leader = table(OLD, *KEPT, name=META, oid=3)
    own = table(OLD, *KEPT)
    assert plan(policy(), own, leaders=[leader], clock=CLOCK) == []
    gone = replace(leader, partitions=leader.partitions[1:])
    (line,) = plan(policy(), own, leaders=[gone], clock=CLOCK)
    assert (line.action, line.partition) == (Action.MOVE, OLD.name)


@pytest.mark.parametrize(
    ("companions", "counts", "action"),
    [
        ([], None, Action.REFUSE),
        ([], {"k": 3}, Action.REFUSE),
        ([], {"k": 0}, Action.MOVE),
        ([], {}, Action.MOVE),
        (["public.meta"], None, Action.MOVE),
    ],
)
def test_what_is_referenced(companions: list[str], counts: dict[str, int] | None, action: Action) -> None:
    known = Known(referenced=None if counts is None else {OLD.name: counts})
    (line,) = planned(policy(companions=companions), OLD, *KEPT, foreign_keys=(key(META, NAME),), known=known)
    assert line.action is action
    if action is Action.REFUSE:
        assert "public.meta (k)" in line.reason
        assert "companions" in line.remedy
        assert ("3 of" in line.reason) is bool(counts)


def test_a_legal_hold() -> None:
    hold = {"from": date(2023, 1, 31), "to": date(2023, 2, 1), "reason": "case 4711"}
    (line,) = planned(policy(legal_holds=[hold]), OLD, *KEPT)
    assert line.action is Action.HOLD
    assert "case 4711" in line.reason
    hold = {"from": date(2023, 2, 1), "to": date(2023, 3, 1), "reason": "case 4711"}
    (line,) = planned(policy(legal_holds=[hold]), OLD, *KEPT)
    assert line.action is Action.MOVE


def test_rows_that_must_not_be_moved_yet() -> None:
    kept = policy(hold="status = 'pending'")
    (line,) = planned(kept, OLD, *KEPT, known=Known(held={OLD.name: 1}))
    assert (line.action, line.rows) == (Action.HOLD, 1)
    assert line.reason.startswith("1 row must")
    (line,) = planned(kept, OLD, *KEPT, known=Known(held={OLD.name: 0}))
    assert line.action is Action.MOVE


def test_the_archive_has_one_in_its_place() -> None:
    for other in (
        partition("2023-01-15/2023-01-16", "other", schema="archive"),
        partition("2020-01-01/2020-02-01", OLD.name.name, schema="archive"),
    ):
        found = planned(None, OLD, *KEPT, archived=archive(other))
        assert str(other.name) in only(found, Action.REFUSE)[0].reason
    found = planned(None, OLD, *KEPT, known=Known(taken={RelationName("archive", OLD.name.name)}))
    assert [line.action for line in found] == [Action.REFUSE]


def test_what_is_due_in_the_archive() -> None:
    warm = archive(
        *months("2017-02", 2, schema="archive"),
        *months("2021-02", 2, schema="archive"),
    )
    found = planned(None, *KEPT, archived=warm)
    assert [line[:2] for line in shown(found) if line[0] != "warn"] == [
        ("export", "t_y2017m03"),
        ("export", "t_y2021m02"),
        ("purge", "t_y2017m02"),
    ]


def test_what_is_cold_is_purged_at_its_end() -> None:
    batches = tuple(
        Batch(partition=RelationName("archive", name), range=span(bounds), cold=True, purged=purged)
        for name, bounds, purged in (
            ("a", "2016-12-01/2017-01-01", True),
            ("b", "2017-01-01/2017-03-01", False),
            ("c", "2017-03-01/2023-02-01", False),
        )
    )
    found = planned(None, *KEPT, batches=batches)
    assert shown(found) == [("purge", "b", "2017-01-01/2017-03-01")]
    hold = {"from": date(2017, 2, 1), "to": date(2017, 2, 2), "reason": "case 4711"}
    found = planned(policy(legal_holds=[hold]), *KEPT, batches=batches)
    assert [line.action for line in found] == [Action.HOLD]


def test_without_an_archive_what_is_old_is_exported_from_the_table() -> None:
    kept = policy(archive="none", hot="13 months", warm="13 months", cold="24 months")
    found = planned(kept, *months("2022-02", 12), *KEPT)
    assert [line[:2] for line in shown(found)][-2:] == [("export", "t_y2023m01"), ("purge", "t_y2022m02")]


# What is outside.


def test_foreign_tables_stay() -> None:
    (line,) = planned(None, replace(OLD, kind="f"), *KEPT)
    assert line.action is Action.WARN
    assert "foreign table" in line.reason


def test_missing_remainders_are_said() -> None:
    (line,) = planned(None, replace(KEPT[0], missing_remainders=25), *KEPT[1:])
    assert "25 %" in line.reason


def test_many_odd_ranges_are_one_line() -> None:
    weeks = [partition(f"2024-03-{day:02}/2024-03-{day + 1:02}") for day in range(1, 9)]
    found = planned(policy(**FOREVER), *weeks)
    (line,) = only(found, Action.WARN)
    assert "and 5 more" in line.reason


@pytest.mark.parametrize(
    ("given", "more"),
    [
        ({}, {"strategy": "list"}),
        ({}, {"control_type": None}),
        ({}, {"control_type": ControlType.INTEGER}),
        ({"epoch": "seconds"}, {}),
    ],
)
def test_what_contradicts_itself_is_refused(given: dict[str, Any], more: dict[str, Any]) -> None:
    (line,) = planned(policy(**given), **more)
    assert line.action is Action.REFUSE
    assert line.remedy


def test_the_same_input_gives_the_same_plan() -> None:
    given = (*months("2022-01", 3), *months("2023-05", 3), partition("default"))
    once = planned(DRAINED, *given, known=Known(default_rows=rows(m2022_05=1, m2024_03=2)))
    assert planned(DRAINED, *given, known=Known(default_rows=rows(m2024_03=2, m2022_05=1))) == once
    order = list(Action)
    assert [order.index(line.action) for line in once] == sorted(order.index(line.action) for line in once)


def test_moments_in_the_policys_zone() -> None:
    at = datetime(2024, 3, 31, 23, 30, tzinfo=UTC)
    lines = planned(
        policy(timezone="Europe/Berlin", premake=1, **FOREVER), control_type=ControlType.TIMESTAMPTZ, clock=at
    )
    assert [line.range for line in lines] == [
        Range(lower=datetime(2024, 3, 31, 22, tzinfo=UTC), upper=datetime(2024, 4, 30, 22, tzinfo=UTC)),
        Range(lower=datetime(2024, 4, 30, 22, tzinfo=UTC), upper=datetime(2024, 5, 31, 22, tzinfo=UTC)),
    ]
