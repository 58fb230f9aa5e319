"""What must hold after every fault, whatever it was: nothing is lost, every view is right, nothing is left behind.

A test sends, makes its fault, and ends with assert_nothing_is_lost(kept, requests=[...]); where it is the last of
its fleet, with assert_nothing_is_left(upkeep, kept), which stops it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql

from tests.processes import ALL, TIER, VIEW, Fleet, Kept, descendants, wait_gone
from tests.waiting import wait_until

# A server needs a second to notice a session whose client is gone, and this machine has two busy cores.
FREED_S = 10.0
STOPPED_S = 45.0


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A moment of the schedule at which something was due: the key of exactly one run."""

    task: str
    target: str
    entry: str
    slot: datetime


def assert_nothing_is_lost(
    kept: Kept,
    *,
    requests: Iterable[str] = (),
    slots: Iterable[Slot] = (),
    stale: Collection[str] = (),
    timeout: float = 60,
) -> None:
    """Wait until everything has its run and every run has ended; then look at the ledger, the views, the locks of work.

    Every request (a message's id) and every slot has exactly one run, every run succeeded or says why it did
    not, every managed view but those in `stale` holds what its definition yields now; nothing that a writer asked
    for in the database, and no cached result that a refresh made wrong, waits any longer.
    """
    asked, due = list(requests), list(slots)
    wait_until(
        lambda: not unaccounted(kept, asked, due) and not open_runs(kept) and not waiting(kept),
        timeout,
        lambda: f"{unaccounted(kept, asked, due)}, the end of {open_runs(kept)}, {waiting(kept)}",
    )
    found = [*unexplained(kept), *incomplete(kept), *wrong(kept, stale)]
    assert not found, "\n".join(found)
    wait_until(lambda: not work_locks(kept), FREED_S, lambda: f"the release of {work_locks(kept)}")


def assert_nothing_is_left(upkeep: Fleet, *databases: Kept, timeout: float = FREED_S) -> None:
    """Stop what still runs of the fleet as an operator would; no process, session or advisory lock remains."""
    running = [process for process in upkeep.processes if process.popen.poll() is None]
    below = [each for process in running for each in descendants(process.pid)]
    for process in running:
        process.popen.terminate()
    codes = {process.name: process.end(timeout=STOPPED_S) for process in running}
    assert set(codes.values()) <= {0}, codes
    wait_gone(below, timeout)
    for kept in databases:
        wait_until(lambda: not sessions(kept), timeout, lambda: f"the end of {sessions(kept)}")  # noqa: B023
        wait_until(lambda: not kept.advisory_locks(), timeout, "the end of every advisory lock")  # noqa: B023


def open_runs(kept: Kept) -> list[dict[str, Any]]:
    """The runs that have not ended."""
    return kept.rows(
        "SELECT id, task, target, entry, state, attempt, reason, rung_at FROM upkeep.run"
        " WHERE finished_at IS NULL ORDER BY id"
    )


def waiting(kept: Kept) -> list[str]:
    """The requests of writers that no refresh has fulfilled, and the refreshes whose cached results are still there."""
    found = kept.rows(
        "SELECT 'requests for ' || view AS what, count(*) AS times FROM upkeep.refresh_request GROUP BY view"
        " UNION ALL SELECT 'announcements of ' || view, count(*) FROM upkeep.announcement GROUP BY view ORDER BY 1"
    )
    return [f"{row['times']} {row['what']}" for row in found]


def unaccounted(kept: Kept, requests: Iterable[str], slots: Iterable[Slot]) -> list[str]:
    """The requests and slots that have no run, or several."""
    asked = list(requests)
    found = kept.rows(
        "SELECT request_id, count(*) AS runs FROM upkeep.run WHERE request_id = ANY (%s) GROUP BY request_id",
        asked,
    )
    runs = {row["request_id"]: row["runs"] for row in found}
    said = [f"request {each}: {runs.get(each, 0)} runs" for each in asked if runs.get(each) != 1]
    for each in slots:
        count = kept.scalar(
            "SELECT count(*) FROM upkeep.run WHERE task = %s AND target = %s AND entry = %s AND slot = %s",
            each.task,
            each.target,
            each.entry,
            each.slot,
        )
        if count != 1:
            said.append(f"{each}: {count} runs")
    return said


