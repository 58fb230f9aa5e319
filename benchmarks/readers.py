"""Readers at a fixed pace, in a process of their own: what users feel while something goes on.

A read is timed from the moment at which it was due, not from when it was sent: one that waits behind a late
one has waited as well, and a client that stops asking while it is blocked would hide exactly what is looked
for.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.timing import percentile
from fleet.names import RelationName

PER_SECOND = 50
ROWS_READ = 10
STOP_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Somebody who reads a view; `hold_s`: a slow one, who keeps it open for so long and is not timed."""

    url: str
    view: str
    hold_s: float = 0.0


@dataclass(kw_only=True)
class Waits:
    """Milliseconds that readers waited, by view."""

    by_view: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def all(self) -> list[float]:
        """Of all views together."""
        return [wait for waits in self.by_view.values() for wait in waits]

    def worst(self, view: str | None = None) -> float | None:
        """The longest one, of a view or of all."""
        return max(self.by_view.get(view, []) if view else self.all, default=None)

    def share(self, share: float) -> float | None:
        """What that share of the reads did not exceed."""
        return percentile(self.all, share) if self.all else None


@contextmanager
def reading(readers: Sequence[Reader]) -> Iterator[Waits]:
    """Let them read while the block runs; the waits are there once it has ended.

    Raises:
        RuntimeError: a reader got an error.
        EOFError: the readers' process died.

    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_read_all, args=(theirs, readers), name="readers", daemon=True)
    process.start()
    # Only the readers hold it now: if they die, what we read is an end, and not nothing for ever.
    theirs.close()
    waits = Waits()
    try:
        said = ours.recv()
        if said != "ready":
            raise RuntimeError(f"the readers did not start: {said}")
        yield waits
        ours.send("stop")
        if not ours.poll(STOP_S):
            raise RuntimeError("the readers did not stop")
        found, errors = ours.recv()
        if errors:
            raise RuntimeError(f"readers failed: {'; '.join(errors)}")
        waits.by_view = found
    finally:
        process.kill()
        process.join()


class _Desk:
    """What the threads of one process share."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers
        self.stop = threading.Event()
        self.connected = threading.Barrier(len(readers) + 1)
        self.found: dict[str, list[float]] = {}
        self.errors: list[str] = []

    def read(self, number: int) -> None:
        """One reader, until it is told to stop."""
        reader = self.readers[number]
        try:
            with psycopg.connect(reader.url, autocommit=True, application_name="a reader") as connection:
                self.connected.wait()
                # Side by side, not all at the same moment: a herd would wait for itself.
                self.stop.wait(number / len(self.readers) / PER_SECOND)
                if reader.hold_s:
                    _hold(connection, reader, self.stop)
                else:
                    self.found[reader.view] = _read_at_pace(connection, reader, self.stop)
        except psycopg.Error as error:
            self.errors.append(f"{reader.view}: {error}")
            self.connected.abort()


def _read_all(pipe: Connection, readers: Sequence[Reader]) -> None:
    desk = _Desk(readers)
    threads = [
        threading.Thread(target=desk.read, args=(number,), daemon=True) for number in range(len(readers))
    ]
    for thread in threads:
        thread.start()
    try:
        desk.connected.wait()
    except threading.BrokenBarrierError:
        pipe.send("; ".join(desk.errors))
        return
    pipe.send("ready")
    pipe.recv()
    desk.stop.set()
    for thread in threads:
        thread.join(STOP_S)
    pipe.send((desk.found, desk.errors))


def _read_at_pace(connection: psycopg.Connection[Any], reader: Reader, stop: threading.Event) -> list[float]:
    query = sql.SQL("SELECT * FROM {} LIMIT {}").format(
        RelationName.parse(reader.view).identifier(), sql.Literal(ROWS_READ)
    )
    waits = []
    due = time.perf_counter()
    while not stop.is_set():
        connection.execute(query).fetchall()
        now = time.perf_counter()
        waits.append(1000 * (now - due))
        due += 1 / PER_SECOND
        if due > now:
            stop.wait(due - now)
    return waits


def _hold(connection: psycopg.Connection[Any], reader: Reader, stop: threading.Event) -> None:
    query = sql.SQL("SELECT pg_catalog.pg_sleep({}) FROM (SELECT 1 FROM {} LIMIT 1) AS one").format(
        sql.Literal(reader.hold_s), RelationName.parse(reader.view).identifier()
    )
    while not stop.wait(reader.hold_s):
        connection.execute(query)
