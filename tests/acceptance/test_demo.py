"""The demo ends by itself, with every view refreshed, and says so to programs too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

UPKEEP = str(Path(sys.executable).with_name("upkeep"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "views"), [("lending", 5), ("lp", 3), ("trading", 3), ("transactions", 1)]
)
def test_the_demo_refreshes_every_view_and_ends(example: str, views: int) -> None:
    done = subprocess.run(
        [UPKEEP, "demo", "--example", example, "--duration", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["ok"]
    assert said["problems"] == []
    assert len(said["views"]) == views
    assert all(view["refreshed"] and view["age_s"] is not None for view in said["views"])
    assert "kept fresh by Upkeep" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--example", "nope"], "lending, lp, trading, transactions"), (["--scale", "0"], "above 0")],
)
def test_a_demo_that_cannot_be_is_refused_at_once(options: list[str], says: str) -> None:
    done = subprocess.run([UPKEEP, "demo", *options], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr
