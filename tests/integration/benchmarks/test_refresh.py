"""`python -m benchmarks refresh` as anybody starts it: its JSON, its exit code, what it says to nonsense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 120  # it takes a tenth of that; a machine may be busy


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def test_single_parts_print_the_documented_object_and_nothing_else() -> None:
    done = benchmark("refresh", "--quick", "--json", "--only", "overhead,skip")
    said = json.loads(done.stdout)
    assert "errors" not in said, said["errors"]
    assert said["benchmark"] == "refresh"
    assert said["quick"] is True
    assert set(said["bounds"]) == {"overhead", "skip.ratio"}
    for name, bound in said["bounds"].items():
        assert bound["ok"] in (True, False, "inconclusive"), name
        assert bound["value"] == said["results"][name]["value"]
        assert bound["bound"].startswith("at most ")
    assert said["bounds"]["overhead"]["floor"] == max(
        said["results"][name]["value"] for name in ("floor.select", "floor.commit")
    )
    for name in ("overhead.bare", "overhead.ours", "overhead.ratio", "skip.tick", "skip.refresh"):
        assert said["results"][name]["value"] > 0
        assert said["results"][name]["unit"]
    assert set(said["machine"]) >= {"cores", "memory_gib", "cpu", "python", "postgresql"}
    assert set(said["machine"]) & {"valkey", "redis"}
    assert done.returncode == (1 if said["ok"] is False else 0)
    assert "overhead" in done.stderr  # progress is for people


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["archive"], "archive is not there yet; there is: refresh, clock, events, partitions"),
        (["events", "--only", "bursts"], "events has no part bursts; it has: call, sql, fresh"),
        (["refresh", "--only", "overhead,speed"], "refresh has no part speed"),
        (["clock", "--only", "ticks"], "clock has no part ticks; it has: takeover, idle, lateness"),
        (["nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_would(arguments: list[str], complaint: str) -> None:
    done = benchmark(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stdout == ""
