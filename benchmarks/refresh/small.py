"""A view of twenty rows in two databases: what is left when the statement itself costs next to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from benchmarks.kept import Kept, flush_counters
from benchmarks.refresh.bench import Bench
from benchmarks.stage import Place

VIEW = "public.small"
ROWS = 20

_SCHEMA = f"""
CREATE TABLE public.item (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO public.item SELECT i, i FROM generate_series(1, {ROWS}) AS i;
CREATE MATERIALIZED VIEW {VIEW} AS SELECT id, n FROM public.item ORDER BY id;
CREATE UNIQUE INDEX small_key ON {VIEW} (id);
ANALYZE;
"""


@dataclass(frozen=True, kw_only=True)
class Small:
    """Ours and the peer's, each with a connection of the application."""

    kept: Kept
    peer: Place


def install(bench: Bench, name: str) -> Small:
    """Make both."""
    places = (bench.stage.place(name), bench.stage.place(f"{name}_peer"))
    for place in places:
        with place.owner() as connection:
            connection.execute(_SCHEMA)
    return Small(kept=bench.kept(places[0]), peer=places[1])


def change_one(connection: psycopg.Connection[Any], number: int) -> None:
    """Change one row in twenty, and let the counters show it."""
    connection.execute("UPDATE public.item SET n = n + 1 WHERE id = %s", (1 + number % ROWS,))
    flush_counters(connection)
