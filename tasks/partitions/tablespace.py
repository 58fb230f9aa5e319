"""The archive's tablespace: PostgreSQL copies a table to bring it there, while nobody can read it.

So it is done after the move, when nobody but readers of the archive can feel it, for one leaf at a time, and never
waits long for its lock. While one is copied its readers wait, and nobody else does. Turned
down: before the move, when the table is still hot, and with the rows written a second time by INSERT.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.patience import Deadline, patiently
from fleet.postgres.queries import load
from fleet.settings.partitions import PartitionSet
from tasks.partitions.leaving import Member, read, read_members

_sql = load("tasks.partitions", "sql/move.sql")

LONGEST_COPY = "1h"


def settle(connection: psycopg.Connection[Any], policy: PartitionSet, archived: RelationName) -> int:
    """Bring a partition in the archive to the archive's tablespace, leaf by leaf; returns how many were not there."""
    wanted = policy.archive_tablespace
    if wanted is None:
        return 0
    row = read(connection, archived)
    if row is None:
        return 0
    done = 0
    for member in read_members(connection, row["oid"]):
        if member.tablespace == wanted or member.kind == "p":
            continue
        _copy(connection, policy, member, wanted)
        done += 1
    return done


def _copy(connection: psycopg.Connection[Any], policy: PartitionSet, member: Member, tablespace: str) -> None:
    indexes = [row["name"] for row in _sql.read_indexes(connection, oid=Oid(member.oid))]

    def copy(deadline: Deadline) -> None:
        deadline.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(member.name.identifier()))
        # The lock is ours: what is left to wait for is the copy.
        _sql.unhurried(connection, longest=LONGEST_COPY)
        connection.execute(
            sql.SQL("ALTER TABLE {} SET TABLESPACE {}").format(
                member.name.identifier(), sql.Identifier(tablespace)
            )
        )
        for index in indexes:
            connection.execute(
                sql.SQL("ALTER INDEX {} SET TABLESPACE {}").format(
                    sql.Identifier(member.name.schema, index), sql.Identifier(tablespace)
                )
            )

    patiently(
        connection,
        copy,
        budget=policy.lock_budget,
        relations=[member.oid],
        doing=f"Copying {member.name} to the tablespace {tablespace}",
    )


__all__ = ["settle"]
