"""Tables whose rows move with the rows that they refer to: before them, or in the same transaction as partitions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.types.numeric import Oid

from fleet.errors import PermanentError
from fleet.names import MAX_IDENTIFIER_BYTES, RelationName
from fleet.postgres.catalog.partitions import Partition, PartitionedTable, Range, read_partitioned
from fleet.postgres.patience import Deadline, patiently
from fleet.postgres.queries import load
from fleet.settings.partitions import PartitionSet
from tasks.partitions import archive as archives
from tasks.partitions.archive import ARCHIVED_AT, BATCH, Archive
from tasks.partitions.batches import Transfer, transfer
from tasks.partitions.foreign_keys import covers, refuse_destructive

_sql = load("tasks.partitions", "sql/companions.sql")
_move = load("tasks.partitions", "sql/move.sql")

# Without an index every batch reads all of the table.
READ_IN_TIME = 20_000
_MODIFIER = re.compile(r"\(\d+(,\d+)?\)")


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A companion whose rows move one by one; `column` holds the control column of what they refer to."""

    name: RelationName
    oid: int
    owner: str
    column: str


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """A companion whose partition of the same range moves as it is, in the same transaction."""

    table: PartitionedTable
    policy: PartitionSet
    partition: Partition


@dataclass(frozen=True, kw_only=True)
class Companions:
    """What moves with a partition."""

    plain: tuple[Plain, ...] = ()
    aligned: tuple[Aligned, ...] = ()


def look(
    connection: psycopg.Connection[Any],
    policies: Mapping[RelationName, PartitionSet],
    policy: PartitionSet,
    table: PartitionedTable,
    range_: Range,
) -> Companions:
    """The companions that a policy names, as they are.

    Raises:
        PermanentError: one is not there, or cannot be moved as it is.
    """
    plain, aligned = [], []
    control = policy.column or table.key[0]
    for name in policy.companions:
        column = next(
            (
                dict(zip(key.referenced_columns, key.columns, strict=True))[control]
                for key in table.foreign_keys
                if key.referencing == name
                and key.referenced == table.name
                and control in key.referenced_columns
            ),
            control,
        )
        row = _sql.read_table(connection, schema=name.schema, name=name.name, column=column)
        if row is None or row["kind"] not in ("r", "p"):
            raise PermanentError(
                f"There is no table {name}, a companion of {table.name}",
                remedy=f"Take it out of companions in the policy of {table.name}",
            )
        if not row["has_column"]:
            raise PermanentError(
                f"{name}, a companion of {table.name}, has no column {column}",
                remedy=f"It needs a foreign key to {table.name}, or a column {control} with the same meaning",
            )
        if row["kind"] == "p":
            partition = _aligned(connection, policies, table, name, range_)
            if partition is not None:
                aligned.append(partition)
            continue
        if row["rows"] > READ_IN_TIME and not row["indexed"]:
            raise PermanentError(
                f"{name}, a companion of {table.name}, has {row['rows']:,} rows and no index that begins with {column}",
                remedy=f"CREATE INDEX CONCURRENTLY ON {name} ({sql.Identifier(column).as_string()})",
            )
        if row["type"] != _MODIFIER.sub("", table.control_type_name):
            raise PermanentError(
                f"{name}.{column} is of type {row['type']}, "
                f"and the control column of {table.name} of {table.control_type_name}",
                remedy="Give both the same type",
            )
        refuse_destructive(connection, row["oid"], name)
        plain.append(Plain(name=name, oid=row["oid"], owner=row["owner"], column=column))
    return Companions(plain=tuple(plain), aligned=tuple(aligned))


def _aligned(
    connection: psycopg.Connection[Any],
    policies: Mapping[RelationName, PartitionSet],
    table: PartitionedTable,
    name: RelationName,
    range_: Range,
) -> Aligned | None:
    policy = policies.get(name)
    if policy is None or policy.archive == "none":
        raise PermanentError(
            f"{name}, a companion of {table.name}, is partitioned and has no policy that says where its partitions go",
            remedy=f"Declare a policy for {name} with an archive, like that of {table.name}",
        )
    own = read_partitioned(connection, [name])[name]
    partition = next((each for each in own.partitions if each.range == range_), None)
    return None if partition is None else Aligned(table=own, policy=policy, partition=partition)


