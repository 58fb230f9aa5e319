"""What the fleet runs besides its views, `[jobs]` and `[schedule]`, and what other tables have to say about it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from fleet import cron as crons
from fleet import durations
from fleet.settings.findings import Findings, Key, Table
from fleet.settings.model import Job, Queues, Scheduled, Timing
from fleet.settings.values import closest

# What means nothing without its other half.
_OF_A_SCHEDULE = tuple(part for part in Timing.model_fields if part != "cron")
_OF_BATCHES = ("max_batches", "batch_pause")
# An argument that has a place of its own, or that only the fleet may set.
_RESERVED_ARGUMENTS: Mapping[str, tuple[str, str]] = {
    "database": ("the entry says in which database, beside its task", "Write it there as database = ..."),
    "run": ("the fleet itself names the run", "Take it out"),
}


class Declared:
    """Reads jobs and scheduled entries in one pass over a document; what is wrong with them goes to the findings."""

    def __init__(self, found: Findings, *, databases: tuple[str, ...], queues: Queues | None) -> None:
        self._found = found
        self._databases = databases
        self._queues = queues
        self.databases_with_work: set[str] = set()

    def jobs(self, tables: Table) -> dict[str, Job]:
        """`[jobs.NAME]`, by name."""
        jobs: dict[str, Job] = {}
        for name, value in tables.items():
            key: Key = ("jobs", name)
            self._found.name(name, key, "job")
            table = self._found.table(value, key)
            given = {"name": name, "database": self._database(table, key)}
            job = self._found.model(Job, table, key, given=given, handled=("database",))
            if job is not None:
                jobs[name] = job
                self._judge(job, table, key)
        return jobs

    def schedule(self, tables: Table) -> dict[str, Scheduled]:
        """`[schedule.NAME]`, by name."""
        schedule: dict[str, Scheduled] = {}
        for name, value in tables.items():
            key: Key = ("schedule", name)
            self._found.name(name, key, "scheduled entry")
            table = self._found.table(value, key)
            given = {"name": name, "database": self._database(table, key)}
            entry = self._found.model(Scheduled, table, key, given=given, handled=("database",))
            if entry is None:
                continue
            schedule[name] = entry
            for argument, (message, remedy) in _RESERVED_ARGUMENTS.items():
                if argument in entry.arguments:
                    self._found.error(
                        (*key, "arguments", argument), entry.arguments[argument], message, remedy
                    )
        return schedule

    def _database(self, table: Table, key: Key) -> str:
        """The database that a table names, or the only one."""
        here, name = (*key, "database"), table.get("database")
        if name is None and len(self._databases) == 1:
            name = self._databases[0]
        if name is None and self._databases:
            message = "with several databases, it must say which"
            self._found.error(here, None, message, closest("", self._databases))
        elif self._databases and name not in self._databases:
            remedy = closest(str(name), self._databases)
            self._found.error(here, name, "it is not a database of this file", remedy)
        if not isinstance(name, str):
            return ""
        self.databases_with_work.add(name)
        return name

    def _judge(self, job: Job, table: Table, key: Key) -> None:
        check_timeout(
            self._found,
            job.statement_timeout,
            key,
            queues=self._queues,
            declared="statement_timeout" in table,
            due=None if job.cron is None else ("the job", crons.parse(job.cron).shortest_gap),
        )
        for part in () if job.cron is not None else _OF_A_SCHEDULE:
            if part in table:
                self._found.warn(
                    (*key, part),
                    table[part],
                    "the job has no cron: it runs only when it is asked for by name",
                    "Add cron, or remove this",
                )
        for part in () if job.repeat_until_zero else _OF_BATCHES:
            if part in table:
                self._found.warn(
                    (*key, part),
                    table[part],
                    "the job runs its statement once",
                    "Add repeat_until_zero = true, or remove this",
                )


def check_timeout(
    found: Findings,
    timeout: timedelta,
    key: Key,
    *,
    queues: Queues | None,
    declared: bool,
    due: tuple[str, timedelta] | None,
) -> None:
    """Judge a statement_timeout by the task's own limit, and by how often its work is due (`due`: what, and every)."""
    here, shown = (*key, "statement_timeout"), durations.format(timeout)
    if queues is not None and timeout >= queues.soft_time_limit:
        found.error(
            here,
            shown,
            f"the task would be stopped earlier, after queues.soft_time_limit = "
            f"{durations.format(queues.soft_time_limit)}",
            "Raise queues.soft_time_limit, or lower the statement_timeout",
        )
    if declared and due is not None and timeout > due[1]:
        what, every = due
        found.warn(
            here,
            shown,
            f"{what} is due every {durations.format(every)}, so a run this long makes it late",
            "Lower it, or let it be due less often",
        )
