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
from tasks.partitions.keep import Kept, keep
from tasks.partitions.per_table import PerTable, TableArguments
from tasks.performing import Done, Outcome, Skip, Wait

_sql = load("tasks.partitions", "sql/keep.sql")

MAINTAIN = "upkeep.partitions.maintain"
QUEUE = "maintenance"
# Longer would keep a worker's place from other work.
BUSY_WAIT_S = 1.0
HAND_BACK = timedelta(seconds=10)
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
            return _concluded(policy.name, keep(connection, delivery.database, policy))
        finally:
            locks.release(connection, key)


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
