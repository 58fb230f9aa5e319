"""A worker that archives, and dies at its nth step: `python -m tests.faults.moving_child URL N`; 0 is never."""

from __future__ import annotations

import os
import signal
import sys

from fleet.postgres.connect import connect
from tasks.partitions import foreign_keys
from tasks.partitions.archiving import archive
from tests.integration.tasks.partitions.moving import TABLE, policy

FIRST_MONTH = policy(hold="partition_date >= '2024-02-01'")


def main(url: str, dies_at: int) -> None:
    # So that few rows are treated as many.
    foreign_keys.JOINED_IN_TIME = -1
    steps = 0

    def told(step: str) -> None:
        nonlocal steps
        steps += 1
        sys.stderr.write(f"{step}\n")
        sys.stderr.flush()
        if steps == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with connect(url, application_name="upkeep/child") as connection:
        archive(connection, {TABLE: FIRST_MONTH}, FIRST_MONTH, told=told)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
