"""From a write to a fresh view through a real worker, in every way that an application may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from fleet import ledger
from fleet.ledger import Run, State
from tests.processes import Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from upkeep_client import Upkeep
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

pytestmark = pytest.mark.any_server

REQUEST = "upkeep.refresh.request"
SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY);
CREATE MATERIALIZED VIEW public.base AS SELECT id FROM public.t;
CREATE UNIQUE INDEX base_key ON public.base (id);
CREATE MATERIALIZED VIEW public.total AS SELECT count(*) AS n, 1 AS one FROM public.base;
CREATE UNIQUE INDEX total_key ON public.total (one);
"""
CONFIG = """
[databases.kept.views."public.base"]
tier = "daily"
delay = "50ms"
[databases.kept.views."public.total"]
tier = "daily"
delay = "50ms"
cascade = true
"""


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def worker(upkeep: Fleet) -> Process:
    return upkeep.worker().wait_ready()


@pytest.fixture(scope="module")
def client(broker: EmbeddedRedis) -> Iterator[Upkeep]:
    with Upkeep(broker.url(), database="kept", on_error="raise") as made:
        yield made


def write(kept: Kept) -> None:
    kept.execute("INSERT INTO public.t SELECT coalesce(max(id), 0) + 1 FROM public.t")


def fresh(kept: Kept) -> bool:
    """Whether the view holds every write, and so does the one that follows it."""
    return kept.scalar(
        "SELECT (SELECT count(*) FROM public.base) = (SELECT count(*) FROM public.t)"
        " AND (SELECT n FROM public.total) = (SELECT count(*) FROM public.t)"
    )


def event_runs(kept: Kept, view: str) -> list[Run]:
    with psycopg.connect(kept.database.url, autocommit=True) as connection:
        return [run for run in ledger.history(connection, target=view, limit=100) if run.entry == "event"]


def by_client(kept: Kept, upkeep: Fleet, client: Upkeep) -> None:
    write(kept)
    client.request_refresh("public.base")


def by_sql(kept: Kept, upkeep: Fleet, client: Upkeep) -> None:
    kept.execute(
        "BEGIN; INSERT INTO public.t SELECT coalesce(max(id), 0) + 1 FROM public.t;"
        " SELECT upkeep.request_refresh('public.base'); COMMIT"
    )


def by_sql_and_notify(kept: Kept, upkeep: Fleet, client: Upkeep) -> None:
    write(kept)
    kept.execute("SELECT upkeep.request_refresh('public.base', wake => true)")


def by_celery(kept: Kept, upkeep: Fleet, client: Upkeep) -> None:
    write(kept)
    upkeep.send(REQUEST, view="public.base", database="kept")


@pytest.mark.parametrize("way", [by_client, by_sql, by_sql_and_notify, by_celery])
def test_a_write_is_in_the_view_and_in_what_follows_it(
    kept: Kept, upkeep: Fleet, client: Upkeep, way: Callable[..., None]
) -> None:
    way(kept, upkeep, client)
    wait_until(lambda: fresh(kept), 20, "the write")
    wait_until(lambda: kept.scalar("SELECT count(*) FROM upkeep.refresh_request") == 0, 20, "no request left")


def test_a_burst_of_messages_is_a_refresh_or_two(kept: Kept, upkeep: Fleet) -> None:
    before = len(event_runs(kept, "public.base"))
    for _ in range(50):
        write(kept)
        upkeep.send(REQUEST, view=["public.base"], parameters={"id": 1})
    wait_until(lambda: fresh(kept), 30, "the last write")
    # 50 messages take a worker longer than the delay: some windows, not fifty.
    assert len(event_runs(kept, "public.base")) - before < 25


def test_what_cannot_be_asked_for_is_recorded_and_changes_nothing(
    kept: Kept, upkeep: Fleet, worker: Process
) -> None:
    wrong: list[dict[str, Any]] = [
        {"view": "public.nobody"},
        {"view": ["public.base", "public.nobody"]},
        {"view": 5},
        {},
        {"view": "public.base", "database": "nowhere"},
        {"view": "public.base", "run": 7},
        {"view": "public.base", "parameters": {"not an identifier": 1}},
        {"view": "public.base", "keys": "abc"},
    ]
    for kwargs in wrong:
        run = kept.final(upkeep.send(REQUEST, **kwargs))
        assert (run.state, run.error is not None and bool(run.error["remedy"])) == (State.FAILED, True), (
            kwargs
        )
    assert worker.popen.poll() is None
