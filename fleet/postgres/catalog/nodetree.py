"""Read PostgreSQL's stored parse trees (pg_node_tree), the only exact account of what a view computes.

The form is that of the server's own reader (src/backend/nodes/read.c): `{NAME :field value …}` is a node,
`(…)` a list, `<>` is null, everything else a token that ends at white space or a bracket, with a backslash
before a character that would mean something. Names of nodes and sets of fields differ between versions; the
form has been the same since 7.x.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias, Union

Value: TypeAlias = Union[str, "Node", list["Value"], None]

_TOKEN = re.compile(r"[(){}]|(?:[^\s(){}\\]|\\.)+", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(slots=True)
class Node:
    """A node by its upper-case name; a field of several tokens (a constant's bytes) is a list."""

    name: str
    fields: dict[str, Value] = field(default_factory=dict)

    def node(self, name: str) -> Node | None:
        """A field that is a node; None where it is absent, null or something else."""
        value = self.fields.get(name)
        return value if isinstance(value, Node) else None

    def nodes(self, name: str) -> list[Node]:
        """The nodes of a field that is a list; none where it is absent or null."""
        value = self.fields.get(name)
        return [item for item in value if isinstance(item, Node)] if isinstance(value, list) else []

    def text(self, name: str) -> str | None:
        """A field that is one token, without its escapes and, for a string node, its quotes."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else None

    def number(self, name: str) -> int:
        """A field that is an integer or an OID; 0, which is no OID, where it is absent."""
        value = self.fields.get(name)
        return int(value) if isinstance(value, str) else 0


class NodeTreeError(ValueError):
    """The text is not a pg_node_tree."""


def parse(text: str) -> Value:
    """Read one value: for a rule's action, the list of its queries.

    Without recursion, because a long chain of operators is nested as deeply as it is long.

    Raises:
        NodeTreeError: brackets do not match, or a node has no name.

    """
    result: list[Value] = []
    open_: list[list[Value] | Node] = [result]
    keys: list[str | None] = [None]  # for each open node, the field that is being read
    words = (match.group() for match in _TOKEN.finditer(text))
    for word in words:
        if word in {")", "}"}:
            closed = open_.pop()
            keys.pop()
            if not open_ or isinstance(closed, Node) is (word == ")"):
                raise NodeTreeError(f"a {word!r} that closes nothing")
            continue
        top = open_[-1]
        value: Value
        if word == "(":
            value = []
        elif word == "{":
            value = Node(next(words, ""))
            if not value.name.isupper():
                raise NodeTreeError(f"a node without a name: {value.name!r}")
        elif isinstance(top, Node) and word[0] == ":" and (keys[-1] is None or keys[-1] in top.fields):
            # Only a token in a field's own place is its name: a column may be called ":x".
            keys[-1] = word[1:]
            continue
        else:
            value = _atom(word)
        if isinstance(top, Node):
            _put(top, keys[-1], value)
        else:
            top.append(value)
        if isinstance(value, Node | list):
            open_.append(value)
            keys.append(None)
    if len(open_) != 1 or len(result) != 1:
        raise NodeTreeError("not one complete value")
    return result[0]


def walk(value: Value) -> Iterator[Node]:
    """Every node of a value, outer ones before those inside them."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Node):
            yield item
            waiting.extend(item.fields.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _atom(word: str) -> str | None:
    if word == "<>":
        return None
    if len(word) > 1 and word[0] == '"' == word[-1]:
        word = word[1:-1]
    return _ESCAPED.sub(r"\1", word) if "\\" in word else word


def _put(node: Node, key: str | None, value: Value) -> None:
    if key is None:
        raise NodeTreeError(f"a value before the first field of {node.name}")
    if key not in node.fields:
        node.fields[key] = value
        return
    earlier = node.fields[key]
    if isinstance(earlier, list):
        earlier.append(value)
    else:
        node.fields[key] = [earlier, value]
