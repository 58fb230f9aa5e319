"""A benchmark in quick mode, as anybody starts it, and what its JSON must say whatever it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 150  # it takes forty seconds; a machine may be busy


def measure(
    name: str, bounds: Mapping[str, str], figures: Mapping[str, Sequence[str]], *, only: str = ""
) -> dict[str, Any]:
    """Run it, or some parts of it, and return what it said.

    `bounds` are all of its bounds; `figures`: what it reports beside a bound when there was any time for that.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--quick", "--json", *(["--only", only] if only else [])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    assert "errors" not in said, said["errors"]
    assert (said["benchmark"], said["quick"]) == (name, True)
    judged = {metric: bound["bound"] for metric, bound in said["bounds"].items()}
    assert judged.items() <= bounds.items()
    assert judged if only else judged == bounds
    results = said["results"]
    for metric, bound in said["bounds"].items():
        assert bound["ok"] in (True, False, "inconclusive"), metric
        if bound["value"] is None:  # a busy machine leaves the last parts no time
            assert bound["ok"] == "inconclusive"
            continue
        assert bound["value"] == results[metric]["value"]
        for figure in figures.get(metric, ()):
            assert results[figure]["value"] >= 0, figure
    assert done.returncode == (1 if said["ok"] is False else 0)
    return said
