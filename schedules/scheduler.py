"""The scheduler for `celery -A worker.app beat`, of which any number may run: one leads, the others stand by."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any

from celery.beat import Scheduler

from fleet.settings import ConfigurationErrors
from schedules.bell import ring
from schedules.entries import entries
from schedules.leader import Leader
from schedules.runs import Runs


class LeaderScheduler(Scheduler):  # type: ignore[misc]  # celery ships no types
    """Celery's loop and signals around `schedules.leader`; Celery's own entries and their state are not used."""

    leader: Leader | None = None

    def setup_schedule(self) -> None:
        """Check every entry before anything is done, and get ready to lead."""
        fleet = self.app.runtime.settings
        runs = Runs(self.app.tasks, fleet)
        try:
            runs.refuse_senseless(datetime.now(UTC))
        except ConfigurationErrors as exc:
            raise SystemExit(f"upkeep: {exc}") from None
        self.leader = Leader(
            fleet.home, fleet.databases, entries(fleet), make_run=runs.of, ring=partial(ring, self.app)
        )

    def tick(self, *_: Any, **__: Any) -> float:
        """One pass; it waits by itself, so that an answer of a database is not slept through."""
        assert self.leader is not None  # setup_schedule has run
        self.leader.tick()
        return 0

    def close(self) -> None:
        """Told by Celery at SIGTERM, inside the signal handler: the lock goes with the process, a moment later."""
        if self.leader is not None:
            self.leader.close()

    @property
    def info(self) -> str:
        """For Celery's banner."""
        return "       . leader -> by advisory lock in the home database"
