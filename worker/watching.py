"""The shape of what watches the kept databases in every worker: a bootstep with a thread for each of them.

One that is away holds up no other.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar, Protocol

from celery import bootsteps

from fleet import settings
from tasks.base import Runtime

# A statement that is on its way may take longer; the thread ends with its process then.
JOIN_TIMEOUT_S = 5


class Watch(Protocol):
    """What a thread does."""

    def run(self) -> None:
        """Look, ring, wait, until it is told to stop."""


class ThreadPerDatabase(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """Starts and stops the watching threads with the worker.

    Subclasses say what watches (`watch`), and under which name (`thread_name`).
    """

    requires = ("celery.worker.components:Pool",)
    thread_name: ClassVar[str]

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def watch(self, app: Any, database: settings.Database, stop: threading.Event) -> Watch:
        """What watches one database until `stop` is set."""
        raise NotImplementedError

    def start(self, worker: Any) -> None:
        """One thread per kept database."""
        runtime: Runtime = worker.app.runtime
        for database in runtime.settings.databases.values():
            watch = self.watch(worker.app, database, self._stop)
            thread = threading.Thread(
                target=watch.run, name=f"{self.thread_name}-{database.name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def stop(self, worker: Any) -> None:
        """Make no more runs and ring no more: a worker that is going must not take new work."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=JOIN_TIMEOUT_S)

    terminate = stop
