"""The archive of a table: a table of the same name in another schema, and a view over both that shows every row once.

It has the table's columns and who may read them, but no indexes and constraints: partitions bring their own along. It
follows the table: a column that is added there is added here before the next partition moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import errors, sql
from psycopg.types.numeric import Oid

from fleet.errors import PermanentError
from fleet.names import MAX_IDENTIFIER_BYTES, RelationName
from fleet.postgres.patience import Deadline, patiently
from fleet.postgres.queries import load
from tasks.partitions.readers import Relation, carry_over, grants, read_readers, read_relation

_sql = load("tasks.partitions", "sql/archive.sql")

ARCHIVED_AT = "archived_at"
BATCH = "archive_batch_id"
OF_THE_ARCHIVE = (ARCHIVED_AT, BATCH)
# security_invoker came with 15: a view of 14 reads with its owner's rights, past row security.
INVOKER_VERSION = 150000


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column as the two tables must agree on it; `generated` is the expression, empty for an ordinary one."""

    name: str
    type: str
    not_null: bool
    collation: str = ""
    generated: str = ""


@dataclass(frozen=True, kw_only=True)
class Following:
    """What the archive lacks before it can take a partition of the table as that is now."""

    add: tuple[Column, ...] = ()
    nullable: tuple[str, ...] = ()
    """Columns that may be NULL in the table by now."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """Where the partitions of a table go."""

    oid: int
    name: RelationName
    view: RelationName


# What somebody who makes something in the archive at the same time brings about: its name, its range, rows of it.
IN_THE_WAY = (errors.DuplicateTable, errors.InvalidObjectDefinition, errors.CheckViolation)


def in_the_way(exc: psycopg.Error, *, what: RelationName, archive: RelationName) -> PermanentError:
    """Why the archive cannot take a partition; the server names what is there."""
    remedy = f"Detach that one from {archive}, or give it another range"
    if isinstance(exc, errors.DuplicateTable):
        remedy = "Rename that, if it is nothing of the archive's"
    elif isinstance(exc, errors.CheckViolation):
        remedy = f"Move these rows of it to where they belong, or detach it from {archive}"
    return PermanentError(f"{what} cannot go to {archive}: {exc.diag.message_primary}", remedy=remedy)


def place_of(table: RelationName, schema: str) -> tuple[RelationName, RelationName]:
    """The archive of a table, and the view over both.

    Raises:
        PermanentError: the view's name would be cut.
    """
    view = RelationName(schema, f"{table.name}_all")
    if len(view.name.encode()) > MAX_IDENTIFIER_BYTES:
        raise PermanentError(
            f"The view over {table} and its archive would be {view}, which is longer than {MAX_IDENTIFIER_BYTES} bytes",
            remedy='Rename the table, or write archive = "none" in its policy',
        )
    return RelationName(schema, table.name), view


def differences(
    table: RelationName, hot: Sequence[Column], archive: RelationName, archived: Sequence[Column]
) -> Following:
    """What has to be done to an archive so that it takes partitions of the table again.

    Raises:
        PermanentError: they differ in a way that nobody can follow without knowing what was meant.
    """
    there = {column.name: column for column in archived if column.name not in OF_THE_ARCHIVE}
    for column in hot:
        own = there.get(column.name)
        if own is None:
            if column.generated:
                raise PermanentError(
                    f"{table} has a generated column {column.name} that its archive {archive} lacks: "
                    "adding it would rewrite every archived row under a lock",
                    remedy=f"Add it to {archive} yourself when that may be locked, with the same expression",
                )
        elif (own.type, own.collation) != (column.type, column.collation):
            raise PermanentError(
                f"The column {column.name} is {_typed(column)} in {table} and {_typed(own)} in its archive {archive}",
                remedy=f"ALTER TABLE {archive} ALTER COLUMN {sql.Identifier(column.name).as_string()} "
                f"TYPE {_typed(column)}, which rewrites what is archived, when that may be locked",
            )
        elif own.generated != column.generated:
            raise PermanentError(
                f"The column {column.name} is generated differently in {table} and in its archive {archive}",
                remedy=f"Bring {archive} to the same expression",
            )
    gone = [name for name in there if name not in {column.name for column in hot}]
    if gone:
        quoted = sql.Identifier(gone[0]).as_string()
        raise PermanentError(
            f"The archive {archive} has a column {gone[0]} that {table} has no longer",
            remedy=f"If it was renamed: ALTER TABLE {archive} RENAME COLUMN {quoted} TO …; "
            f"if its archived values may go: ALTER TABLE {archive} DROP COLUMN {quoted}",
        )
    return Following(
        add=tuple(column for column in hot if column.name not in there),
        nullable=tuple(
            column.name
            for column in hot
            if not column.not_null and column.name in there and there[column.name].not_null
        ),
    )


def view_columns(hot: Sequence[str], shown: Sequence[str]) -> tuple[list[str], bool]:
    """The view's columns in their order, and whether CREATE OR REPLACE will do (it only adds columns at the end)."""
    if not shown:
        return [*hot, *OF_THE_ARCHIVE], True
    known = {*hot, *OF_THE_ARCHIVE}
    if all(name in known for name in shown) and all(name in shown for name in OF_THE_ARCHIVE):
        return [*shown, *(name for name in hot if name not in shown)], True
    return [*hot, *OF_THE_ARCHIVE], False