def child_name(
    companion: RelationName, *, table: RelationName, partition: RelationName, schema: str
) -> RelationName:
    """What the archive's partition of a plain companion is called: as the table's partition is.

    Raises:
        PermanentError: longer than PostgreSQL keeps.
    """
    own = partition.name.removeprefix(table.name)
    suffix = own if own != partition.name else f"_{partition.name}"
    name = RelationName(schema, companion.name + suffix)
    if len(name.name.encode()) > MAX_IDENTIFIER_BYTES:
        raise PermanentError(
            f"The archived rows of {companion} would go to {name}, which is longer than {MAX_IDENTIFIER_BYTES} bytes",
            remedy=f"Rename {companion}, or the partition {partition}",
        )
    return name


def ensure_child(
    connection: psycopg.Connection[Any],
    companion: Plain,
    archive: Archive,
    name: RelationName,
    *,
    bound: str,
    budget: timedelta,
) -> RelationName:
    """The archive's partition for the rows of one range: made like the table, in one transaction, where it is not.

    ATTACH keeps no reader out, and a transaction that has read the archive before may go on with the partitions that
    it knows: READ COMMITTED as well, because PostgreSQL hears of changes when it takes a lock that it does not hold
    yet. Its next statement would find the rows that move neither here nor there. So everybody who has a lock on the
    archive is waited for, and whoever comes later sees the partition. On a standby, too: this kind of lock goes there.
    """
    with connection.transaction(force_rollback=True):
        _move.print_plainly(connection)
        row = _sql.read_child(connection, oid=Oid(archive.oid), bound=bound)
    if row is not None:
        return RelationName(row["schema"], row["name"])
    if list(_move.taken(connection, schema=name.schema, names=[name.name])):
        raise PermanentError(
            f"{name} is there, and is not the archive's partition for these rows of {companion.name}",
            remedy="Rename it",
        )

    def make(deadline: Deadline) -> None:
        deadline.execute(
            sql.SQL(
                "CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING IDENTITY, {} timestamptz NOT NULL, {} uuid NOT NULL)"
            ).format(
                name.identifier(),
                companion.name.identifier(),
                sql.Identifier(ARCHIVED_AT),
                sql.Identifier(BATCH),
            )
        )
        deadline.execute(
            sql.SQL("ALTER TABLE {} OWNER TO {}").format(name.identifier(), sql.Identifier(companion.owner))
        )
        deadline.execute(
            sql.SQL("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE").format(archive.name.identifier())
        )
        deadline.execute(
            sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(
                archive.name.identifier(), name.identifier(), sql.SQL(bound)
            )
        )

    try:
        patiently(
            connection, make, budget=budget, relations=[archive.oid], doing=f"Making {name} in the archive"
        )
    except archives.IN_THE_WAY as exc:
        raise archives.in_the_way(exc, what=name, archive=archive.name) from exc
    return name


def move_rows(
    connection: psycopg.Connection[Any],
    companion: Plain,
    archive: Archive,
    *,
    range_: Range,
    batch: UUID,
    at: datetime,
    budget: timedelta,
    before: Callable[[], object],
    after: Callable[[int], object],
) -> int:
    """All rows of a range into the archive; returns how many."""
    columns = [each.name for each in archives.read_columns(connection, companion.oid) if not each.generated]
    return transfer(
        connection,
        Transfer(
            source=companion.name,
            target=archive.name,
            columns=columns,
            condition=covers(companion.column, range_),
            batch=batch,
            at=at,
            budget=budget,
            before=before,
            after=after,
        ),
    )


__all__ = ["Aligned", "Companions", "Plain", "child_name", "ensure_child", "look", "move_rows"]
