"""What the parts share: kept databases, and one worker for all of them, set up only when a part asks.

Starting a worker takes seconds, so all parts use the same one; each has databases of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import redis
from psycopg import sql

from benchmarks import bench
from benchmarks.stage import OWNER, Place, WorkerProcess
from tasks.refresh import trigger_ddl

PROCESSES = 2
# Whose runs are dispatched and rung for, and not worked on.
UNATTENDED_QUEUE = "refresh.slow"
UNATTENDED_VIEWS = 1000

BURST, CONTINUOUS, UNATTENDED = "burst", "continuous", "unattended"
SHORT, LONG = "fresh_short", "fresh_long"
DELAYS_S: Mapping[str, float] = {SHORT: 0.1, LONG: 1.0}

COUNTED = "public.counted"
COUNTED_TOO = "public.counted_too"
MAX_WAIT_S: Mapping[str, float] = {BURST: 5.0, CONTINUOUS: 2.0}
BURST_REFRESH_S, CONTINUOUS_REFRESH_S = 1.0, 0.5
BY_MARK, BY_SQL, BY_TRIGGER = "by_mark", "by_sql", "by_trigger"
WAYS = (BY_MARK, BY_SQL, BY_TRIGGER)
ITEMS = 20

# A thousand rows of which a writer changes one, so that it is refreshed concurrently, as the peers do it. Its refresh
# takes as long as pause says, once it has its snapshot.
_COUNTED = """
CREATE TABLE public.event (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, writer int NOT NULL);
CREATE TABLE public.pause (seconds float8 NOT NULL);
INSERT INTO public.pause VALUES (0);
CREATE MATERIALIZED VIEW public.counted AS
WITH paused AS MATERIALIZED (SELECT pg_sleep(seconds)::text AS done FROM public.pause)
SELECT w.writer, count(e.id) AS events
  FROM paused
 CROSS JOIN generate_series(1, 1000) AS w (writer)
  LEFT JOIN public.event AS e ON e.writer = w.writer
 GROUP BY w.writer, paused.done;
CREATE UNIQUE INDEX counted_key ON public.counted (writer);
CREATE MATERIALIZED VIEW public.counted_too AS
WITH paused AS MATERIALIZED (SELECT pg_sleep(seconds)::text AS done FROM public.pause)
SELECT w.writer, count(e.id) AS events
  FROM paused
 CROSS JOIN generate_series(1, 1000) AS w (writer)
  LEFT JOIN public.event AS e ON e.writer = w.writer
 GROUP BY w.writer, paused.done;
CREATE UNIQUE INDEX counted_too_key ON public.counted_too (writer);
CREATE TABLE public.refreshed (at timestamptz NOT NULL DEFAULT clock_timestamp());
"""
_ITEM = """
CREATE TABLE {table} (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO {table} SELECT i, 0 FROM generate_series(1, {items}) AS i;
CREATE MATERIALIZED VIEW {view} AS SELECT id, n FROM {table};
CREATE UNIQUE INDEX {key} ON {view} (id);
"""


@dataclass(kw_only=True)
class Bench(bench.Bench):
    """The databases that the parts write to, and one worker for all of them."""

    @cached_property
    def base(self) -> Place:
        """A kept database without anything in it, to be copied; the application may request refreshes."""
        place = self.stage.place("base")
        self.stage.migrate(place)
        owner = sql.Identifier(OWNER)
        with place.fleet() as connection:
            connection.execute(sql.SQL("GRANT USAGE ON SCHEMA upkeep TO {}").format(owner))
            connection.execute(
                sql.SQL(
                    "GRANT EXECUTE ON FUNCTION upkeep.request_refresh(text, jsonb, boolean) TO {}"
                ).format(owner)
            )
        return place

    @cached_property
    def counting(self) -> Place:
        """… with a table of events and views that count them; whoever copies it sets their pause."""
        place = self.stage.place("counting", like=self.base)
        with place.owner() as connection:
            connection.execute(_COUNTED)
        return place

    def pausing(self, name: str, seconds: float) -> Place:
        """A copy of it whose refreshes take so long."""
        place = self.stage.place(name, like=self.counting)
        with place.owner() as connection:
            connection.execute("UPDATE public.pause SET seconds = %s", (seconds,))
        return place

    @cached_property
    def places(self) -> Mapping[str, Place]:
        """The databases that the worker keeps."""
        places = {
            BURST: self.pausing(BURST, BURST_REFRESH_S),
            CONTINUOUS: self.pausing(CONTINUOUS, CONTINUOUS_REFRESH_S),
            UNATTENDED: self.stage.place(UNATTENDED, like=self.base),
        }
        for name in DELAYS_S:
            places[name] = self.stage.place(name, like=self.base)
            with places[name].owner() as connection:
                for way in WAYS:
                    connection.execute(_items(way))
        return places

    @cached_property
    def worker(self) -> WorkerProcess:
        """A real worker with two processes that keeps them all."""
        started = self.exits.enter_context(
            self.stage.worker(
                "fleet",
                _configuration(self.places),
                list(self.places.values()),
                concurrency=PROCESSES,
                queues="refresh,maintenance",
            )
        )
        for name in DELAYS_S:
            with self.places[name].fleet() as connection:
                found = trigger_ddl.look(connection, started.settings.database(name))
                for deed in trigger_ddl.carry_out(
                    connection, found.plan(), lock_timeout=trigger_ddl.LONGEST_WAIT
                ):
                    if deed.error is not None:
                        raise deed.error
        return started

    @cached_property
    def broker_url(self) -> str:
        """Where the worker looks for marks."""
        return self.worker.settings.fleet.redis_url.get_secret_value()

    @cached_property
    def broker(self) -> redis.Redis:
        """A look into it."""
        return self.client(self.broker_url)


def unattended_views() -> Sequence[str]:
    """The views that nobody works on; they exist only by name, because nothing before a refresh looks at them."""
    return [f"public.v{number:04d}" for number in range(UNATTENDED_VIEWS)]


def _items(way: str) -> sql.Composed:
    return sql.SQL(_ITEM).format(
        table=sql.Identifier("public", f"item_{way}"),
        view=sql.Identifier("public", way),
        key=sql.Identifier(f"{way}_key"),
        items=sql.Literal(ITEMS),
    )


def _configuration(places: Mapping[str, Place]) -> str:
    lines = [
        "[fleet]",
        f'home = "{BURST}"',
        "[queues]",
        f"concurrency = {PROCESSES}",
        "max_tasks_per_child = 1000000",
    ]
    for name, place in places.items():
        lines += [f"[databases.{place.name}]", "max_parallel_refreshes = 2"]
        for view, options in _views(name).items():
            lines += [f'[databases.{place.name}.views."{view}"]', 'tier = "daily"', *options]
    return "\n".join(lines) + "\n"


def _views(name: str) -> Mapping[str, Sequence[str]]:
    if name in DELAYS_S:
        delay = f'delay = "{1000 * DELAYS_S[name]:.0f}ms"'
        return {f"public.{way}": [delay, *(["on_write = true"] if way == BY_TRIGGER else [])] for way in WAYS}
    if name == UNATTENDED:
        slow = [f'queue = "{UNATTENDED_QUEUE}"', 'delay = "100ms"']
        return dict.fromkeys(unattended_views(), slow)
    waits = ['delay = "1s"', f'max_wait = "{MAX_WAIT_S[name]:.0f}s"']
    return dict.fromkeys([COUNTED] if name == BURST else [COUNTED, COUNTED_TOO], waits)
