"""The partitioned table beside the old one: like it, with its partitions, under a name of its own until the switch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Range
from fleet.postgres.patience import Deadline
from tasks.partitions.calendar import clause
from tasks.partitions.convert.facts import NEW, Facts, Row, facts_sql, working
from tasks.partitions.convert.plan import How, Plan, beside

# From here on a partition has its parent's identity, and none of its own.
IDENTITY_IS_INHERITED = 170000

# What LIKE copies and a parent may have; identity and keys follow in their own time.
_LIKE = sql.SQL(
    "CREATE TABLE {} (LIKE {} INCLUDING COMMENTS INCLUDING COMPRESSION INCLUDING CONSTRAINTS INCLUDING DEFAULTS"
    " INCLUDING GENERATED INCLUDING STATISTICS INCLUDING STORAGE) PARTITION BY RANGE ({})"
)


def create_parent(deadline: Deadline, plan: Plan) -> None:
    """Make it, empty, with its partitions: nobody knows of it yet, so that nobody waits."""
    facts, asked = plan.facts, plan.asked
    parent = beside(facts.name).identifier()
    deadline.execute(_LIKE.format(parent, facts.name.identifier(), sql.Identifier(asked.column)))
    for each in facts.columns:
        for statement in _column_settings(parent, each):
            deadline.execute(statement)
    if facts.table.comment is not None:
        deadline.execute(
            sql.SQL("COMMENT ON TABLE {} IS {}").format(parent, sql.Literal(facts.table.comment))
        )
    grant(deadline, parent, facts.grants)
    for each in facts.indexes:
        if not each.is_unique or asked.column in each.columns or asked.how is How.FILL:
            add_index(deadline, parent, each, working(each.name, NEW), asked.column)
    for name, bounds in plan.ranges:
        create_partition(deadline, facts, name, bounds)
    if asked.how is How.FILL:
        create_partition(deadline, facts, default_name(facts), None)


def add_reference(deadline: Deadline, table: sql.Identifier, key: Row) -> None:
    """One foreign key of an empty table; the table that it refers to is locked for a moment.

    First each partition gets it, then the parent, which finds it there: so no lock lasts for all of them.
    """
    deadline.execute(
        sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
            table, sql.Identifier(key.name), sql.SQL(key.definition)
        )
    )


def default_name(facts: Facts) -> RelationName:
    """The partition of rows that no period has; none is refused while writes are mirrored."""
    return RelationName(facts.name.schema, working(facts.name.name, "_default"))


def create_partition(deadline: Deadline, facts: Facts, name: RelationName, bounds: Range | None) -> None:
    """One partition; what it does not get from its parent it gets from the old table."""
    unlogged = sql.SQL("UNLOGGED ") if facts.table.persistence == "u" else sql.SQL("")
    deadline.execute(
        sql.SQL("CREATE {}TABLE {} PARTITION OF {} {}{}{}").format(
            unlogged,
            name.identifier(),
            beside(facts.name).identifier(),
            sql.SQL("DEFAULT") if bounds is None else clause(bounds),
            with_options(facts.table.options),
            in_tablespace(facts.table.tablespace),
        )
    )
    for each in facts.columns:
        for statement in _column_settings(name.identifier(), each):
            deadline.execute(statement)
    grant(deadline, name.identifier(), facts.grants)


def add_index(deadline: Deadline, table: sql.Identifier, index: Row, name: str, control: str) -> None:
    """An index or key like one of the old table's; a unique one gets the control column where it lacks it."""
    if not index.is_unique:
        deadline.execute(
            sql.SQL("CREATE INDEX {} ON {} {}").format(sql.Identifier(name), table, sql.SQL(index.tail))
        )
    elif index.constraint_kind is None:
        deadline.execute(
            sql.SQL("CREATE UNIQUE INDEX {} ON {} {}").format(
                sql.Identifier(name), table, key_tail(index, control)
            )
        )
    else:
        deadline.execute(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {} {}").format(
                table,
                sql.Identifier(name),
                sql.SQL("PRIMARY KEY" if index.is_primary else "UNIQUE"),
                _key_columns(index, control),
            )
        )
    if index.comment is not None:
        deadline.execute(
            sql.SQL("COMMENT ON INDEX {} IS {}").format(_in_schema(table, name), sql.Literal(index.comment))
        )


def key_tail(index: Row, control: str) -> sql.Composable:
    """What follows the table's name in CREATE UNIQUE INDEX."""
    if control in index.columns:
        return sql.SQL(index.tail)
    return sql.SQL("USING btree {}").format(_key_columns(index, control))


def _key_columns(index: Row, control: str) -> sql.Composed:
    columns = index.columns if control in index.columns else [*index.columns, control]
    included = [each for each in index.included if each != control]
    made = sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Identifier, columns)))
    if included:
        made += sql.SQL(" INCLUDE ({})").format(sql.SQL(", ").join(map(sql.Identifier, included)))
    return made