def unexplained(kept: Kept) -> list[str]:
    """The runs that ended without success and without a word about it."""
    found = kept.rows(
        "SELECT id, target, state FROM upkeep.run WHERE finished_at IS NOT NULL AND CASE state"
        " WHEN 'succeeded' THEN false"
        " WHEN 'failed' THEN coalesce(reason, '') = '' OR coalesce(error ->> 'message', '') = ''"
        " ELSE coalesce(reason, '') = '' END ORDER BY id"
    )
    return [f"run {row['id']} of {row['target']} is {row['state']}, and nothing says why" for row in found]


def incomplete(kept: Kept) -> list[str]:
    """The ticks and fan-outs that have fewer runs of views than they speak of."""
    found = kept.rows(
        "SELECT r.id, r.target, (r.result ->> 'views')::int AS views, count(DISTINCT v.target) AS runs"
        "  FROM upkeep.run r LEFT JOIN upkeep.run v ON v.task = %s"
        "   AND (v.parent_id = r.id OR (r.slot IS NOT NULL AND v.slot = r.slot AND v.entry = r.entry))"
        " WHERE r.task = ANY (%s) AND r.state = 'succeeded'"
        " GROUP BY r.id HAVING count(DISTINCT v.target) < (r.result ->> 'views')::int ORDER BY r.id",
        VIEW,
        [TIER, ALL],
    )
    return [
        f"run {row['id']} of {row['target']}: runs for {row['runs']} of {row['views']} views" for row in found
    ]


def wrong(kept: Kept, stale: Collection[str] = ()) -> list[str]:
    """The managed views that do not hold what their definition yields now."""
    said = []
    with psycopg.connect(kept.database.url, autocommit=True) as connection:
        managed = connection.execute(
            "SELECT s.view, c.oid, c.relispopulated, pg_get_viewdef(c.oid) FROM upkeep.view_state s"
            " LEFT JOIN pg_class c ON c.oid = to_regclass(s.view) WHERE s.tier IS NOT NULL ORDER BY s.view"
        ).fetchall()
        assert managed, "no worker has told the database which views it keeps"
        for view, oid, populated, definition in managed:
            if view in stale:
                continue
            if oid is None or not populated:
                said.append(f"{view} is {'missing' if oid is None else 'not populated'}")
                continue
            # As text, because not every type can be compared; the definition once, because it may take its time.
            query = sql.SQL(
                "WITH expected AS MATERIALIZED (SELECT d::text AS row FROM ({definition}) d),"
                " found AS (SELECT v::text AS row FROM {view} v)"
                " SELECT (SELECT count(*) FROM (TABLE expected EXCEPT ALL TABLE found) m),"
                " (SELECT count(*) FROM (TABLE found EXCEPT ALL TABLE expected) s)"
            ).format(definition=sql.SQL(definition.rstrip().removesuffix(";")), view=sql.SQL(view))
            missing, surplus = connection.execute(query).fetchone()
            if missing or surplus:
                said.append(f"{view} lacks {missing} rows and has {surplus} too many")
    return said


def work_locks(kept: Kept) -> list[str]:
    """Who holds a lock of work: a run's, a relation's, a place's. A leader's is there as long as the leader."""
    found = kept.rows(
        "WITH key AS (SELECT 'upkeep/run/' || id AS name FROM upkeep.run"
        " UNION ALL SELECT 'upkeep/relation/' || oid FROM pg_class"
        " UNION ALL SELECT 'upkeep/refresh-slot/' || n FROM generate_series(0, 99) n)"
        " SELECT k.name, a.application_name FROM key k"
        "   JOIN pg_locks l ON ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended(k.name, 0)"
        "   LEFT JOIN pg_stat_activity a ON a.pid = l.pid"
        "  WHERE l.locktype = 'advisory' AND l.objsubid = 1"
        "    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return [f"{row['name']} by {row['application_name']}" for row in found]


def sessions(kept: Kept) -> list[dict[str, Any]]:
    """Every session of the fleet's in the database, by the name that it gives itself or by its role."""
    return kept.rows(
        "SELECT pid, application_name, state, query FROM pg_stat_activity WHERE datname = current_database()"
        " AND (application_name LIKE 'upkeep%%' OR usename = %s) AND pid <> pg_backend_pid()",
        psycopg.conninfo.conninfo_to_dict(kept.url)["user"],
    )
