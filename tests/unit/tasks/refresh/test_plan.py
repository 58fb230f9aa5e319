"""What is refreshed, in which order, up to when, and why: decided without a database."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from fleet.postgres.catalog.definition import DefinitionClass
from tasks.refresh.plan import Demand, changed, order, plan, satisfied, upstream_needs
from tests.unit.tasks.refresh.subjects import NOW, SERVER, name, reading, subject

SLOT = datetime(2026, 3, 2, 12, 5, tzinfo=UTC)


def by_name(*subjects):
    return {s.name: s for s in subjects}


LENDING = by_name(
    subject("features", "daily", oid=3, upstream=["status", "payments"]),
    subject("payments", "fifteen_minutes", oid=2, upstream=["status"]),
    subject("status", "five_minutes", oid=1),
    subject("another", oid=4),
)


def test_upstream_comes_first():
    assert order(LENDING) == [name(n) for n in ("another", "status", "payments", "features")]


def test_a_tick_needs_each_upstream_at_the_latest_slot_of_its_own_tier():
    needs = upstream_needs(
        LENDING, name("features"), as_of=datetime(2026, 3, 2, 6, 0, tzinfo=UTC), demand=Demand.TICK
    )
    assert [(n.view.name, n.slot.strftime("%H:%M"), n.entry) for n in needs] == [
        ("status", "06:00", "five_minutes"),
        ("payments", "06:00", "fifteen_minutes"),
    ]


def test_a_five_minute_view_never_drags_a_daily_one_along():
    subjects = by_name(
        subject("fast", "five_minutes", oid=2, upstream=["slow"]), subject("slow", "daily", oid=1)
    )
    [need] = upstream_needs(subjects, name("fast"), as_of=SLOT, demand=Demand.TICK)
    assert need.as_of == datetime(2026, 3, 2, 6, 0, tzinfo=UTC)


@pytest.mark.parametrize("demand", [Demand.EVENT, Demand.OPERATOR])
def test_an_event_and_an_operator_need_every_upstream_as_of_now(demand):
    assert {n.as_of for n in upstream_needs(LENDING, name("features"), as_of=NOW, demand=demand)} == {NOW}


def test_a_tick_is_satisfied_by_counters_and_an_event_only_by_a_real_refresh():
    view = subject("v", state={"ago": timedelta(minutes=30), "verified_at": NOW - timedelta(minutes=1)})
    assert satisfied(view, SERVER, as_of=SLOT, demand=Demand.TICK)
    assert not satisfied(view, SERVER, as_of=SLOT, demand=Demand.EVENT)
    assert not satisfied(view, SERVER, as_of=SLOT, demand=Demand.OPERATOR)
    assert satisfied(view, SERVER, as_of=NOW - timedelta(minutes=30), demand=Demand.EVENT)


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({"snapshot_at": None, "verified_at": NOW}, {}),
        ({"relation": 5}, {}),
        ({"definition_hash": "other"}, {}),
        ({"system_identifier": "8"}, {}),
        ({"timeline": 2}, {}),
        ({"snapshot_at": NOW + timedelta(hours=1)}, {}),
        ({"verified_at": NOW + timedelta(hours=1)}, {}),
        ({}, {"populated": False}),
    ],
)
def test_a_record_of_something_else_satisfies_nobody(state, found):
    good = {"ago": timedelta(seconds=1)}
    assert satisfied(subject("v", state=good), SERVER, as_of=SLOT, demand=Demand.TICK)
    assert not satisfied(
        subject("v", state=good | state, found=found), SERVER, as_of=SLOT, demand=Demand.TICK
    )


def test_a_tick_skips_an_unchanged_view_and_an_operator_never_does():
    view = subject("v", state={})
    assert changed(view, SERVER, reading(), Demand.TICK) is None
    assert changed(view, SERVER, reading(), Demand.OPERATOR) is not None
    assert changed(view, SERVER, reading(), Demand.EVENT) is not None


def test_changed_sources_are_named():
    assert (
        changed(subject("v", state={}), SERVER, reading(inserted=15), Demand.TICK)
        == "public.t: 5 rows inserted"
    )


@pytest.mark.parametrize(
    ("kind", "skipped"),
    [
        (DefinitionClass.DATA, True),
        (DefinitionClass.SETTINGS, True),
        (DefinitionClass.DATE, True),
        (DefinitionClass.TIME, False),
        (DefinitionClass.VOLATILE, False),
        (DefinitionClass.OPAQUE, False),
        (DefinitionClass.SESSION, False),
    ],
)
def test_only_definitions_that_depend_on_data_may_be_skipped(kind, skipped):
    assert (changed(subject("v", kind=kind, state={}), SERVER, reading(), Demand.TICK) is None) is skipped


def test_a_definition_with_current_date_is_due_when_the_date_changes():
    view = subject("v", kind=DefinitionClass.DATE, state={})
    assert "date changed" in changed(view, SERVER, reading(today=date(2026, 3, 3)), Demand.TICK)
    data_only = subject("v", state={})
    assert changed(data_only, SERVER, reading(today=date(2026, 3, 3)), Demand.TICK) is None


def test_other_settings_mean_stale():
    assert "settings" in changed(subject("v", state={}), SERVER, reading(hash_="other"), Demand.TICK)


def test_an_upstream_view_is_compared_by_its_own_refresh_id():
    view = subject("v", upstream=["u"], state={"reading": reading(refresh_ids={"public.u": 4}).to_json()})
    assert changed(view, SERVER, reading(refresh_ids={"public.u": 4}), Demand.TICK) is None
    assert "public.u" in changed(view, SERVER, reading(refresh_ids={"public.u": 5}), Demand.TICK)


def test_a_view_that_used_a_stale_upstream_is_not_skipped():
    assert "public.u" in changed(
        subject("v", state={"upstream_stale": ["public.u"]}), SERVER, reading(), Demand.TICK
    )


def test_counters_are_believed_for_max_skip_and_no_longer():
    hour = subject("v", state={"ago": timedelta(minutes=59)})
    assert changed(hour, SERVER, reading(), Demand.TICK) is None
    assert "more than" in changed(
        subject("v", state={"ago": timedelta(minutes=60)}), SERVER, reading(), Demand.TICK
    )
    never = subject("v", state={"ago": timedelta(seconds=1)}, view={"max_skip": timedelta(0)})
    assert changed(never, SERVER, reading(), Demand.TICK) is not None


def test_a_reading_of_another_version_means_stale():
    assert (
        changed(subject("v", state={"reading": {"v": 99}}), SERVER, reading(), Demand.TICK)
        == "no source reading recorded"
    )


def test_a_plan_says_what_how_and_why_in_order():
    subjects = by_name(
        subject("features", "daily", oid=3, upstream=["payments"], state={"ago": timedelta(hours=7)}),
        subject("payments", "fifteen_minutes", oid=2, state={"ago": timedelta(hours=1)}),
        subject("status", oid=1, state={"ago": timedelta(seconds=30)}),
        subject("odd", oid=4, state={"plain_duration": timedelta(seconds=9)}, found={"unique_index": None}),
    )
    lines = plan(
        subjects,
        list(subjects),
        server=SERVER,
        readings=dict.fromkeys(subjects, reading(inserted=11)),
        as_of=dict.fromkeys(subjects, SLOT),
        demand=Demand.TICK,
    )
    shown = [(line.view.name, line.action, line.after) for line in lines]
    assert shown == [
        ("odd", "refuse", ()),
        ("payments", "refresh", ()),
        ("status", "skip", ()),
        ("features", "refresh", (name("payments"),)),
    ]
    assert lines[1].how == "concurrently (unique index payments_key)"
    assert lines[1].reason == "public.t: 1 row inserted"
    assert "CREATE UNIQUE INDEX" in lines[0].remedy


def test_a_plan_pulls_upstream_views_in():
    lines = plan(
        LENDING,
        [name("payments")],
        server=SERVER,
        readings=dict.fromkeys(LENDING, reading()),
        as_of={name("payments"): SLOT},
        demand=Demand.TICK,
    )
    assert [line.view.name for line in lines] == ["status", "payments"]
