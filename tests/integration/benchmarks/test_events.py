"""`python -m benchmarks events` as anybody starts it: every part of it in quick mode, with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 150  # it takes forty seconds; a machine may be busy

BOUNDS = {
    "call.ping_ratio": "at most 1.6 times a PING",
    "call.delay_ratio": "at least 3 times cheaper",
    "sql.ratio": "at least 0.9 of the throughput without",
    "burst.messages": "at most 2 messages",
    "burst.refreshes": "at most 2 refreshes",
    "burst.missing": "at most 0 writes",
    **{
        f"fresh.{way}.{delay}": "at most 200 ms"
        for way in ("mark", "sql", "trigger")
        for delay in ("short", "long")
    },
    "continuous.mark": "at most 1 of max_wait + its own duration",
    "continuous.sql": "at most 1 of max_wait + its own duration",
    "dispatch": "at most 2 s",
}
# What each part reports when there was any time for it.
FIGURES = {
    "call.ping_ratio": ("call.ping", "call.request", "call.delay", "call.several", "call.server"),
    "sql.ratio": ("sql.plain", "sql.asking", "sql.round_trip.ratio"),
    "burst.messages": ("burst.fresh", "burst.rate", "burst.call"),
    "continuous.mark": ("continuous.writes", "continuous.mark.worst"),
    "dispatch": ("dispatch.inserted", "dispatch.delay"),
}


@pytest.mark.slow
def test_every_part_measures_in_quick_mode() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "events", "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    said = json.loads(done.stdout)
    assert "errors" not in said, said["errors"]
    assert (said["benchmark"], said["quick"]) == ("events", True)
    assert {name: bound["bound"] for name, bound in said["bounds"].items()} == BOUNDS
    results = said["results"]
    for name, bound in said["bounds"].items():
        assert bound["ok"] in (True, False, "inconclusive"), name
        if bound["value"] is None:  # a busy machine leaves the last parts no time
            assert bound["ok"] == "inconclusive"
            continue
        assert bound["value"] == results[name]["value"]
        for figure in FIGURES.get(name, ()):
            assert results[figure]["value"] >= 0, figure
    assert results["burst.missing"]["value"] == 0
    assert done.returncode == (1 if said["ok"] is False else 0)
