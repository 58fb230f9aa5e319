"""What follows a switch while nobody waits: keys are validated, statistics made, the ledger told."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.numeric import Oid

from fleet import ledger
from fleet.ledger import NewRun, State
from fleet.names import RelationName
from tasks.partitions.convert.facts import facts_sql
from tasks.partitions.convert.state import Conversion, get, state_sql

CONVERT = "upkeep.partitions.convert"


def finish(connection: psycopg.Connection[Any]) -> list[Conversion]:
    """What follows a switch and lets nobody wait: validate foreign keys, ANALYZE, tell the ledger."""
    finished = []
    for row in state_sql.unrecorded(connection):
        conversion = Conversion(**row)
        name = RelationName.parse(conversion.table_name)
        for key in facts_sql.constraints(connection, oid=Oid(conversion.parent or 0), as_role="USAGE"):
            if key["kind"] == "f" and key["to_us"] and not key["validated"]:
                connection.execute(
                    sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(
                        sql.Identifier(key["schema"], key["relation_name"]), sql.Identifier(key["name"])
                    )
                )
        connection.execute(sql.SQL("ANALYZE {}").format(name.identifier()))
        with connection.transaction():
            made = ledger.insert_all(
                connection,
                [
                    NewRun(
                        task=CONVERT,
                        target=conversion.table_name,
                        entry="operator",
                        queue="maintenance",
                        state=State.SUCCEEDED,
                        arguments={"how": conversion.how, "rows": (conversion.verified or {}).get("rows")},
                        requested_by=conversion.requested_by,
                        request_id=f"conversion-{conversion.id}",
                    )
                ],
                worker="upkeep/cli",
            )
            state_sql.recorded(connection, id=conversion.id, run_id=made[0].id)
        finished.append(get(connection, conversion.id))
    return finished
