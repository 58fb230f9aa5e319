"""Column lineage: which output columns are nothing but the time of the refresh, however often they are handed on.

Such a column changes in every row at every refresh, which makes a concurrent refresh as dear as it can be. It is
followed through subqueries, CTEs, joins, set operations, casts and inlined views, to where it is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from fleet.postgres.catalog.clocks import AT_TIME_ZONE, CLOCK_FUNCTIONS, DATE, TIME_TYPES, gives_time
from fleet.postgres.catalog.nodetree import Node

# RTEKind (parsenodes.h); 9 is 18's RTE_GROUP, what GROUP BY computes.
_RELATION, _SUBQUERY, _JOIN, _FUNCTION, _CTE, _GROUP = 0, 1, 2, 3, 6, 9
_EXPR_SUBLINK = 4
_CAST_FORMATS = frozenset({1, 2})  # COERCE_EXPLICIT_CAST, COERCE_IMPLICIT_CAST

# What a column is made of: the clock, or a column (relation, number) that may turn out to be.
Origin: TypeAlias = tuple[int, int]
_CLOCK: Origin = (0, 0)
Columns: TypeAlias = Mapping[int, frozenset[Origin]]

_MAX_DEPTH = 100  # of columns that are columns of columns; a recursive query would go round for ever


def read_columns(query: Node) -> dict[int, frozenset[Origin]]:
    """What each output column of a view's query is made of, by its number; empty: neither clock nor column."""
    columns = {}
    for target in query.nodes("targetList"):
        if target.text("resjunk") == "false":
            number = target.number("resno")
            columns[number] = frozenset(_column_origins(query, number, (query,), 0))
    return columns


def is_clock(relation: int, number: int, views: Mapping[int, Columns], depth: int = 0) -> bool:
    """Whether a view's column is nothing but the clock, given the columns of the view and of those it inlines."""
    columns = views.get(relation)  # None: a table or another materialized view, which stores what it has
    if columns is None or depth > _MAX_DEPTH:
        return False
    return any(origin == _CLOCK or is_clock(*origin, views, depth + 1) for origin in columns.get(number, ()))


def _column_origins(query: Node, number: int, scope: tuple[Node, ...], depth: int) -> Iterator[Origin]:
    """What an output column of a query is, seen through everything that only passes it on."""
    if depth > _MAX_DEPTH:
        return
    if query.node("setOperations") is not None:
        for entry in query.nodes("rtable"):
            branch = entry.node("subquery")
            if branch is not None:
                yield from _column_origins(branch, number, (*scope, branch), depth + 1)
        return
    for target in query.nodes("targetList"):
        if target.number("resno") == number:
            yield from _origins(target.node("expr"), scope, depth)


def _origins(node: Node | None, scope: tuple[Node, ...], depth: int) -> Iterator[Origin]:
    node = _without_cast(node)
    if node is None:
        return
    if node.name == "SQLVALUEFUNCTION":
        if gives_time(node.number("op")):
            yield _CLOCK
    elif node.number("funcid") in CLOCK_FUNCTIONS:
        yield _CLOCK
    elif node.name == "SUBLINK" and node.number("subLinkType") == _EXPR_SUBLINK:
        if (query := node.node("subselect")) is not None:
            yield from _column_origins(query, 1, (*scope, query), depth + 1)
    elif node.name == "VAR":
        up = node.number("varlevelsup")
        if up < len(scope):
            yield from _variable_origins(node, scope[: len(scope) - up], depth + 1)


def _without_cast(node: Node | None) -> Node | None:
    """The time under its casts and AT TIME ZONE. A cast to date ends it: a date changes once a day."""
    while node is not None:
        if node.name == "RELABELTYPE" or (node.name == "COERCEVIAIO" and node.number("resulttype") != DATE):
            node = node.node("arg")
            continue
        arguments = node.nodes("args")
        if node.number("funcid") in AT_TIME_ZONE and arguments:
            node = arguments[-1]
        elif (
            arguments
            and "funcid" in node.fields
            and node.number("funcformat") in _CAST_FORMATS
            and node.number("funcresulttype") in TIME_TYPES - {DATE}
        ):
            node = arguments[0]
        else:
            return node
    return None


def _variable_origins(variable: Node, scope: tuple[Node, ...], depth: int) -> Iterator[Origin]:
    if depth > _MAX_DEPTH:
        return
    query = scope[-1]
    entries = query.nodes("rtable")
    position, number = variable.number("varno") - 1, variable.number("varattno")
    if not (0 <= position < len(entries)) or number < 1:
        return
    entry = entries[position]
    kind = entry.number("rtekind")
    if kind == _RELATION:
        yield entry.number("relid"), number
    elif kind == _SUBQUERY and (subquery := entry.node("subquery")) is not None:
        yield from _column_origins(subquery, number, (*scope, subquery), depth)
    elif kind == _CTE:
        yield from _cte_origins(entry, number, scope, depth)
    elif kind == _FUNCTION:
        functions = entry.nodes("functions")
        if number == 1 and len(functions) == 1:
            yield from _origins(functions[0].node("funcexpr"), scope, depth)
    elif kind in {_JOIN, _GROUP}:
        expressions = entry.nodes("joinaliasvars" if kind == _JOIN else "groupexprs")
        if number <= len(expressions):
            yield from _origins(expressions[number - 1], scope, depth)


def _cte_origins(entry: Node, number: int, scope: tuple[Node, ...], depth: int) -> Iterator[Origin]:
    level = len(scope) - entry.number("ctelevelsup")
    if level < 1:
        return
    for cte in scope[level - 1].nodes("cteList"):
        query = cte.node("ctequery")
        if cte.text("ctename") == entry.text("ctename") and query is not None:
            yield from _column_origins(query, number, (*scope[:level], query), depth)
