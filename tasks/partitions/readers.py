"""Who may read an archive, and which of its rows: as on its table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.queries import load

_sql = load("tasks.partitions", "sql/archive.sql")


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A table, its archive or the view over both, as far as access goes."""

    oid: int
    kind: str
    owner: str
    may_alter: bool
    row_security: bool
    forced_row_security: bool
    partition_key: str | None
    as_reader: bool


def read_relation(connection: psycopg.Connection[Any], name: RelationName) -> Relation | None:
    """What has that name; None: nothing."""
    row = _sql.read_relation(connection, schema=name.schema, name=name.name)
    return None if row is None else Relation(**row)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Who may SELECT: PUBLIC is empty, as is `column` where it is all of them."""

    role: str
    grantable: bool
    column: str


def read_readers(connection: psycopg.Connection[Any], oid: int) -> set[Reader]:
    """Who may SELECT from a relation."""
    return {Reader(**row) for row in _sql.read_readers(connection, oid=Oid(oid))}


def _role(name: str) -> sql.Composable:
    return sql.Identifier(name) if name else sql.SQL("PUBLIC")


def grants(name: RelationName, readers: set[Reader]) -> list[sql.Composed]:
    """SELECT as on the table. One that is taken away there is not taken away here: auditors may have been given it."""
    found: list[sql.Composed] = []
    for each in sorted(readers, key=lambda reader: (reader.role, reader.column)):
        statement = sql.SQL("GRANT SELECT{} ON {} TO {}{}").format(
            sql.SQL(" ({})").format(sql.Identifier(each.column)) if each.column else sql.SQL(""),
            name.identifier(),
            _role(each.role),
            sql.SQL(" WITH GRANT OPTION" if each.grantable else ""),
        )
        found.append(statement)
    return found


def carry_over(
    connection: psycopg.Connection[Any], hot: Relation, archive: Relation, name: RelationName
) -> list[sql.Composed]:
    """Who may read, and which rows, as the table has it now."""
    readers = read_readers(connection, hot.oid)
    lacking = readers - read_readers(connection, archive.oid)
    steps = grants(name, lacking)
    if lacking:
        stands = _sql.read_schema(connection, schema=name.schema, owner=hot.owner)
        if stands["may_grant"]:
            for role in sorted({each.role for each in lacking}):
                usage = sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(
                    sql.Identifier(name.schema), _role(role)
                )
                steps.append(usage)
    wanted = list(_sql.read_policies(connection, oid=Oid(hot.oid)))
    there = list(_sql.read_policies(connection, oid=Oid(archive.oid)))
    steps += _security(hot, archive, name)
    for each in there:
        if each not in wanted:
            drop = sql.SQL("DROP POLICY {} ON {}").format(sql.Identifier(each["name"]), name.identifier())
            steps.append(drop)
    for each in wanted:
        if each not in there:
            steps.append(_policy(name, each))
    return steps


_COMMANDS = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE", "*": "ALL"}


def _policy(name: RelationName, policy: dict[str, Any]) -> sql.Composed:
    def clause(keyword: str, expression: str) -> sql.Composable:
        return (
            sql.SQL(" {} ({})").format(sql.SQL(keyword), sql.SQL(expression)) if expression else sql.SQL("")
        )

    return sql.SQL("CREATE POLICY {} ON {} AS {} FOR {} TO {}{}{}").format(
        sql.Identifier(policy["name"]),
        name.identifier(),
        sql.SQL("PERMISSIVE" if policy["permissive"] else "RESTRICTIVE"),
        sql.SQL(_COMMANDS[policy["command"]]),
        sql.SQL(", ").join(_role(role) for role in policy["roles"]),
        clause("USING", policy["visible"]),
        clause("WITH CHECK", policy["allowed"]),
    )


def _security(hot: Relation, archive: Relation, name: RelationName) -> list[sql.Composed]:
    found = []
    if hot.row_security != archive.row_security:
        verb = "ENABLE" if hot.row_security else "DISABLE"
        found.append(sql.SQL("ALTER TABLE {} {} ROW LEVEL SECURITY").format(name.identifier(), sql.SQL(verb)))
    if hot.forced_row_security != archive.forced_row_security:
        verb = "FORCE" if hot.forced_row_security else "NO FORCE"
        found.append(sql.SQL("ALTER TABLE {} {} ROW LEVEL SECURITY").format(name.identifier(), sql.SQL(verb)))
    return found


__all__ = ["Reader", "Relation", "carry_over", "grants", "read_readers", "read_relation"]
