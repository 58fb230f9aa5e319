"""How a process is started that must not outlive ours: a death signal, another user, a clean environment.

The kernel is asked to end it, because no handler of ours runs when somebody kills us with -9.
"""

from __future__ import annotations

import os
import pwd
import signal
import sys

# What runs between fork and exec of a server. A preexec_fn would do, but Python warns about it in a process
# with threads (3.12+), and rightly. The order matters: setuid clears the death signal, so the user is changed
# first; and a parent that died before prctl sends no signal any more, so it is looked for afterwards.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, death_signal, uid, gid = map(int, sys.argv[1:5])
libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if libc is not None and libc.prctl(1, death_signal) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != parent:
    sys.exit("the process that wanted this server is gone")
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored, signal.SIG_DFL)
os.execv(sys.argv[5], sys.argv[5:])
"""


def bound_to_us(
    command: list[str], death_signal: signal.Signals, account: pwd.struct_passwd | None = None
) -> list[str]:
    """A command line that starts `command`, as another user if asked, and ends it when our process is gone.

    Linux sends the death signal when the *thread* that forked ends, not when its process does: start this
    from the main thread, or from one that lives as long as the command should.
    """
    uid, gid = (account.pw_uid, account.pw_gid) if account else (-1, -1)
    numbers = [os.getpid(), int(death_signal), uid, gid]
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, *map(str, numbers), *command]


def server_environment() -> dict[str, str]:
    """Ours without what would change the server: PGDATA, PGPORT, PGTZ and a locale that may not exist."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}
