"""What the fault tests share: a system with a slow view, and servers of their own that may be killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.faults.events import Overlaps, Writers
from tests.processes import Kept
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

# How long a refresh of public.slow takes: long enough to be caught in the middle of.
SLOW_S = 2

SCHEMA = f"""
CREATE TABLE public.t (id int PRIMARY KEY);
INSERT INTO public.t SELECT generate_series(1, 5);
CREATE MATERIALIZED VIEW public.quick AS SELECT id FROM public.t;
CREATE UNIQUE INDEX quick_key ON public.quick (id);
CREATE MATERIALIZED VIEW public.slow AS
    SELECT id, pg_sleep(CASE id WHEN 1 THEN {SLOW_S} ELSE 0 END)::text AS slept FROM public.t WITH NO DATA;
CREATE UNIQUE INDEX slow_key ON public.slow (id);
CREATE MATERIALIZED VIEW public.once AS SELECT id, pg_sleep(0.3)::text AS slept FROM public.t WITH NO DATA;
CREATE UNIQUE INDEX once_key ON public.once (id);
"""
# What is in public.slow and not in its definition, and the other way round.
DIFFERENCE = """
(SELECT id FROM public.slow EXCEPT TABLE public.t) UNION (TABLE public.t EXCEPT SELECT id FROM public.slow)
"""
# Retries are quick, because what is tested is that they come, not when.
CONFIG = """
[databases.kept.views."public.quick"]
tier = "daily"
retries = ["200ms", "500ms", "2s", "5s"]
[databases.kept.views."public.slow"]
tier = "daily"
retries = ["200ms", "500ms", "2s", "5s"]
[databases.kept.views."public.once"]
tier = "fifteen_minutes"
retries = []
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that the module's tests may stop and kill, if they start it again."""
    with servers.new_postgres(**servers.DURABLE) as started:
        yield started


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedRedis]:
    """A Redis that the module's tests may stop and kill, if they start it again."""
    with servers.new_redis() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's processes write."""
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def writers(kept: Kept, broker: EmbeddedRedis) -> Iterator[Writers]:
    """Applications that write to the module's database, which is its own fixture `kept`."""
    made = Writers(kept=kept, redis_url=broker.url())
    yield made
    made.close()


@pytest.fixture(scope="module")
def overlaps(kept: Kept) -> Iterator[Overlaps]:
    """A look, all the while, for two sessions that refresh one view."""
    watching = Overlaps(kept.database.url)
    watching.start()
    yield watching
    watching.close()
