"""What a tick may spare itself: only what counters vouch for, upstream included."""

from __future__ import annotations

from datetime import timedelta

import pytest

from fleet.postgres.catalog.definition import DefinitionClass
from tasks.refresh.verify import unchanged
from tests.unit.tasks.refresh.subjects import NOW, SERVER, name, reading, subject

SLOT = NOW - timedelta(minutes=2)
LATER = {"ago": timedelta(minutes=1)}


def spared(*subjects, targets, readings=None):
    by_name = {s.name: s for s in subjects}
    return unchanged(
        by_name,
        [name(t) for t in targets],
        server=SERVER,
        readings={n: (readings or {}).get(n.name, reading()) for n in by_name},
        entry="five_minutes",
        slot=SLOT,
    )


def test_an_unchanged_view_is_verified_for_the_ticks_slot():
    (found,) = spared(subject("v", state={}), targets=["v"])
    assert (found.view, found.entry, found.slot) == (name("v"), "five_minutes", SLOT)
    assert (found.reason, found.by_counters) == ("its sources have not changed", True)


def test_a_view_that_was_refreshed_after_the_slot_needs_no_counters():
    (found,) = spared(subject("v", state=LATER), targets=["v"], readings={"v": reading(inserted=99)})
    assert (found.reason, found.by_counters) == ("already fresh", False)


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"state": {}}, {"inserted": 11}),
        ({"state": None}, {}),
        ({"state": {}, "kind": DefinitionClass.VOLATILE}, {}),
        ({"state": {}, "found": {"populated": False}}, {}),
        ({"state": {"upstream_stale": ["public.u"]}}, {}),
        ({"state": {"ago": timedelta(hours=2)}}, {}),
    ],
    ids=["written", "unknown", "volatile", "unpopulated", "upstream stale", "longer than max_skip"],
)
def test_what_may_have_changed_is_left_to_its_own_run(changes, read):
    assert spared(subject("v", **changes), targets=["v"], readings={"v": reading(**read)}) == []


def test_upstream_of_another_tier_is_verified_for_its_own_slot():
    up = subject("u", "fifteen_minutes", oid=1, state={"ago": timedelta(minutes=30)})
    down = subject("v", upstream=["u"], state={})
    above, below = spared(up, down, targets=["v"], readings={"v": reading()})
    assert (above.view, above.entry) == (name("u"), "fifteen_minutes")
    assert above.slot == NOW.replace(minute=0)
    assert below.view == name("v")


def test_a_view_is_not_verified_over_an_upstream_that_is_not():
    up = subject("u", "fifteen_minutes", oid=1, state={"ago": timedelta(minutes=30)})
    down = subject("v", upstream=["u"], state={})
    assert spared(up, down, targets=["v"], readings={"u": reading(inserted=11)}) == []
    # An upstream view that is fresh for its own slot stands in nobody's way.
    fresh = subject("u", "fifteen_minutes", oid=1, state={"ago": timedelta(minutes=5)})
    assert [f.view for f in spared(fresh, down, targets=["v"], readings={"u": reading(inserted=11)})] == [
        name("u"),
        name("v"),
    ]


def test_a_target_that_does_not_exist_is_left_to_its_own_run():
    assert [f.view.name for f in spared(subject("v", state={}), targets=["v", "gone"])] == ["v"]
