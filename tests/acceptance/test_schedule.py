"""Stock beat drives the tiers: on the minute, with an expiry, to the right queue, and not again after a restart."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis

from fleet.ledger import State
from tests.processes import TIER, VIEW, Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY);
INSERT INTO public.t VALUES (1);
CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t;
CREATE UNIQUE INDEX v_key ON public.v (id);
"""
CONFIG = """
[databases.kept.tiers.minutely]
cron = "* * * * *"
[databases.kept.views."public.v"]
tier = "minutely"
"""


@pytest.fixture
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture
def upkeep(tmp_path: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(tmp_path, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


def start_beat(upkeep: Fleet, name: str) -> Process:
    return upkeep.start(name, "beat", "--schedule", str(upkeep.folder / "beat"), "--pidfile=").wait_text(
        "beat: Starting"
    )


@pytest.mark.slow
def test_beat_ticks_a_tier_once_a_minute_over_restarts(upkeep: Fleet, kept: Kept) -> None:
    # Before any worker is there: the message waits in Redis, and can be looked at.
    beat = start_beat(upkeep, "beat")
    with redis.Redis.from_url(upkeep.redis_url) as client:
        wait_until(lambda: client.llen("refresh"), 70, lambda: f"a tick:\n{beat.tail()}")
        ticked_at = datetime.now(UTC)
        message = json.loads(client.lindex("refresh", 0))
        headers = message["headers"]
        assert headers["task"] == TIER
        assert json.loads(headers["kwargsrepr"].replace("'", '"').replace("True", "true")) == {
            "database": "kept",
            "tier": "minutely",
            "scheduled": True,
        }
        # A tick that nobody took until the next one is due is not worth running.
        expires = datetime.fromisoformat(headers["expires"])
        assert timedelta(seconds=50) < expires - ticked_at < timedelta(seconds=61)
        # A restart, orderly and not, within the same minute.
        restarts_end = ticked_at.replace(second=0, microsecond=0) + timedelta(minutes=1)
        assert beat.end() == 0
        start_beat(upkeep, "beat-2").kill()
        again = start_beat(upkeep, "beat-3")
        again.wait_text("beat: Starting")
        in_time = datetime.now(UTC) < restarts_end - timedelta(seconds=1)
        if in_time:
            assert client.llen("refresh") == 1
        again.end(signal.SIGTERM)
    upkeep.worker().wait_ready()
    run = wait_until(
        lambda: kept.rows(
            "SELECT * FROM upkeep.run WHERE task = %s AND target = 'public.v' AND finished_at IS NOT NULL",
            VIEW,
        ),
        20,
        "the view's run",
    )[0]
    assert (run["state"], run["entry"]) == (State.SUCCEEDED, "minutely")
    assert run["slot"] == run["as_of"] == ticked_at.replace(second=0, microsecond=0)
    assert kept.scalar("SELECT count(*) FROM upkeep.run WHERE task = %s AND state = 'succeeded'", TIER) == 1
    assert kept.scalar("SELECT count(*) FROM upkeep.run WHERE task = %s", VIEW) == 1
