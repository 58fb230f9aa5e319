"""After a failover or a restore: whatever the lost end of the ledger held is done again, once.

A standby that is promoted may lack the last moments of its primary: refreshes with their runs, requests whose messages
are acknowledged already, ticks that the schedule counts as done. Nobody can tell what was there. So every managed
view is refreshed once on the new timeline, where what is recorded of it counts for nothing anyway.
"""

from __future__ import annotations

from typing import Any

import psycopg
import structlog

from fleet import ledger, settings
from fleet.ledger import NewRun
from fleet.postgres.catalog.server import Server
from fleet.postgres.queries import load

log = structlog.get_logger(__name__)
_sql = load("tasks.refresh", "sql/state.sql")

REFRESH_ALL = "upkeep.refresh.all"
# With a single one, a worker that dies while it fans out would take the request with it.
FAN_OUT_ATTEMPTS = 4


def refresh_what_is_of_another_timeline(
    connection: psycopg.Connection[Any], database: settings.Database, server: Server
) -> int | None:
    """The run that refreshes everything, where a view was last refreshed on another timeline, until it has ended.

    One for each cluster and timeline, whoever looks and however often. Whoever is about to overwrite what is
    recorded of a view looks first: it is what tells that there was another timeline.
    """
    request_id = f"timeline/{server.system_identifier}/{server.timeline}"
    known = ledger.get_request(connection, request_id)
    if known is not None:
        return None if known.final else known.id
    values = {"system_identifier": server.system_identifier, "timeline": server.timeline}
    row = connection.execute(_sql.timelines.sql, values).fetchone()
    if row is None:
        return None
    same_cluster = row[0] == server.system_identifier
    why = f"promotion to timeline {server.timeline}" if same_cluster else "restored in another cluster"
    run_id, created = ledger.insert(
        connection,
        NewRun(
            task=REFRESH_ALL,
            target=database.name,
            entry=ledger.OPERATOR,
            queue="refresh",
            max_attempts=FAN_OUT_ATTEMPTS,
            requested_by=why,
            request_id=request_id,
        ),
    )
    if created:
        log.warning("database.other_timeline", database=database.name, why=why, refresh=run_id)
    return run_id
