"""Stops a process at the step of an event for which a test has put a file there: `tests.faults.events.Stops`.

Imported by every Python that has this directory in its PYTHONPATH.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet import events, ledger
from fleet.ledger import State
from tasks.partitions import archiving, keep
from tasks.partitions.drain import Drain
from tasks.refresh import debounce, requests
from tasks.refresh.announce import Announcer
from tasks.refresh.execute import Refresher

FOLDER = Path(os.environ["UPKEEP_TEST_STOPS"])
NAME = os.environ["UPKEEP_TEST_STOPS_NAME"]


def stop(step: str, what: object) -> None:
    """Once for every file: whoever renames it is the one who stops."""
    stopped = FOLDER / f"{step} {what} stopped"
    try:
        (FOLDER / f"{step} {what}").rename(stopped)
    except FileNotFoundError:
        return
    stopped.write_text(str(os.getpid()), encoding="utf-8")
    # To this thread: a signal to the process would let it go on until another thread has noticed.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def stops(
    owner: Any,
    name: str,
    what: Callable[..., object],
    *,
    before: str | None = None,
    after: str | None = None,
) -> None:
    """Have a function stop before or after its work where `what`, given its arguments, is something."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def stopping(*args: Any, **kwargs: Any) -> Any:
        about = what(*args, **kwargs)
        if before and about:
            stop(before, about)
        result = original(*args, **kwargs)
        if after and about:
            stop(after, about)
        return result

    setattr(owner, name, stopping)


def of_dispatcher(*_: object, **__: object) -> str:
    return NAME if threading.current_thread().name.startswith("dispatch-") else ""


# The dispatcher of a worker: by the worker's name.
stops(events, "insert", of_dispatcher, before="due", after="inserted")
stops(debounce, "clear", lambda redis, database, marks: list(marks) and of_dispatcher(), after="cleared")
# A pool child: by its view.
stops(Refresher, "refresh", lambda self, run, name: name, before="begun")
stops(requests, "take", lambda connection, name, within: name, after="taken")
stops(
    ledger,
    "finish",
    lambda connection, run_id, state, **rest: rest.get("wakes") if state is State.SUCCEEDED else None,
    after="ended",
)
stops(Announcer, "refreshed", lambda self, connection, view, **rest: view.name, before="committed")


def stops_when_told(archive: Callable[..., Any]) -> Callable[..., Any]:
    """Have it stop at each step that it tells of, within its transactions too."""

    @functools.wraps(archive)
    def stopping(*args: Any, told: Callable[[str], object], **kwargs: Any) -> Any:
        def told_and_stopped(step: str) -> None:
            told(step)
            stop("told", step)

        return archive(*args, told=told_and_stopped, **kwargs)

    return stopping


# A pool child: by the partition, or by what the archive tells of. The task's module is imported later than this one.
stops(Drain, "move", lambda self: self.into.name, after="drained")
stops(keep, "_make", lambda maker, line, kept: line.partition.name, after="made")
archiving.archive = stops_when_told(archiving.archive)
