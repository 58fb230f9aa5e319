"""The composition root: what every process of the fleet is configured with, and what that means for a message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fleet import settings
from worker.app import QUEUES, configuration

TOML = """
[databases.first.views."public.a"]
tier = "five_minutes"
[databases.second.views."public.b"]
tier = "daily"
queue = "refresh.slow"
[databases.second.tiers.unused]
cron = "0 0 * * *"
[fleet]
home = "first"
[queues]
soft_time_limit = "2h"
"""


@pytest.fixture
def fleet(tmp_path: Path) -> settings.Settings:
    path = tmp_path / "upkeep.toml"
    path.write_text(TOML)
    return settings.load(
        path,
        {
            "UPKEEP_FIRST_URL": "postgresql://u:p@127.0.0.1/first",
            "UPKEEP_SECOND_URL": "postgresql://u:p@127.0.0.1/second",
            "UPKEEP_REDIS_URL": "redis://:secret@127.0.0.1:1/0",
        },
    )


def test_nothing_is_read_at_import(tmp_path: Path) -> None:
    """An import must work anywhere: in tools, in tests, before the environment is set."""
    done = python("import worker.app", tmp_path, {"UPKEEP_CONFIG": str(tmp_path / "nowhere.toml")})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_tasks_have_their_wire_names(tmp_path: Path, fleet: settings.Settings) -> None:
    environment = {
        "UPKEEP_CONFIG": str(fleet.path),
        "UPKEEP_FIRST_URL": "postgresql://127.0.0.1/first",
        "UPKEEP_SECOND_URL": "postgresql://127.0.0.1/second",
    }
    done = python("from worker.app import app; print(*sorted(app.tasks))", tmp_path, environment)
    assert done.returncode == 0, done.stderr
    names = {name for name in done.stdout.split() if not name.startswith("celery.")}
    assert names == {
        "upkeep.job.run",
        "upkeep.ledger.prune",
        "upkeep.partitions.archive",
        "upkeep.partitions.maintain",
        "upkeep.refresh.all",
        "upkeep.refresh.request",
        "upkeep.refresh.tier",
        "upkeep.refresh.triggers",
        "upkeep.refresh.view",
    }


def python(program: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_message_is_acknowledged_when_its_work_is_over(fleet: settings.Settings) -> None:
    made = configuration(fleet)
    assert made["task_acks_late"]
    assert made["task_reject_on_worker_lost"]
    assert made["worker_prefetch_multiplier"] == 1
    assert made["worker_cancel_long_running_tasks_on_connection_loss"] is False
    # Redis must not deliver again what may still be running.
    assert (
        made["broker_transport_options"]["visibility_timeout"]
        > made["task_time_limit"]
        > made["task_soft_time_limit"]
        == 7200
    )


def test_nothing_but_json_is_accepted(fleet: settings.Settings) -> None:
    made = configuration(fleet)
    assert {
        made["task_serializer"],
        made["result_serializer"],
        *made["accept_content"],
        *made["result_accept_content"],
    } == {"json"}


def test_every_queue_is_declared_and_no_other_is_made(fleet: settings.Settings) -> None:
    made = configuration(fleet)
    # Objects, not names: Flower asks each for its name.
    assert (
        {queue.name for queue in made["task_queues"]}
        == set(QUEUES)
        == {"refresh", "refresh.slow", "maintenance", "archive", "watch"}
    )
    assert made["task_create_missing_queues"] is False
    assert made["task_default_queue"] in QUEUES
    assert {route["queue"] for route in made["task_routes"].values()} <= set(QUEUES)


def test_beat_is_the_scheduler_of_which_many_may_run(fleet: settings.Settings) -> None:
    made = configuration(fleet)
    assert made["beat_scheduler"] == "schedules.scheduler:LeaderScheduler"
    assert "beat_schedule" not in made


def test_results_go_away(fleet: settings.Settings) -> None:
    assert configuration(fleet)["result_expires"].total_seconds() == 86_400
