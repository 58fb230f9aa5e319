"""What the parts share: databases with the five tables, set up only when a part asks."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import psycopg

from benchmarks import bench
from benchmarks.partitions import peer
from benchmarks.partitions.tables import FULL, QUICK, Calendar, Shape, install, refer
from benchmarks.stage import Place
from benchmarks.timing import Stopwatch

ROUNDS, QUICK_ROUNDS = 5, 1


@dataclass(kw_only=True)
class Bench(bench.Bench):
    """One calendar, and the tables as often as somebody needs them for himself."""

    _shaped: dict[Shape, Place] = field(default_factory=dict)

    @cached_property
    def calendar(self) -> Calendar:
        """Fixed when the run begins."""
        return Calendar(now=datetime.now(UTC), extent=QUICK if self.quick else FULL)

    @property
    def rounds(self) -> int:
        """Of everything that is measured against a peer."""
        return QUICK_ROUNDS if self.quick else ROUNDS

    @property
    def doubt(self) -> str | None:
        """Why a figure says nothing of the promised data."""
        rows = self.calendar.extent.rows
        return f"measured with {rows:,} rows, promised for {FULL.rows:,}" if rows != FULL.rows else None

    @cached_property
    def base(self) -> Place:
        """The five tables with nothing that refers to them, to be copied: nobody stays connected to it."""
        place = self.stage.place("base")
        with Stopwatch() as watch:
            install(place, self.calendar)
            self.stage.migrate(place)
        self.say(
            f"five tables and {self.calendar.extent.rows:,} rows that are due after {watch.seconds:.1f} s"
        )
        return place

    def shaped(self, shape: Shape) -> Place:
        """A copy with 004's foreign key in one of its shapes."""
        if shape not in self._shaped:
            with Stopwatch() as watch:
                self._shaped[shape] = self.stage.place(f"between_{shape}", like=self.base)
                refer(self._shaped[shape], shape, self.calendar)
                self.stage.checkpoint()
            self.say(f"… copied, with foreign keys between {shape}, after {watch.seconds:.1f} s")
        return self._shaped[shape]

    @cached_property
    def partman(self) -> peer.Partman | None:
        """pg_partman with tables of its own, where it is installed."""
        if peer.server() is None:
            return None
        place = self.stage.place("partman")
        with Stopwatch() as watch:
            made = peer.Partman.install(place, self.base, self.superuser(place), self.calendar)
            self.stage.checkpoint()
        self.say(f"… and pg_partman's after {watch.seconds:.1f} s")
        return made

    def superuser(self, place: Place) -> psycopg.Connection[Any]:
        """For the ways back, and for extensions."""
        return self.exits.enter_context(self.stage.superuser(place))
