"""What a table is besides its rows: everything that pg_dump -s shows of it, read from the catalogue.

A new partition is made from its sibling's shape and compared with it, so that nothing of it is forgotten in silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.queries import load

_sql = load("tasks.partitions", "sql/shape.sql")

PARTITIONED = "p"
NOT_VALID = " NOT VALID"


@dataclass(frozen=True, order=True, kw_only=True)
class Grant:
    """One privilege; `column` empty: on the whole table, `grantee` empty: PUBLIC."""

    grantee: str
    privilege: str
    grantable: bool
    column: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column."""

    name: str
    type: str
    not_null: bool
    expression: str | None
    """Its default, or what it is generated from."""
    generated: str
    identity: str
    """Its own; from 17 on the partitions of an identity column have it too."""
    storage: str
    compression: str
    statistics: int
    options: tuple[str, ...]
    comment: str | None


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A check (c) or a foreign key (f). `inherited`: the parent has it too."""

    name: str
    kind: str
    definition: str
    inherited: bool
    columns: tuple[str, ...]
    comment: str | None
    referenced: RelationName | None = None
    referenced_quoted: str = ""
    """As the server writes it in `definition`."""
    referenced_oid: int = 0
    referenced_set: RelationName | None = None
    """The table whose partition it refers to, where it refers to one."""
    like: str = ""
    """What the constraint is called that it is a copy of."""

    @property
    def copied(self) -> bool:
        """Whether LIKE copies it as it is: one that is not valid would come out valid."""
        return self.inherited or not self.definition.endswith(NOT_VALID)


@dataclass(frozen=True, kw_only=True)
class Index:
    """An index; `key` is p, u or x for one that belongs to a constraint of the same name."""

    name: str
    unique: bool
    definition: str
    """As after the table's name: USING …"""
    key: str
    key_definition: str | None
    options: tuple[str, ...]
    tablespace: str
    clustered: bool
    replica_identity: bool
    comment: str | None
    key_comment: str | None
    statistics: tuple[tuple[int, int], ...]
    """The statistics targets of its expressions, by their position."""


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """A user's trigger. `inherited`: cloned from the parent's. `ours`: it requests refreshes."""

    name: str
    head: str
    """As before the table's name: CREATE TRIGGER … ON"""
    tail: str
    enabled: str
    inherited: bool
    for_each_row: bool
    ours: bool
    comment: str | None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A row security policy; an empty role is PUBLIC."""

    name: str
    permissive: bool
    command: str
    roles: tuple[str, ...]
    using: str | None
    check: str | None
    comment: str | None


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Extended statistics."""

    name: RelationName
    kinds: str
    """As between its name and the table's: (ndistinct) ON a, b"""
    target: int
    comment: str | None


