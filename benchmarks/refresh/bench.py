"""What the parts share: the stage, the report, the sample systems, set up once and only when a part asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from benchmarks import bench
from benchmarks.kept import Kept, configuration
from benchmarks.stage import Place, WorkerProcess
from benchmarks.timing import Stopwatch
from examples import lending, trading

# What fits into fifty seconds with everything else; the bounds speak of scale 1.
QUICK_SCALE = 0.05
# What the comparison with one session is made with.
PROCESSES = 2

# Without a unique index: refreshed plainly, cancelled by the server where that takes too long for readers.
BRIEF = "public.keyless_brief"
LONG = "public.keyless_long"
# Few rows, all of which change: after the first refresh it is refreshed plainly, unique index or not.
CHURNING = "public.churning"
# A tier whose ticks nobody sends: these views are of no concern to the three tiers.
BY_HAND = "by_hand"
AWKWARD = (BRIEF, LONG, CHURNING)

_AWKWARD = f"""
CREATE MATERIALIZED VIEW {BRIEF} AS SELECT i, md5(i::text) AS digest FROM generate_series(1, 30000) AS i;
CREATE MATERIALIZED VIEW {LONG} AS
SELECT i, md5(i::text) AS digest FROM generate_series(1, 3000000) AS i WHERE i % 100 = 0;
CREATE MATERIALIZED VIEW {CHURNING} AS
SELECT i % 10 AS key, count(*), clock_timestamp() AS at FROM generate_series(1, 1000) AS i GROUP BY 1;
CREATE UNIQUE INDEX churning_key ON {CHURNING} (key);
"""


@dataclass(kw_only=True)
class Bench(bench.Bench):
    """The sample systems, set up when a part asks, and a worker that keeps them."""

    @property
    def scale(self) -> float:
        """Of the sample systems."""
        return QUICK_SCALE if self.quick else 1.0

    @property
    def scale_doubt(self) -> str | None:
        """Why a missed bound that speaks of scale 1 says nothing here."""
        return f"measured at scale {self.scale:g}, promised for 1" if self.scale != 1 else None

    def kept(self, place: Place) -> Kept:
        """A kept database with a connection that ends with the run."""
        self.stage.migrate(place)
        return Kept(place=place, connection=self.exits.enter_context(place.fleet()))

    @cached_property
    def lending(self) -> Pair:
        """The lending system twice, populated: one for us, one for the peer."""
        ours = self.stage.place("lending")
        with Stopwatch() as watch, ours.owner() as connection:
            lending.install(connection, scale=self.scale, populate=True)
        theirs = self.stage.place("lending_peer", like=ours)
        with ours.owner() as connection:
            connection.execute(_AWKWARD)
        kept = self.kept(ours)
        self.stage.checkpoint()
        self.say(f"lending at scale {self.scale:g} loaded in {watch.seconds:.1f} s, and copied for the peer")
        return Pair(kept=kept, peer=theirs)

    @cached_property
    def trading(self) -> Kept:
        """The trading system, populated."""
        place = self.stage.place("trading")
        with Stopwatch() as watch, place.owner() as connection:
            trading.install(connection, scale=self.scale, populate=True)
        kept = self.kept(place)
        self.stage.checkpoint()
        self.say(f"trading at scale {self.scale:g} loaded in {watch.seconds:.1f} s")
        return kept

    @property
    def systems(self) -> list[tuple[Kept, Mapping[str, str]]]:
        """What the worker keeps: lending with some awkward views, and trading where there is time for it."""
        views = dict(lending.TIERS) | dict.fromkeys(AWKWARD, BY_HAND)
        others = [] if self.quick else [(self.trading, trading.TIERS)]
        return [(self.lending.kept, views), *others]

    @cached_property
    def worker(self) -> WorkerProcess:
        """A real worker with two processes that keeps all systems."""
        places = [(kept.place, views) for kept, views in self.systems]
        config = configuration(places, concurrency=PROCESSES)
        started = self.stage.worker("fleet", config, [p for p, _ in places], concurrency=PROCESSES)
        return self.exits.enter_context(started)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One system in two databases that get the same writes: refreshing one must not touch the other."""

    kept: Kept
    peer: Place
