"""Materialized views on the table: built beside the old ones, and put in their place in the switch.

Their definitions name the table. They are given to the server while the partitioned one has that name, within one
transaction that gives the names back before it ends: nobody sees it, and no text has to be searched for a name.
"""

from __future__ import annotations

import hashlib
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Oid

from fleet.errors import TransientError
from fleet.names import RelationName
from fleet.postgres import locks
from fleet.postgres.patience import Deadline
from tasks.partitions.convert.facts import NEW, OLD, Facts, Row, facts_sql, look_inside, working
from tasks.partitions.convert.parent import grant, in_tablespace, with_options
from tasks.partitions.convert.plan import Plan, beside
from tasks.partitions.convert.state import Conversion, acting_as, state_sql


def view_name(view: Row) -> RelationName:
    """Its name, as the catalogue has it."""
    return RelationName(view.schema, view.name)


def fingerprint(view: Row) -> str:
    """What must not have changed between building it and the switch."""
    said = "\n".join([view.definition, *view.columns, *view.options])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def rename(deadline: Deadline, kind: str, name: RelationName, to: str) -> None:
    """ALTER kind name RENAME TO."""
    deadline.execute(
        sql.SQL("ALTER {} {} RENAME TO {}").format(sql.SQL(kind), name.identifier(), sql.Identifier(to))
    )


def build_shells(
    connection: psycopg.Connection[Any], deadline: Deadline, plan: Plan, conversion: Conversion
) -> None:
    """Make them, without rows, in the names' absence."""
    name = plan.facts.name
    owner = plan.facts.table.owner
    deadline.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(name.identifier()))
    facts_sql.deparse(connection)
    facts = look_inside(connection, plan.facts.table, plan.asked.column)
    put_aside = RelationName(name.schema, working(name.name, OLD))
    with acting_as(connection, owner):
        rename(deadline, "TABLE", name, put_aside.name)
        rename(deadline, "TABLE", beside(name), name.name)
    made = []
    for each in facts.matviews:
        with acting_as(connection, each.owner):
            deadline.execute(
                sql.SQL("CREATE MATERIALIZED VIEW {} ({}) USING {}{}{} AS {} WITH NO DATA").format(
                    beside(view_name(each)).identifier(),
                    sql.SQL(", ").join(map(sql.Identifier, each.columns)),
                    sql.Identifier(each.access_method),
                    with_options(each.options),
                    in_tablespace(each.tablespace),
                    sql.SQL(each.definition.rstrip().removesuffix(";")),
                )
            )
            # Another one that reads it must find the new one.
            rename(deadline, "MATERIALIZED VIEW", view_name(each), working(each.name, OLD))
            rename(deadline, "MATERIALIZED VIEW", beside(view_name(each)), each.name)
            _dress(deadline, each, [Row(**row) for row in facts_sql.grants(connection, oid=Oid(each.oid))])
        made.append(
            {
                "oid": each.oid,
                "name": str(view_name(each)),
                "new": facts_sql.oid_of(connection, schema=each.schema, name=each.name),
                "fingerprint": fingerprint(each),
            }
        )
    for each in facts.matviews:
        with acting_as(connection, each.owner):
            rename(deadline, "MATERIALIZED VIEW", view_name(each), beside(view_name(each)).name)
            rename(
                deadline, "MATERIALIZED VIEW", RelationName(each.schema, working(each.name, OLD)), each.name
            )
    with acting_as(connection, owner):
        rename(deadline, "TABLE", name, beside(name).name)
        rename(deadline, "TABLE", put_aside, name.name)
    state_sql.remake(connection, id=conversion.id, remade=Jsonb(made))


def _dress(deadline: Deadline, view: Row, grants: list[Row]) -> None:
    target = view_name(view).identifier()
    grant(deadline, target, grants)
    if view.comment is not None:
        deadline.execute(
            sql.SQL("COMMENT ON MATERIALIZED VIEW {} IS {}").format(target, sql.Literal(view.comment))
        )
    for column, comment in zip(view.columns, view.comments, strict=True):
        if comment is not None:
            deadline.execute(
                sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(
                    target, sql.Identifier(column), sql.Literal(comment)
                )
            )


def populate(connection: psycopg.Connection[Any], facts: Facts) -> None:
    """Fill them and build their indexes; what is there already is refreshed. Nobody reads them yet."""
    for each in facts.matviews:
        new = beside(view_name(each))
        if not each.populated:
            continue
        with acting_as(connection, each.owner):
            connection.execute(sql.SQL("REFRESH MATERIALIZED VIEW {}").format(new.identifier()))
    for each in facts.matviews:
        new = beside(view_name(each))
        oid = facts_sql.oid_of(connection, schema=new.schema, name=new.name)
        with acting_as(connection, each.owner), connection.transaction():
            facts_sql.deparse(connection)
            for index in (Row(**row) for row in facts_sql.indexes(connection, oid=Oid(each.oid))):
                name = working(index.name, NEW)
                if facts_sql.index_valid(connection, oid=Oid(oid), name=name) is None:
                    unique = sql.SQL("UNIQUE " if index.is_unique else "")
                    connection.execute(
                        sql.SQL("CREATE {}INDEX {} ON {} {}").format(
                            unique, sql.Identifier(name), new.identifier(), sql.SQL(index.tail)
                        )
                    )
                    if index.comment is not None:
                        connection.execute(
                            sql.SQL("COMMENT ON INDEX {} IS {}").format(
                                sql.Identifier(new.schema, name), sql.Literal(index.comment)
                            )
                        )
        with acting_as(connection, each.owner):
            connection.execute(sql.SQL("ANALYZE {}").format(new.identifier()))


def hold(connection: psycopg.Connection[Any], facts: Facts) -> list[str]:
    """Keep the fleet from refreshing the old ones, so that none is newer than what replaces it.

    Raises:
        TransientError: one is being refreshed for longer than anybody should wait here.
    """
    held: list[str] = []
    for each in facts.matviews:
        key = locks.relation_key(each.oid)
        if not locks.acquire_within(connection, key, timeout_s=60.0):
            locks.release(connection, *held)
            raise TransientError(
                f"{view_name(each)} has been refreshed for more than 60 s",
                remedy="Run the same command again",
            )
        held.append(key)
    return held


def drop(connection: psycopg.Connection[Any], conversion: Conversion) -> None:
    """Undo all of it, the last one first."""
    for each in reversed(conversion.remade):
        row = facts_sql.name_of(connection, oid=Oid(each["new"]))
        if row is not None:
            connection.execute(
                sql.SQL("DROP MATERIALIZED VIEW IF EXISTS {}").format(
                    RelationName(row["schema"], row["name"]).identifier()
                )
            )


__all__ = ["build_shells", "drop", "fingerprint", "hold", "populate", "rename", "view_name"]
