"""Detaches that somebody has begun and not ended."""

from __future__ import annotations

from functools import partial
from typing import Any

import psycopg
from psycopg import sql

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import PartitionedTable
from fleet.postgres.patience import Deadline, patiently
from fleet.settings.partitions import PartitionSet


def finalize_pending(
    connection: psycopg.Connection[Any], table: PartitionedTable, policy: PartitionSet
) -> tuple[RelationName, ...]:
    """End detaches that somebody's interrupted DETACH … CONCURRENTLY has left pending; nothing else can be detached.

    What they detached becomes a table of its own, as whoever began it wanted.

    Raises:
        TransientError: somebody's snapshot is older, all the time.
    """
    done = []
    for each in table.partitions:
        if each.detach_pending:
            statement = sql.SQL("ALTER TABLE {} DETACH PARTITION {} FINALIZE").format(
                table.name.identifier(), each.name.identifier()
            )
            patiently(
                connection,
                partial(_execute, statement),
                budget=policy.lock_budget,
                relations=[table.oid, each.oid],
                doing=f"Finalizing the detach of {each.name}",
            )
            done.append(each.name)
    return tuple(done)


def _execute(statement: sql.Composed, deadline: Deadline) -> None:
    deadline.execute(statement)


__all__ = ["finalize_pending"]