def ensure(
    connection: psycopg.Connection[Any],
    table: RelationName,
    schema: str,
    *,
    budget: timedelta,
    partition_by: str = "",
) -> Archive:
    """The archive of a table and the view over both, made or brought up to the table where they are not.

    `partition_by`: a column, for a table that is not partitioned itself.

    Raises:
        PermanentError: it cannot be, with what to do about it; nothing was changed.
        TransientError: the archive was busy all the time.
    """
    name, view_name = place_of(table, schema)
    hot = read_relation(connection, table)
    if hot is None:
        raise PermanentError(f"There is no table {table}", remedy="Take it out of upkeep.toml")
    key: str = hot.partition_key or _sql.key_by(connection, column=partition_by)
    columns = read_columns(connection, hot.oid)
    taken = [column.name for column in columns if column.name in OF_THE_ARCHIVE]
    if taken:
        raise PermanentError(
            f"{table} has a column {taken[0]} itself, which the archive adds",
            remedy=f'Rename it, or write archive = "none" in the policy of {table}',
        )
    if hot.row_security and connection.info.server_version < INVOKER_VERSION:
        raise PermanentError(
            f"{table} has row security, and a view of PostgreSQL 14 over it and its archive would show every row",
            remedy='Upgrade to PostgreSQL 15 or later, or write archive = "none" in its policy',
        )
    archive = read_relation(connection, name)
    if archive is None:
        _prepare_schema(connection, schema, hot)
        _in_one(connection, _create(table, name, hot, key), [hot.oid], name, budget)
        archive = read_relation(connection, name)
        assert archive is not None  # committed a moment ago, under the table's lock
    _judge(table, hot, key, name, archive)
    # Before anything is changed: a difference that cannot be followed changes nothing.
    following = differences(table, columns, name, read_columns(connection, archive.oid))
    steps: list[sql.Composed] = []
    if following != Following():
        steps.append(_follow(name, following))
    steps += carry_over(connection, hot, archive, name)
    steps += _view(connection, table, hot, columns=columns, archive=name, name=view_name)
    _in_one(connection, steps, [archive.oid], name, budget)
    return Archive(oid=archive.oid, name=name, view=view_name)


def read_columns(connection: psycopg.Connection[Any], oid: int) -> list[Column]:
    """A relation's columns in their order."""
    return [Column(**row) for row in _sql.read_columns(connection, oid=Oid(oid))]


