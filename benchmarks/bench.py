"""What every benchmark is made of: the stage, the report, what must end with the run, and its parts in their order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import psycopg
import redis

from benchmarks.parts import QUICK_S, Part, measure
from benchmarks.report import Report
from benchmarks.stage import Place, Stage
from benchmarks.timing import Deadline


@dataclass(kw_only=True)
class Bench:
    """One run; a context manager, because processes and connections must end with it."""

    stage: Stage
    report: Report
    quick: bool
    say: Callable[[str], None]
    exits: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.exits.close()

    def fleet(self, place: Place) -> psycopg.Connection[Any]:
        """The fleet's role, looking on."""
        return self.exits.enter_context(place.fleet())

    def owner(self, place: Place) -> psycopg.Connection[Any]:
        """The application."""
        return self.exits.enter_context(place.owner())

    def client(self, url: str) -> redis.Redis:
        """A look into a broker."""
        client = redis.Redis.from_url(url)
        self.exits.callback(client.close)
        return client


B = TypeVar("B", bound=Bench)


def measured(
    name: str,
    bench: type[B],
    parts: Sequence[Part[B]],
    *,
    quick: bool,
    say: Callable[[str], None],
    postgres_settings: Mapping[str, str] | None = None,
    postgres_bin: Path | None = None,
) -> Report:
    """Measure the parts given on a stage of their own."""
    deadline = Deadline.after(QUICK_S if quick else None)
    with Stage(say, postgres_settings=postgres_settings, postgres_bin=postgres_bin) as stage:
        report = stage.report(name, quick=quick)
        with bench(stage=stage, report=report, quick=quick, say=say) as made:
            measure(parts, made, deadline)
    return report
