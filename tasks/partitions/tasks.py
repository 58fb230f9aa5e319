"""The Celery task of partitions that have to be there: one table, or a run for each table with a policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.types.numeric import Oid

from fleet import ledger, settings
from fleet.errors import PermanentError, TransientError
from fleet.ledger import NewRun
from fleet.names import RelationName
from fleet.postgres import locks
from fleet.postgres.catalog.partitions import PartitionedTable, read_partitioned
from fleet.postgres.queries import load
from tasks.base import RETRIES, Delivery
from tasks.partitions.create import CounterpartMissing
from tasks.partitions.keep import Kept, keep
from tasks.partitions.per_table import PerTable, TableArguments
from tasks.performing import Done, Outcome, Skip, Wait

_sql = load("tasks.partitions", "sql/keep.sql")

MAINTAIN = "upkeep.partitions.maintain"
QUEUE = "maintenance"
# Longer would keep a worker's place from other work.
BUSY_WAIT_S = 1.0
HAND_BACK = timedelta(seconds=10)
# So long a table waits for the run of one that it refers to: two that refer to each other would wait for ever.
LEADERS_TIME = timedelta(minutes=15)
LEADERS_RUNS = 5
# Who starts it is told in the ledger; restarts within the hour are one.
START = "start"


class Maintain(PerTable):
    """Keeps partitions ahead of the clock, and the default partition empty."""

    name = MAINTAIN
    event = "partitions.maintain"
    runs_in = QUEUE

    def tables(self, delivery: Delivery[TableArguments]) -> Sequence[RelationName]:
        """All, what is referred to before what refers to it."""
        names = delivery.database.partitions
        tables = read_partitioned(delivery.connection, names)
        return in_order(
            tables.values(), names, between=references_between(delivery.connection, tables.values())
        )

    def work_on(self, policy: settings.PartitionSet, delivery: Delivery[TableArguments]) -> Outcome:
        """Make what is missing, drain, analyse."""
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
            began: datetime = _sql.clock(connection)
            kept = keep(connection, delivery.database, policy)
            leader = _awaited(connection, kept, since=began, asked=delivery.run.created_at)
            if leader is not None:
                return Wait(reason=f"partitions of {leader} are being made, which come first", wait=HAND_BACK)
            return _concluded(policy.name, kept)
        finally:
            locks.release(connection, key)


def _awaited(
    connection: psycopg.Connection[Any], kept: Kept, *, since: datetime, asked: datetime
) -> RelationName | None:
    """The table whose partitions ours would refer to, if that is all that is amiss and its run has still to end.

    Bells are rung in the right order, and several workers do not keep it.
    """
    missing = [each for each in kept.failures if isinstance(each, CounterpartMissing)]
    if len(missing) < len(kept.failures) or since - asked >= LEADERS_TIME:
        return None
    for table in dict.fromkeys(each.table for each in missing):
        runs = ledger.history(connection, task=MAINTAIN, target=str(table), limit=LEADERS_RUNS)
        if any(run.finished_at is None or run.finished_at >= since for run in runs):
            return table
    return None


def _concluded(table: RelationName, kept: Kept) -> Outcome:
    if kept.failures:
        # What may pass is tried again, and finds what is done already.
        first = next((each for each in kept.failures if isinstance(each, TransientError)), kept.failures[0])
        done = f" ({len(kept.created)} partitions were made)" if kept.created else ""
        error = TransientError if isinstance(first, TransientError) else PermanentError
        raise error(
            "; ".join(each.message for each in kept.failures) + done,
            remedy=first.remedy or "upkeep plan partitions",
        )
    if kept.idle:
        default = (
            "" if kept.default_rows is None else f", and {kept.default_rows} rows in its default partition"
        )
        return Skip(reason=f"{table} has partitions for {kept.ahead_days:.0f} days ahead{default}")
    return Done(result=kept.to_json())


def references_between(
    connection: psycopg.Connection[Any], tables: Iterable[PartitionedTable]
) -> list[tuple[RelationName, RelationName]]:
    """Which tables' partitions refer to partitions of which others, by keys that the tables themselves do not have."""
    names = {table.oid: table.name for table in tables}
    rows = _sql.read_references_between(connection, oids=[Oid(oid) for oid in sorted(names)])
    return [(names[row["referencing"]], names[row["referenced"]]) for row in rows]


def in_order(
    tables: Iterable[PartitionedTable],
    names: Iterable[RelationName],
    *,
    between: Iterable[tuple[RelationName, RelationName]] = (),
) -> list[RelationName]:
    """What is referred to before what refers to it: a key between partitions needs that of the same range."""
    upstream = {
        table.name: {key.referenced for key in table.foreign_keys if key.referencing == table.name}
        for table in tables
    }
    for referencing, referenced in between:
        upstream[referencing].add(referenced)
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
