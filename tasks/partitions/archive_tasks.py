"""The Celery task that archives: of one table what is due, or one run for each table that has a policy."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.pq import TransactionStatus

from fleet import ledger, settings
from fleet.names import RelationName
from tasks.base import Delivery
from tasks.partitions.archiving import archive
from tasks.partitions.look import refuse_contradictions
from tasks.partitions.per_table import PerTable, TableArguments
from tasks.performing import Outcome

ARCHIVE = "upkeep.partitions.archive"
QUEUE = "archive"


class Archive(PerTable):
    """Moves partitions that are no longer hot to the archive, and rows that came late after them."""

    name = ARCHIVE
    event = "partitions.archive"
    runs_in = QUEUE

    def tables(self, delivery: Delivery[TableArguments]) -> Sequence[RelationName]:
        """Those whose policy has an archive."""
        policies = delivery.database.partitions
        return sorted(name for name, each in policies.items() if each.archive != "none")

    def work_on(self, policy: settings.PartitionSet, delivery: Delivery[TableArguments]) -> Outcome:
        """Everything that can be moved is moved before anything is reported as failed."""
        connection, run = delivery.connection, delivery.run
        if policy.archive != "none":
            refuse_contradictions(connection, delivery.database, policy)

        def told(step: str) -> None:
            # Within a transaction nobody would see it.
            if connection.info.transaction_status is TransactionStatus.IDLE:
                ledger.show_progress(connection, run.id, phase=step)

        return archive(connection, delivery.database.partitions, policy, run_id=run.id, told=told)


TASKS = (Archive,)
