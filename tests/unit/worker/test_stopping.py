"""What reaches a pool child, and what a process must not do to itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from worker.stopping import _ended, _send


def test_a_pool_without_children_has_nobody_to_tell() -> None:
    """The solo pool's request names the worker itself, which SIGUSR2 would end."""
    _send(os.getpid(), signal.SIGUSR2)


def test_a_child_that_has_ended_leaves_its_exit_code_to_its_parent() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not _ended(child.pid)
    _send(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert _ended(child.pid)
    assert child.wait() == -signal.SIGKILL
    assert _ended(child.pid)
    assert child.stdin is not None
    child.stdin.close()
    _send(child.pid, signal.SIGTERM)  # nobody is there: no error
