"""`python -m benchmarks events` as anybody starts it: every part of it in quick mode, with real processes."""

from __future__ import annotations

import pytest

from tests.integration.benchmarks.quick import measure

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


def test_single_parts_measure() -> None:
    said = measure("events", BOUNDS, FIGURES, only="call")
    assert any(bound["value"] is not None for bound in said["bounds"].values())


@pytest.mark.bench
@pytest.mark.slow
def test_every_part_measures_in_quick_mode() -> None:
    said = measure("events", BOUNDS, FIGURES)
    assert said["results"]["burst.missing"]["value"] == 0
