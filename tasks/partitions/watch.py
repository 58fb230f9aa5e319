"""How the tables with a policy stand, now: for watchers, for `upkeep doctor` and for `upkeep status`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

from fleet import settings
from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.queries import load
from tasks.partitions.checks import Finding, LastRuns, days_ahead, findings
from tasks.partitions.lines import Action
from tasks.partitions.look import Looked, look

_sql = load("tasks.partitions", "sql/watch.sql")

# By name: the modules of these tasks are Celery's.
MAINTAIN, ARCHIVE = "upkeep.partitions.maintain", "upkeep.partitions.archive"
# Not something to do.
_NOT_DUE = (Action.WARN,)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One table with a policy at one moment."""

    looked: Looked
    findings: tuple[Finding, ...] = ()
    days_ahead: float | None = None
    """For how many days every moment has a partition; None: for ever, or nobody can say."""
    default_rows: int | None = None
    """None: not counted, or there is no default partition."""

    @property
    def name(self) -> RelationName:
        """The table's."""
        return self.looked.policy.name

    @property
    def due(self) -> dict[Action, int]:
        """How many lines of its plan say what."""
        counts = Counter(line.action for line in self.looked.lines if line.action not in _NOT_DUE)
        return {action: counts[action] for action in Action if counts[action]}


def stand(connection: psycopg.Connection[Any], database: settings.Database) -> Iterator[Standing]:
    """Look at every table with a policy, in the order of their names; changes nothing.

    On a connection in autocommit mode, in a database with the schema upkeep. A table's rows are counted for some
    seconds at most, and only those of the default partition.
    """
    if not database.partitions:
        return
    clock = _sql.clock(connection)
    failed = read_failed(connection, database)
    for each in look(connection, database, clock=clock, due=False):
        if each.table is None:
            yield Standing(looked=each)
            continue
        name, rows = each.policy.name, each.default_rows
        found = findings(
            each.policy,
            each.table,
            clock=clock,
            archive=each.archive,
            batches=each.batches,
            default_rows=rows,
            moves=failed.get((ARCHIVE, name)),
            maintained=failed.get((MAINTAIN, name)),
        )
        try:
            ahead = days_ahead(each.policy, each.table, clock)
        except PermanentError:
            ahead = None
        yield Standing(
            looked=each,
            findings=tuple(found),
            days_ahead=ahead,
            default_rows=None if rows is None else sum(rows.periods.values()) + rows.stray,
        )


def check(connection: psycopg.Connection[Any], database: settings.Database) -> list[Finding]:
    """Everything that somebody must look at, of all the tables."""
    return [each for standing in stand(connection, database) for each in standing.findings]


def read_failed(
    connection: psycopg.Connection[Any], database: settings.Database
) -> Mapping[tuple[str, RelationName], LastRuns]:
    """The runs that have failed since one last ended well, by task and table; where none has, nothing."""
    rows = _sql.read_failed(
        connection, tasks=[MAINTAIN, ARCHIVE], targets=[str(name) for name in database.partitions]
    )
    return {
        (row["task"], RelationName.parse(row["target"])): LastRuns(
            failed=row["failed"],
            message=row["message"],
            remedy=row["remedy"] or f"upkeep history --run {row['id']}",
        )
        for row in rows
    }


__all__ = ["ARCHIVE", "MAINTAIN", "Standing", "check", "read_failed", "stand"]
