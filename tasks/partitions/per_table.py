"""What the tasks of partitioned tables share: one table, or a run for each table with a policy."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar

from fleet import ledger, settings
from fleet.ledger import NewRun, Run, State
from fleet.names import RelationName
from schedules.bell import ring
from tasks.base import RETRIES, Arguments, Delivery, LedgeredTask
from tasks.performing import Done, Outcome, Skip


class TableArguments(Arguments):
    """`table` as schema.table; without one, every table of the database that has a policy."""

    table: str | None = None


class PerTable(LedgeredTask[TableArguments]):
    """A task whose run is for one table, or for the database: that one makes the tables' runs."""

    abstract = True
    arguments = TableArguments
    # In which its runs are worked on.
    runs_in: ClassVar[str]

    def tables(self, delivery: Delivery[TableArguments]) -> Sequence[RelationName]:
        """The tables of a database that it is for, in the order in which their bells are rung."""
        raise NotImplementedError

    def work_on(self, policy: settings.PartitionSet, delivery: Delivery[TableArguments]) -> Outcome:
        """Do it for one table."""
        raise NotImplementedError

    def request_run(self, arguments: TableArguments, database: settings.Database, now: datetime) -> NewRun:
        """An operator's run for a table, or for the database."""
        table = None if arguments.table is None else database.partition_set(arguments.table)
        return NewRun(
            task=self.name,
            target=database.name if table is None else str(table.name),
            entry=ledger.OPERATOR,
            queue=self.runs_in,
            max_attempts=1 + len(RETRIES),
            request_id=self.request.id,
        )

    def work(self, delivery: Delivery[TableArguments]) -> Outcome:
        """One table, or a run for each."""
        if delivery.run.target == delivery.database.name:
            return self._fan_out(delivery)
        return self.work_on(delivery.database.partition_set(delivery.run.target), delivery)

    def _fan_out(self, delivery: Delivery[TableArguments]) -> Outcome:
        """One run per table, all or none, ended together with the run that made them; then the bells."""
        run, connection, database = delivery.run, delivery.connection, delivery.database
        names = list(self.tables(delivery))
        if not names:
            return Skip(reason=f"no table of {database.name} has a policy that asks for it")
        new = [
            NewRun(
                task=self.name,
                target=str(name),
                entry=run.entry,
                slot=run.slot,
                as_of=run.as_of,
                queue=self.runs_in,
                max_attempts=1 + len(RETRIES),
                requested_by=run.requested_by,
                # A second delivery of an operator's request must find the runs of the first.
                request_id=None if run.slot else f"{run.request_id or run.id}/{name}",
                parent_id=run.id,
                expires_at=run.expires_at,
            )
            for name in names
        ]
        with connection.transaction():
            made = ledger.insert_all(connection, new, worker=delivery.worker)
            queued = sorted(
                (each for each in made if each.state == State.QUEUED),
                key=lambda each: names.index(RelationName.parse(each.target)),
            )
            result = {"runs": len(queued), "tables": len(names)}
            ledger.finish(connection, run.id, State.SUCCEEDED, result=result)
        ring(self.app, database.name, ((each.id, each.task, each.queue) for each in queued))
        return Done(result=result, recorded=True)

    def _context(self, run: Run) -> dict[str, Any]:
        return {"table": run.target}
