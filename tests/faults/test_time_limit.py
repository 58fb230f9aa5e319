"""A task that runs into its time limit: its statement is cancelled, the run says why, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.ledger import State
from tests.processes import VIEW, Fleet, Kept, fleet, keep
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

# Each statement within its own timeout, the task as a whole beyond the limit: a slow view on a slow view.
SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY);
INSERT INTO public.t VALUES (1);
CREATE MATERIALIZED VIEW public.below AS SELECT id, pg_sleep(6)::text AS slept FROM public.t WITH NO DATA;
CREATE UNIQUE INDEX below_key ON public.below (id);
CREATE MATERIALIZED VIEW public.above AS SELECT id, pg_sleep(8)::text AS slept FROM public.below WITH NO DATA;
CREATE UNIQUE INDEX above_key ON public.above (id);
"""
CONFIG = """
[queues]
soft_time_limit = "10s"
[databases.kept.views."public.below"]
tier = "daily"
statement_timeout = "9s"
[databases.kept.views."public.above"]
tier = "daily"
statement_timeout = "9s"
retries = []
"""


@pytest.fixture
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture
def upkeep(tmp_path: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(tmp_path, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.mark.slow
def test_a_refresh_that_runs_into_the_soft_time_limit(upkeep: Fleet, kept: Kept) -> None:
    worker = upkeep.worker().wait_ready()
    pool = worker.pool()
    task_id = upkeep.send(VIEW, database="kept", view="public.above")
    run = kept.final(task_id, timeout=30)
    assert (run.state, run.attempt) == (State.FAILED, 1)
    assert run.error is not None
    assert run.error["type"] == "SoftTimeLimitExceeded"
    assert "soft_time_limit" in run.error["remedy"]
    # The statement does not go on without anybody waiting for it, and the process works on.
    wait_until(lambda: kept.refreshing() == [], 5, lambda: str(kept.sessions()))
    wait_until(lambda: kept.advisory_locks() == 0, 5)
    assert worker.pool() == pool
    upstream = kept.rows("SELECT state FROM upkeep.run WHERE target = 'public.below'")
    assert upstream == [{"state": "succeeded"}]