@dataclass(frozen=True, kw_only=True)
class Publication:
    """A publication that names the table itself; no columns: all of them."""

    name: str
    columns: tuple[str, ...]
    filter: str | None


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A table, and the tables that it is divided into (`children`, each with its bound)."""

    oid: int
    name: RelationName
    kind: str
    persistence: str
    access_method: str
    tablespace: str
    options: tuple[str, ...]
    toast_options: tuple[str, ...]
    owner: str
    comment: str | None
    row_security: bool
    forced_row_security: bool
    replica_identity: str
    partition_key: str
    grants: frozenset[Grant]
    columns: tuple[Column, ...]
    constraints: tuple[Constraint, ...]
    indexes: tuple[Index, ...]
    triggers: tuple[Trigger, ...]
    policies: tuple[Policy, ...]
    statistics: tuple[Statistics, ...]
    publications: tuple[Publication, ...]
    children: tuple[tuple[str, Shape], ...] = ()
    beyond: tuple[str, ...] = ()
    """What a new table is not given: rules and security labels."""


def read_shape(conn: psycopg.Connection[Any], oid: int, *, deep: bool = True) -> Shape | None:
    """Everything of a table, in ten statements whatever it is divided into; None: it is not there.

    Call it inside a transaction: until that ends, names are deparsed with their schemas and literals in one form, so
    that what was read here can be sent again there. `deep` False: without what it is divided into.
    """
    _sql.as_dumped(conn)
    relations = list(_sql.read_relations(conn, oid=Oid(oid), deep=deep))
    oids = [Oid(row["oid"]) for row in relations]
    publications = (
        _sql.read_publications_in_part if conn.info.server_version >= 150_000 else _sql.read_publications
    )
    parts = {
        "grants": _by_table(_sql.read_grants(conn, oids=oids)),
        "columns": _by_table(_sql.read_columns(conn, oids=oids)),
        "constraints": _by_table(_sql.read_constraints(conn, oids=oids)),
        "indexes": _by_table(_sql.read_indexes(conn, oids=oids)),
        "triggers": _by_table(_sql.read_triggers(conn, oids=oids)),
        "policies": _by_table(_sql.read_policies(conn, oids=oids)),
        "statistics": _by_table(_sql.read_statistics(conn, oids=oids)),
        "publications": _by_table(publications(conn, oids=oids)),
    }
    below: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    top = None
    for row in relations:
        if row["parent"] is None:
            top = row
        else:
            below[row["parent"]].append(row)
    return None if top is None else _shape(top, below, parts)


def split(text: str, keyword: str, relation: str) -> tuple[str, str]:
    """Split what the server deparsed around the relation that a keyword introduces: (up to the keyword, the rest).

    Text in quotes is passed over, so that no name can pass for the keyword. `relation` as the server quotes it.
    """
    position, words = 0, f" {keyword} "
    while position < len(text):
        if text[position] in "\"'":
            # A doubled quote inside is the end of one string and the beginning of the next.
            position = text.index(text[position], position + 1) + 1
            continue
        if text.startswith(words, position):
            rest = text[position + len(words) :].removeprefix("ONLY ")
            if rest.startswith(relation):
                return text[: position + len(words)], rest[len(relation) :]
        position += 1
    raise ValueError(f"{relation} does not follow {keyword} in {text!r}")


def _by_table(rows: Iterable[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["oid"]].append(row)
    return found


def _shape(
    row: Mapping[str, Any],
    below: Mapping[int, list[Mapping[str, Any]]],
    parts: Mapping[str, Mapping[int, list[Mapping[str, Any]]]],
) -> Shape:
    oid, quoted = row["oid"], row["quoted"]

    def of(part: str) -> list[Mapping[str, Any]]:
        return parts[part].get(oid, [])

    return Shape(
        oid=oid,
        name=RelationName(row["schema"], row["name"]),
        kind=row["kind"],
        persistence=row["persistence"],
        access_method=row["access_method"],
        tablespace=row["tablespace"],
        options=tuple(row["options"]),
        toast_options=tuple(row["toast_options"]),
        owner=row["owner"],
        comment=row["comment"],
        row_security=row["row_security"],
        forced_row_security=row["forced_row_security"],
        replica_identity=row["replica_identity"],
        partition_key=row["partition_key"],
        grants=frozenset(
            Grant(
                grantee=each["grantee"],
                privilege=each["privilege"],
                grantable=each["grantable"],
                column=each["column"],
            )
            for each in of("grants")
        ),
        columns=tuple(
            Column(
                **{name: each[name] for name in _PLAIN_COLUMN},
                options=tuple(each["options"]),
            )
            for each in of("columns")
        ),
        constraints=tuple(_constraint(each) for each in of("constraints")),
        indexes=tuple(_index(each, quoted) for each in of("indexes")),
        triggers=tuple(_trigger(each, quoted) for each in of("triggers")),
        policies=tuple(
            Policy(
                name=each["name"],
                permissive=each["permissive"],
                command=each["command"],
                roles=tuple(each["roles"]),
                using=each["qualifier"],
                check=each["with_check"],
                comment=each["comment"],
            )
            for each in of("policies")
        ),
        statistics=tuple(_statistics(each, quoted) for each in of("statistics")),
        publications=tuple(
            Publication(name=each["name"], columns=tuple(each["columns"]), filter=each["filter"])
            for each in of("publications")
        ),
        children=tuple((each["bound"], _shape(each, below, parts)) for each in below.get(oid, ())),
        beyond=tuple(row["beyond"]),
    )


_PLAIN_COLUMN = (
    "name",
    "type",
    "not_null",
    "expression",
    "generated",
    "identity",
    "storage",
    "compression",
    "statistics",
    "comment",
)


def _constraint(row: Mapping[str, Any]) -> Constraint:
    referenced, definition = None, row["definition"]
    if row["kind"] == "f":
        referenced = RelationName(row["referenced_schema"], row["referenced_name"])
    return Constraint(
        name=row["name"],
        kind=row["kind"],
        definition=definition,
        inherited=row["inherited"],
        columns=tuple(row["columns"]),
        comment=row["comment"],
        referenced=referenced,
        referenced_quoted=row["referenced_quoted"] or "",
        referenced_oid=row["referenced"],
        referenced_set=RelationName(row["set_schema"], row["set_name"]) if row["set_name"] else None,
        like=row["name"],
    )


def _index(row: Mapping[str, Any], quoted: str) -> Index:
    return Index(
        name=row["name"],
        unique=row["is_unique"],
        definition=split(row["definition"], "ON", quoted)[1],
        key=row["constraint_kind"],
        key_definition=row["constraint_definition"],
        options=tuple(row["options"]),
        tablespace=row["tablespace"],
        clustered=row["clustered"],
        replica_identity=row["replica_identity"],
        comment=row["comment"],
        key_comment=row["constraint_comment"],
        statistics=tuple(zip(row["statistics_of"], row["statistics"], strict=True)),
    )


def _trigger(row: Mapping[str, Any], quoted: str) -> Trigger:
    head, tail = split(row["definition"], "ON", quoted)
    return Trigger(
        name=row["name"],
        head=head,
        tail=tail,
        enabled=row["enabled"],
        inherited=row["inherited"],
        for_each_row=row["for_each_row"],
        ours=row["ours"],
        comment=row["comment"],
    )


def _statistics(row: Mapping[str, Any], quoted: str) -> Statistics:
    # The table is what it ends with; what stands between the name and that may have FROM in an expression.
    definition, name = row["definition"], row["quoted"]
    begins, ends = f"CREATE STATISTICS {name} ", f" FROM {quoted}"
    if not (definition.startswith(begins) and definition.endswith(ends)):
        raise ValueError(f"{name} is not on {quoted} in {definition!r}")
    return Statistics(
        name=RelationName(row["schema"], row["name"]),
        kinds=definition[len(begins) : -len(ends)],
        target=row["target"],
        comment=row["comment"],
    )
