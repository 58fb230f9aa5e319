"""Looks at a table that is to be converted, or at a conversion under way, and plans; changes nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import ControlType, Value
from tasks.partitions.convert.facts import Facts, facts_sql, look, working
from tasks.partitions.convert.parent import default_name
from tasks.partitions.convert.plan import Asked, Extent, Plan, beside, control_type, judge, plan
from tasks.partitions.convert.state import Conversion, busy, read_open, state_sql


def measure(connection: psycopg.Connection[Any], facts: Facts, asked: Asked) -> Extent:
    """What the control column holds; reads the table, unless an index on the column answers."""
    column, table = sql.Identifier(asked.column), facts.name.identifier()
    control = control_type(facts, asked)
    finite: sql.Composable = sql.SQL("true")
    if control in {ControlType.DATE, ControlType.TIMESTAMP, ControlType.TIMESTAMPTZ}:
        finite = sql.SQL("pg_catalog.isfinite({})").format(column)

    def ask(what: sql.Composable, where: sql.Composable) -> Any:
        row = connection.execute(sql.SQL("SELECT {} FROM {} WHERE {}").format(what, table, where)).fetchone()
        return None if row is None else row[0]

    end = sql.SQL("(SELECT {} FROM {} WHERE {} IS NOT NULL AND {} ORDER BY {} {} LIMIT 1)")
    described = facts.column(asked.column)
    assert described is not None
    try:
        lowest, highest = (
            ask(end.format(column, table, column, finite, column, sql.SQL(way)), sql.SQL("true LIMIT 1"))
            for way in ("ASC", "DESC")
        )
    except psycopg.DataError as exc:
        raise PermanentError(
            f"A value of {asked.column} is before year 1 or after 9999: {exc}", remedy="Mend it"
        ) from exc
    nulls = 0
    if not described.not_null:
        nulls = ask(sql.SQL("pg_catalog.count(*)"), sql.SQL("{} IS NULL").format(column))
    infinite = 0
    if control is not ControlType.INTEGER and control is not ControlType.UUID:
        infinite = ask(sql.SQL("pg_catalog.count(*)"), sql.SQL("{} = 'infinity'").format(column))
    return Extent(lowest=lowest, highest=highest, nulls=nulls, infinite=infinite)


def _parsed(written: str | None, control: ControlType | None) -> Value | None:
    if written is None:
        return None
    match control:
        case ControlType.DATE:
            return date.fromisoformat(written)
        case ControlType.INTEGER:
            return int(written)
        case ControlType.UUID:
            return UUID(written)
        case _:
            return datetime.fromisoformat(written)


def look_at(
    connection: psycopg.Connection[Any], name: RelationName, asked: Asked | None
) -> tuple[Plan, Conversion | None]:
    """The plan of a conversion that is under way, or of one to begin; no effect.

    Raises:
        PermanentError: another one is under way, there is no such table, or nothing was asked for.
    """
    conversion = read_open(connection)
    if conversion is not None:
        if conversion.table_name != str(name):
            raise busy(conversion)
        begun = Asked.restored(name, conversion.how, conversion.asked)
        if asked is not None and (asked.how, asked.column) != (begun.how, begun.column):
            raise PermanentError(
                f"The conversion of {name} was begun with --how {begun.how} --column {begun.column}",
                remedy="Go on with these, or undo it with --back first",
            )
        asked = begun
    if asked is None:
        raise PermanentError(
            f"No conversion of {name} is under way", remedy="Begin one with --column, --interval and --how"
        )
    facts = look(connection, name, asked.column)
    if facts is None:
        raise PermanentError(f"There is no table {name}", remedy="Write it as schema.table, as \\dt shows it")
    if conversion is not None:
        facts.table.is_partition = facts.table.has_parent = False
    extent = Extent()
    begun_with_parent = conversion is not None and "parent" in conversion.steps
    if not judge(facts, asked) and not begun_with_parent:
        extent = measure(connection, facts, asked)
    clock = state_sql.clock(connection).astimezone(UTC)
    boundary = _parsed(conversion.boundary if conversion else None, control_type(facts, asked))
    planned = plan(facts, asked, extent, clock=clock, boundary=boundary)
    if conversion is None and not planned.refused:
        _refuse_taken(connection, planned)
    return planned, conversion


def _refuse_taken(connection: psycopg.Connection[Any], planned: Plan) -> None:
    facts = planned.facts
    assert planned.kept_as is not None
    wanted = {
        facts.name.schema: [
            planned.kept_as.name,
            beside(facts.name).name,
            default_name(facts).name,
            *(name.name for name, _ in planned.ranges),
            *(working(each.name) for each in facts.indexes),
        ]
    }
    for each in facts.matviews:
        wanted.setdefault(each.schema, []).append(working(each.name))
    for schema, names in wanted.items():
        taken = [row["name"] for row in facts_sql.taken(connection, schema=schema, names=names)]
        if taken:
            raise PermanentError(
                f"The conversion needs the name {RelationName(schema, taken[0])}, which is in use",
                remedy="Rename what has it, or choose another partition_name",
            )
