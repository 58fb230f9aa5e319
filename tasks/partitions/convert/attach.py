"""The way of attaching: the old table becomes the partition of everything before a boundary in the future."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Range
from fleet.postgres.patience import Deadline
from tasks.partitions.calendar import clause, text
from tasks.partitions.convert.facts import OLD, facts_sql, working
from tasks.partitions.convert.parent import IDENTITY_IS_INHERITED, hand_over_identity, key_tail
from tasks.partitions.convert.plan import BOUND, Plan, beside


def build_keys(connection: psycopg.Connection[Any], plan: Plan) -> None:
    """The unique indexes with the control column, CONCURRENTLY; one that was cut short is built again."""
    for each in plan.facts.keys(plan.asked.column):
        name = working(each.name, OLD)
        qualified = sql.Identifier(plan.facts.name.schema, name)
        valid = facts_sql.index_valid(connection, oid=Oid(plan.facts.oid), name=name)
        if valid is False:
            connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(qualified))
        if not valid:
            connection.execute(
                sql.SQL("CREATE UNIQUE INDEX CONCURRENTLY {} ON {} {}").format(
                    sql.Identifier(name), plan.facts.name.identifier(), key_tail(each, plan.asked.column)
                )
            )


def drop_keys(connection: psycopg.Connection[Any], plan: Plan) -> None:
    """Undo that."""
    for each in plan.facts.keys(plan.asked.column):
        qualified = sql.Identifier(plan.facts.name.schema, working(each.name, OLD))
        connection.execute(sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(qualified))


def bind(deadline: Deadline, plan: Plan) -> None:
    """Promise that no row comes after the boundary; from here on such a row is refused."""
    assert plan.boundary is not None
    column = sql.Identifier(plan.asked.column)
    deadline.execute(
        sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({} IS NOT NULL AND {} < {}) NOT VALID").format(
            plan.facts.name.identifier(),
            sql.Identifier(BOUND),
            column,
            column,
            sql.Literal(text(plan.boundary)),
        )
    )


def validate(connection: psycopg.Connection[Any], plan: Plan) -> None:
    """Read every row for it once, while everybody works; running it again does nothing."""
    connection.execute(
        sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(
            plan.facts.name.identifier(), sql.Identifier(BOUND)
        )
    )


def unbind(deadline: Deadline, table: RelationName) -> None:
    """Undo the promise."""
    deadline.execute(
        sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(
            table.identifier(), sql.Identifier(BOUND)
        )
    )


def attach(connection: psycopg.Connection[Any], deadline: Deadline, plan: Plan) -> None:
    """Make it a partition, which is written to by its name as before."""
    table, parent = plan.facts.name.identifier(), beside(plan.facts.name).identifier()
    deadline.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
    if connection.info.server_version >= IDENTITY_IS_INHERITED:
        hand_over_identity(connection, deadline, (plan.facts.oid, table), parent, plan.facts.columns)
    deadline.execute(
        sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(
            parent, table, clause(Range(lower=None, upper=plan.boundary))
        )
    )


def detach(connection: psycopg.Connection[Any], deadline: Deadline, plan: Plan, parent_oid: int) -> None:
    """Undo that: a table by itself again, that counts on where it has come to."""
    table, parent = plan.facts.name.identifier(), beside(plan.facts.name).identifier()
    deadline.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
    statement = sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(parent, table)
    if connection.info.server_version >= IDENTITY_IS_INHERITED:
        hand_over_identity(
            connection, deadline, (parent_oid, parent), table, plan.facts.columns, detach=statement
        )
    else:
        deadline.execute(statement)
