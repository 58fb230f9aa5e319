"""The demo ends as promised: orderly on Ctrl-C, leaving no process when killed, not with 0 when a view failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.processes import alive, descendants, wait_gone
from tests.waiting import wait_until

SCALE = "0.005"
UP_S = 90.0

# The sample system with one more view, whose refresh fails for good: what a column that somebody dropped does.
WITH_A_BROKEN_VIEW = """
import sys
from examples import lending
from worker import demo

install = lending.install

def install_broken(conn, **options):
    install(conn, **options)
    conn.execute(
        "CREATE MATERIALIZED VIEW public.mv_broken AS SELECT 1 / (count(*) - count(*)) AS n FROM pg_class"
        " WITH NO DATA"
    )

lending.install = install_broken
lending.CONFIG += '\\n[databases.lending.views."public.mv_broken"]\\ntier = "daily"\\n'
sys.exit(demo.run(example="lending", scale=float(sys.argv[1]), duration=5, interactive=False))
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The demo's temporary directory; not below pytest's, which the server's user cannot enter."""
    with tempfile.TemporaryDirectory(prefix="upkeep-test-") as folder:
        Path(folder).chmod(0o1777)
        yield Path(folder)


class Demo:
    """A demo in a process of its own."""

    def __init__(self, temporary: Path, *command: str) -> None:
        self.output = temporary.with_suffix(".out")
        with self.output.open("wb") as out:
            self.popen = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_running(self) -> list[psutil.Process]:
        """Wait until the whole fleet is up; returns all of the demo's processes."""

        def up() -> bool:
            assert self.popen.poll() is None, self.said
            return "  running" in self.said

        wait_until(up, UP_S, lambda: self.said)
        found = descendants(self.popen.pid)
        lines = [" ".join(process.cmdline()) for process in found]
        for part in (
            "postgres",
            "valkey-server",
            "worker.app worker",
            "worker.app beat",
            "worker.app flower",
        ):
            assert any(part in line for line in lines), lines
        return found


@pytest.fixture
def demo(temporary: Path) -> Iterator[Demo]:
    started = Demo(
        temporary, "-c", "from worker.cli import main; main()", "demo", "--scale", SCALE, "--no-ui"
    )
    yield started
    if started.popen.poll() is None:
        started.popen.kill()
        started.popen.wait()
    started.output.unlink(missing_ok=True)


@pytest.mark.slow
def test_ctrl_c_stops_everything(demo: Demo, temporary: Path) -> None:
    processes = demo.wait_running()
    demo.popen.send_signal(signal.SIGINT)
    assert demo.popen.wait(30) == 0, demo.said
    assert "had to kill" not in demo.said
    assert "stopped" in demo.said
    assert [process for process in processes if alive(process)] == []
    assert [path for path in temporary.iterdir() if not path.name.startswith("upkeep-installation-")] == []


@pytest.mark.slow
def test_kill_leaves_no_process(demo: Demo) -> None:
    processes = demo.wait_running()
    demo.popen.kill()
    demo.popen.wait()
    wait_gone(processes, 10)


@pytest.mark.slow
def test_a_view_that_fails_makes_it_fail(temporary: Path) -> None:
    started = Demo(temporary, "-c", WITH_A_BROKEN_VIEW, SCALE)
    try:
        assert started.popen.wait(90) == 1, started.said
        assert "failed: public.mv_broken" in started.said
        assert "division by zero" in started.said
        # The other views went on.
        assert started.said.count("was never refreshed") == 1, started.said
    finally:
        if started.popen.poll() is None:
            started.popen.kill()
        started.output.unlink()
