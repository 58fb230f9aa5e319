"""What ends a run before its time: its worker is stopped, an operator cancels it, its time is up.

A pool child is told by a signal. While it works, the signal becomes an exception in the middle of whatever it
does, and psycopg cancels the statement in PostgreSQL before it lets that exception pass. While it keeps the
ledger, the signal waits until that is written. Outside of a delivery the signals mean what billiard made of them.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import ClassVar, TypeVar

from fleet.ledger import Run

T = TypeVar("T")

# What Celery and a service manager send; what billiard sends for the soft time limit; what nobody else uses.
STOP, TIME_IS_UP, CANCEL = signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2
# An exception that Python has swallowed (in a __del__) is raised again when the signal comes again; one that is
# on its way may need as long as psycopg waits for a server to cancel.
RAISE_AGAIN_S = 5.0


class Interrupted(KeyboardInterrupt):
    """The base of them. A KeyboardInterrupt, because that is what psycopg cancels a statement for.

    `unwritten`: the runs that it ended and that only another connection can write down, the innermost first.
    """

    reason: ClassVar[str]

    def __init__(self) -> None:
        super().__init__(self.reason)
        self.unwritten: list[Run] = []


class Stopped(Interrupted):
    """The worker is going away: another one does the work."""

    reason = "its worker was stopped"


class Cancelled(Interrupted):
    """An operator wants it to end, and not to begin again."""

    reason = "cancelled by an operator"


class SoftTimeLimitExceeded(Interrupted):
    """It takes longer than a task may, hung or not."""

    reason = "its task ran into its time limit"


_KINDS: dict[int, type[Interrupted]] = {STOP: Stopped, TIME_IS_UP: SoftTimeLimitExceeded, CANCEL: Cancelled}


@dataclass
class _State:
    """What this process's main thread has heard, and whether it may be interrupted at this moment."""

    listening: bool = False
    interruptible: bool = False
    heard: Interrupted | None = None
    raised_at: float | None = field(default=None)


_state = _State()


def listen() -> None:
    """Called once in a pool child, whose deliveries hear from now on; CANCEL must not kill it between them."""
    _state.listening = True
    signal.signal(CANCEL, signal.SIG_IGN)


@contextmanager
def heard() -> Iterator[None]:
    """The length of a delivery, in which the signals are ours: billiard sets its own after a child's start."""
    if not _state.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.heard, _state.raised_at, _state.interruptible = None, None, False
    before = {number: signal.signal(number, _hear) for number in _KINDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruptible(work: Callable[[], T]) -> T:
    """Do it; what interrupts it, or was heard before, is raised.

    A function with a plain assignment in its `finally`: a context manager's exit can be interrupted itself.
    """
    before = _state.interruptible
    try:
        _state.interruptible = True
        _raise_unless_raised()
        return work()
    finally:
        _state.interruptible = before


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within interruptible work: claim, write and release as a whole; what was heard meanwhile is raised at the end."""
    before = _state.interruptible
    _state.interruptible = False
    try:
        yield
    finally:
        _state.interruptible = before
    if before:
        _raise_unless_raised()


def behind(exc: BaseException) -> Interrupted | None:
    """The interruption that an error is, or in whose wake it was raised."""
    seen: BaseException | None = exc
    while seen is not None and not isinstance(seen, Interrupted):
        seen = seen.__context__
    return seen


def _hear(number: int, _: FrameType | None) -> None:
    if _state.heard is None:
        _state.heard = _KINDS[number]()
    again = _state.raised_at is not None and time.monotonic() - _state.raised_at >= RAISE_AGAIN_S
    if _state.interruptible and (_state.raised_at is None or again):
        _raise()


def _raise_unless_raised() -> None:
    if _state.heard is not None and _state.raised_at is None:
        _raise()


def _raise() -> None:
    assert _state.heard is not None  # the callers' condition
    _state.raised_at = time.monotonic()
    raise _state.heard
