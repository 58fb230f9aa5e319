"""Ticks whose time is over: ended by whoever looks at the ledger, and told by whoever ends them."""

from __future__ import annotations

from typing import Any

import psycopg
import structlog

from fleet import ledger

log = structlog.get_logger(__name__)


def end_expired(connection: psycopg.Connection[Any], database: str) -> bool:
    """End a batch of what no worker has started before its next slot; whether there was any.

    Each is ended and told once, however many look at the same time.
    """
    ended = ledger.miss_expired(connection)
    for run in ended:
        log.error(
            "run.missed", database=database, run_id=run.id, task=run.task, target=run.target,
            slot=run.slot, reason=run.reason,
        )  # fmt: skip
    return bool(ended)
