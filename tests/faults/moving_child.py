"""A worker that archives, and dies at its nth step; 0 is never. It notes its steps in a file."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from fleet.postgres.connect import connect
from tasks.partitions import foreign_keys
from tasks.partitions.archiving import archive
from tests.integration.tasks.partitions.moving import TABLE, policy

FIRST_MONTH = policy(hold="partition_date >= '2024-02-01'")


def main(url: str, dies_at: int, notes: Path) -> None:
    # So that few rows are treated as many.
    foreign_keys.JOINED_IN_TIME = -1
    steps: list[str] = []

    def told(step: str) -> None:
        steps.append(step)
        notes.write_text("\n".join(steps), encoding="utf-8")
        if len(steps) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with connect(url, application_name="upkeep/child") as connection:
        archive(connection, {TABLE: FIRST_MONTH}, FIRST_MONTH, told=told)
