"""Databases that cannot be reached or refuse us: said clearly, without a password, and no other database suffers."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from fleet.ledger import State
from tests.processes import VIEW, Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY);
CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t;
CREATE UNIQUE INDEX v_key ON public.v (id);
"""
NAMES = ("kept", "away", "locked", "bare")
CONFIG = '[fleet]\nhome = "kept"\n' + "".join(
    f'[databases.{name}.views."public.v"]\ntier = "daily"\n' for name in NAMES
)
WRONG_PASSWORD = f"wrong-{secrets.token_urlsafe(12)}"
AWAY_PASSWORD = f"away-{secrets.token_urlsafe(12)}"


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture(scope="module")
def bare(server: EmbeddedPostgres) -> Kept:
    """Nobody has run `upkeep migrate` here."""
    return keep(server, SCHEMA, migrated=False)


@pytest.fixture(scope="module")
def upkeep(
    folder: Path, kept: Kept, bare: Kept, server: EmbeddedPostgres, broker: EmbeddedRedis
) -> Iterator[Fleet]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = probe.getsockname()[1]
    databases = {
        "kept": kept.url,
        "away": f"postgresql://somebody:{AWAY_PASSWORD}@127.0.0.1:{nobody}/away",
        "locked": kept.url.replace(kept.password, WRONG_PASSWORD),
        "bare": bare.url,
    }
    with fleet(folder, CONFIG, databases, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def worker(upkeep: Fleet) -> Process:
    return upkeep.worker(concurrency=3).wait_ready()


def test_the_worker_starts_and_says_which_database_is_not_ready(worker: Process) -> None:
    ready = {line["database"]: line for line in worker.lines(event="database.not_ready")}
    assert ready.keys() == {"away", "locked", "bare"}
    assert "refused" in ready["away"]["error"]
    assert "again by itself" in ready["away"]["remedy"]
    assert "password authentication failed" in ready["locked"]["error"]
    assert (
        "environment variable" in ready["locked"]["remedy"] or "connection URL" in ready["locked"]["remedy"]
    )
    assert "upkeep migrate" in ready["bare"]["remedy"]


@pytest.mark.parametrize(("name", "remedy"), [("locked", "password"), ("bare", "upkeep migrate")])
def test_a_request_that_cannot_be_kept_is_recorded_at_home(
    upkeep: Fleet, worker: Process, kept: Kept, name: str, remedy: str
) -> None:
    run = kept.final(upkeep.send(VIEW, database=name, view="public.v"))
    assert run.state == State.FAILED
    assert run.error is not None
    assert run.error["kind"] == "permanent"
    assert remedy in f"{run.error['message']} {run.error['remedy']}"


@pytest.mark.slow
def test_a_request_to_a_database_that_is_away_waits_and_holds_up_no_other(
    upkeep: Fleet, worker: Process, kept: Kept
) -> None:
    task_id = upkeep.send(VIEW, database="away", view="public.v")
    worker.wait_line(event="request.database_unreachable", task_id=task_id)
    assert kept.final(upkeep.send(VIEW, database="kept", view="public.v")).state == State.SUCCEEDED
    # It goes round, unhurried, until the database is there: nothing has lost it.
    wait_until(lambda: goes_round(upkeep, task_id), 20)
    assert worker.lines(event="reaper.database_away", database="away")
    assert kept.request(task_id) is None


def goes_round(upkeep: Fleet, task_id: str) -> bool:
    """Whether Redis has the message of a request, given back by a worker at least once."""
    with redis.Redis.from_url(upkeep.redis_url, decode_responses=True) as client:
        held = [*client.lrange("refresh", 0, -1), *client.hvals("unacked")]
    return any(task_id in each and '"redelivered": true' in each.replace("\\", "") for each in held)


def test_no_password_is_in_what_was_said_and_written(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    with redis.Redis.from_url(upkeep.redis_url) as client:
        stored = [client.dump(key) for key in client.scan_iter()]
    shown = {
        "log": worker.stderr,
        "output": worker.stdout,
        "ledger": json.dumps(kept.rows("SELECT * FROM upkeep.run"), default=str),
        "redis": repr(stored),
    }
    passwords = (kept.password, WRONG_PASSWORD, AWAY_PASSWORD)
    assert {place for place, text in shown.items() for password in passwords if password in text} == set()


@pytest.mark.parametrize("command", ["worker", "beat"])
def test_a_configuration_with_errors_stops_the_process_and_reports_all(upkeep: Fleet, command: str) -> None:
    broken = upkeep.folder / f"broken-{command}.toml"
    broken.write_text(
        '[databases.kept.views."v"]\ntier = "dayly"\n[databases.kept]\nmax_parallel_refreshes = 0\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "worker.app", command],
        cwd=upkeep.folder,
        env={**upkeep.environment, "UPKEEP_CONFIG": str(broken)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode not in {0, -signal.SIGKILL}
    said = done.stdout + done.stderr
    for key in ("max_parallel_refreshes", "dayly", "schema-qualified"):
        assert key in said, said
    assert kept_password_free(upkeep, said)


def kept_password_free(upkeep: Fleet, said: str) -> bool:
    return not any(url.rpartition("@")[0].rpartition(":")[2] in said for url in upkeep.databases.values())