def _in_one(
    connection: psycopg.Connection[Any],
    steps: Sequence[sql.Composed],
    relations: Sequence[int],
    name: RelationName,
    budget: timedelta,
) -> None:
    if not steps:
        return

    def all_of_them(deadline: Deadline) -> None:
        for step in steps:
            deadline.execute(step)

    try:
        patiently(
            connection,
            all_of_them,
            budget=budget,
            relations=relations,
            doing=f"Bringing the archive {name} up to its table",
        )
    except errors.InsufficientPrivilege as exc:
        raise PermanentError(
            f"The archive {name} cannot be made or changed: {exc.diag.message_primary}",
            remedy="The fleet's role must be a member of the table's owner, and may create in that schema",
        ) from exc
    except errors.DependentObjectsStillExist as exc:
        raise PermanentError(
            f"The view over {name} and its table must be made anew, and something depends on it: "
            f"{exc.diag.message_detail}",
            remedy="Drop the view with what depends on it (CASCADE); Upkeep makes the view again",
        ) from exc


def _judge(table: RelationName, hot: Relation, key: str, name: RelationName, archive: Relation) -> None:
    if archive.kind != "p" or archive.partition_key != key:
        raise PermanentError(
            f"{name}, the archive of {table}, is not partitioned by {key}",
            remedy="It was made by somebody else: rename it, or name another archive_schema",
        )
    if archive.owner != hot.owner or not archive.may_alter:
        raise PermanentError(
            f"{name}, the archive of {table}, belongs to {archive.owner} and not to {hot.owner}",
            remedy=_statement("ALTER TABLE {} OWNER TO {}", name.identifier(), sql.Identifier(hot.owner)),
        )


def _prepare_schema(connection: psycopg.Connection[Any], schema: str, hot: Relation) -> None:
    """The archive's schema, made where the role may."""
    owner = sql.Identifier(hot.owner)
    stands = _sql.read_schema(connection, schema=schema, owner=hot.owner)
    make = sql.SQL("CREATE SCHEMA {} AUTHORIZATION {}").format(sql.Identifier(schema), owner)
    if not stands["found"]:
        refused = PermanentError(
            f"There is no schema {schema} for the archive, and the role {stands['role']} may not create it",
            remedy=f"{make.as_string()};",
        )
        if not stands["may_create"]:
            raise refused
        try:
            connection.execute(make)
        except errors.DuplicateSchema:
            pass
        except errors.InsufficientPrivilege:
            raise refused from None
        return
    for who, may in ((stands["role"], stands["we_may"]), (hot.owner, stands["owner_may"])):
        if not may:
            raise PermanentError(
                f"The role {who} may not create in the schema {schema} of the archive",
                remedy=_statement(
                    "GRANT USAGE, CREATE ON SCHEMA {} TO {}", sql.Identifier(schema), sql.Identifier(who)
                ),
            )


def _create(table: RelationName, name: RelationName, hot: Relation, key: str) -> list[sql.Composed]:
    return [
        sql.SQL(
            "CREATE TABLE {} (LIKE {} INCLUDING GENERATED INCLUDING STORAGE INCLUDING COMPRESSION"
            " INCLUDING COMMENTS, {} timestamptz NOT NULL, {} uuid NOT NULL) PARTITION BY {}"
        ).format(
            name.identifier(),
            table.identifier(),
            sql.Identifier(ARCHIVED_AT),
            sql.Identifier(BATCH),
            sql.SQL(key),
        ),
        sql.SQL("ALTER TABLE {} OWNER TO {}").format(name.identifier(), sql.Identifier(hot.owner)),
        sql.SQL("COMMENT ON TABLE {} IS {}").format(
            name.identifier(),
            sql.Literal(
                f"Archive of {table}: its partitions are moved here by Upkeep when they are no longer hot. "
                f"{place_of(table, name.schema)[1]} shows both. Each batch is in upkeep.archive_batch."
            ),
        ),
    ]


