"""A fleet that reaches its Redis by Sentinels, through a failover of Redis."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fleet.ledger import State
from tests.processes import VIEW, Kept, fleet, keep
from tests.sentinels import watched_primary
from tests.waiting import wait_until
from upkeep_client import Upkeep
from worker.embedded.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.any_server, pytest.mark.slow]

UPKEEP = [sys.executable, "-c", "import worker.cli; worker.cli.main()"]
SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY);
CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t;
CREATE UNIQUE INDEX v_key ON public.v (id);
"""
CONFIG = """
[databases.kept.views."public.v"]
tier = "daily"
delay = "50ms"
"""


def fresh(kept: Kept) -> bool:
    return kept.scalar("SELECT (SELECT count(*) FROM public.v) = (SELECT count(*) FROM public.t)")


def test_marks_bells_and_results_follow_the_primary(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    kept = keep(postgres_server, SCHEMA)
    with (
        watched_primary(tmp_path) as watched,
        fleet(tmp_path, CONFIG, {"kept": kept.url}, watched.url()) as upkeep,
        Upkeep(watched.url(), database="kept", timeout=1) as client,
    ):
        worker = upkeep.worker().wait_ready()
        kept.execute("INSERT INTO public.t VALUES (1)")
        assert client.request_refresh("public.v")
        wait_until(lambda: fresh(kept), 30, "the write before the failover")
        watched.primary.kill()
        kept.execute("INSERT INTO public.t VALUES (2)")
        wait_until(lambda: client.request_refresh("public.v"), 60, "a mark in the new primary")
        wait_until(lambda: fresh(kept), 60, lambda: f"the write after it:\n{worker.tail()}")
        sent = upkeep.start_command(
            "run", [*UPKEEP, "run", VIEW, "view=public.v", "--wait", "--timeout", "60", "--json"]
        )
        assert sent.popen.wait(90) == 0, sent.stderr
        assert f'"state": "{State.SUCCEEDED}"' in sent.stdout
        looked = upkeep.start_command("doctor", [*UPKEEP, "doctor", "--json"])
        looked.popen.wait(60)
        assert "does not answer" not in looked.stdout
        assert not [line for line in worker.lines() if "main" in str(line) and "s3cr3t" in str(line)]
        assert worker.end() == 0
