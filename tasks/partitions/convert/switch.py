"""The switch: one transaction in which the partitioned table takes the old one's name, and what names it follows.

Statements that name the table are read before the names change and sent afterwards: then they mean the new one.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.numeric import Oid

from fleet.errors import PermanentError, TransientError
from fleet.names import RelationName
from fleet.postgres.patience import Deadline
from tasks.partitions.convert import fill
from tasks.partitions.convert.attach import unbind
from tasks.partitions.convert.facts import NEW, OLD, Facts, Row, facts_sql, look_inside, working
from tasks.partitions.convert.parent import (
    IDENTITY_IS_INHERITED,
    add_index,
    default_name,
    grant,
    hand_over_identity,
    revoke_all,
)
from tasks.partitions.convert.plan import How, Plan, beside, judge, renamed
from tasks.partitions.convert.state import Conversion, acting_as, state_sql
from tasks.partitions.convert.views import fingerprint, rename, view_name

_ENABLED = {"D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}
_COMMANDS = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE", "*": "ALL"}


def switch(
    connection: psycopg.Connection[Any], deadline: Deadline, plan: Plan, conversion: Conversion
) -> None:
    """Everything, or nothing.

    Raises:
        PermanentError: something depends on the old table that could not be pointed to the new one; nothing is changed.
        TransientError: what depends on it has changed since it was prepared.
        Missed: rows have to be copied again first.
    """
    assert conversion.parent is not None and plan.kept_as is not None  # noqa: PT018 - it is ready
    name, kept, owner = plan.facts.name, plan.kept_as, plan.facts.table.owner
    deadline.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(name.identifier()))
    facts_sql.deparse(connection)
    # Read again under the lock: until now somebody may have added a trigger, a grant or a view.
    facts = look_inside(connection, _now(connection, plan.facts.table), plan.asked.column)
    _refuse_changed(facts, plan, conversion)
    if plan.asked.how is How.FILL:
        fill.refuse_missed(connection, plan)
    incoming = facts.incoming
    for each in incoming:
        deadline.execute(
            sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                RelationName(each.schema, each.relation_name).identifier(), sql.Identifier(each.name)
            )
        )
    if plan.asked.how is How.FILL:
        fill.unmirror(deadline, plan, name.identifier())
    with acting_as(connection, owner):
        _exchange(connection, deadline, plan, facts, conversion.parent)
    _point_readers(connection, deadline, facts)
    for each in facts.publications:
        deadline.execute(
            sql.SQL("ALTER PUBLICATION {} ADD TABLE {}").format(sql.Identifier(each.name), name.identifier())
        )
    for each in incoming:
        where = RelationName(each.schema, each.relation_name).identifier()
        deadline.execute(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {} NOT VALID").format(
                where, sql.Identifier(each.name), sql.SQL(each.definition.removesuffix(" NOT VALID"))
            )
        )
        _comment(
            deadline, sql.SQL("CONSTRAINT {} ON {}").format(sql.Identifier(each.name), where), each.comment
        )
    left = [row["what"] for row in facts_sql.still_on(connection, oids=[Oid(facts.oid)])]
    if left:
        raise PermanentError(
            f"These would still read the table by its old name, {kept}: {', '.join(left)}. Nothing was changed",
            remedy="Drop them, switch, and create them again",
        )
    state_sql.end(connection, id=conversion.id, state="switched")


def _now(connection: psycopg.Connection[Any], table: Row) -> Row:
    found = facts_sql.table(connection, schema=table.schema, name=table.name, as_role="USAGE")
    if found is None or found["oid"] != table.oid:
        raise PermanentError(
            f"{RelationName(table.schema, table.name)} is another table than when the conversion began",
            remedy="Undo it with --back, and begin again",
        )
    return Row(**found)


def _refuse_changed(facts: Facts, plan: Plan, conversion: Conversion) -> None:
    # It is a partition by now, which is no reason.
    facts.table.is_partition = facts.table.has_parent = False
    refused = judge(facts, plan.asked)
    if refused:
        message, remedy = refused[0]
        raise PermanentError(f"Something has changed since it was prepared: {message}", remedy=remedy)
    prepared = {each["oid"]: each["fingerprint"] for each in conversion.remade}
    there = {each.oid: fingerprint(each) for each in facts.matviews}
    if prepared != there:
        changed = [
            str(view_name(each)) for each in facts.matviews if prepared.get(each.oid) != there[each.oid]
        ]
        raise TransientError(
            f"Materialized views have changed since they were built anew: {', '.join(changed) or 'one is gone'}",
            remedy="Run the same command again: they are built anew",
        )
    if [each.name for each in facts.columns] != [each.name for each in plan.facts.columns]:
        raise PermanentError(
            f"The columns of {facts.name} have changed", remedy="Undo it with --back, and begin again"
        )


def _exchange(
    connection: psycopg.Connection[Any], deadline: Deadline, plan: Plan, facts: Facts, parent_oid: int
) -> None:
    """Names, keys, identity, triggers, policies, grants: what belongs to the table's owner."""
    assert plan.kept_as is not None
    name, kept, control = facts.name, plan.kept_as, plan.asked.column
    table, old = name.identifier(), kept.identifier()
    attached = plan.asked.how is How.ATTACH
    rename(deadline, "TABLE", name, kept.name)
    for each in facts.indexes:
        rename(deadline, "INDEX", RelationName(name.schema, each.name), _kept_index(each, name, kept))
    rename(deadline, "TABLE", beside(name), name.name)
    for row in facts_sql.indexes(connection, oid=Oid(parent_oid)):
        for each in facts.indexes:
            if row["name"] == working(each.name, NEW):
                rename(deadline, "INDEX", RelationName(name.schema, row["name"]), each.name)
    if attached:
        unbind(deadline, kept)
        for each in facts.keys(control):
            _weaken(
                deadline,
                table,
                old,
                each,
                kept=RelationName(name.schema, _kept_index(each, name, kept)),
                control=control,
            )
    else:
        spare = default_name(facts).identifier()
        empty = connection.execute(sql.SQL("SELECT NOT EXISTS (SELECT FROM {})").format(spare)).fetchone()
        if plan.asked.policy.default == "none" and empty is not None and empty[0]:
            deadline.execute(sql.SQL("DROP TABLE {}").format(spare))
    if not attached or connection.info.server_version < IDENTITY_IS_INHERITED:
        hand_over_identity(connection, deadline, (facts.oid, old), table, facts.columns)
    for each in facts.columns:
        if each.sequence_tie == "a":
            deadline.execute(
                sql.SQL("ALTER SEQUENCE {} OWNED BY {}.{}").format(
                    sql.Identifier(each.sequence_schema, each.sequence_name), table, sql.Identifier(each.name)
                )
            )
    partitions = [
        RelationName(row["schema"], row["name"])
        for row in facts_sql.partitions(connection, oid=Oid(parent_oid))
        if row["oid"] != facts.oid
    ]
    _triggers(deadline, facts, table, old, attached=attached)
    _rights(connection, deadline, facts, table, parent_oid=parent_oid, partitions=partitions)


