"""The locks of a refresh: polled, and all given back at its end.

A waiter in pg_advisory_lock would deadlock with REINDEX CONCURRENTLY.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import psycopg

from fleet.postgres import locks

# Longer would keep a worker's place from other work; the run is handed back and another worker finishes it.
BUSY_WAIT_S = 3.0
# What is busy with a skip is free again in milliseconds, what is busy with a refresh in seconds: look often at first.
FIRST_POLL_S = 0.004
LAST_POLL_S = 0.1


class Held(Enum):
    """How a lock was got: without waiting, after waiting, not at all."""

    AT_ONCE = 1
    AFTER_WAITING = 2
    NOT = 3


@dataclass
class Holding:
    """How the relation's lock was got, and every lock to be given back after the work."""

    relation: Held
    keys: list[str]

    def take_place(self, connection: psycopg.Connection[Any], places: int) -> bool:
        """One of the database's places for refreshes, waited for briefly; given back with the relation."""
        keys = [locks.slot_key(n) for n in range(places)]
        deadline = time.monotonic() + BUSY_WAIT_S
        waits = pauses()
        while True:
            key = next((k for k in keys if locks.try_acquire(connection, k)), None)
            if key is not None:
                self.keys.append(key)
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(next(waits))


@contextmanager
def held(connection: psycopg.Connection[Any], key: str) -> Iterator[Holding]:
    """Hold a lock, if it can be got in a few seconds, for the length of the block."""
    how = Held.AT_ONCE
    if not locks.try_acquire(connection, key):
        how = Held.AFTER_WAITING if locks.acquire_within(connection, key, timeout_s=BUSY_WAIT_S) else Held.NOT
    holding = Holding(relation=how, keys=[] if how is Held.NOT else [key])
    try:
        yield holding
    finally:
        locks.release(connection, *holding.keys)


def pauses() -> Iterator[float]:
    """Between two looks at what is busy: short at first."""
    pause = FIRST_POLL_S
    while True:
        yield pause
        pause = min(2 * pause, LAST_POLL_S)
