"""What a scheduler costs while nothing is due: the leader, the standby, and stock beat beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping

import psutil

from benchmarks.clock.bench import IDLE_ENTRIES, LEADS, Bench
from benchmarks.parts import Part
from benchmarks.report import at_most
from benchmarks.timing import Deadline

LEADER = at_most("idle", 3, "% of a core", f"a leader with {IDLE_ENTRIES} entries, none of them due")
STANDBY = at_most("idle.standby", 3, "% of a core", "… and its standby")
WINDOW_S = 60.0
QUICK_WINDOW_S = 5.0
# What a process needed to start is no part of idling.
SETTLE_S = 1.0
# The kernel counts the time of a process in these, user and system apart: a sum may lack nearly two of them.
TICK_S = 0.01


def measure(bench: Bench, deadline: Deadline) -> None:
    """The processor's time of both over one window, with that of their sessions in the server."""
    report, clock, pair = bench.report, bench.idle_clock, bench.pair
    pair.leader.wait_said(LEADS)
    watched = {
        "idle": psutil.Process(pair.leader.pid),
        "idle.standby": psutil.Process(pair.standby.pid),
    }
    if not bench.quick:
        crew, _ = bench.peer("stock_idle", count=IDLE_ENTRIES)
        stock = crew.beat(f"--schedule={crew.folder / 'schedule'}", "-l", "INFO")
        stock.wait_said("beat: Starting...")
        watched["idle.stock"] = psutil.Process(stock.pid)
    time.sleep(SETTLE_S)
    sessions = clock.connection.execute(
        "SELECT pid FROM pg_catalog.pg_stat_activity"
        " WHERE datname = pg_catalog.current_database() AND application_name = 'upkeep/scheduler'"
    ).fetchall()
    servers = {f"session {pid}": psutil.Process(pid) for (pid,) in sessions}
    window_s = QUICK_WINDOW_S if bench.quick else WINDOW_S
    window_s = min(window_s, max(1.0, deadline.left() - 0.5))
    used = _used(watched | servers, window_s)
    note = f"user and system, over {window_s:.0f} s"
    for name in watched:
        report.add(name, used[name], "% of a core", note=note)
    report.add(
        "idle.server", sum(used[name] for name in servers), "% of a core", note="both sessions in PostgreSQL"
    )
    for bound in (LEADER, STANDBY):
        report.hold(bound, used[bound.metric], floor=100 * 2 * TICK_S / window_s)
    # Whoever measures next wants to be alone.
    clock.crew.close()


def _used(processes: Mapping[str, psutil.Process], window_s: float) -> dict[str, float]:
    before = {name: _cpu_s(process) for name, process in processes.items()}
    began = time.monotonic()
    time.sleep(window_s)
    passed = time.monotonic() - began
    return {name: 100 * (_cpu_s(process) - before[name]) / passed for name, process in processes.items()}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


PART = Part(
    name="idle", title="schedulers with nothing to do", share=6, bounds=(LEADER, STANDBY), measure=measure
)
