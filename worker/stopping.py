"""How a worker ends, and what reaches a pool child while it works on a run.

Celery waits for its pool without a bound at SIGTERM, and spends its own soft shutdown asleep in a signal handler,
where it sees neither results nor time limits. Here a thread waits instead: what runs may finish for
`soft_shutdown`, then its pool child is told to hand it back. A second SIGTERM does not wait, nor does SIGQUIT.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from celery import bootsteps, platforms, signals
from celery.platforms import EX_FAILURE
from celery.worker import request as celery_request
from celery.worker import state

from tasks.interruption import CANCEL, STOP

log = structlog.get_logger(__name__)

# A child hands its run back in milliseconds, and needs up to ten seconds where PostgreSQL does not answer.
REPEAT_S = 5.0
KILL_S = 12.0
# A broker that does not answer would keep the process for minutes after its children have ended.
LEAVE_S = 10.0
POLL_S = 0.1

# What the thread hears: a signal has come, the worker is ending, Celery has begun to cancel what runs.
_SIGNAL, _ENDING, _AT_ONCE = b"s", b"e", b"a"
# With these an operator asks a task to end; SIGKILL is left to those who mean it.
_POLITE = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP}


class Stopping(bootsteps.StartStopStep):  # type: ignore[misc]  # celery ships no types
    """Bounds the time that a worker takes to end, however it was asked to."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        """Begin to listen. Through a pipe, because a signal handler may write to one whatever it has interrupted."""
        self._soft_shutdown_s = worker.app.runtime.settings.queues.soft_shutdown.total_seconds()
        self._heard, self._says = os.pipe()
        self._told: dict[int, _Told] = {}
        _here.append(self)
        signals.worker_shutting_down.connect(self._signalled, weak=False)
        signals.worker_shutdown.connect(_deaf, weak=False)
        threading.Thread(target=self._watch, name="stopping", daemon=True).start()

    def stop(self, worker: Any) -> None:
        """A worker that is told to end by a message (`control shutdown`) has got no signal."""
        os.write(self._says, _ENDING)

    terminate = stop

    def tell(self, pid: int) -> None:
        """Have a child hand its run back now; called by Celery's cold shutdown, inside a signal handler."""
        self._told[pid] = _Told(pid)
        os.write(self._says, _AT_ONCE)

    def _signalled(self, **_: Any) -> None:
        os.write(self._says, _SIGNAL)

    def _watch(self) -> None:
        said = self._listen(None)
        log.info("worker.stopping", running=len(_busy()), soft_shutdown_s=self._soft_shutdown_s)
        deadline = time.monotonic() + self._soft_shutdown_s
        signalled = False
        while said and said != _AT_ONCE and not (said == _SIGNAL and signalled):
            signalled = signalled or said == _SIGNAL
            said = self._listen(max(0.0, deadline - time.monotonic()))
        quiet_since = time.monotonic()
        while True:  # until the process ends, and this thread with it
            for pid in _busy() - self._told.keys():
                self._told[pid] = _Told(pid)
            left = [told for told in tuple(self._told.values()) if not _ended(told.pid)]
            for told in left:
                told.insist()
            now = time.monotonic()
            quiet_since = now if left else quiet_since
            if now - quiet_since >= LEAVE_S:
                log.error("worker.left", reason="nothing runs any more, and the broker does not answer")
                os._exit(EX_FAILURE)
            time.sleep(POLL_S)

    def _listen(self, timeout_s: float | None) -> bytes:
        """One word, or nothing when the time is over."""
        ready, _, _ = select.select([self._heard], [], [], timeout_s)
        return os.read(self._heard, 1) if ready else b""


# A process has one worker; Celery gives a request no way to it.
_here: list[Stopping] = []


class Request(celery_request.Request):  # type: ignore[misc]  # celery ships no types
    """A message in the main process, which knows why its task must end: the child hears a signal for each reason."""

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """An operator's `revoke(terminate=True)`, Flower's button: the run is cancelled, the child lives on."""
        polite = _number(signal) in _POLITE
        super().terminate(_Signals(CANCEL) if polite else pool, signal=signal)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """The cold shutdown: the run is handed back."""
        super().cancel(_HandingBack(), signal=signal, emit_retry=emit_retry)


@dataclass(frozen=True)
class _Signals:
    """In a pool's place: what Celery would kill a child for only interrupts its run."""

    number: signal.Signals

    def terminate_job(self, pid: int, _: int | None = None) -> None:
        _send(pid, self.number)


class _HandingBack:
    """In a pool's place, at a cold shutdown."""

    def terminate_job(self, pid: int, _: int | None = None) -> None:
        for stopping in _here:
            stopping.tell(pid)


@dataclass
class _Told:
    """A child that was asked to hand its run back: asked again, and killed in the end."""

    pid: int
    since: float = field(default_factory=time.monotonic)
    last: float = field(default_factory=time.monotonic)
    killed: bool = False

    def __post_init__(self) -> None:
        _send(self.pid, STOP)

    def insist(self) -> None:
        now = time.monotonic()
        if self.killed:
            return
        if now - self.since >= KILL_S:
            self.killed = True
            log.error("worker.child_killed", pid=self.pid, after_s=KILL_S)
            _send(self.pid, signal.SIGKILL)
        elif now - self.last >= REPEAT_S:
            self.last = now
            _send(self.pid, STOP)


def _deaf(**_: Any) -> None:
    """All is done: Python gives up its handlers at the end, and one more SIGTERM would look like a crash."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _busy() -> set[int]:
    """The pool children that work on a message."""
    try:
        return {request.worker_pid for request in tuple(state.active_requests) if request.worker_pid}
    except RuntimeError:  # it changed while we looked; the next look is near
        return set()


def _ended(pid: int) -> bool:
    """Whether a child has ended, without taking its exit code from whoever waits for it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _send(pid: int, number: signal.Signals) -> None:
    if pid == os.getpid():  # a pool of threads: there is no child to tell, and the process is not meant
        return
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _number(given: Any) -> int:
    return int(platforms.signals.signum(given or "TERM"))
