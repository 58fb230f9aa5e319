"""The form of a pg_node_tree, without a server."""

from __future__ import annotations

import pytest

from fleet.postgres.catalog.nodetree import Node, NodeTreeError, parse, walk


def only(text: str) -> Node:
    value = parse(text)
    assert isinstance(value, Node)
    return value


def test_fields() -> None:
    node = only("{VAR :varno 1 :location -1 :name <> :flag true :relkind r}")
    assert node.name == "VAR"
    assert node.number("varno") == 1
    assert node.number("location") == -1
    assert node.number("absent") == 0
    assert node.fields["name"] is None
    assert node.text("flag") == "true"
    assert node.text("relkind") == "r"


def test_lists_nodes_and_bytes() -> None:
    node = only(
        "{Q :oids (o 1 2) :set (b 8 9) :args ({A :x 1} <> {B :y ({A :x 2})}) "
        ":constvalue 4 [ 1 0 -3 0 ] :end 1}"
    )
    assert node.fields["oids"] == ["o", "1", "2"]
    assert [n.name for n in node.nodes("args")] == ["A", "B"]
    assert node.fields["constvalue"] == ["4", "[", "1", "0", "-3", "0", "]"]
    assert node.number("end") == 1
    assert sorted(n.name for n in walk(node)) == ["A", "A", "B", "Q"]
    assert node.node("args") is None
    assert node.nodes("end") == []


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (r"up\ d", "up d"),
        (r"\{\}\(\)\\", r"{}()\ ".strip()),
        ("ümläut", "ümläut"),
        (":odd", ":odd"),
        (r"\<>", "<>"),
        (r"\"quoted\"", '"quoted"'),
        (r"\123", "123"),
        ("a\\\nb", "a\nb"),
        ('""', ""),
        ("?column?", "?column?"),
    ],
)
def test_names(written: str, name: str) -> None:
    node = only(f"{{TARGETENTRY :resname {written} :ressortgroupref 2}}")
    assert node.text("resname") == name
    assert node.number("ressortgroupref") == 2


def test_strings_in_lists() -> None:
    node = only(r'{ALIAS :colnames ("a" "b\ c" "\"" "")}')
    assert node.fields["colnames"] == ["a", "b c", '"', ""]


def test_as_deep_as_it_comes() -> None:
    depth = 20_000
    value = parse("(" + "{OPEXPR :args (" * depth + "{CONST :x 1}" + ")}" * depth + ")")
    assert sum(1 for _ in walk(value)) == depth + 1


@pytest.mark.parametrize(
    "text", ["", "(", ")", "{A :x 1", "{A :x (1}", "{A :x 1)", "{A 1}", "{}", "1 2", "({A :x 1}))"]
)
def test_what_is_no_tree(text: str) -> None:
    with pytest.raises(NodeTreeError):
        parse(text)
