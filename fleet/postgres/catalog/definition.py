"""What does a view's result depend on besides rows? Unchanged sources may not mean an unchanged view.

Read from the stored parse trees of the view and of the plain views it inlines: pg_depend has no rows for
built-in functions such as now(), and the text of a definition cannot be searched without being fooled by
names and strings.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.catalog.clocks import CLOCK_FUNCTIONS, DATE, VALUE_FUNCTIONS, gives_date, gives_time
from fleet.postgres.catalog.lineage import is_clock
from fleet.postgres.catalog.querytree import Shape, shape_of
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
        lineage = {relation: shape.columns for relation, shape in members.items()}
        evidence = _evidence(members.values(), functions, secured[view])
        kind = next((k for k in DefinitionClass if evidence.get(k)), DefinitionClass.DATA)
        found[view] = Definition(
            oid=view,
            kind=kind,
            evidence=tuple(sorted(evidence.get(kind, ()))),
            stored_timestamps=tuple(
                columns[number - 1]
                for number in sorted(members[view].columns)
                if is_clock(view, number, lineage)
            ),
            ordered_by=tuple(columns[number - 1] for number in members[view].order),
        )
    return found


# Analysed trees by digest. A fleet keeps hundreds of views; the bound is for one whose views are made anew
# all day.
_MAX_KNOWN = 4096
_known: dict[str, Shape] = {}

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
        return (
            self.oid in CLOCK_FUNCTIONS
            or self.name == "mxid_age"
            or (self.name == "age" and self.arguments == 1)
        )


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


def _shapes(conn: psycopg.Connection[Any], digests: Mapping[int, str]) -> dict[int, Shape]:
    found = {relation: _known[digest] for relation, digest in digests.items() if digest in _known}
    unknown = [Oid(relation) for relation in digests if relation not in found]
    if unknown:
        if len(_known) > _MAX_KNOWN:
            _known.clear()
        for row in _sql.read_trees(conn, relations=unknown):
            shape = shape_of(row["tree"])
            _known[digests[row["relation"]]] = found[row["relation"]] = shape
    return found


def _functions(
    conn: psycopg.Connection[Any], shapes: Iterable[Shape]
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
    conn: psycopg.Connection[Any], rows: Iterable[Mapping[str, Any]], shapes: Mapping[int, Shape]
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
    shapes: Iterable[Shape], functions: Mapping[tuple[str, int], list[_Function]], secured: set[str]
) -> dict[DefinitionClass, set[str]]:
    found: dict[DefinitionClass, set[str]] = defaultdict(set)
    found[DefinitionClass.SESSION] |= secured
    for shape in shapes:
        for kind, name in _in_the_tree(shape):
            found[kind].add(name)
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


def _in_the_tree(shape: Shape) -> Iterator[tuple[DefinitionClass, str]]:
    """What needs no catalogue to be classified."""
    if shape.sampled:
        yield DefinitionClass.VOLATILE, "TABLESAMPLE"
    for number in shape.value_functions:
        yield _value_class(number), VALUE_FUNCTIONS[number]
    for result, word in shape.clock_words:
        yield DefinitionClass.DATE if result == DATE else DefinitionClass.TIME, f"'{word}'"
    for name in shape.by_settings:
        yield DefinitionClass.SETTINGS, name


def _value_class(number: int) -> DefinitionClass:
    if gives_date(number):
        return DefinitionClass.DATE
    return DefinitionClass.TIME if gives_time(number) else DefinitionClass.SESSION