def _in_schema(table: sql.Identifier, name: str) -> sql.Identifier:
    return sql.Identifier(table._obj[0], name)


def grant(deadline: Deadline, target: sql.Identifier, grants: Iterable[Row]) -> None:
    """Give the same rights; what the owner may needs no grant."""
    for each in grants:
        column = sql.SQL(" ({})").format(sql.Identifier(each.column)) if each.column else sql.SQL("")
        deadline.execute(
            sql.SQL("GRANT {}{} ON {} TO {}{}").format(
                sql.SQL(each.privilege),
                column,
                target,
                sql.Identifier(each.grantee) if each.grantee else sql.SQL("PUBLIC"),
                sql.SQL(" WITH GRANT OPTION" if each.grantable else ""),
            )
        )


def revoke_all(deadline: Deadline, target: sql.Identifier, grants: Iterable[Row]) -> None:
    """Take every right away that was given."""
    for grantee in sorted({each.grantee for each in grants}):
        deadline.execute(
            sql.SQL("REVOKE ALL ON {} FROM {} CASCADE").format(
                target, sql.Identifier(grantee) if grantee else sql.SQL("PUBLIC")
            )
        )


def with_options(options: Iterable[str]) -> sql.Composable:
    """WITH (…), as pg_class.reloptions has it."""
    pairs = [each.partition("=") for each in options]
    if not pairs:
        return sql.SQL("")
    return sql.SQL(" WITH ({})").format(
        sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, _, value in pairs
        )
    )


def in_tablespace(name: str) -> sql.Composable:
    """TABLESPACE …, where it is not the database's own."""
    return sql.SQL(" TABLESPACE {}").format(sql.Identifier(name)) if name else sql.SQL("")


def _column_settings(table: sql.Identifier, column: Row) -> Iterable[sql.Composed]:
    name = sql.Identifier(column.name)
    if column.statistics >= 0:
        yield sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET STATISTICS {}").format(
            table, name, sql.Literal(column.statistics)
        )
    for option in column.options:
        key, _, value = option.partition("=")
        yield sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET ({} = {})").format(
            table, name, sql.Identifier(key), sql.Literal(value)
        )


def hand_over_identity(
    connection: psycopg.Connection[Any],
    deadline: Deadline,
    giver: tuple[int, sql.Identifier],
    taker: sql.Identifier,
    columns: Iterable[Row],
    *,
    detach: sql.Composed | None = None,
) -> None:
    """Let another table count on where this one has come to, by a sequence of the same name.

    The giver is locked, so that nobody takes a number in between. `detach`: a statement after which the giver may
    lose its identity, for one that is inherited until then.
    """
    identities = [each for each in columns if each.identity]
    read = []
    for each in identities:
        found = facts_sql.owned_sequence(connection, oid=Oid(giver[0]), column=each.name)
        assert found is not None  # an identity column always has one
        name = RelationName(found["schema"], found["name"])
        at = connection.execute(
            sql.SQL("SELECT last_value, is_called FROM {}").format(name.identifier())
        ).fetchone()
        assert at is not None
        grants = [Row(**row) for row in facts_sql.grants(connection, oid=Oid(found["oid"]))]
        read.append((each, name, facts_sql.sequence(connection, oid=Oid(found["oid"])), at, grants))
    if detach is not None:
        deadline.execute(detach)
    for column, name, parameters, (last_value, is_called), grants in read:
        assert parameters is not None
        identifier = sql.Identifier(column.name)
        deadline.execute(sql.SQL("ALTER TABLE {} ALTER COLUMN {} DROP IDENTITY").format(giver[1], identifier))
        deadline.execute(
            sql.SQL(
                "ALTER TABLE {} ALTER COLUMN {} ADD GENERATED {} AS IDENTITY (SEQUENCE NAME {} START WITH {}"
                " INCREMENT BY {} MINVALUE {} MAXVALUE {} CACHE {} {})"
            ).format(
                taker,
                identifier,
                sql.SQL("ALWAYS" if column.identity == "a" else "BY DEFAULT"),
                name.identifier(),
                *(sql.Literal(parameters[key]) for key in ("start", "increment", "min", "max", "cache")),
                sql.SQL("CYCLE" if parameters["cycle"] else "NO CYCLE"),
            )
        )
        made = facts_sql.oid_of(connection, schema=name.schema, name=name.name)
        facts_sql.restart(connection, oid=Oid(made), last_value=last_value, is_called=is_called)
        grant_sequence(deadline, name.identifier(), grants)


def grant_sequence(deadline: Deadline, target: sql.Identifier, grants: Iterable[Row]) -> None:
    """The same for a sequence."""
    for each in grants:
        deadline.execute(
            sql.SQL("GRANT {} ON SEQUENCE {} TO {}{}").format(
                sql.SQL(each.privilege),
                target,
                sql.Identifier(each.grantee) if each.grantee else sql.SQL("PUBLIC"),
                sql.SQL(" WITH GRANT OPTION" if each.grantable else ""),
            )
        )
