"""A worker that archives, and dies at its nth step; 0 is never. It notes its steps in a file."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import date
from pathlib import Path

from fleet.names import RelationName
from fleet.postgres.connect import connect
from tasks.partitions import batches, foreign_keys, late
from tasks.partitions.archiving import archive
from tests.integration.tasks.partitions.moving import META, TABLE, policy

FIRST_MONTH = policy(hold="partition_date >= '2024-02-01'")
AUDIT = RelationName("public", "audit")
# Held by law: of the other months not even a first step is done.
ALIKE = {
    TABLE: policy(
        companions=(META, AUDIT),
        legal_holds=[{"from": date(2024, 2, 1), "to": date(2024, 5, 1), "reason": "not yet"}],
    ),
    AUDIT: policy(name=AUDIT, companions=()),
}
LATE = {TABLE: policy()}


def main(url: str, dies_at: int, notes: Path) -> None:
    # So that few rows are treated as many.
    foreign_keys.JOINED_IN_TIME = -1
    with connect(url, application_name="upkeep/child") as connection:
        archive(connection, {TABLE: FIRST_MONTH}, FIRST_MONTH, told=_dying(dies_at, notes))


def move_with_one_alike(url: str, dies_at: int, notes: Path) -> None:
    with connect(url, application_name="upkeep/child") as connection:
        archive(connection, ALIKE, ALIKE[TABLE], told=_dying(dies_at, notes))


def take_in_late(url: str, dies_at: int, notes: Path) -> None:
    # So that few rows are several batches.
    batches.FIRST = batches.LEAST = batches.MOST = 5
    with connect(url, application_name="upkeep/child") as connection:
        late.take_in(connection, LATE, LATE[TABLE], told=_dying(dies_at, notes))


def _dying(dies_at: int, notes: Path) -> Callable[[str], None]:
    steps: list[str] = []

    def told(step: str) -> None:
        if step == "locked" and step in steps:
            # A try in vain, of which nothing is left: the steps of the next one have the same numbers.
            del steps[steps.index(step) :]
        steps.append(step)
        notes.write_text("\n".join(steps), encoding="utf-8")
        if len(steps) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return told