def _follow(name: RelationName, following: Following) -> sql.Composed:
    actions: list[sql.Composable] = []
    for column in following.add:
        # What was archived before has no value for it, so that NOT NULL stays behind.
        collation = (
            sql.SQL(" COLLATE {}").format(sql.SQL(column.collation)) if column.collation else sql.SQL("")
        )
        actions.append(
            sql.SQL("ADD COLUMN {} {}{}").format(sql.Identifier(column.name), sql.SQL(column.type), collation)
        )
    actions += [
        sql.SQL("ALTER COLUMN {} DROP NOT NULL").format(sql.Identifier(each)) for each in following.nullable
    ]
    return sql.SQL("ALTER TABLE {} {}").format(name.identifier(), sql.SQL(", ").join(actions))


def _view(
    connection: psycopg.Connection[Any],
    table: RelationName,
    hot: Relation,
    *,
    columns: Sequence[Column],
    archive: RelationName,
    name: RelationName,
) -> list[sql.Composed]:
    """What makes the view over both, where it is not as it should be."""
    stands = read_relation(connection, name)
    if stands is not None and stands.kind != "v":
        raise PermanentError(
            f"{name} is no view, but what shows {table} and its archive would have that name",
            remedy="Rename it, or name another archive_schema",
        )
    names = [column.name for column in columns]
    shown = [] if stands is None else [column.name for column in read_columns(connection, stands.oid)]
    wanted, replaceable = view_columns(names, shown)
    as_reader = connection.info.server_version >= INVOKER_VERSION
    readers = read_readers(connection, hot.oid)
    if stands is not None and shown == wanted and stands.as_reader == as_reader and stands.owner == hot.owner:
        return grants(name, readers - read_readers(connection, stands.oid))
    steps: list[sql.Composed] = []
    if stands is not None and not replaceable:
        drop = sql.SQL("DROP VIEW {}").format(name.identifier())
        steps.append(drop)
    text = _select_both(table, archive, name, wanted, as_reader=as_reader)
    owner = sql.SQL("ALTER VIEW {} OWNER TO {}").format(name.identifier(), sql.Identifier(hot.owner))
    comment = sql.SQL("COMMENT ON VIEW {} IS {}").format(
        name.identifier(), sql.Literal(f"Every row of {table}, archived or not, once. Made by Upkeep.")
    )
    steps += [text, owner, comment]
    # A column that is not there yet has no grants in the view.
    steps += grants(name, {each for each in readers if not each.column or each.column in wanted})
    return steps


def _select_both(
    table: RelationName, archive: RelationName, name: RelationName, columns: Sequence[str], *, as_reader: bool
) -> sql.Composed:
    missing = {ARCHIVED_AT: "NULL::timestamptz AS {}", BATCH: "NULL::uuid AS {}"}
    return sql.SQL("CREATE OR REPLACE VIEW {}{} AS SELECT {} FROM {} UNION ALL SELECT {} FROM {}").format(
        name.identifier(),
        sql.SQL(" WITH (security_invoker = true)" if as_reader else ""),
        sql.SQL(", ").join(sql.SQL(missing.get(each, "{}")).format(sql.Identifier(each)) for each in columns),
        table.identifier(),
        sql.SQL(", ").join(sql.Identifier(each) for each in columns),
        archive.identifier(),
    )


def _typed(column: Column) -> str:
    return f"{column.type} COLLATE {column.collation}" if column.collation else column.type


def _statement(text: str, *parts: sql.Composable) -> str:
    return sql.SQL(text).format(*parts).as_string() + ";"


__all__ = [
    "ARCHIVED_AT",
    "BATCH",
    "IN_THE_WAY",
    "Archive",
    "Column",
    "Following",
    "differences",
    "ensure",
    "in_the_way",
    "place_of",
    "read_columns",
    "view_columns",
]
