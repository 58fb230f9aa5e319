"""Which tables need a trigger, and what is to be done about those that are there: decided without a database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fleet.postgres.catalog.definition import DefinitionClass
from fleet.postgres.catalog.sources import Source, SourceKind
from fleet.postgres.catalog.triggers import TRIGGER_NAME, Table, WriteTrigger
from tasks.refresh.triggers import Action, Behind, State, behind, concerning, plan, without
from tests.unit.tasks.refresh.subjects import name, subject

T, U, PARENT = 901, 902, 903


def source(oid, text, kind=SourceKind.TABLE, persistence="p"):
    return Source(oid=oid, name=name(text), kind=kind, persistence=persistence)


def view(text, *sources, on_write=True, upstream=(), **changes):
    made = subject(text, oid=hash(text) % 800, upstream=upstream, view={"on_write": on_write}, **changes)
    return replace(made, sources=sources or (source(T, "t"),))


def subjects(*made):
    return {each.name: each for each in made}


def table(oid, text, **changes):
    values = {
        "oid": oid,
        "name": name(text),
        "kind": SourceKind.TABLE,
        "persistence": "p",
        "owner": "app",
        "may_use_schema": True,
        "may_install": True,
        "may_remove": True,
    }
    return Table(**(values | changes))


def trigger(oid, text, *views, **changes):
    values = {"name": TRIGGER_NAME, "ours": True, "enabled": True, "whole": True}
    return WriteTrigger(table=oid, table_name=name(text), views=views, **(values | changes))


def planned(views, *installed, **changes):
    """The one line of a table `t` that these views need."""
    wanted = Behind(tables={T: frozenset(views)} if views else {}, blind=())
    lines = plan(wanted, {T: (table(T, "t", **changes),)}, installed, role="fleet")
    return lines[0] if lines else None


def test_only_views_that_ask_for_it():
    assert behind(subjects(view("v", on_write=False))).tables == {}
    assert behind(subjects(view("v"))).tables == {T: {"public.v"}}


def test_the_tables_behind_managed_upstream_views_are_for_the_view_too():
    base = view("base", source(T, "t"), on_write=False)
    middle = view("middle", source(1, "base", SourceKind.MATVIEW), on_write=False, upstream=["base"])
    top = view("top", source(2, "middle", SourceKind.MATVIEW), source(U, "u"), upstream=["middle"])
    found = behind(subjects(base, middle, top))
    assert found.tables == {T: {"public.top"}, U: {"public.top"}}
    assert found.blind == ()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (source(1, "x", SourceKind.MATVIEW), "not managed"),
        (source(1, "x", SourceKind.FOREIGN), "foreign table"),
        (source(1, "x", SourceKind.SEQUENCE), "sequence"),
        (source(1, "x", SourceKind.SYSTEM), "belongs to the system"),
        (source(1, "x", persistence="t"), "temporary"),
    ],
)
def test_what_no_trigger_can_tell_of_is_told_with_what_to_do(made, said):
    found = behind(subjects(view("v", made)))
    assert found.tables == {}
    [line] = found.blind
    assert (line.state, line.action, line.views) == (State.IMPOSSIBLE, None, ("public.v",))
    assert said in line.reason
    assert line.remedy
    assert line.state.fine


def test_plain_views_and_unlogged_tables_need_no_word():
    made = view("v", source(1, "x", SourceKind.VIEW), source(T, "t", persistence="u"))
    found = behind(subjects(made))
    assert (found.tables, found.blind) == ({T: {"public.v"}}, ())


@pytest.mark.parametrize("kind", [DefinitionClass.OPAQUE, DefinitionClass.VOLATILE])
def test_functions_of_users_are_told_and_built_in_ones_are_not(kind):
    made = view("v", kind=kind)
    made = replace(made, definition=replace(made.definition, evidence=("public.f()", "random()")))
    [line] = behind(subjects(made)).blind
    assert line.object == "public.f()"
    assert "SELECT upkeep.request_refresh('public.v')" in line.remedy


def test_a_table_without_a_trigger_gets_one():
    line = planned(["public.b", "public.a"])
    assert (line.state, line.action, line.views) == (
        State.MISSING,
        Action.INSTALL,
        ("public.a", "public.b"),
    )


def test_what_is_as_declared_is_left_alone_whatever_its_order():
    line = planned(["public.a", "public.b"], trigger(T, "t", "public.b", "public.a"))
    assert (line.state, line.action) == (State.INSTALLED, None)


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (trigger(T, "t", "public.a"), "it lacks public.b"),
        (trigger(T, "t", "public.a", "public.b", "public.c"), "public.c needs it no longer"),
        (trigger(T, "t", "public.a", "public.b", whole=False), "does not fire for every statement"),
        (trigger(T, "t", "public.a", "public.b", "public.b"), "twice"),
    ],
)
def test_one_that_is_not_as_declared_is_replaced(installed, said):
    line = planned(["public.a", "public.b"], installed)
    assert (line.state, line.action, line.views, line.drops) == (
        State.OUTDATED,
        Action.REPLACE,
        ("public.a", "public.b"),
        (),
    )
    assert said in line.reason


def test_one_under_another_name_is_replaced_by_ours():
    line = planned(["public.a"], trigger(T, "t", "public.a", name="renamed"))
    assert (line.action, line.drops) == (Action.REPLACE, ("renamed",))


def test_what_nobody_declares_is_removed():
    line = planned([], trigger(T, "t", "public.a"))
    assert (line.state, line.action, line.drops) == (State.LEFTOVER, Action.REMOVE, (TRIGGER_NAME,))
    assert line.views == ("public.a",)


def test_a_disabled_one_is_left_to_whoever_disabled_it():
    line = planned(["public.a"], trigger(T, "t", "public.a", enabled=False))
    assert (line.state, line.action) == (State.DISABLED, None)
    assert line.remedy == 'ALTER TABLE "public"."t" ENABLE TRIGGER "upkeep_on_write";'


def test_somebody_elses_trigger_of_our_name_is_never_touched():
    theirs = trigger(T, "t", "x", ours=False)
    line = planned(["public.a"], theirs)
    assert (line.state, line.action) == (State.FORBIDDEN, None)
    assert "not ours" in line.reason
    assert planned([], theirs) is None
    assert without([theirs], {T: (table(T, "t"),)}, None, role="fleet") == []


def test_what_this_role_may_not_do_names_the_grant():
    line = planned(["public.a"], may_install=False, may_use_schema=False)
    assert (line.state, line.action) == (State.FORBIDDEN, None)
    assert line.remedy == (
        'GRANT USAGE ON SCHEMA "public" TO "fleet"; GRANT TRIGGER ON "public"."t" TO "fleet";'
    )
    line = planned([], trigger(T, "t", "public.a"), may_remove=False)
    assert (line.state, line.action) == (State.LEFTOVER, None)
    assert line.remedy == 'DROP TRIGGER "upkeep_on_write" ON "public"."t";'
    # Replacing needs no more than installing.
    line = planned(["public.b"], trigger(T, "t", "public.a"), may_remove=False)
    assert line.action is Action.REPLACE


def test_tables_above_a_partition_are_for_its_views_too():
    wanted = Behind(tables={T: frozenset({"public.v"})}, blind=())
    parent = table(PARENT, "parent", kind=SourceKind.PARTITIONED)
    lines = plan(wanted, {T: (table(T, "t"), parent)}, [], role="fleet")
    assert [(line.object, line.action) for line in lines] == [
        ("public.parent", Action.INSTALL),
        ("public.t", Action.INSTALL),
    ]


def test_removing_for_a_view_leaves_the_others():
    installed = [trigger(T, "t", "public.a", "public.b"), trigger(U, "u", "public.b")]
    tables = {T: (table(T, "t"),), U: (table(U, "u"),)}
    lines = without(installed, tables, {"public.a"}, role="fleet")
    assert [(line.object, line.action, line.views) for line in lines] == [
        ("public.t", Action.REPLACE, ("public.b",))
    ]
    lines = without(installed, tables, None, role="fleet")
    assert [(line.object, line.action) for line in lines] == [
        ("public.t", Action.REMOVE),
        ("public.u", Action.REMOVE),
    ]


def test_the_lines_of_some_views():
    wanted = Behind(tables={T: frozenset({"public.a"}), U: frozenset({"public.b"})}, blind=())
    tables = {T: (table(T, "t"),), U: (table(U, "u"),)}
    lines = plan(wanted, tables, [], role="fleet")
    assert [line.object for line in concerning(lines, [], {"public.a"})] == ["public.t"]
    left = [trigger(U, "u", "public.gone")]
    lines = plan(Behind(tables={}, blind=()), tables, left, role="fleet")
    assert [line.object for line in concerning(lines, left, {"public.gone"})] == ["public.u"]


def test_a_table_that_is_dropped_meanwhile_is_no_line():
    assert plan(Behind(tables={T: frozenset({"public.a"})}, blind=()), {}, [], role="fleet") == []