def _kept_index(index: Row, name: RelationName, kept: RelationName) -> str:
    return renamed(index.name, name.name, kept.name)


def _weaken(
    deadline: Deadline,
    table: sql.Identifier,
    old: sql.Identifier,
    key: Row,
    *,
    kept: RelationName,
    control: str,
) -> None:
    """Put the key with the control column in the place of the one without, on both."""
    built = sql.Identifier(kept.schema, working(key.name, OLD))
    if key.constraint_kind is None:
        deadline.execute(sql.SQL("DROP INDEX {}").format(kept.identifier()))
        deadline.execute(sql.SQL("ALTER INDEX {} RENAME TO {}").format(built, sql.Identifier(kept.name)))
    else:
        # The constraint is renamed with its index.
        deadline.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(old, sql.Identifier(kept.name)))
        deadline.execute(
            sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {} USING INDEX {}").format(
                old,
                sql.Identifier(kept.name),
                sql.SQL("PRIMARY KEY" if key.is_primary else "UNIQUE"),
                sql.Identifier(working(key.name, OLD)),
            )
        )
    add_index(deadline, table, key, key.name, control)


def _triggers(
    deadline: Deadline,
    facts: Facts,
    table: sql.Identifier,
    old: sql.Identifier,
    *,
    attached: bool,
) -> None:
    """Row triggers come to every partition by themselves; those for statements are for the table they are on."""
    for each in facts.triggers:
        name = sql.Identifier(each.name)
        if each.for_each_row and attached:
            deadline.execute(sql.SQL("DROP TRIGGER {} ON {}").format(name, old))
        deadline.execute(sql.SQL(each.definition))
        if each.enabled in _ENABLED:
            deadline.execute(
                sql.SQL("ALTER TABLE {} {} TRIGGER {}").format(table, sql.SQL(_ENABLED[each.enabled]), name)
            )
        _comment(deadline, sql.SQL("TRIGGER {} ON {}").format(name, table), each.comment)


