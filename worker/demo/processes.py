"""The processes of a fleet on this machine, as they would run anywhere: started in order, watched, stopped in order."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from celery import Celery

from fleet.errors import UpkeepError
from worker.embedded.launcher import bound_to_us

WORKER_START_S = 60.0
STOP_S = 45.0
LOG_TAIL_LINES = 30


@dataclass
class Fleet:
    """The processes of the fleet, each with a log of its own."""

    folder: Path
    environment: Mapping[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> None:
        """Start `celery -A worker.app …` in a session of its own: Ctrl-C is for us, and we stop them in order."""
        command = [sys.executable, "-m", "celery", "-A", "worker.app", *arguments]
        with self.log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                bound_to_us(command, signal.SIGKILL),
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self.folder / f"{name}.log"

    def dead(self) -> str | None:
        """The first process that ended without being asked to."""
        return next((n for n, p in self.processes.items() if p.poll() is not None), None)

    def tail(self, name: str) -> str:
        """The end of a process's log."""
        return "\n".join(self.log(name).read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    def stop(self) -> list[str]:
        """The scheduler first, then who works; returns the names of those that had to be killed."""
        for process in reversed(list(self.processes.values())):
            if process.poll() is None:
                process.terminate()
        killed = []
        deadline = time.monotonic() + STOP_S
        for name, process in self.processes.items():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed.append(name)
        self.processes.clear()
        return killed


def wait_for_worker(fleet: Fleet, environment: Mapping[str, str], stopped: threading.Event) -> None:
    """Return when a worker answers, or when the demo is stopped before that.

    Raises:
        UpkeepError: a process ended, or none answered in `WORKER_START_S`; with the tail of its log.

    """
    with Celery(broker=environment["UPKEEP_REDIS_URL"]) as app:
        deadline = time.monotonic() + WORKER_START_S
        while not stopped.is_set():
            dead = fleet.dead()
            if dead:
                raise UpkeepError(f"{dead} did not start; its log ends with\n{fleet.tail(dead)}")
            if app.control.ping(timeout=0.5):
                return
            if time.monotonic() >= deadline:
                raise UpkeepError(
                    f"No worker answered in {WORKER_START_S:.0f} s; its log ends with\n{fleet.tail('worker')}"
                )
