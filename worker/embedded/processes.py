"""Who is below a server, and are they gone? A server is more than its first process, and SIGKILL takes only one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from worker.embedded.errors import ServerError

POLL_S = 0.01


def send_signal(pid: int, how: signal.Signals) -> None:
    """Signal a process that may have ended meanwhile."""
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return


def every_process() -> dict[int, tuple[int, bool]]:
    """Of every process: its parent, and whether it is still there (a zombie is not)."""
    if sys.platform == "linux":
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    # "pid (name) state parent …": the name may hold anything, parentheses too
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                except (FileNotFoundError, ProcessLookupError):
                    continue
                found[int(entry.name)] = (int(parent), state not in "ZX")
        return found
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True
    )
    rows = (line.split() for line in listing.stdout.splitlines())
    return {int(pid): (int(parent), not state.startswith("Z")) for pid, parent, state in rows}


def descendants(pid: int) -> list[int]:
    """Every process below `pid`. PostgreSQL's children are sessions of their own: no group holds them."""
    processes = every_process()
    found = [pid]
    for parent in found:
        found.extend(child for child, (its_parent, _) in processes.items() if its_parent == parent)
    return found[1:]


def wait_gone(pids: list[int], timeout_s: float) -> None:
    """Return when none of them is there any more.

    Raises:
        ServerError: one still was after `timeout_s`.

    """
    deadline = time.monotonic() + timeout_s
    while any(alive for pid, (_, alive) in every_process().items() if pid in pids):
        if time.monotonic() > deadline:
            raise ServerError(f"processes {pids} survive SIGKILL", remedy="look for a hanging disk")
        time.sleep(POLL_S)
