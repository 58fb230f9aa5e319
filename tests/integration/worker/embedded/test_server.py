"""No server outlives its owner, however that ends. After a SIGKILL no handler runs: the kernel has to tell them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.worker.embedded.conftest import alive
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.processes import descendants
from worker.embedded.redis import EmbeddedRedis

ROOT = Path(__file__).parents[4]

pytestmark = pytest.mark.usefixtures("run_version")

OWNER = (
    "import sys, threading\n"
    "from tests import servers\n"
    "postgres, redis = servers.new_postgres(), servers.new_redis()\n"
    "thread = threading.Thread(target=lambda: (postgres.start(), redis.start()))\n"
    "thread.start()\n"
    "thread.join()\n"
    "print(postgres.pid, redis.pid, flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.mark.any_server
def test_the_end_of_the_process_is_a_clean_end_too(temporary: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            "from tests import servers\n"
            "postgres, redis = servers.new_postgres().start(), servers.new_redis().start()\n"
            "print(postgres.pid, redis.pid)",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not any(alive(int(pid)) for pid in done.stdout.split())
    assert list(temporary.iterdir()) == []


@pytest.mark.any_server
@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_an_owner_that_is_killed_takes_the_servers_along(
    postgres_server: EmbeddedPostgres, redis_server: EmbeddedRedis, temporary: Path
) -> None:
    # A pipe as its stdin: were it ours, the end of the test run could be what ends it.
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as owner:
        assert owner.stdout is not None
        # The thread that started them has ended by now: that alone must not take them down.
        postgres_pid, redis_pid = map(int, owner.stdout.readline().split())
        pids = [postgres_pid, *descendants(postgres_pid), redis_pid]
        assert all(alive(pid) for pid in pids)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), message="the servers to follow their owner")
    # Fast, not crashed: a data directory that is kept starts without recovery.
    (log,) = temporary.glob("upkeep-postgresql-*/server.log")
    assert "database system is shut down" in log.read_text()


@pytest.mark.any_server
def test_ctrl_c_of_the_group_stops_them_in_order(
    postgres_server: EmbeddedPostgres, redis_server: EmbeddedRedis, temporary: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as owner:
        assert owner.stdout is not None
        pids = list(map(int, owner.stdout.readline().split()))
        os.killpg(owner.pid, signal.SIGINT)
        owner.wait()
    assert not any(alive(pid) for pid in pids)
    assert list(temporary.iterdir()) == []
