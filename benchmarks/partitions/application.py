"""An application at a fixed pace, in a process of its own, and a report that is open for long: what users feel.

A statement is timed from the moment at which it was due, as in benchmarks.readers: one that waits behind a late one
has waited as well.
"""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from multiprocessing.connection import Connection
from typing import Any

import psycopg

SESSIONS = 4
PER_SECOND = 200
# The report is open for so long, closed for as long, and open again: with one always open, somebody who waits for its
# end never has to give way to it.
REPORT_S = 2.5
# Every statement has been prepared by then, and the report is open.
WARM_S = 0.5
STOP_S = 60.0

_READ = "SELECT * FROM public.transactions WHERE source_account_id = %(account)s AND partition_date = %(day)s LIMIT 10"
_WRITE = """
INSERT INTO public.transactions (
    reference_number, transaction_type, status, amount, source_account_id, settlement_date, regulatory_region,
    created_by, updated_by, partition_date)
VALUES (%(reference)s, 'payment', 'pending', 10, %(account)s, %(day)s, 'US', 'app', 'app', %(day)s)
RETURNING transaction_id
"""
_DESCRIBE = """
INSERT INTO public.transaction_metadata (transaction_id, partition_date, custom_fields)
VALUES (%(id)s, %(day)s, '{"channel": "web"}')
"""
_SETTLE = """
UPDATE public.transactions SET status = 'completed', completed_at = now(), version = version + 1
 WHERE transaction_id = %(id)s AND partition_date = %(day)s
"""
# It has read from every partition, and keeps all of its locks until it has made up its mind.
_REPORT = "SELECT count(*), pg_catalog.pg_sleep(%(seconds)s) FROM (SELECT FROM public.transactions LIMIT 1000) AS few"


@dataclass(kw_only=True)
class Waits:
    """Milliseconds from when each statement was due to when it was answered, and what failed instead."""

    all: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """The longest one."""
        return max(self.all, default=0.0)


@contextmanager
def working(url: str, day: date) -> Iterator[Waits]:
    """Let it work on that day's partition while the block runs; the waits are there once it has ended.

    Raises:
        RuntimeError: it did not start, or not stop.
        EOFError: its process died.

    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, url, day), name="application", daemon=True)
    process.start()
    theirs.close()
    waits = Waits()
    try:
        said = ours.recv()
        if said != "ready":
            raise RuntimeError(f"the application did not start: {said}")
        yield waits
        ours.send("stop")
        if not ours.poll(STOP_S):
            raise RuntimeError("the application did not stop")
        waits.all, waits.errors = ours.recv()
    finally:
        process.kill()
        process.join()


class _Application:
    """What the threads of its process share."""

    def __init__(self, url: str, day: date) -> None:
        self._url, self._day = url, day
        self.stop = threading.Event()
        self.connected = threading.Barrier(SESSIONS + 2)
        self.found: list[float] = []
        self.errors: list[str] = []
        self._ended = float("inf")

    def session(self, work: Callable[[psycopg.Connection[Any]], None]) -> None:
        """One connection and what is done with it."""
        try:
            with psycopg.connect(
                self._url, autocommit=True, application_name="the application"
            ) as connection:
                work(connection)
        except psycopg.Error as error:
            self.errors.append(str(error).strip())
            self.connected.abort()

    def at_pace(self, number: int) -> Callable[[psycopg.Connection[Any]], None]:
        """One session's share of the statements."""

        def work(connection: psycopg.Connection[Any]) -> None:
            steps = self._steps(connection, random.Random(number))
            waits = []
            self.connected.wait()
            # Side by side, not all at the same moment: a herd would wait for itself.
            due = time.perf_counter() + number / PER_SECOND
            counted_from = due + WARM_S
            while self._comes(due):
                next(steps)
                if due >= counted_from:
                    waits.append(1000 * (time.perf_counter() - due))
                due += SESSIONS / PER_SECOND
            self.found.extend(waits)

        return work

    def end(self) -> None:
        """Nothing more is due; what was due before is still sent, or the longest waits would go uncounted."""
        self._ended = time.perf_counter()
        self.stop.set()

    def _comes(self, due: float) -> bool:
        self.stop.wait(max(0.0, due - time.perf_counter()))
        return due <= self._ended

    def report(self, connection: psycopg.Connection[Any]) -> None:
        """Open for so long, closed for as long."""
        self.connected.wait()
        while not self.stop.is_set():
            try:
                connection.execute(_REPORT, {"seconds": REPORT_S})
            except psycopg.OperationalError as error:
                self.errors.append(f"the report: {str(error).strip()}")
            self.stop.wait(REPORT_S)

    def _steps(self, connection: psycopg.Connection[Any], rng: random.Random) -> Iterator[None]:
        """Half reads; the rest a payment, what is known about it, and its settlement, one after the other."""
        values: dict[str, Any] = {"day": self._day}

        def attempt(statement: str) -> tuple[Any, ...] | None:
            try:
                cursor = connection.execute(statement, values)
                return cursor.fetchone() if cursor.description else None
            except psycopg.OperationalError as error:  # a deadlock: somebody had to give way
                self.errors.append(str(error).strip())
                return None

        while True:
            for statement in (_WRITE, _DESCRIBE, _SETTLE):
                values |= {"account": rng.randrange(1, 50_000), "reference": f"{rng.getrandbits(64):016x}"}
                attempt(_READ)
                yield
                made = attempt(statement)
                yield
                if statement is _WRITE:
                    if made is None:
                        break
                    values["id"] = made[0]


def _work(pipe: Connection, url: str, day: date) -> None:
    application = _Application(url, day)
    jobs: Sequence[Callable[[psycopg.Connection[Any]], None]] = [
        *map(application.at_pace, range(SESSIONS)),
        application.report,
    ]
    threads = [threading.Thread(target=application.session, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    try:
        application.connected.wait()
    except threading.BrokenBarrierError:
        pipe.send("; ".join(application.errors))
        return
    # What follows is felt: every session has sent its statements often enough to have them prepared.
    application.stop.wait(WARM_S)
    pipe.send("ready")
    pipe.recv()
    application.end()
    for thread in threads:
        thread.join(STOP_S)
    pipe.send((application.found, application.errors))
