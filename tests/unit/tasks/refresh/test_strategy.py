"""How a view is refreshed, and what promise 3 refuses."""

from __future__ import annotations

from datetime import timedelta

import pytest

from fleet.errors import PermanentError
from tasks.refresh.strategy import PLAIN_LIMIT, How, choose
from tests.unit.tasks.refresh.subjects import subject


def test_an_unpopulated_view_is_populated_plainly():
    assert choose(subject("v", found={"populated": False})).how is How.POPULATE


def test_a_view_with_a_unique_index_is_refreshed_concurrently():
    chosen = choose(subject("v", state={}))
    assert chosen.how is How.CONCURRENTLY
    assert chosen.statement_timeout == timedelta(minutes=15)


@pytest.mark.parametrize("found", [{"unique_index": None}, {"owner_has_temp": False}])
def test_without_a_way_to_do_it_concurrently_a_plain_refresh_is_bounded(found):
    chosen = choose(subject("v", found=found))
    assert chosen.how is How.PLAIN_BOUNDED
    assert chosen.statement_timeout < PLAIN_LIMIT
    assert chosen.lock_timeout < PLAIN_LIMIT


@pytest.mark.parametrize("found", [{"unique_index": None}, {"owner_has_temp": False}])
def test_a_view_that_would_block_its_readers_is_refused_with_the_remedy(found):
    slow = {"plain_duration": PLAIN_LIMIT * 2}
    with pytest.raises(PermanentError, match="allow_blocking"):
        choose(subject("v", state=slow, found=found))
    assert choose(subject("v", state=slow, found=found, view={"allow_blocking": True})).how is How.PLAIN
    recreated = slow | {"relation": 7}
    assert choose(subject("v", state=recreated, found=found)).how is How.PLAIN_BOUNDED


def test_high_churn_prefers_plain_only_where_readers_hardly_notice():
    churned = {"rows_changed": 1600, "row_estimate": 1000}
    quick = churned | {"duration": timedelta(milliseconds=100)}
    assert choose(subject("v", state=quick)).how is How.PLAIN_BOUNDED
    assert choose(subject("v", state=churned)).how is How.CONCURRENTLY
    assert choose(subject("v", state=churned, view={"allow_blocking": True})).how is How.PLAIN
    known_slow = quick | {"plain_duration": timedelta(milliseconds=150)}
    assert choose(subject("v", state=known_slow)).how is How.CONCURRENTLY


def test_a_view_of_somebody_else_is_refused():
    with pytest.raises(PermanentError, match='GRANT "owner"'):
        choose(subject("v", found={"may_refresh": False}))
