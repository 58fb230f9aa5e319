"""Somebody who counts all the while, in both isolation levels: every row is there once, at every moment."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from typing import Any

import psycopg
from psycopg import IsolationLevel

from tests.integration.tasks.partitions.moving import System
from tests.waiting import wait_until

LEVELS = (IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ)
# So that the others have the processor as well.
PAUSE_S = 0.005


@dataclass
class Checker:
    """Asks the same twice in each transaction, and keeps every answer that is not the expected one."""

    url: str
    level: IsolationLevel
    expected: Mapping[str, Any]
    """The answers, by their questions."""
    wrong: list[Any] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    """How long each answer took."""
    error: BaseException | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            with psycopg.connect(self.url) as connection:
                connection.isolation_level = self.level
                connection.prepare_threshold = 2
                while not self._stop.is_set():
                    for question, expected in (*self.expected.items(), *self.expected.items()):
                        began = time.monotonic()
                        seen = connection.execute(question).fetchone()
                        self.took.append(time.monotonic() - began)
                        if seen != expected:
                            self.wrong.append((question, seen))
                    connection.commit()
                    self._stop.wait(PAUSE_S)
        except BaseException as exc:
            self.error = exc

    def stop(self) -> None:
        self._stop.set()

    def has_asked(self, times: int) -> bool:
        return self.error is not None or len(self.took) >= times


@contextmanager
def counted(
    system: System, expected: Mapping[IsolationLevel, Mapping[str, Any]] | Mapping[str, Any]
) -> Iterator[list[Checker]]:
    """While the block runs, and once more when it is over, every answer is the expected one."""
    checkers = [
        Checker(system.database.url, level, expected.get(level, expected))  # type: ignore[call-overload]
        for level in LEVELS
    ]
    threads = [threading.Thread(target=each.run) for each in checkers]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: all(each.has_asked(1) for each in checkers), 20, "the first counts")
        yield checkers
        for each in checkers:
            # The end has to be seen as well, by a transaction that begins after it.
            enough = len(each.took) + 4 * len(each.expected)
            wait_until(lambda each=each, enough=enough: each.has_asked(enough), 20, "the last counts")  # type: ignore[misc]
    finally:
        for each in checkers:
            each.stop()
        for thread in threads:
            thread.join()
    assert [each.error for each in checkers] == [None, None]
    assert [each.wrong for each in checkers] == [[], []]


def forking(module: str) -> BaseContext:
    """Processes of their own that need not import everything anew, and inherit no thread or connection of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def nobody(system: System, name: str = "upkeep/child") -> bool:
    """Whether the server has seen the end of a child's session."""
    return not system.scalar(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s",
        name,
    )
