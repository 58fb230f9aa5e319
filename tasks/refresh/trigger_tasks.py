"""The Celery task that puts triggers where on_write = true asks for them: for a schedule, after new partitions."""

from __future__ import annotations

from datetime import datetime

import structlog

from fleet import ledger, settings
from fleet.errors import PermanentError, TransientError
from fleet.ledger import NewRun
from tasks.base import RETRIES, Arguments, Delivery, LedgeredTask
from tasks.performing import Done, Outcome, Skip
from tasks.refresh.trigger_ddl import carry_out, look
from tasks.refresh.triggers import Action, State

log = structlog.get_logger(__name__)

INSTALL_TRIGGERS = "upkeep.refresh.triggers"
QUEUE = "maintenance"


class InstallTriggers(LedgeredTask[Arguments]):
    """Installs and corrects the triggers of views with on_write = true; it drops none, which would lock readers out."""

    name = INSTALL_TRIGGERS
    event = "triggers.install"

    def request_run(self, arguments: Arguments, database: settings.Database, now: datetime) -> NewRun:
        """One run per request."""
        return NewRun(
            task=self.name,
            target=database.name,
            entry=ledger.OPERATOR,
            queue=QUEUE,
            max_attempts=1 + len(RETRIES),
            request_id=self.request.id,
        )

    def work(self, delivery: Delivery[Arguments]) -> Outcome:
        """Everything that can be done is done before anything is reported as failed."""
        connection, database = delivery.connection, delivery.database
        lines = look(connection, database).plan()
        doing = [line for line in lines if line.action in {Action.INSTALL, Action.REPLACE} and not line.drops]
        done, failures = [], []
        for deed in carry_out(connection, doing, lock_timeout=database.lock_timeout):
            if deed.error is None:
                done.append(deed.line)
                log.info(
                    "trigger.changed", table=deed.line.object, action=deed.line.action, views=deed.line.views
                )
            else:
                failures.append(deed.error)
        failures += [
            PermanentError(f"{line.object}: {line.reason}", remedy=line.remedy)
            for line in lines
            if line.state is State.FORBIDDEN
        ]
        if failures:
            # One that may pass is tried again; what is done already needs nothing then.
            first = next((each for each in failures if isinstance(each, TransientError)), failures[0])
            raise type(first)(
                "; ".join(each.message for each in failures), remedy=first.remedy or "upkeep triggers list"
            )
        left = sum(line.state in {State.LEFTOVER, State.DISABLED} for line in lines)
        if not done:
            return Skip(reason="every trigger is in place")
        return Done(
            result={
                "installed": sum(line.action is Action.INSTALL for line in done),
                "replaced": sum(line.action is Action.REPLACE for line in done),
                "left": left,
            }
        )


TASKS = (InstallTriggers,)
