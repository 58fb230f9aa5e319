"""Measures Upkeep against a peer in the same run and holds it to its promised bounds.

The report is one JSON object on stdout (`--json`) or a table for people; progress goes to stderr. Exit code 1
means that a bound was missed, 2 that the command line makes no sense; an inconclusive bound is said to be so
and fails nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.table import Table

from benchmarks.report import INCONCLUSIVE, Report, Verdict

NAMES = ("refresh", "clock", "events", "partitions", "archive", "maintenance", "watch", "web")
READY = ("refresh", "clock", "events", "partitions")
MISUSED = 2


class Benchmark(Protocol):
    """What a module under benchmarks/ offers."""

    PARTS: Sequence[str]

    def run(self, *, quick: bool, parts: Sequence[str], say: Speaker) -> Report:
        """Measure."""


class Speaker(Protocol):
    """Says what is going on."""

    def __call__(self, text: str) -> None:
        """One line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--quick", action="store_true", help="smaller data and fewer rounds, over within 50 s"
    )
    parser.add_argument("--only", default="", metavar="PART,…", help="single parts of it")
    given = parser.parse_args(arguments)
    if given.name not in READY:
        parser.error(f"{given.name} is not there yet; there is: {', '.join(READY)}")
    benchmark: Benchmark = importlib.import_module(f"benchmarks.{given.name}")
    parts = [part.strip() for part in given.only.split(",") if part.strip()] or list(benchmark.PARTS)
    unknown = [part for part in parts if part not in benchmark.PARTS]
    if unknown:
        parser.error(f"{given.name} has no part {', '.join(unknown)}; it has: {', '.join(benchmark.PARTS)}")
    report = benchmark.run(quick=given.quick, parts=parts, say=_speaker())
    if given.json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        show(report, Console() if sys.stdout.isatty() else Console(width=140))
    return report.exit_code


def show(report: Report, console: Console) -> None:
    """The report as tables: the bounds first, then every figure."""
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.to_json().items())
    console.print(
        f"[bold]{report.benchmark}[/]{' (quick)' if report.quick else ''}  [dim]{machine}[/]", highlight=False
    )
    bounds = Table(title="Bounds", title_justify="left")
    for column in ("", "metric", "measured", "bound", "floor", "promise"):
        bounds.add_column(column, justify="right" if column in {"measured", "floor"} else "left")
    for name, judged in report.bounds.items():
        said = judged.to_json()
        promise = judged.bound.promise + (f"\n[dim]{judged.why}[/]" if judged.why else "")
        measured = "-" if judged.value is None else f"{said['value']:g} {judged.bound.unit}"
        floor = f"{said['floor']:g}" if judged.floor is not None else ""
        bounds.add_row(_mark(judged.ok), name, measured, judged.bound.text, floor, promise)
    figures = Table(title="Figures", title_justify="left")
    for column in ("metric", "value", "unit", "rounds", "note"):
        figures.add_column(column, justify="right" if column in {"value", "rounds"} else "left")
    for name, metric in report.results.items():
        value = metric.to_json()["value"]
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        figures.add_row(name, shown, metric.unit, str(metric.rounds or ""), metric.note or "")
    console.print(bounds)
    console.print(figures)
    for part, error in report.errors.items():
        console.print(f"[bold red]{part} broke:[/] {error}", highlight=False)


def _mark(ok: Verdict) -> str:
    if ok == INCONCLUSIVE:
        return "[yellow]inconclusive[/]"
    return "[green]ok[/]" if ok else "[bold red]missed[/]"


def _speaker() -> Speaker:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
