"""What the ledger's commands say of a run, whatever task it is of."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from fleet.ledger import Run, State
from worker.cli import runs


def succeeded(result: dict[str, Any]) -> Run:
    given = {**dict.fromkeys(each.name for each in fields(Run)), "state": State.SUCCEEDED, "result": result}
    return Run(**given)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"runs": 2, "skipped": 1, "views": 3}, "2 of 3 views started"),
        ({"runs": 1, "tables": 1}, "1 of 1 table started"),
        ({"batches": 2, "rows": 1500}, "2 batches"),
        (
            {"finalized": [], "created": ["a", "b"], "drained": {"a": 3}, "drained_rows": 3, "late": 0},
            "2 created, 3 rows drained",
        ),
        ({"created": [], "drained_rows": 0, "analyzed": True}, "analysed"),
        ({"created": ["a"], "drained_rows": 0, "analyzed": "not due"}, "1 created"),
        (
            {"moved": ["a"], "rows": 7, "late": 1, "late_cold": 2, "finalized": ["b"], "held": {"c": "law"}},
            "1 finalized, 1 moved, 1 held, 1 late row, 2 rows too late for the archive",
        ),
    ],
)
def test_what_became_of_a_run_is_told_of_every_task(result: dict[str, Any], said: str) -> None:
    assert runs.why(succeeded(result)) == said
