"""Foreign keys that refer to a table whose partition leaves: nothing may refer to its rows, and the check is expensive.

DETACH joins the whole referencing table with the partition, under ACCESS EXCLUSIVE. The partition key is always among
a key's columns, so that our own question (does anything refer to this range?) is one look into an index. Where
PostgreSQL's check would take too long the key is dropped and added again as NOT VALID, in the transaction of the
DETACH and after our own look: every new row is checked at every moment, and VALIDATE follows while nobody waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg
from psycopg import errors, sql
from psycopg.types.numeric import Oid

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Range, Value
from fleet.postgres.patience import Deadline
from fleet.postgres.queries import load

_sql = load("tasks.partitions", "sql/foreign_keys.sql")
_move = load("tasks.partitions", "sql/move.sql")

# DETACH joins so many referencing rows with a partition in a tenth of the usual budget (1.5 M rows: 1.25 s).
JOINED_IN_TIME = 20_000
# NOT VALID foreign keys of partitioned tables came with 18.
PARTITIONED_NOT_VALID = 180000
COUNTED = 1000
VALIDATES_FOR = "1h"


class Way(StrEnum):
    """How a foreign key lets a partition of what it refers to go."""

    CHECKED = "checked"
    """By PostgreSQL, in the DETACH."""
    AGAIN = "again"
    """Dropped, and added again as NOT VALID."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A foreign key that refers to a partitioned table."""

    oid: int
    name: str
    table: RelationName
    table_oid: int
    kind: str
    may_alter: bool
    validated: bool
    on_delete: str
    columns: tuple[str, ...]
    column: str
    """Which of them holds the control column of what it refers to."""
    definition: str
    comment: str | None
    rows: int
    """About how many rows the referencing table has."""
    indexed: bool


def read_references(connection: psycopg.Connection[Any], table: int, control: str) -> list[Reference]:
    """The foreign keys that refer to a partitioned table, the tables in the order of their names."""
    with connection.transaction(force_rollback=True):
        _move.print_plainly(connection)
        return [
            Reference(
                table=RelationName(row.pop("schema"), row.pop("table_name")),
                table_oid=row.pop("referencing"),
                columns=tuple(row.pop("columns")),
                **row,
            )
            for row in _sql.read_references(connection, oid=Oid(table), control=control)
        ]


def way(reference: Reference, *, table: RelationName, table_oid: int, server_version: int) -> Way:
    """How it lets a partition go within a fifth of a second.

    Raises:
        PermanentError: it cannot.
    """
    if reference.table_oid == table_oid:
        raise PermanentError(
            f"{table} refers to itself ({reference.name}): a month that leaves cannot take along what refers to it",
            remedy=f"Drop the constraint {reference.name}, or put it between rows of the same partition",
        )
    if reference.rows <= JOINED_IN_TIME:
        return Way.CHECKED
    if not reference.may_alter:
        raise PermanentError(
            f"{reference.table} has {reference.rows:,} rows and refers to {table} ({reference.name}): DETACH would "
            "keep both locked for longer than lock_budget, and the fleet's role may not alter it",
            remedy=f"Grant the role membership in the owner of {reference.table}",
        )
    if not reference.indexed:
        column = sql.Identifier(reference.column).as_string()
        raise PermanentError(
            f"{reference.table} refers to {table} ({reference.name}) and has no index that begins with "
            f"{reference.column}: whether it refers to a range takes a look at all its {reference.rows:,} rows",
            remedy=f"CREATE INDEX CONCURRENTLY ON {reference.table} ({column})"
            if reference.kind == "r"
            else f"Create an index on {reference.table} ({column})",
        )
    if reference.kind != "r" and server_version < PARTITIONED_NOT_VALID:
        raise PermanentError(
            f"{reference.table} is partitioned, has {reference.rows:,} rows and refers to {table} ({reference.name}): "
            "before PostgreSQL 18 its foreign key cannot be added as NOT VALID, and DETACH would take too long",
            remedy=f"Drop {reference.name}, and add one from each of its partitions to the partition of {table}",
        )
    return Way.AGAIN


def covers(column: str, range_: Range) -> sql.Composable:
    """The condition that a value lies in a range."""
    return between(column, range_.lower, range_.upper)


def between(column: str, lower: Value | str | None, upper: Value | str | None) -> sql.Composable:
    """The same with bounds that may be text, which PostgreSQL reads as the column's type."""
    name = sql.Identifier(column)
    found: list[sql.Composable] = [sql.SQL("{} IS NOT NULL").format(name)]
    if lower is not None:
        found.append(sql.SQL("{} >= {}").format(name, sql.Literal(lower)))
    if upper is not None:
        found.append(sql.SQL("{} < {}").format(name, sql.Literal(upper)))
    return sql.SQL("({})").format(sql.SQL(" AND ").join(found))


def _referring(reference: Reference, range_: Range) -> sql.Composed:
    # With a NULL in one of its columns a row refers to nothing.
    nulls = [
        sql.SQL("{} IS NOT NULL").format(sql.Identifier(each))
        for each in reference.columns
        if each != reference.column
    ]
    return sql.SQL("FROM {} WHERE {}").format(
        reference.table.identifier(), sql.SQL(" AND ").join([covers(reference.column, range_), *nulls])
    )


