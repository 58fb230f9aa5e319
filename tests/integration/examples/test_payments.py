"""The payments platform: its rows, its function, and the job that takes on what has been pending too long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest

from examples import payments
from examples.payments import generate
from fleet import ledger
from fleet.ledger import NewRun, State
from fleet.postgres.connect import connect
from fleet.settings import Job, check
from tasks.jobs.execute import RUN_JOB, Runner
from tasks.performing import perform
from tests.conftest import NewDatabase
from tests.integration.examples.test_examples import table_fingerprints
from tests.servers import Database

pytestmark = pytest.mark.any_server

SCALE = 0.2
OPEN = """
SELECT count(*) FILTER (WHERE status = 'pending' AND created_at < now() - interval '5 minutes') AS old,
       count(*) FILTER (WHERE status = 'pending' AND created_at >= now() - interval '5 minutes') AS fresh,
       count(*) FILTER (WHERE status = 'processing') AS taken_on
  FROM public.transactions
"""


@pytest.fixture
def system(upkeep_database: Database) -> psycopg.Connection:
    connection = upkeep_database.connect()
    payments.install(connection, scale=SCALE)
    return connection


def job(tmp_path: Path) -> Job:
    path = tmp_path / "upkeep.toml"
    path.write_text(payments.CONFIG, encoding="utf-8")
    report = check(path, {"UPKEEP_PAYMENTS_URL": "postgresql://localhost/x"})
    assert (report.errors, report.warnings) == ((), ())
    assert report.settings is not None
    assert tuple(report.settings.jobs) == payments.JOBS
    return report.settings.job("process_pending")


def run(database: Database, declared: Job) -> ledger.Run:
    """The job as a worker runs it, in this process."""
    with connect(database.url, application_name="upkeep/test") as connection:
        new = NewRun(task=RUN_JOB, target=declared.name, entry="operator", queue=declared.queue)
        run_id, _ = ledger.insert(connection, new)
        runner = Runner(
            connection=connection, job=declared, lock_timeout=timedelta(seconds=1), stay=timedelta(minutes=5)
        )
        with ledger.claim(connection, run_id, worker="test") as claimed:
            assert claimed is not None
            perform(
                connection, claimed, lambda: runner.run(claimed), retries=(), event="job.run", doing="The job"
            )
        found = ledger.get(connection, run_id)
    assert found is not None
    return found


def test_the_job_takes_on_a_thousand_at_a_time_until_nothing_old_is_pending(
    system: psycopg.Connection, upkeep_database: Database, tmp_path: Path
) -> None:
    volume = generate.Volume.at(SCALE)
    assert system.execute(OPEN).fetchone() == (volume.backlog, volume.fresh, 0)
    done = run(upkeep_database, job(tmp_path))
    assert done.state == State.SUCCEEDED, done.error
    assert done.result is not None
    assert (done.result["batches"], done.result["rows"]) == (-(-volume.backlog // 1000), volume.backlog)
    assert system.execute(OPEN).fetchone() == (0, volume.fresh, volume.backlog)
    # Once each, oldest first, a transaction for each batch.
    taken = "FROM public.transactions WHERE status = 'processing'"
    versions: Any = system.execute("SELECT DISTINCT version " + taken).fetchall()
    assert versions == [(2,)]
    batches = system.execute(
        "SELECT count(*) " + taken + " GROUP BY updated_at ORDER BY updated_at"
    ).fetchall()
    assert [count for (count,) in batches] == [1000] * (volume.backlog // 1000) + (
        [volume.backlog % 1000] if volume.backlog % 1000 else []
    )
    (ordered,) = system.execute(
        "SELECT bool_and(created_at >= before) FROM (SELECT created_at, lag(created_at) OVER"
        " (ORDER BY updated_at, created_at) AS before " + taken + ") t"
    ).fetchone() or (None,)
    assert ordered
    again = run(upkeep_database, job(tmp_path))
    assert (again.state, again.reason) == (State.SKIPPED, "nothing was left to do")


def test_what_somebody_else_has_locked_is_left_for_the_next_time(
    system: psycopg.Connection, upkeep_database: Database, tmp_path: Path
) -> None:
    with psycopg.connect(upkeep_database.url) as holder:
        holder.execute(
            "SELECT FROM public.transactions WHERE status = 'pending' ORDER BY created_at LIMIT 7 FOR UPDATE"
        )
        run(upkeep_database, job(tmp_path))
        old, _, _ = system.execute(OPEN).fetchone() or (None, None, None)
        assert old == 7
    assert (run(upkeep_database, job(tmp_path)).result or {})["rows"] == 7


def test_a_batch_reads_no_settled_transaction(system: psycopg.Connection) -> None:
    plan = "\n".join(
        line
        for (line,) in system.execute(
            "EXPLAIN SELECT transaction_id FROM public.transactions WHERE status = 'pending'"
            " AND created_at < now() - interval '5 minutes' ORDER BY created_at LIMIT 1000"
        )
    )
    assert "Seq Scan" not in plan


def test_bursts_are_pending_and_nobodys_yet(system: psycopg.Connection) -> None:
    before: Any = system.execute(OPEN).fetchone()
    assert payments.write(system, Random(3), transactions=12) == payments.Written(transactions=12)
    after: Any = system.execute(OPEN).fetchone()
    assert after == (before[0], before[1] + 12, 0)


def test_rows_do_not_lie_in_the_future(system: psycopg.Connection) -> None:
    late = "SELECT count(*) FROM public.transactions WHERE greatest(created_at, updated_at, completed_at) > now()"
    assert system.execute(late).fetchone() == (0,)


def test_the_same_seed_gives_the_same_rows(new_database: NewDatabase) -> None:
    as_of = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
    prints = []
    for seed, zone in ((7, "UTC"), (7, "Asia/Kathmandu"), (8, "UTC")):
        connection = new_database().connect()
        connection.execute("SELECT set_config('timezone', %s, false)", [zone])
        payments.install(connection, scale=0.001, seed=seed, as_of=as_of)
        connection.execute("SET timezone = 'UTC'")
        prints.append(table_fingerprints(connection))
    assert prints[0] == prints[1]
    assert prints[0] != prints[2]


@pytest.mark.parametrize(
    "moment", ["2026-03-01T00:00:00", "2026-01-31T23:59:59.999999", "2024-02-29T12:00:00"]
)
def test_any_moment_may_be_the_last(moment: str) -> None:
    as_of = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    volume = generate.Volume.at(0.001)
    made = list(generate.transactions(volume, seed=2, as_of=as_of))
    assert [month.first for month in made] == generate.months(as_of)
    assert sum(len(month.rows) for month in made) == volume.settled + volume.backlog + volume.fresh
    for month in made:
        assert all(row.split("\t")[-1][:7] == f"{month.first:%Y-%m}" for row in month.rows)


def test_what_cannot_be_installed(database: Database) -> None:
    connection = database.connect()
    with pytest.raises(ValueError, match="scale must be above 0"):
        payments.install(connection, scale=0)
    with pytest.raises(ValueError, match="time zone"):
        payments.install(connection, scale=0.001, as_of=datetime(2026, 1, 1))  # noqa: DTZ001
    payments.install(connection, scale=0.001)
    before = table_fingerprints(connection)
    with pytest.raises((psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject)):
        payments.install(connection, scale=0.001)
    assert table_fingerprints(connection) == before
