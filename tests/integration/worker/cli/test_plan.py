"""plan refresh: says what would be done, and does nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conftest import NewDatabase
from tests.integration.worker.cli.conftest import Upkeep
from tests.servers import Database

pytestmark = pytest.mark.any_server

STATE = """
SELECT (SELECT jsonb_agg(to_jsonb(s)) FROM upkeep.view_state s), (SELECT count(*) FROM upkeep.run),
       (SELECT jsonb_agg(ARRAY[relname, relfilenode::text, relispopulated::text] ORDER BY relname)
          FROM pg_class WHERE relnamespace = 'public'::regnamespace),
       pg_current_xact_id_if_assigned() IS NULL
"""


def state(database: Database) -> Any:
    return database.connect().execute(STATE).fetchone()


def lines(said: Any) -> list[tuple[str, str, str | None]]:
    return [(each["view"], each["action"], each["how"]) for each in said.json["databases"][0]["plan"]]


def test_an_operators_plan_is_in_order_with_how_and_why_and_changes_nothing(
    upkeep: Upkeep, system: Database
) -> None:
    before = state(system)
    said = upkeep("plan", "refresh", "--json")
    assert said.code == 0
    (base, top) = said.json["databases"][0]["plan"]
    assert (base["view"], base["action"], top["view"], top["action"]) == (
        "public.base",
        "refresh",
        "public.top",
        "refresh",
    )
    assert base["how"].startswith("concurrently")
    assert top["how"].startswith("populate")
    assert top["after"] == ["public.base"]
    text = upkeep("plan", "refresh").out
    assert text.index("public.base") < text.index("public.top")
    assert "Nothing was changed." in text
    assert state(system) == before


def test_a_view_brings_what_it_reads_and_a_tier_only_its_own(upkeep: Upkeep) -> None:
    assert [view for view, _, _ in lines(upkeep("plan", "refresh", "--view", "public.top", "--json"))] == [
        "public.base",
        "public.top",
    ]
    assert [view for view, _, _ in lines(upkeep("plan", "refresh", "-t", "five_minutes", "--json"))] == [
        "public.base"
    ]
    said = upkeep("plan", "refresh", "--tier", "fifteen_minutes")
    assert (said.code, "Nothing to plan" in said.out) == (0, True)


def test_a_tick_is_planned_to_its_slots(upkeep: Upkeep) -> None:
    said = upkeep("plan", "refresh", "--as", "tick", "--json")
    assert said.json["as"] == "tick"
    base, top = said.json["databases"][0]["plan"]
    slots = [datetime.fromisoformat(line["as_of"]) for line in (base, top)]
    # Every five minutes, and at six o'clock; from six to five past they are the same.
    assert sorted((slot.minute % 5, slot.hour == 6 and slot.minute == 0) for slot in slots)[-1] == (0, True)
    assert datetime.now(UTC) - max(slots) < timedelta(minutes=6)
    assert base["reason"] == "never refreshed by Upkeep"


def test_what_would_be_refused_is_exit_code_1_with_its_remedy(
    system: Database, upkeep_with: Callable[..., Upkeep], role: Any
) -> None:
    url = role(system, "stranger")
    system.connect().execute(
        "GRANT USAGE ON SCHEMA upkeep TO stranger; GRANT SELECT ON ALL TABLES IN SCHEMA upkeep TO stranger"
    )
    upkeep = upkeep_with(url, {"public.base": "daily", "public.gone": "daily"})
    said = upkeep("plan", "refresh")
    assert said.code == 1
    assert "refuse" in said.out
    assert "GRANT MAINTAIN ON public.base" in " ".join(said.out.split())
    assert "public.gone does not exist" in said.out
    assert (
        upkeep("plan", "refresh", "--json")
        .json["databases"][0]["absent"][0]["message"]
        .endswith("does not exist")
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--view", "public.nope"], "not managed"),
        (["--view", "public.base; DROP TABLE t"], "not a schema-qualified name"),
        (["--tier", "five_minuts"], "five_minuts"),
        (["--tier", "daily", "--view", "public.base"], "exclude each other"),
        (["--database", "nope"], "nope"),
        (["--as", "event"], "event"),
    ],
)
def test_names_that_are_not_known_are_mistakes_of_the_command_line(
    upkeep: Upkeep, words: list[str], said: str
) -> None:
    done = upkeep("plan", "refresh", *words)
    assert (done.code, said in done.err) == (2, True)
    assert done.err.splitlines()[1].startswith("remedy: ")


def test_a_database_that_is_not_migrated_is_told(
    new_database: NewDatabase, upkeep_with: Callable[..., Upkeep]
) -> None:
    upkeep = upkeep_with(new_database().url)
    said = upkeep("plan", "refresh")
    assert (said.code, "upkeep migrate" in said.err) == (1, True)
    assert "upkeep migrate" in upkeep("plan", "refresh", "--json").json["databases"][0]["error"]["remedy"]