def refuse_referred(
    connection: psycopg.Connection[Any],
    references: Iterable[Reference],
    range_: Range,
    *,
    partition: RelationName,
) -> None:
    """Look whether anything refers to a range, and how much.

    Raises:
        PermanentError: something does; with counts for each table.
    """
    found = []
    for reference in references:
        with connection.transaction(force_rollback=True):
            _move.without_row_security(connection)
            _sql.index_alone(connection)
            row = connection.execute(
                sql.SQL("SELECT count(*) FROM (SELECT {} LIMIT {}) AS referring").format(
                    _referring(reference, range_), sql.Literal(COUNTED)
                )
            ).fetchone()
            assert row is not None  # an aggregate
            if not row[0]:
                continue
            first = connection.execute(
                sql.SQL("SELECT ({})::text {} LIMIT 1").format(
                    sql.SQL(", ").join(sql.Identifier(each) for each in reference.columns)
                    if len(reference.columns) == 1
                    else sql.SQL("ROW({})").format(
                        sql.SQL(", ").join(sql.Identifier(each) for each in reference.columns)
                    ),
                    _referring(reference, range_),
                )
            ).fetchone()
        count = f"{row[0]:,}" + (" or more" if row[0] == COUNTED else "")
        sample = f", as {first[0]}" if first is not None else ""
        found.append(f"{count} of {reference.table} ({reference.name}{sample})")
    if found:
        raise PermanentError(
            f"Rows of {partition} are referred to: {'; '.join(found)}",
            remedy="Name these tables in companions, so that their rows move first (those of a partition that has not "
            "moved itself wait for that); or delete these rows",
        )


def refers_under_lock(
    deadline: Deadline, connection: psycopg.Connection[Any], reference: Reference, range_: Range
) -> bool:
    """The same question with the locks held, in what is left of their time."""
    _sql.index_alone(connection)
    row = deadline.execute(
        sql.SQL("SELECT EXISTS (SELECT {})").format(_referring(reference, range_))
    ).fetchone()
    assert row is not None  # an expression
    return bool(row[0])


def drop(deadline: Deadline, reference: Reference) -> None:
    """Take the foreign key away, in the transaction that adds it again."""
    deadline.execute(
        sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
            reference.table.identifier(), sql.Identifier(reference.name)
        )
    )


def add_again(deadline: Deadline, connection: psycopg.Connection[Any], reference: Reference) -> None:
    """Put it back with everything that it had, unchecked for the rows that are there."""
    definition = reference.definition.removesuffix(" NOT VALID")
    deadline.execute(
        sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {} NOT VALID").format(
            reference.table.identifier(), sql.Identifier(reference.name), sql.SQL(definition)
        )
    )
    if reference.comment is not None:
        deadline.execute(
            sql.SQL("COMMENT ON CONSTRAINT {} ON {} IS {}").format(
                sql.Identifier(reference.name),
                reference.table.identifier(),
                sql.Literal(reference.comment),
            )
        )
    if reference.validated:
        _sql.remember(connection, table_name=str(reference.table), name=reference.name)


def validate(connection: psycopg.Connection[Any]) -> list[str]:
    """Validate what moves have left NOT VALID, this one or one that was killed; readers and writers go on meanwhile.

    Raises:
        PermanentError: rows are there that refer to nothing.
    """
    done = []
    for row in list(_sql.read_unvalidated(connection)):
        if row["validated"] is False:
            table = RelationName(row["schema"], row["relation"])
            try:
                with connection.transaction():
                    _move.unhurried(connection, longest=VALIDATES_FOR)
                    connection.execute(
                        sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(
                            table.identifier(), sql.Identifier(row["name"])
                        )
                    )
            except errors.ForeignKeyViolation as exc:
                raise PermanentError(
                    f"The foreign key {row['name']} of {table} does not hold: {exc.diag.message_detail}",
                    remedy=f"Mend these rows; then: ALTER TABLE {table} VALIDATE CONSTRAINT {row['name']}",
                ) from exc
            done.append(f"{table}: {row['name']}")
        _sql.forget(connection, table_name=row["table_name"], name=row["name"])
    return done


def drop_own(
    deadline: Deadline, connection: psycopg.Connection[Any], table: int, name: RelationName, referenced: int
) -> None:
    """Take away a detached companion's foreign keys to the table whose partition leaves next: both are archived."""
    for row in list(_sql.own_references(connection, oid=Oid(table), referenced=Oid(referenced))):
        deadline.execute(
            sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                name.identifier(), sql.Identifier(row["name"])
            )
        )


def refuse_destructive(
    connection: psycopg.Connection[Any], oid: int, table: RelationName, ignored: Sequence[RelationName] = ()
) -> None:
    """Stop before rows are deleted here where that would delete or change rows elsewhere.

    Raises:
        PermanentError: names the foreign key.
    """
    for row in _sql.destructive(connection, oid=Oid(oid)):
        other = RelationName(row["schema"], row["table_name"])
        if other not in ignored:
            raise PermanentError(
                f"Rows of {table} cannot be moved: that deletes them here, and {row['name']} of {other} would delete "
                "or change what refers to them",
                remedy=f"Make {row['name']} ON DELETE NO ACTION, or name {other} as a companion of its own",
            )


__all__ = [
    "Reference",
    "Way",
    "add_again",
    "between",
    "covers",
    "drop",
    "drop_own",
    "read_references",
    "refers_under_lock",
    "refuse_destructive",
    "refuse_referred",
    "validate",
    "way",
]
