"""From an entry to the run of one of its slots, by the task that it names; and what is wrong with an entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol

from fleet.errors import PermanentError
from fleet.ledger import NewRun
from fleet.settings import ConfigurationErrors, Database, Problem, Settings
from fleet.settings.values import closest
from schedules.entries import Entry, entries


class Requestable(Protocol):
    """What the scheduler needs of a task: the run that some arguments ask for."""

    def run_for(self, arguments: Mapping[str, Any], database: Database, now: datetime) -> NewRun:
        """Raises PermanentError where they make no sense."""


class Runs:
    """Makes the runs of slots; knows the fleet's tasks by their wire names."""

    def __init__(self, tasks: Mapping[str, Any], settings: Settings) -> None:
        self._tasks = tasks
        self._settings = settings

    def of(self, entry: Entry, slot: datetime) -> NewRun:
        """The run of one slot, to be started before the next one.

        Raises:
            PermanentError: the task is not known, or refuses the entry's arguments.
        """
        task: Any = self._tasks.get(entry.task)
        if not hasattr(task, "run_for"):
            known = [name for name, each in self._tasks.items() if hasattr(each, "run_for")]
            raise PermanentError(f"There is no task named {entry.task!r}", remedy=closest(entry.task, known))
        wanted: NewRun = task.run_for(entry.arguments, self._settings.database(entry.database), slot)
        return replace(
            wanted,
            entry=entry.label,
            slot=slot,
            as_of=None,
            request_id=None,
            requested_by="schedule",
            expires_at=entry.expiry(slot),
        )

    def refuse_senseless(self, now: datetime) -> None:
        """Stop a process of the fleet before it has done anything, where an entry makes no sense.

        Raises:
            ConfigurationErrors: with every such entry.
        """
        if problems := self.problems(entries(self._settings).values(), now):
            raise ConfigurationErrors(problems, source="The schedule")

    def problems(self, given: Iterable[Entry], now: datetime) -> list[Problem]:
        """Everything that is wrong with the tasks and arguments of entries, each under its own key."""
        found = []
        for entry in given:
            try:
                self.of(entry, now)
            except PermanentError as exc:
                kind, _, name = entry.label.partition(".")
                key = f"{kind}.{name}" if name and kind == "schedule" else entry.name
                found.append(Problem(key=key, value=entry.task, message=exc.message, remedy=exc.remedy or ""))
        return found
