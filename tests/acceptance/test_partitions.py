"""Partitions through a real worker: they are there when it has started, and nobody is told twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.ledger import State
from tests.processes import Fleet, Kept, Process, fleet, keep
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

MAINTAIN = "upkeep.partitions.maintain"
SCHEMA = """
CREATE TABLE public.orders (id bigint, created_at timestamptz NOT NULL, PRIMARY KEY (id, created_at))
  PARTITION BY RANGE (created_at);
CREATE TABLE public.events (id bigint, created_at date NOT NULL) PARTITION BY RANGE (created_at);
CREATE TABLE public.broken (id bigint) PARTITION BY LIST (id);
"""
CONFIG = """
[databases.kept]

[databases.kept.partitions."public.orders"]
archive = "none"

[databases.kept.partitions."public.events"]
archive = "none"
interval = "day"
premake = 5

[databases.kept.partitions."public.broken"]
archive = "none"

[databases.kept.retention."public.orders"]
years = 7
archive_after_months = 13
framework = "SOX"
"""


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return keep(server, SCHEMA)


@pytest.fixture(scope="module")
def upkeep(folder: Path, broker: EmbeddedRedis, kept: Kept) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def worker(upkeep: Fleet) -> Process:
    return upkeep.worker().wait_ready()


def partitions(kept: Kept, table: str) -> int:
    return int(kept.scalar("SELECT count(*) FROM pg_inherits WHERE inhparent = %s::regclass", table))


@pytest.mark.usefixtures("worker")
def test_they_are_there_soon_after_the_start_of_a_worker(kept: Kept) -> None:
    wait_until(lambda: partitions(kept, "public.orders") == 4, 30, "the partitions of orders")
    wait_until(lambda: partitions(kept, "public.events") == 6, 30, "the partitions of events")
    (run,) = kept.rows("SELECT id, state FROM upkeep.run WHERE requested_by = 'start' AND target = 'kept'")
    children = {child.target: kept.ended(child.id) for child in kept.children(run["id"])}
    assert children.keys() == {"public.orders", "public.events", "public.broken"}
    assert children["public.broken"].state == State.FAILED
    result = children["public.orders"].result
    assert result is not None
    assert len(result["created"]) == 4
    assert result["ahead_days"] >= 89


def test_the_rules_are_written_down_at_the_start(worker: Process, kept: Kept) -> None:
    worker.wait_line(event="database.kept")
    assert kept.rows("SELECT table_name, retention_years, declared FROM upkeep.retention") == [
        {"table_name": "public.orders", "retention_years": 7, "declared": True}
    ]


def test_another_worker_that_starts_asks_for_nothing_more(upkeep: Fleet, worker: Process, kept: Kept) -> None:
    worker.wait_line(event="database.kept")
    upkeep.worker("second").wait_ready()
    asked = kept.scalar("SELECT count(*) FROM upkeep.run WHERE requested_by = 'start' AND target = 'kept'")
    # Two, where the hour has changed since.
    assert asked <= 2


@pytest.mark.usefixtures("worker")
def test_what_is_there_is_skipped_with_why(upkeep: Fleet, kept: Kept) -> None:
    wait_until(lambda: partitions(kept, "public.orders") == 4, 30)
    run = kept.final(upkeep.send(MAINTAIN, queue="maintenance", table="public.orders"))
    assert run.state == State.SKIPPED
    assert run.reason is not None
    assert run.reason.startswith("public.orders has partitions for")


@pytest.mark.usefixtures("worker")
def test_a_table_without_a_policy_is_refused_with_what_to_do(upkeep: Fleet, kept: Kept) -> None:
    run = kept.final(upkeep.send(MAINTAIN, queue="maintenance", table="public.order"))
    assert run.state == State.FAILED
    assert run.target == "public.order"
    assert run.error is not None
    assert "Did you mean public.orders" in run.error["remedy"]
