"""What does a view's result depend on besides rows? Unchanged sources may not mean an unchanged view.

Read from the stored parse trees of the view and of the plain views it inlines: pg_depend has no rows for
built-in functions such as now(), and the text of a definition cannot be searched without being fooled by
names and strings.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.catalog.nodetree import Node, parse, walk
from fleet.postgres.queries import load

_sql = load("fleet.postgres.catalog", "definition.sql")


class DefinitionClass(StrEnum):
    """What a definition depends on, the worst first: it is of the first class that anything in it is of.

    SESSION comes before DATE, because what is constant within a date is skipped within it, and a session is
    not.
    """

    VOLATILE = "volatile"
    """A function that may give anything at any time, or TABLESAMPLE: never skipped."""
    OPAQUE = "opaque"
    """A user's function that is not immutable, so it may read any table: never skipped."""
    TIME = "time"
    """The time of the refresh: never skipped."""
    SESSION = "session"
    """Who refreshes, and what the server or the session says of itself; row security: never skipped."""
    DATE = "date"
    """CURRENT_DATE is its only clock: the same on one date in the session's zone."""
    SETTINGS = "settings"
    """Stable built-in functions, which print, parse and add by TimeZone, DateStyle and their like."""
    DATA = "data"
    """The rows of its sources alone."""

    @property
    def skippable(self) -> bool:
        """Whether unchanged sources, settings and date mean an unchanged result."""
        return self in {DefinitionClass.DATE, DefinitionClass.SETTINGS, DefinitionClass.DATA}


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a materialized view's definition depends on, and two things that make its refresh dear.

    `evidence` names what put it into its class, sorted: functions, CURRENT_DATE, TABLESAMPLE, tables with
    row security.
    `stored_timestamps` are the columns that are nothing but the time of the refresh: every refresh rewrites
    every row.
    `ordered_by` are the columns of its outermost ORDER BY, as far as it consists of columns.
    """

    oid: int
    kind: DefinitionClass
    evidence: tuple[str, ...]
    stored_timestamps: tuple[str, ...]
    ordered_by: tuple[str, ...]


def read_definitions(
    conn: psycopg.Connection[Any], oids: Sequence[int] | None = None
) -> dict[int, Definition]:
    """Classify some materialized views (None: all), by OID; an OID that is none is left out.

    A parse tree is analysed once per process: the analysis is kept by the tree's digest. Volatility, row
    security and column names are asked anew each time, because ALTER changes them without a new tree.

    Known gaps: a function that is labelled immutable and is not; LIMIT without ORDER BY.
    """
    asked = None if oids is None else [Oid(oid) for oid in oids]
    rows = list(_sql.find_definitions(conn, oids=asked))
    shapes = _shapes(conn, {row["relation"]: row["digest"] for row in rows})
    views: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        views[row["view"]].append(row)
    functions = _functions(conn, shapes.values())
    secured = _row_security(conn, rows, shapes)
    found = {}
    for view, inlined in views.items():
        columns = next(row["columns"] for row in inlined if row["relation"] == view)
        members = {row["relation"]: shapes[row["relation"]] for row in inlined}
        evidence = _evidence(members.values(), functions, secured[view])
        kind = next((k for k in DefinitionClass if evidence.get(k)), DefinitionClass.DATA)
        found[view] = Definition(
            oid=view,
            kind=kind,
            evidence=tuple(sorted(evidence.get(kind, ()))),
            stored_timestamps=tuple(
                columns[number - 1]
                for number in sorted(members[view].columns)
                if _is_clock(view, number, members)
            ),
            ordered_by=tuple(columns[number - 1] for number in members[view].order),
        )
    return found


# ---- one tree ----

# SQLValueFunctionOp (primnodes.h), the same on 14 to 18.
_VALUE_FUNCTIONS = (
    "CURRENT_DATE",
    "CURRENT_TIME",
    "CURRENT_TIME",
    "CURRENT_TIMESTAMP",
    "CURRENT_TIMESTAMP",
    "LOCALTIME",
    "LOCALTIME",
    "LOCALTIMESTAMP",
    "LOCALTIMESTAMP",
    "CURRENT_ROLE",
    "CURRENT_USER",
    "USER",
    "SESSION_USER",
    "CURRENT_CATALOG",
    "CURRENT_SCHEMA",
)
_FIRST_SESSION_FUNCTION = 9

# OIDs that initdb assigns from pg_proc.dat and pg_type.dat never change.
_CLOCKS = frozenset(
    {1299, 2647, 2648, 2649, 274}
)  # now, transaction_, statement_, clock_timestamp, timeofday
_AT_TIME_ZONE = frozenset({1159, 1026, 2038, 6334})  # timezone(zone, timestamptz or timetz), AT LOCAL
_DATE = 1082
_TIME_TYPES = frozenset({_DATE, 1083, 1114, 1184, 1266})
_CAST_FORMATS = frozenset({1, 2})  # COERCE_EXPLICIT_CAST, COERCE_IMPLICIT_CAST
# Words that a date's or timestamp's input function replaces by the clock. As a literal of the type they are
# replaced once and for all when the view is created; as a text that is cast, at every refresh. PostgreSQL
# before 10 wrote CURRENT_DATE this way, and views that were dumped from it still have it.
_CLOCK_WORDS = re.compile(r"\b(now|today|tomorrow|yesterday)\b", re.IGNORECASE)

# RTEKind (parsenodes.h); 9 is 18's RTE_GROUP, what GROUP BY computes.
_RELATION, _SUBQUERY, _JOIN, _FUNCTION, _CTE, _GROUP = 0, 1, 2, 3, 6, 9
_EXPR_SUBLINK = 4

# An expression's type stands in one of these fields, whatever the node's name in this version.
_TYPE_FIELDS = (
    "vartype",
    "consttype",
    "funcresulttype",
    "opresulttype",
    "resulttype",
    "aggtype",
    "wintype",
    "casetype",
    "coalescetype",
    "minmaxtype",
    "row_typeid",
    "array_typeid",
    "refrestype",
    "paramtype",
)
_BOOL, _TEXT = 16, 25
_BOOL_FIELDS = ("boolop", "nulltesttype", "booltesttype", "useOr")

# What a column is made of: the clock, or a column (relation, number) that may turn out to be.
_Origin = tuple[int, int]
_CLOCK: _Origin = (0, 0)
_MAX_DEPTH = 100  # of columns that are columns of columns; a recursive query would go round for ever


@dataclass(slots=True)
class _Shape:
    """What one parse tree says, before the catalogue is asked what the OIDs mean."""

    functions: set[int] = field(default_factory=set)
    operators: set[int] = field(default_factory=set)
    inputs: set[int] = field(default_factory=set)
    outputs: set[int] = field(default_factory=set)
    relations: set[int] = field(default_factory=set)
    evidence: dict[DefinitionClass, set[str]] = field(default_factory=lambda: defaultdict(set))
    columns: dict[int, frozenset[_Origin]] = field(default_factory=dict)
    order: tuple[int, ...] = ()


def _shape(tree: str) -> _Shape:
    action = parse(tree)
    shape = _Shape()
    for node in walk(action):
        _note(node, shape)
    query = action[0] if isinstance(action, list) and action else None
    if isinstance(query, Node):
        _outline(query, shape)
    return shape


def _note(node: Node, shape: _Shape) -> None:
    # By field rather than by name: 14 and 15 call some nodes otherwise than 16 and later do.
    for name in ("funcid", "opfuncid", "aggfnoid", "winfnoid"):
        if oid := node.number(name):
            shape.functions.add(oid)
    if not node.number("opfuncid") and (oid := node.number("opno")):
        shape.operators.add(oid)
    opnos = node.fields.get("opnos")
    if isinstance(opnos, list):
        shape.operators.update(int(oid) for oid in opnos if isinstance(oid, str) and oid.isdigit())
    if "rtekind" in node.fields and (oid := node.number("relid")):
        shape.relations.add(oid)
    if node.fields.get("tablesample") is not None:
        shape.evidence[DefinitionClass.VOLATILE].add("TABLESAMPLE")
    match node.name:
        case "SQLVALUEFUNCTION":
            number = node.number("op")
            shape.evidence[_value_class(number)].add(_VALUE_FUNCTIONS[number])
        case "COERCEVIAIO":
            _note_conversion(node, shape)
        case "XMLEXPR" | "XMLSERIALIZE":
            shape.evidence[DefinitionClass.SETTINGS].add("XML")
        case "TABLEFUNC":
            shape.evidence[DefinitionClass.SETTINGS].add("XMLTABLE or JSON_TABLE")
        case (
            "JSONCONSTRUCTOREXPR" | "JSONEXPR"
        ):  # since 16 and 17; what these call stands nowhere in the tree
            shape.evidence[DefinitionClass.SETTINGS].add("SQL/JSON")


def _value_class(number: int) -> DefinitionClass:
    if number >= _FIRST_SESSION_FUNCTION:
        return DefinitionClass.SESSION
    return DefinitionClass.TIME if number else DefinitionClass.DATE


def _note_conversion(node: Node, shape: _Shape) -> None:
    result = node.number("resulttype")
    argument = _without_relabel(node.node("arg"))
    shape.inputs.add(result)
    if argument is None or not (given := _type(argument)):
        shape.evidence[DefinitionClass.SETTINGS].add("a conversion to or from text")
        return
    shape.outputs.add(given)
    if (
        result in _TIME_TYPES
        and argument.name == "CONST"
        and (word := _CLOCK_WORDS.search(_constant(argument)))
    ):
        kind = DefinitionClass.DATE if result == _DATE else DefinitionClass.TIME
        shape.evidence[kind].add(f"'{word[1]}'")


def _without_relabel(node: Node | None) -> Node | None:
    while node is not None and node.name == "RELABELTYPE":
        node = node.node("arg")
    return node


def _type(node: Node) -> int:
    for name in _TYPE_FIELDS:
        if oid := node.number(name):
            return oid
    if node.name in {"SQLVALUEFUNCTION", "XMLEXPR"}:
        return node.number("type")
    if any(name in node.fields for name in _BOOL_FIELDS):
        return _BOOL
    if node.name == "COLLATEEXPR":
        return _TEXT
    return 0


def _constant(node: Node) -> str:
    """The text of a constant of a text type: its length, then its bytes as signed numbers in brackets."""
    value = node.fields.get("constvalue")
    if not isinstance(value, list) or node.number("constlen") != -1:
        return ""
    octets = [int(item) & 0xFF for item in value[1:] if isinstance(item, str) and item.lstrip("-").isdigit()]
    return bytes(octets).decode("utf-8", "replace")


def _outline(query: Node, shape: _Shape) -> None:
    targets = query.nodes("targetList")
    for target in targets:
        if target.text("resjunk") == "false":
            number = target.number("resno")
            shape.columns[number] = frozenset(_column_origins(query, number, (query,), 0))
    order: list[int] = []
    by_reference = {t.number("ressortgroupref"): t for t in targets if t.number("ressortgroupref")}
    for item in query.nodes("sortClause"):
        ordered = by_reference.get(item.number("tleSortGroupRef"))
        if ordered is None or ordered.text("resjunk") != "false":
            break  # what comes after an expression orders only within it
        order.append(ordered.number("resno"))
    shape.order = tuple(order)


def _column_origins(query: Node, number: int, scope: tuple[Node, ...], depth: int) -> Iterator[_Origin]:
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


def _origins(node: Node | None, scope: tuple[Node, ...], depth: int) -> Iterator[_Origin]:
    node = _without_cast(node)
    if node is None:
        return
    if node.name == "SQLVALUEFUNCTION":
        if _value_class(node.number("op")) is DefinitionClass.TIME:
            yield _CLOCK
    elif node.number("funcid") in _CLOCKS:
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
        if node.name == "RELABELTYPE" or (node.name == "COERCEVIAIO" and node.number("resulttype") != _DATE):
            node = node.node("arg")
            continue
        arguments = node.nodes("args")
        if node.number("funcid") in _AT_TIME_ZONE and arguments:
            node = arguments[-1]
        elif (
            arguments
            and "funcid" in node.fields
            and node.number("funcformat") in _CAST_FORMATS
            and node.number("funcresulttype") in _TIME_TYPES - {_DATE}
        ):
            node = arguments[0]
        else:
            return node
    return None


def _variable_origins(variable: Node, scope: tuple[Node, ...], depth: int) -> Iterator[_Origin]:
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


def _cte_origins(entry: Node, number: int, scope: tuple[Node, ...], depth: int) -> Iterator[_Origin]:
    level = len(scope) - entry.number("ctelevelsup")
    if level < 1:
        return
    for cte in scope[level - 1].nodes("cteList"):
        query = cte.node("ctequery")
        if cte.text("ctename") == entry.text("ctename") and query is not None:
            yield from _column_origins(query, number, (*scope[:level], query), depth)


def _is_clock(relation: int, number: int, shapes: Mapping[int, _Shape], depth: int = 0) -> bool:
    shape = shapes.get(relation)  # None: a table or another materialized view, which stores what it has
    if shape is None or depth > _MAX_DEPTH:
        return False
    return any(
        origin == _CLOCK or _is_clock(*origin, shapes, depth + 1) for origin in shape.columns.get(number, ())
    )


# ---- what the catalogue says ----

# Analysed trees by digest. A fleet keeps hundreds of views; the bound is for one whose views are made anew
# all day.
_MAX_KNOWN = 4096
_known: dict[str, _Shape] = {}

_FIRST_USER_OID = 16384  # FirstNormalObjectId: below it, initdb made the object


@dataclass(frozen=True, slots=True)
class _Function:
    oid: int
    schema: str
    name: str
    volatility: str
    arguments: int

    def __str__(self) -> str:
        return f"{self.name if self.built_in else RelationName(self.schema, self.name)}()"

    @property
    def built_in(self) -> bool:
        return self.oid < _FIRST_USER_OID

    @property
    def kind(self) -> DefinitionClass | None:
        if self.volatility == "i":
            return None
        if self.built_in and self._tells_time:
            return DefinitionClass.TIME
        if self.volatility == "v":
            return DefinitionClass.VOLATILE
        if not self.built_in:
            return DefinitionClass.OPAQUE
        return DefinitionClass.SESSION if _SESSION_FUNCTION.search(self.name) else DefinitionClass.SETTINGS

    @property
    def _tells_time(self) -> bool:
        # age() of one argument counts from today, or from the current transaction id.
        return self.oid in _CLOCKS or self.name == "mxid_age" or (self.name == "age" and self.arguments == 1)


# Stable built-in functions whose answer is neither in their arguments nor in FORMAT_SETTINGS: who and where
# we are, what the catalogue, the transactions or another table say now. From pg_proc of 18 (provolatile
# 's'), by hand.
_SESSION_FUNCTION = re.compile(
    r"""^(?: pg_(?!(?:typeof|column_size|column_compression|collation_for|basetype
                     |input_is_valid|input_error_info|char_to_encoding|encoding_to_char)$)
           | has_ | inet_(?:client|server)_ | txid_ | current_ | session_user$ | system_user$ | getpgusername$
           | row_security_active$ | version$ | format_type$ | (?:col|obj|shobj)_description$
           | to_reg | reg[a-z]+(?:in|out)$ | regclass$
           | (?:table|schema|database|query|cursor)_to_xml )""",
    re.VERBOSE,
)


def _shapes(conn: psycopg.Connection[Any], digests: Mapping[int, str]) -> dict[int, _Shape]:
    found = {relation: _known[digest] for relation, digest in digests.items() if digest in _known}
    unknown = [Oid(relation) for relation in digests if relation not in found]
    if unknown:
        if len(_known) > _MAX_KNOWN:
            _known.clear()
        for row in _sql.read_trees(conn, relations=unknown):
            shape = _shape(row["tree"])
            _known[digests[row["relation"]]] = found[row["relation"]] = shape
    return found


def _functions(
    conn: psycopg.Connection[Any], shapes: Iterable[_Shape]
) -> dict[tuple[str, int], list[_Function]]:
    shapes = list(shapes)
    asked = {
        name: [Oid(oid) for oid in sorted(set().union(*(getattr(shape, name) for shape in shapes)))]
        for name in ("functions", "operators", "inputs", "outputs")
    }
    found: dict[tuple[str, int], list[_Function]] = defaultdict(list)
    for row in _sql.read_functions(conn, **asked):
        how, what = row.pop("how"), row.pop("what")
        found[how, what].append(_Function(**row))
    return found


def _row_security(
    conn: psycopg.Connection[Any], rows: Iterable[Mapping[str, Any]], shapes: Mapping[int, _Shape]
) -> dict[int, set[str]]:
    """By view, the tables where row security chooses the rows for the view's owner, or an inlined view's."""
    readers: dict[tuple[int, int], set[int]] = defaultdict(set)
    owners: dict[int, set[int]] = defaultdict(set)
    for row in rows:
        owners[row["view"]].add(row["owner"])
    for row in rows:
        for relation in shapes[row["relation"]].relations:
            for owner in owners[row["view"]]:
                readers[owner, relation].add(row["view"])
    found: dict[int, set[str]] = defaultdict(set)
    asked = sorted(readers)
    roles, relations = [Oid(role) for role, _ in asked], [Oid(relation) for _, relation in asked]
    for row in _sql.find_row_security(conn, roles=roles, relations=relations):
        for view in readers[row["role"], row["relation"]]:
            found[view].add(f"row security of {RelationName(row['schema'], row['name'])}")
    return found


def _evidence(
    shapes: Iterable[_Shape], functions: Mapping[tuple[str, int], list[_Function]], secured: set[str]
) -> dict[DefinitionClass, set[str]]:
    found: dict[DefinitionClass, set[str]] = defaultdict(set)
    found[DefinitionClass.SESSION] |= secured
    for shape in shapes:
        for kind, names in shape.evidence.items():
            found[kind] |= names
        called = [
            *(("function", oid) for oid in shape.functions),
            *(("operator", oid) for oid in shape.operators),
            *(("input", oid) for oid in shape.inputs),
            *(("output", oid) for oid in shape.outputs),
        ]
        for key in called:
            for function in functions.get(key, ()):
                if function.kind is not None:
                    found[function.kind].add(str(function))
    return found
