"""`upkeep convert-to-partitioned` as an operator types it."""

from __future__ import annotations

import pytest

from tests.integration.tasks.partitions.convert.conftest import dump

pytestmark = pytest.mark.any_server

TABLE = "CREATE TABLE public.log (id int, at date NOT NULL); INSERT INTO public.log VALUES (1, current_date)"


@pytest.fixture
def typed(system, upkeep_with):
    system.connect().execute(TABLE)
    return upkeep_with(system.url)


def test_a_table_is_converted_in_the_order_that_the_command_suggests(system, typed):
    there = dump(system)
    words = ("convert-to-partitioned", "public.log", "--column", "at", "--how", "attach")
    planned = typed(*words, "--dry-run")
    assert planned.code == 0, planned
    assert "ACCESS EXCLUSIVE on public.log" in planned.out
    assert typed(*words, "--dry-run", "--json").json["refused"] == []
    assert dump(system) == there
    assert "--switch" in typed(*words).out
    assert typed("convert-to-partitioned", "--status", "--json").json["conversions"][0]["state"] == "ready"
    assert "as it was" in typed("convert-to-partitioned", "public.log", "--back").out
    assert dump(system) == there
    assert typed(*words).code == 0
    switched = typed("convert-to-partitioned", "public.log", "--switch", "--json")
    assert switched.code == 0, switched
    assert switched.json["state"] == "switched"
    policy = switched.json["policy"]
    assert policy.splitlines()[:2] == ['[databases.kept.partitions."public.log"]', 'column = "at"']
    typed.write(typed.config.read_text(encoding="utf-8") + policy)
    plan = typed("plan", "partitions", "--json")
    assert plan.code == 0, plan
    history = typed("history", "--task", "upkeep.partitions.convert", "--json")
    assert "public.log" in history.out


def test_what_is_wrong_is_said_with_its_remedy(system, typed):
    for words, code, said in (
        ((), 2, "Which table"),
        (("public.log",), 1, "No conversion"),
        (("public.log", "--column", "at"), 2, "--how"),
        (("public.log", "--how", "fill"), 2, "--column"),
        (("public.log", "--how", "fill", "--column", "at"), 1, "primary key"),
        (("public.log", "--switch", "--back"), 2, "exclude"),
        (("public.log", "--column", "at", "--how", "fill", "--timezone", "Mars"), 2, "no policy"),
        (("nonsense", "--back"), 2, "schema"),
    ):
        answer = typed("convert-to-partitioned", *words)
        assert (answer.code, said in answer.err) == (code, True), (words, answer)
        assert "remedy" in answer.err
