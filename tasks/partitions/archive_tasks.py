"""The Celery task that archives: of one table what is due, or one run for each table that has a policy."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import psycopg

from fleet import ledger, settings
from fleet.ledger import NewRun, State
from schedules.bell import ring
from tasks.base import RETRIES, Arguments, Delivery, LedgeredTask
from tasks.partitions.archiving import archive
from tasks.performing import Done, Outcome, Skip

ARCHIVE = "upkeep.partitions.archive"
QUEUE = "archive"


class ArchiveArguments(Arguments):
    """`table` as schema.table; without it every table with a policy."""

    table: str | None = None


class Archive(LedgeredTask[ArchiveArguments]):
    """Moves partitions that are no longer hot to the archive, and rows that came late after them."""

    name = ARCHIVE
    arguments = ArchiveArguments
    event = "partitions.archive"

    def request_run(self, arguments: ArchiveArguments, database: settings.Database, now: datetime) -> NewRun:
        """One run for a table, or one that makes those."""
        target = str(database.partition_set(arguments.table).name) if arguments.table else database.name
        return _new(target, request_id=self.request.id)

    def work(self, delivery: Delivery[ArchiveArguments]) -> Outcome:
        """Everything that can be moved is moved before anything is reported as failed."""
        database, run = delivery.database, delivery.run
        if run.target == database.name:
            return self._fan_out(delivery)
        policy = database.partition_set(run.target)

        def told(step: str) -> None:
            # Within a transaction nobody would see it.
            if delivery.connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE:
                ledger.show_progress(delivery.connection, run.id, phase=step)

        return archive(delivery.connection, database.partitions, policy, run_id=run.id, told=told)

    def _fan_out(self, delivery: Delivery[ArchiveArguments]) -> Outcome:
        run, connection = delivery.run, delivery.connection
        tables = [each for each in delivery.database.partitions.values() if each.archive != "none"]
        if not tables:
            return Skip(reason=f"no table of {delivery.database.name} has a policy with an archive")
        new = [
            replace(
                # A second delivery of a request must find the runs of the first.
                _new(str(each.name), request_id=f"{run.request_id or run.id}/{each.name}"),
                requested_by=run.requested_by,
                parent_id=run.id,
            )
            for each in tables
        ]
        result = {"tables": len(new)}
        with connection.transaction():
            made = ledger.insert_all(connection, new, worker=delivery.worker)
            ledger.finish(connection, run.id, State.SUCCEEDED, result=result)
        ring(self.app, delivery.database.name, ((each.id, each.task, each.queue) for each in made))
        return Done(result=result, recorded=True)


def _new(target: str, *, request_id: str) -> NewRun:
    return NewRun(
        task=ARCHIVE,
        target=target,
        entry=ledger.OPERATOR,
        queue=QUEUE,
        max_attempts=1 + len(RETRIES),
        request_id=request_id,
    )


TASKS = (Archive,)
