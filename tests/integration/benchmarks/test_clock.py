"""`python -m benchmarks clock` as anybody starts it: every part of it in quick mode, with real processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks.clock.processes import Crew
from fleet.errors import UpkeepError
from tests.integration.benchmarks.quick import measure

BOUNDS = {
    "takeover": "at most 3 s",
    "idle": "at most 3 % of a core",
    "idle.standby": "at most 3 % of a core",
    "lateness.p99": "at most 150 ms",
    "batch": "at most 3 s",
    "recovery": "at most 35 s",
}
# What each part reports when there was any time for it.
FIGURES = {
    "takeover": (
        "takeover.inserted",
        "takeover.worst",
        "takeover.redbeat.earliest",
        "takeover.redbeat.ratio",
    ),
    "idle": ("idle.server",),
    "lateness.p99": ("lateness.entries", "lateness.p50", "lateness.worst"),
    "batch": ("batch.promotion",),
    "recovery": ("recovery.ended", "recovery.worst"),
}


@pytest.mark.bench
@pytest.mark.slow
def test_every_part_measures_in_quick_mode() -> None:
    said = measure("clock", BOUNDS, FIGURES)
    results = said["results"]
    assert all(bound["floor"] >= 0 for bound in said["bounds"].values() if bound["value"] is not None)
    # The first part always has its time, and the peer is not waited for.
    assert 1200 <= results["takeover.redbeat.earliest"]["value"] <= 1500
    assert results["takeover.redbeat.ratio"]["value"] > 100


def crew(tmp_path: Path, environment: dict[str, str]) -> Crew:
    return Crew(app="benchmarks.clock.peer", folder=tmp_path, environment=environment)


def test_a_moment_is_read_from_the_line_that_says_it(tmp_path: Path, redis_url: str) -> None:
    began = datetime.now(UTC)
    started = crew(tmp_path, {"PEER_BROKER": redis_url, "TZ": "Asia/Kathmandu"})
    try:
        beat = started.beat("-l", "INFO", f"--schedule={tmp_path / 'schedule'}")
        said = beat.wait_said("beat: Starting...")
    finally:
        started.close()
    assert timedelta() < said - began < timedelta(minutes=1)


def test_a_process_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    started = crew(tmp_path, {})
    with pytest.raises(UpkeepError, match="beat-1 ended; its log ends with"):
        started.beat("--no-such-option").wait_said("beat: Starting...")
