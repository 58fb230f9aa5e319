"""Jobs at the command line: judged by check, asked for by run, told by history."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import NewDatabase
from tests.integration.worker.cli.conftest import Upkeep
from tests.servers import Database

pytestmark = pytest.mark.any_server

JOBS = """
[fleet]
home = "kept"
[databases.kept]
[jobs.count_rows]
sql = "SELECT count(*) FROM public.t"
cron = "@daily"
[schedule.everything]
task = "upkeep.refresh.all"
cron = "@weekly"
"""


@pytest.fixture
def with_jobs(upkeep: Upkeep) -> Upkeep:
    upkeep.write(JOBS)
    return upkeep


def test_check_counts_jobs_and_parses_their_statements(with_jobs: Upkeep) -> None:
    said = with_jobs("check")
    assert (said.code, said.err) == (0, "")
    assert "1 database, 0 views, 1 job, 1 scheduled task; 0 errors" in said.out


def test_check_finds_what_would_fail_at_night_and_executes_nothing(
    with_jobs: Upkeep, system: Database
) -> None:
    with_jobs.write(
        JOBS
        + """
        [jobs.fine]
        sql = "DELETE FROM public.t"
        [jobs.no_function]
        sql = "SELECT monitoring.check_performance_alerts()"
        [jobs.two]
        sql = "SELECT 1; SELECT 2"
        [jobs.no_table]
        sql = "DELETE FROM public.sessions"
        """
    )
    said = with_jobs("check", "--json")
    assert said.code == 1
    problems = {each["key"]: each for each in said.json["problems"] if each["key"].startswith("jobs.")}
    assert set(problems) == {"jobs.no_function.sql", "jobs.two.sql", "jobs.no_table.sql"}
    assert all(each["level"] == "error" for each in problems.values())
    assert "monitoring" in problems["jobs.no_function.sql"]["message"]
    assert "one statement" in problems["jobs.two.sql"]["remedy"]
    assert "Create the relation" in problems["jobs.no_table.sql"]["remedy"]
    assert system.connect().execute("SELECT count(*) FROM public.t").fetchone() == (50,)
    assert with_jobs("check", "--offline").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["job=count_row"], 'Did you mean "count_rows"?'),
        ([], "name the job"),
        (["sql=SELECT 1"], "takes no argument 'sql'"),
        (["job=count_rows", "database=nope"], "no database named 'nope'"),
    ],
)
def test_a_request_that_makes_no_sense_is_told_before_it_is_sent(
    with_jobs: Upkeep, words: list[str], said: str
) -> None:
    done = with_jobs("run", "upkeep.job.run", *words)
    assert done.code == 2
    assert said in done.err


def test_a_job_knows_its_database_and_runs_in_no_other(
    with_jobs: Upkeep, new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPKEEP_OTHER_URL", new_database(migrated=True).url)
    with_jobs.write(
        JOBS.replace("[schedule.everything]", "database = 'kept'\n[schedule.everything]\ndatabase = 'kept'")
        + "[databases.other]\n"
    )
    sent = with_jobs("run", "upkeep.job.run", "job=count_rows", "--json")
    assert sent.code == 0, sent.err
    assert (sent.json["database"], sent.json["target"]) == ("kept", "count_rows")
    assert sent.json["queue"] == "maintenance"
    refused = with_jobs("run", "upkeep.job.run", "job=count_rows", "database=other")
    assert refused.code == 2
    assert "count_rows runs in the database kept, not in other" in refused.err
    assert "without database=" in refused.err


def test_the_file_that_the_command_is_given_is_the_one_that_counts(with_jobs: Upkeep, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(JOBS.replace("count_rows", "count_others"), encoding="utf-8")
    sent = with_jobs("run", "upkeep.job.run", "job=count_others", "--config", str(other), "--json")
    assert sent.code == 0, sent.err
    assert sent.json["target"] == "count_others"
    assert with_jobs("run", "upkeep.job.run", "job=count_others").code == 2


def test_a_job_that_is_waited_for(
    with_jobs: Upkeep, request: pytest.FixtureRequest, system: Database
) -> None:
    worker: subprocess.Popen[bytes] = request.getfixturevalue("worker")
    done = with_jobs("run", "upkeep.job.run", "job=count_rows", "--wait", "--timeout", "60", "--json")
    assert worker.poll() is None
    assert done.code == 0, done.err
    run = done.json["run"]
    assert (run["state"], run["entry"], run["queue"]) == ("succeeded", "operator", "maintenance")
    assert {key: run["result"][key] for key in ("batches", "rows", "returned")} == {
        "batches": 1,
        "rows": 1,
        "returned": 50,
    }
    told = with_jobs("history")
    assert "upkeep.job.run count_rows (operator)" in told.out
    assert "1 batch, returned 50" in told.out
