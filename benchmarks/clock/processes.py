"""Celery processes that a benchmark starts, reads the logs of, and kills.

A log line carries the moment at which it was written, so that looking for it now and then measures nothing
but what the process did. All moments here and in the databases are of one machine's clock.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fleet.errors import UpkeepError
from worker.embedded.launcher import bound_to_us

POLL_S = 0.005
START_S = 60.0
LOG_TAIL_LINES = 15

# Celery's own format, in the process's local time, which is UTC here: [2026-11-21 04:09:57,977: INFO/MainProcess] …
_CELERYS = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}): ")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One started process."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Of the process itself, not of a shell around it."""
        return self.popen.pid

    def kill(self) -> datetime:
        """SIGKILL for this process alone; returns when."""
        moment = datetime.now(UTC)
        self.popen.kill()
        self.popen.wait()
        return moment

    def said(self, words: str) -> datetime | None:
        """When it wrote its first log line with these words; None if it has not."""
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if words in line and line.endswith("\n"):
                return _written_at(line)
        return None

    def wait_said(self, words: str, within_s: float = START_S) -> datetime:
        """Wait for the first log line with these words; returns when it was written.

        Raises:
            UpkeepError: the process ended, or did not say it in time; with the end of its log.

        """
        deadline = time.monotonic() + within_s
        while True:
            ended = self.popen.poll() is not None
            moment = self.said(words)
            if moment is not None:
                return moment
            if ended or time.monotonic() > deadline:
                said = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
                became = "ended" if ended else f"did not say {words!r} in {within_s:.0f} s"
                raise UpkeepError(f"{self.name} {became}; its log ends with\n{said}")
            time.sleep(POLL_S)


@dataclass(kw_only=True)
class Crew:
    """The processes of one Celery app on one broker."""

    app: str
    folder: Path
    environment: Mapping[str, str]
    processes: list[Process] = field(default_factory=list)

    def start(self, kind: str, *arguments: str) -> Process:
        """Start `celery -A APP beat …` or `… worker …`; it has done nothing yet.

        A process that has been killed leaves its place, its log and its name to none of the next ones.
        """
        name = f"{kind}-{len(self.processes) + 1}"
        path = self.folder / f"{name}.log"
        command = [sys.executable, "-m", "celery", "-A", self.app, kind, *arguments]
        with path.open("wb") as log:
            popen = subprocess.Popen(
                bound_to_us(command, signal.SIGKILL),
                cwd=Path(__file__).parents[2],
                env={**self.environment, "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(Process(name=name, popen=popen, log=path))
        return self.processes[-1]

    def beat(self, *arguments: str) -> Process:
        """Start a scheduler."""
        return self.start("beat", "--pidfile=", *arguments)

    def worker(self, queues: str, *arguments: str) -> Process:
        """Start a worker with one child, which has nobody to talk to: looking for others takes a second."""
        name = f"worker-{len(self.processes) + 1}@benchmark"
        quiet = ("--without-mingle", "--without-gossip")
        return self.start(
            "worker", "--concurrency=1", f"--queues={queues}", f"--hostname={name}", *quiet, *arguments
        )

    def named(self, hostname: str) -> Process:
        """The worker of a hostname, as the ledger or a message names it."""
        return next(each for each in self.processes if hostname.startswith(f"{each.name}@"))

    def close(self) -> None:
        """Kill whatever is left: an orderly end takes seconds, and nobody wants to know."""
        for process in self.processes:
            if process.popen.poll() is None:
                process.kill()


def _written_at(line: str) -> datetime:
    celerys = _CELERYS.match(line)
    if celerys:
        return datetime.strptime(celerys[1], "%Y-%m-%d %H:%M:%S,%f").replace(tzinfo=UTC)
    return datetime.fromisoformat(json.loads(line)["timestamp"])
