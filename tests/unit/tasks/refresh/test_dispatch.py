"""When requests are due, on whatever clock, and which view they mean."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import SecretStr

from fleet import settings
from fleet.names import RelationName
from tasks.refresh.debounce import due_in
from tasks.refresh.dispatch import judge

TIMES = {"delay": timedelta(milliseconds=100), "max_wait": timedelta(seconds=5)}


@pytest.mark.parametrize(
    ("first", "last", "now", "due"),
    [
        (100.0, 100.0, 100.0, 0.1),
        (100.0, 100.0, 100.05, 0.05),
        (100.0, 100.0, 100.1, 0.0),
        # Every request puts it off …
        (100.0, 102.0, 102.0, 0.1),
        # … but not for longer than max_wait from the first.
        (100.0, 104.95, 104.96, 0.04),
        (100.0, 105.5, 105.5, -0.5),
        # The clock was set back by an hour: due.
        (3700.0, 3700.0, 100.0, 0.0),
        (100.0, 3700.0, 100.0, 0.0),
        # It was set forward by an hour.
        (100.0, 100.0, 3700.0, -3599.9),
    ],
)
def test_due(first: float, last: float, now: float, due: float) -> None:
    assert due_in(first, last, now, **TIMES) == pytest.approx(due)


@pytest.fixture
def database() -> settings.Database:
    view = settings.View(name=RelationName.parse("public.mv"), tier="daily", **TIMES)
    return settings.Database(name="kept", url=SecretStr("postgresql://h/d"), views={view.name: view})


@pytest.mark.parametrize("written", ["public.mv", "PUBLIC.MV", '"public"."mv"', 'public."mv"'])
def test_a_name_in_any_way_of_sql(database: settings.Database, written: str) -> None:
    asked = judge(database, written, first=1.0, last=1.0, now=1.0)
    assert asked.view is database.views[RelationName("public", "mv")]
    assert asked.due_in == pytest.approx(0.1)


@pytest.mark.parametrize(
    "written", ["public.other", "mv", "", 'public."mv', "public.mv; DROP TABLE x", '"PUBLIC".mv']
)
def test_what_nobody_manages(database: settings.Database, written: str) -> None:
    asked = judge(database, written, first=1.0, last=2.0, now=5.0)
    assert asked.view is None
    assert asked.error is not None
    assert asked.error.remedy
    assert asked.age == 3.0


def test_a_request_from_the_future_has_no_age(database: settings.Database) -> None:
    assert judge(database, "public.other", first=9.0, last=9.0, now=1.0).age == 0.0
