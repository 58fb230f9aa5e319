"""What one stored parse tree says, before the catalogue is asked what its OIDs mean.

Kept apart from what the catalogue says, because this holds as long as the tree does: it is analysed once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fleet.postgres.catalog import lineage
from fleet.postgres.catalog.clocks import CLOCK_WORDS, TIME_TYPES
from fleet.postgres.catalog.nodetree import Node, parse, walk

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


@dataclass(slots=True)
class Shape:
    """The OIDs that a parse tree calls, converts with and reads, and what is in it besides.

    `inputs` and `outputs` are types whose conversion functions it calls.
    `value_functions` are numbers of CURRENT_DATE and its like, `clock_words` a type and the text cast to it.
    `by_settings` names what prints and parses by the session's settings and has no OID.
    `columns` and `order` are its output: what each column is made of, and which ones the rows are ordered by.
    """

    functions: set[int] = field(default_factory=set)
    operators: set[int] = field(default_factory=set)
    inputs: set[int] = field(default_factory=set)
    outputs: set[int] = field(default_factory=set)
    relations: set[int] = field(default_factory=set)
    value_functions: set[int] = field(default_factory=set)
    clock_words: set[tuple[int, str]] = field(default_factory=set)
    sampled: bool = False
    by_settings: set[str] = field(default_factory=set)
    columns: lineage.Columns = field(default_factory=dict)
    order: tuple[int, ...] = ()


def shape_of(tree: str) -> Shape:
    """Analyse the action of a view's rule.

    Raises:
        NodeTreeError: it is none.

    """
    action = parse(tree)
    shape = Shape()
    for node in walk(action):
        _note(node, shape)
    query = action[0] if isinstance(action, list) and action else None
    if isinstance(query, Node):
        shape.columns = lineage.read_columns(query)
        shape.order = _order(query)
    return shape


def _note(node: Node, shape: Shape) -> None:
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
        shape.sampled = True
    match node.name:
        case "SQLVALUEFUNCTION":
            shape.value_functions.add(node.number("op"))
        case "COERCEVIAIO":
            _note_conversion(node, shape)
        case "XMLEXPR" | "XMLSERIALIZE":
            shape.by_settings.add("XML")
        case "TABLEFUNC":
            shape.by_settings.add("XMLTABLE or JSON_TABLE")
        case (
            "JSONCONSTRUCTOREXPR" | "JSONEXPR"
        ):  # since 16 and 17; what these call stands nowhere in the tree
            shape.by_settings.add("SQL/JSON")


def _note_conversion(node: Node, shape: Shape) -> None:
    result = node.number("resulttype")
    argument = _without_relabel(node.node("arg"))
    shape.inputs.add(result)
    if argument is None or not (given := _type(argument)):
        shape.by_settings.add("a conversion to or from text")
        return
    shape.outputs.add(given)
    if (
        result in TIME_TYPES
        and argument.name == "CONST"
        and (word := CLOCK_WORDS.search(_constant(argument)))
    ):
        shape.clock_words.add((result, word[1]))


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


def _order(query: Node) -> tuple[int, ...]:
    targets = query.nodes("targetList")
    order: list[int] = []
    by_reference = {t.number("ressortgroupref"): t for t in targets if t.number("ressortgroupref")}
    for item in query.nodes("sortClause"):
        ordered = by_reference.get(item.number("tleSortGroupRef"))
        if ordered is None or ordered.text("resjunk") != "false":
            break  # what comes after an expression orders only within it
        order.append(ordered.number("resno"))
    return tuple(order)