def _rights(
    connection: psycopg.Connection[Any],
    deadline: Deadline,
    facts: Facts,
    table: sql.Identifier,
    *,
    parent_oid: int,
    partitions: list[RelationName],
) -> None:
    """Grants as they are now, row security, what tells a row in logical replication."""
    given = [Row(**row) for row in facts_sql.grants(connection, oid=Oid(parent_oid))]
    changed = {tuple(sorted(vars(each).items())) for each in given} != {
        tuple(sorted(vars(each).items())) for each in facts.grants
    }
    indexes = {each.name: each for each in facts.indexes if each.replica_identity}
    for target in (table, *(each.identifier() for each in partitions)):
        if changed:
            revoke_all(deadline, target, given)
            grant(deadline, target, facts.grants)
        for each in facts.policies:
            deadline.execute(_policy(target, each))
        for wanted, word in (
            (facts.table.row_security, "ENABLE"),
            (facts.table.forced_row_security, "FORCE"),
        ):
            if wanted:
                deadline.execute(
                    sql.SQL("ALTER TABLE {} {} ROW LEVEL SECURITY").format(target, sql.SQL(word))
                )
        if facts.table.replica_identity in {"f", "n"}:
            word = {"f": "FULL", "n": "NOTHING"}[facts.table.replica_identity]
            deadline.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}").format(target, sql.SQL(word)))
    for each in indexes.values():
        deadline.execute(
            sql.SQL("ALTER TABLE {} REPLICA IDENTITY USING INDEX {}").format(table, sql.Identifier(each.name))
        )


def _policy(target: sql.Identifier, policy: Row) -> sql.Composed:
    made = sql.SQL("CREATE POLICY {} ON {} AS {} FOR {} TO {}").format(
        sql.Identifier(policy.name),
        target,
        sql.SQL("PERMISSIVE" if policy.permissive else "RESTRICTIVE"),
        sql.SQL(_COMMANDS[policy.command]),
        sql.SQL(", ").join(sql.Identifier(each) if each else sql.SQL("PUBLIC") for each in policy.roles),
    )
    if policy.qualifier is not None:
        made += sql.SQL(" USING ({})").format(sql.SQL(policy.qualifier))
    if policy.with_check is not None:
        made += sql.SQL(" WITH CHECK ({})").format(sql.SQL(policy.with_check))
    return made


def _point_readers(connection: psycopg.Connection[Any], deadline: Deadline, facts: Facts) -> None:
    """Materialized views take their places; views and functions get the definition that they had."""
    for each in facts.matviews:
        with acting_as(connection, each.owner):
            rename(deadline, "MATERIALIZED VIEW", view_name(each), working(each.name, OLD))
            rename(deadline, "MATERIALIZED VIEW", beside(view_name(each)), each.name)
    for each in facts.views:
        options: sql.Composable = sql.SQL("")
        if each.options:
            pairs = [option.partition("=") for option in each.options]
            options = sql.SQL(" WITH ({})").format(
                sql.SQL(", ").join(
                    sql.SQL("{} = {}").format(sql.Identifier(key), sql.Literal(value))
                    for key, _, value in pairs
                )
            )
        with acting_as(connection, each.owner):
            deadline.execute(
                sql.SQL("CREATE OR REPLACE VIEW {} ({}){} AS {}").format(
                    view_name(each).identifier(),
                    sql.SQL(", ").join(map(sql.Identifier, each.columns)),
                    options,
                    sql.SQL(each.definition.rstrip().removesuffix(";")),
                )
            )
    for each in facts.bodies:
        with acting_as(connection, each.owner):
            deadline.execute(sql.SQL(each.definition))
    for each in reversed(facts.matviews):
        indexes = [row["name"] for row in facts_sql.indexes(connection, oid=Oid(each.oid))]
        with acting_as(connection, each.owner):
            deadline.execute(
                sql.SQL("DROP MATERIALIZED VIEW {}").format(
                    sql.Identifier(each.schema, working(each.name, OLD))
                )
            )
            for index in indexes:
                rename(deadline, "INDEX", RelationName(each.schema, working(index, NEW)), index)


def _comment(deadline: Deadline, on: sql.Composed, comment: str | None) -> None:
    if comment is not None:
        deadline.execute(sql.SQL("COMMENT ON {} IS {}").format(on, sql.Literal(comment)))
