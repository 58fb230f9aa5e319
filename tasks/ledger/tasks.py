"""Keeps the ledger small: old runs become monthly summaries."""

from __future__ import annotations

from datetime import datetime

from fleet import ledger, settings
from fleet.ledger import NewRun
from tasks.base import Arguments, Delivery, LedgeredTask
from tasks.performing import Done, Outcome, Skip

PRUNE = "upkeep.ledger.prune"


class Prune(LedgeredTask[Arguments]):
    """Moves runs past their retention into upkeep.run_summary, a batch at a time, never the newest of a target."""

    name = PRUNE
    event = "ledger.prune"

    def request_run(self, arguments: Arguments, database: settings.Database, now: datetime) -> NewRun:
        """One run per request."""
        return NewRun(
            task=self.name,
            target=database.name,
            entry=ledger.OPERATOR,
            queue="maintenance",
            max_attempts=3,
            request_id=self.request.id,
        )

    def work(self, delivery: Delivery[Arguments]) -> Outcome:
        """Batches until there are no more, each in its own short transaction."""
        fleet = self.runtime.settings.fleet
        pruned = 0
        while batch := ledger.prune(
            delivery.connection, keep_skipped=fleet.keep_skipped, keep_runs=fleet.keep_runs
        ):
            pruned += batch
        return Done(result={"pruned": pruned}) if pruned else Skip(reason="nothing is old enough")


TASKS = (Prune,)
