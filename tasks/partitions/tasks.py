"""The Celery task of partitions that have to be there: one table, or a run for each table with a policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
import structlog

from fleet import ledger, settings
from fleet.errors import PermanentError, TransientError
from fleet.ledger import NewRun, Run, State
from fleet.names import RelationName
from fleet.postgres import locks
from fleet.postgres.catalog.partitions import PartitionedTable, read_partitioned
from schedules.bell import ring
from tasks.base import RETRIES, Arguments, Delivery, LedgeredTask
from tasks.partitions.keep import Kept, keep
from tasks.performing import Done, Outcome, Skip, Wait

log = structlog.get_logger(__name__)

MAINTAIN = "upkeep.partitions.maintain"
QUEUE = "maintenance"
# Longer would keep a worker's place from other work.
BUSY_WAIT_S = 1.0
HAND_BACK = timedelta(seconds=10)
# Who starts it is told in the ledger; restarts within the hour are one.
START = "start"


class TableArguments(Arguments):
    """`table` as schema.table; without one, every table of the database that has a policy."""

    table: str | None = None


class Maintain(LedgeredTask[TableArguments]):
    """Keeps partitions ahead of the clock, and the default partition empty."""

    name = MAINTAIN
    arguments = TableArguments
    event = "partitions.maintain"

    def request_run(self, arguments: TableArguments, database: settings.Database, now: datetime) -> NewRun:
        """An operator's run for a table, or for the database."""
        table = None if arguments.table is None else database.partition_set(arguments.table)
        return NewRun(
            task=self.name,
            target=database.name if table is None else str(table.name),
            entry=ledger.OPERATOR,
            queue=QUEUE,
            max_attempts=1 + len(RETRIES),
            request_id=self.request.id,
        )

    def work(self, delivery: Delivery[TableArguments]) -> Outcome:
        """One table, or a run for each."""
        if delivery.run.target == delivery.database.name:
            return _fan_out(self, delivery)
        policy = delivery.database.partition_set(delivery.run.target)
        connection = delivery.connection
        table = read_partitioned(connection, [policy.name]).get(policy.name)
        if table is None:
            raise PermanentError(
                f"The table {policy.name} is not there",
                remedy="Create it, or take its policy out of upkeep.toml",
            )
        key = locks.relation_key(table.oid)
        if not locks.acquire_within(connection, key, timeout_s=BUSY_WAIT_S):
            return Wait(reason=f"somebody else works on the partitions of {policy.name}", wait=HAND_BACK)
        try:
            return _concluded(policy.name, keep(connection, delivery.database, policy))
        finally:
            locks.release(connection, key)

    def _context(self, run: Run) -> dict[str, Any]:
        return {"table": run.target}


def _concluded(table: RelationName, kept: Kept) -> Outcome:
    if kept.failures:
        # What may pass is tried again, and finds what is done already.
        first = next((each for each in kept.failures if isinstance(each, TransientError)), kept.failures[0])
        done = f" ({len(kept.created)} partitions were made)" if kept.created else ""
        raise type(first)(
            "; ".join(each.message for each in kept.failures) + done,
            remedy=first.remedy or "upkeep plan partitions",
        )
    if kept.idle:
        return Skip(
            reason=f"{table} has partitions for {kept.ahead_days:.0f} days ahead, "
            f"and {kept.default_rows} rows in its default partition"
        )
    return Done(result=kept.to_json())


def _fan_out(task: LedgeredTask[Any], delivery: Delivery[Any]) -> Outcome:
    """One run per table, all or none, ended together with the run that made them; then the bells."""
    run, connection, database = delivery.run, delivery.connection, delivery.database
    if not database.partitions:
        return Skip(reason=f"no table of {database.name} has a policy for its partitions")
    names = in_order(read_partitioned(connection, database.partitions).values(), database.partitions)
    new = [
        NewRun(
            task=MAINTAIN,
            target=str(name),
            entry=run.entry,
            slot=run.slot,
            as_of=run.as_of,
            queue=QUEUE,
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
    ring(task.app, database.name, ((each.id, each.task, each.queue) for each in queued))
    return Done(result=result, recorded=True)


def in_order(tables: Iterable[PartitionedTable], names: Iterable[RelationName]) -> list[RelationName]:
    """What is referred to before what refers to it: a key between partitions needs that of the same range."""
    upstream = {
        table.name: {key.referenced for key in table.foreign_keys if key.referencing == table.name}
        for table in tables
    }
    found: dict[RelationName, None] = {}

    def add(name: RelationName, above: Sequence[RelationName]) -> None:
        if name in found or name in above:
            return
        for each in sorted(upstream.get(name, ())):
            if each in upstream:
                add(each, (*above, name))
        found[name] = None

    for name in sorted(names):
        add(name, ())
    return list(found)


def at_start(connection: psycopg.Connection[Any], database: settings.Database, now: datetime) -> int | None:
    """Put one run per hour into the ledger, however many workers start; None: it is there, or there is no policy."""
    if not database.partitions:
        return None
    run_id, created = ledger.insert(
        connection,
        NewRun(
            task=MAINTAIN,
            target=database.name,
            entry=ledger.OPERATOR,
            queue=QUEUE,
            max_attempts=1 + len(RETRIES),
            requested_by=START,
            request_id=f"{MAINTAIN}/{START}/{database.name}/{now:%Y-%m-%dT%H}",
        ),
    )
    return run_id if created else None


TASKS = (Maintain,)
