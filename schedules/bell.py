"""The bell: a message that says which row of the ledger to look at. It may be lost; the row is found again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog
from kombu.exceptions import OperationalError as BrokerError
from redis import RedisError

log = structlog.get_logger(__name__)


def ring(app: Any, database: str, runs: Iterable[tuple[int, str, str]]) -> int:
    """Ring the bell for runs: (run id, task, queue). Returns how many were rung before the broker failed, if it did."""
    rung = 0
    for run_id, task, queue in runs:
        try:
            # Nobody waits for Celery's result of a bell; asking for it would subscribe this process to it for
            # good.
            app.send_task(task, kwargs={"database": database, "run": run_id}, queue=queue, ignore_result=True)
        except (BrokerError, RedisError, OSError) as exc:
            log.warning("bell.not_rung", run_id=run_id, database=database, error=type(exc).__name__)
            break
        rung += 1
    return rung
