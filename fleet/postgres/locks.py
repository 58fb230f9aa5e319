"""Advisory locks: one piece of work at a time per run, relation and place, freed by the server when a worker dies.

Always session locks on the connection that does the work, and always polled: a waiter in pg_advisory_lock
deadlocks with REINDEX CONCURRENTLY (40P01), because its statement holds a snapshot while it waits.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

MIGRATION = "upkeep/migration"

# A poll costs one round trip (about 0.1 ms); fifty a second is noticed by nobody and delays a refresh by 20
# ms at most.
POLL_S = 0.02


def run_key(run_id: int) -> str:
    """Held by the worker that executes a run; the reaper looks for exactly this one."""
    return f"upkeep/run/{run_id}"


def relation_key(oid: int) -> str:
    """Held while a relation is worked on: refresh, maintenance and partition work exclude each other by it."""
    return f"upkeep/relation/{oid}"


def slot_key(number: int) -> str:
    """One of the database's `max_parallel_refreshes` places."""
    return f"upkeep/refresh-slot/{number}"


def try_acquire(connection: psycopg.Connection[Any], key: str) -> bool:
    """Take a lock if it is free, without waiting. Locks of one session nest: release as often as you took."""
    row = connection.execute(
        "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended(%s, 0))", (key,)
    ).fetchone()
    return row is not None and bool(row[0])


def acquire_within(connection: psycopg.Connection[Any], key: str, *, timeout_s: float) -> bool:
    """Poll for a lock until it is ours or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not try_acquire(connection, key):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def release(connection: psycopg.Connection[Any], *keys: str) -> None:
    """Give locks back, in one round trip; on a broken connection the server has done so already.

    Where a statement was left running (a time limit struck while we waited for it), only closing the
    connection helps, which is left to whoever has it.
    """
    busy = connection.info.transaction_status is TransactionStatus.ACTIVE
    if keys and not connection.closed and not connection.broken and not busy:
        connection.execute(
            "SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended(key, 0))"
            " FROM pg_catalog.unnest(%s::text[]) AS key",
            (list(keys),),
        )
