"""A standby is promoted while the fleet works: it goes on there, and what the primary took with it is done again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.ledger import State
from tests.faults.aftermath import assert_nothing_is_left, assert_nothing_is_lost
from tests.faults.conftest import CONFIG, SCHEMA
from tests.processes import ALL, VIEW, Fleet, Kept, fleet, keep
from tests.servers import Database
from tests.standby import Pair, streaming_pair
from worker.embedded.redis import EmbeddedRedis

# From the promotion until everything moves again: promised.
MOVING_S = 60


@pytest.fixture
def pair() -> Iterator[Pair]:
    """For one test: a promotion cannot be taken back."""
    with streaming_pair() as made:
        yield made


@pytest.fixture
def kept(pair: Pair) -> Kept:
    made = keep(pair.primary, SCHEMA)
    pair.wait_caught_up()
    return made


@pytest.fixture
def upkeep(tmp_path: Path, pair: Pair, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(tmp_path, CONFIG, {"kept": pair.url(kept.url)}, broker.url()) as made:
        yield made


def there(pair: Pair, kept: Kept) -> Kept:
    """The same database on the standby."""
    return replace(
        kept, database=Database(server=pair.standby, name=kept.database.name), url=pair.alone(kept.url)
    )


def promotions(kept: Kept) -> list[dict]:
    return kept.rows(
        "SELECT id, state, requested_by FROM upkeep.run WHERE task = %s AND request_id LIKE 'timeline/%%'",
        ALL,
    )


@pytest.mark.slow
def test_a_standby_is_promoted_in_the_middle_of_a_refresh(upkeep: Fleet, pair: Pair, kept: Kept) -> None:
    worker = upkeep.worker().wait_ready()
    before = upkeep.send(VIEW, database="kept", view="public.quick")
    assert kept.final(before).state == State.SUCCEEDED
    kept.execute("INSERT INTO public.t SELECT max(id) + 1 FROM public.t")
    running = upkeep.send(VIEW, database="kept", view="public.slow")
    kept.wait_refreshing("public.slow")
    queued = [upkeep.send(VIEW, database="kept", view="public.quick") for _ in range(4)]
    pair.wait_caught_up()
    began = pair.fail_over()
    after = there(pair, kept)
    last = upkeep.send(VIEW, database="kept", view="public.quick")
    assert after.final(last, timeout=MOVING_S).state in {State.SUCCEEDED, State.SKIPPED}
    moving = time.monotonic() - began
    assert after.final(running, timeout=MOVING_S).state == State.SUCCEEDED
    worker.wait_line(event="database.other_timeline")
    assert_nothing_is_lost(after, requests=[before, running, *queued, last])
    all_ended = time.monotonic() - began
    assert all_ended < MOVING_S
    print(f"moving {moving:.1f} s, ended {all_ended:.1f} s after the promotion")
    for event in ("reaper.database_away", "reaper.database_back", "database.other_timeline"):
        assert len(worker.lines(event=event)) == 1, event
    assert after.rows("SELECT DISTINCT timeline FROM upkeep.view_state") == [{"timeline": 2}]
    assert [each["state"] for each in promotions(after)] == ["succeeded"]
    assert_nothing_is_left(upkeep, after)
