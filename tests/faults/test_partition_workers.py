"""SIGKILL of pool children and workers in the middle of maintain and archive: another one goes on by itself.

Every row is counted through the tables and their archive all the while, and at the end everything is as after runs
that nobody disturbed.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

import psutil
import psycopg
import pytest
from pydantic import SecretStr

from fleet import settings
from fleet.ledger import State
from fleet.names import RelationName
from fleet.postgres.connect import connect
from fleet.settings.partitions import PartitionSet
from tasks.partitions import archive as archives
from tasks.partitions.archiving import archive
from tasks.partitions.keep import keep as maintain
from tests.faults.aftermath import assert_nothing_is_left, open_runs, work_locks
from tests.faults.events import Stops
from tests.processes import Fleet, Kept, Process, descendants, fleet, keep, wait_gone
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.redis import EmbeddedRedis

pytestmark = pytest.mark.slow

MAINTAIN, ARCHIVE = "upkeep.partitions.maintain", "upkeep.partitions.archive"
TABLE, NOTES = RelationName("public", "orders"), RelationName("public", "notes")
# Bells that were lost, sessions whose client is gone: seconds, on two busy cores.
RECOVERY_S = 35.0
ROWS = 700
# Four months that are over, two of them no longer hot, and rows of the two to come in the default partition.
SCHEMA = """
CREATE TABLE public.orders (id bigint, day date NOT NULL, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE public.notes (id bigint PRIMARY KEY, day date NOT NULL,
    CONSTRAINT of_order FOREIGN KEY (id, day) REFERENCES public.orders);
CREATE INDEX notes_day ON public.notes (day);
CREATE TABLE public.orders_default PARTITION OF public.orders DEFAULT;
DO $$
DECLARE
    month date := date_trunc('month', now() AT TIME ZONE 'UTC');
    first date;
BEGIN
    FOR back IN REVERSE 4..0 LOOP
        first := month - back * interval '1 month';
        EXECUTE format('CREATE TABLE public.%I PARTITION OF public.orders FOR VALUES FROM (%L) TO (%L)',
                       'orders_y' || to_char(first, 'YYYY"m"MM'), first, (first + interval '1 month')::date);
    END LOOP;
    INSERT INTO public.orders
    SELECT g, month + (g % 7 - 4) * interval '1 month' FROM generate_series(0, 699) AS g;
    INSERT INTO public.notes SELECT id, day FROM public.orders WHERE day < month;
END $$;
"""
CONFIG = """
[databases.kept]
[databases.kept.partitions."public.orders"]
default = "drain"
premake = 2
hot = "2 months"
warm = "1 year"
companions = ["public.notes"]
"""
COUNT = """
SELECT (SELECT array[count(*), count(DISTINCT id), sum(id)::bigint] FROM archive.orders_all),
       (SELECT array[count(*), count(DISTINCT id), sum(id)::bigint] FROM archive.notes_all)
"""
STATE = """
SELECT json_build_object(
    'relations', (SELECT json_agg(json_build_array(c.oid::regclass::text, c.relkind, i.inhparent::regclass::text,
                                                   pg_get_expr(c.relpartbound, c.oid)) ORDER BY c.oid::regclass::text)
                    FROM pg_class AS c LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
                   WHERE c.relnamespace IN ('public'::regnamespace, 'archive'::regnamespace)),
    'constraints', (SELECT json_agg(json_build_array(k.conrelid::regclass::text, k.conname, k.convalidated,
                                                     pg_get_constraintdef(k.oid)) ORDER BY 1, k.conname)
                      FROM (SELECT * FROM pg_constraint ORDER BY conrelid::regclass::text, conname) AS k
                     WHERE k.conparentid = 0
                       AND k.connamespace IN ('public'::regnamespace, 'archive'::regnamespace)),
    'rows', (SELECT json_agg(json_build_array(id, day, archived_at IS NOT NULL) ORDER BY id) FROM archive.orders_all),
    'notes', (SELECT json_agg(json_build_array(id, day, archived_at IS NOT NULL) ORDER BY id) FROM archive.notes_all),
    'batches', (SELECT json_agg(json_build_array(kind, parent, partition, rows, archived_at IS NOT NULL)
                                ORDER BY parent, partition) FROM upkeep.archive_batch),
    'unvalidated', (SELECT count(*) FROM upkeep.unvalidated_constraint))
"""


def month(ahead: int) -> str:
    now = datetime.now(UTC).date()
    year, index = divmod(now.year * 12 + now.month - 1 + ahead, 12)
    return f"orders_y{date(year, index + 1, 1):%Ym%m}"


def prepared(server: EmbeddedPostgres) -> Kept:
    """With a view over the tables and their archives from the first moment."""
    made = keep(server, SCHEMA)
    with connect(made.url, application_name="test") as connection:
        for name, column in ((TABLE, ""), (NOTES, "day")):
            archives.ensure(
                connection,
                name,
                "archive",
                budget=declared(made).partitions[TABLE].lock_budget,
                partition_by=column,
            )
    return made


def declared(kept: Kept) -> settings.Database:
    policy = PartitionSet.model_validate(
        {
            "name": TABLE,
            "default": "drain",
            "premake": 2,
            "hot": "2 months",
            "warm": "1 year",
            "companions": [NOTES],
        }
    )
    return settings.Database(name="kept", url=SecretStr(kept.url), partitions={TABLE: policy})


@pytest.fixture(scope="module")
def kept(server: EmbeddedPostgres) -> Kept:
    return prepared(server)


@pytest.fixture(scope="module")
def calm(server: EmbeddedPostgres) -> Kept:
    """The same, which nobody disturbs."""
    made = prepared(server)
    database = declared(made)
    with connect(made.url, application_name="test") as connection:
        maintain(connection, database, database.partitions[TABLE])
        archive(connection, database.partitions, database.partitions[TABLE])
    return made


@pytest.fixture(scope="module")
def upkeep(folder: Path, kept: Kept, broker: EmbeddedRedis) -> Iterator[Fleet]:
    with fleet(folder, CONFIG, {"kept": kept.url}, broker.url()) as made:
        yield made


@pytest.fixture(scope="module")
def stops(folder: Path) -> Stops:
    return Stops(folder / "stops")


def worker(upkeep: Fleet, stops: Stops, name: str) -> Process:
    return upkeep.worker(
        name,
        "--queues",
        "maintenance,archive",
        concurrency=1,
        environment=stops.environment(name, upkeep.environment["PYTHONPATH"]),
    )


@contextmanager
def counted(kept: Kept) -> Iterator[None]:
    """Count all the while; every row is there, once."""
    over, seen = threading.Event(), []

    def count() -> None:
        with psycopg.connect(kept.database.url, autocommit=True) as connection:
            while not over.is_set():
                seen.append(connection.execute(COUNT).fetchone())

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    notes = [number for number in range(ROWS) if number % 7 < 4]
    expected = ([ROWS, ROWS, sum(range(ROWS))], [len(notes), len(notes), sum(notes)])
    assert [each for each in seen if each != expected] == []
    assert len(seen) > 5


def kill_child(workers: list[Process], child: psutil.Process) -> Process:
    """Kill the child alone; returns its worker."""
    (owner,) = [each for each in workers if each.popen.poll() is None and child.pid in each.pool()]
    os.kill(child.pid, signal.SIGKILL)
    return owner


def kill_worker(workers: list[Process], child: psutil.Process) -> Process:
    """Kill the whole worker, with the children, which would not notice while they are stopped; returns it."""
    (owner,) = [each for each in workers if each.popen.poll() is None and child.pid in each.pool()]
    everything = descendants(owner.pid)
    owner.popen.kill()
    for each in everything:
        each.kill()
    owner.popen.wait()
    wait_gone(everything, 5)
    return owner


def test_killed_in_the_middle_of_both(upkeep: Fleet, stops: Stops, kept: Kept, calm: Kept) -> None:
    # Rows that are moved within a transaction; then between two partitions.
    stops.at("drained", month(1))
    stops.at("made", month(1))
    workers = [worker(upkeep, stops, "one"), worker(upkeep, stops, "two")]
    with counted(kept):
        owner = kill_child(workers, stops.wait("drained", month(1)))
        assert owner.popen.poll() is None
        kill_worker(workers, stops.wait("made", month(1), RECOVERY_S))
        workers.append(worker(upkeep, stops, "three"))
        made = kept.scalar("SELECT id FROM upkeep.run WHERE task = %s AND target = %s", MAINTAIN, str(TABLE))
        ended = kept.ended(made, RECOVERY_S)
        assert (ended.state, ended.attempt) == (State.SUCCEEDED, 3)

        # In the one transaction, with all its locks; then when a month has moved and nothing has been told of it.
        stops.at("told", "about to commit")
        stops.at("told", "moved")
        asked = upkeep.send(ARCHIVE, queue="archive", table=str(TABLE))
        kill_child(workers, stops.wait("told", "about to commit"))
        kill_worker(workers, stops.wait("told", "moved", RECOVERY_S))
        ended = kept.final(asked, RECOVERY_S)
        assert (ended.state, ended.attempt) == (State.SUCCEEDED, 3)
    assert kept.scalar("SELECT count(*) FROM public.orders_default") == 0
    assert kept.scalar(STATE) == calm.scalar(STATE)
    assert open_runs(kept) == []
    wait_until(lambda: not work_locks(kept), 10, lambda: f"the release of {work_locks(kept)}")


def test_nothing_is_left_of_all_this(upkeep: Fleet, kept: Kept) -> None:
    """The last one: it ends the workers that are left."""
    dead = [each for each in upkeep.processes if each.popen.poll() is not None]
    for each in dead:
        upkeep.processes.remove(each)
    assert_nothing_is_left(upkeep, kept)
