"""What must stay where it is: rows that a policy's `hold` speaks of, and days that the law holds.

The condition is looked at before anything else, and once more when nobody can write any more. Where that second look
is cheap (by the planner's estimate) it is the same question. Where it is not, the server's counters of changes say
whether anybody has written since the first look; a session counts up to a second after its commit, so that a row
which became held in that last second can move along. It is in the view over both all the same, and in the archive.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.numeric import Oid

from fleet.errors import PermanentError, TransientError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import PartitionedTable, Range
from fleet.postgres.patience import Deadline
from fleet.postgres.queries import load
from fleet.settings.partitions import PartitionSet
from tasks.partitions.calendar import Calendar, less

_sql = load("tasks.partitions", "sql/move.sql")

COUNTED = 1000
# Of the planner's units: about a thousand rows found by an index, a few milliseconds.
CHEAP = 5_000.0
LONGEST_LOOK = "15min"


class Held(PermanentError):
    """A partition stays because of rows that must not be moved yet: nothing is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A partition in which no row was held, and how that is found out again."""

    partition: RelationName
    question: sql.Composed | None
    """None: the policy has no condition."""
    cheap: bool = True
    leaves: tuple[int, ...] = ()
    changes: int = 0

    def stands(self, connection: psycopg.Connection[Any], deadline: Deadline | None = None) -> bool:
        """Whether still no row is held; False, where it is not cheap to know, when anybody has written since."""
        if self.question is None:
            return True
        if not self.cheap:
            return _changes(connection, self.leaves) == self.changes
        if deadline is not None:
            _sql.without_row_security(connection)
            row = deadline.execute(sql.SQL("SELECT EXISTS ({})").format(self.question)).fetchone()
        else:
            with connection.transaction(force_rollback=True):
                _sql.without_row_security(connection)
                row = connection.execute(sql.SQL("SELECT EXISTS ({})").format(self.question)).fetchone()
        assert row is not None  # an expression
        return not row[0]


def look(
    connection: psycopg.Connection[Any],
    *,
    condition: str | None,
    table: RelationName,
    partition: RelationName,
    leaves: Sequence[int],
) -> Hold:
    """See that no row of a partition is held; waits for nobody.

    Raises:
        Held: some are, and how many.
        PermanentError: the condition makes no sense there.
    """
    if condition is None:
        return Hold(partition=partition, question=None)
    # On a line of its own, so that a comment at its end ends there. Its columns may be written with the table's name.
    question = sql.SQL("SELECT FROM {} AS {} WHERE (\n{}\n)").format(
        partition.identifier(), sql.Identifier(table.name), sql.SQL(condition)
    )
    changes = _changes(connection, leaves)
    try:
        with connection.transaction(force_rollback=True):
            _sql.without_row_security(connection)
            _sql.unhurried(connection, longest=LONGEST_LOOK)
            cost = _cost(connection, question)
            row = connection.execute(
                sql.SQL("SELECT count(*) FROM ({} LIMIT {}) AS held").format(question, sql.Literal(COUNTED))
            ).fetchone()
    except (psycopg.errors.SyntaxErrorOrAccessRuleViolation, psycopg.errors.DataException) as exc:
        raise PermanentError(
            f"The condition hold of {table} fails on {partition}: {exc.diag.message_primary}",
            remedy=f"Mend hold in the policy of {table}",
        ) from exc
    assert row is not None  # an aggregate
    if row[0]:
        count = f"{row[0]:,}" + (" or more" if row[0] == COUNTED else "")
        raise Held(
            f"{partition} has {count} {'row' if row[0] == 1 else 'rows'} that must not be moved yet (hold)",
            remedy=f"Nothing, if they are settled in time; they are those of {partition} that are {condition}",
        )
    return Hold(
        partition=partition, question=question, cheap=cost <= CHEAP, leaves=tuple(leaves), changes=changes
    )


def legally_held(policy: PartitionSet, table: PartitionedTable, range_: Range) -> str:
    """Why the law wants a range to stay; empty: it does not."""
    if not policy.legal_holds or table.control_type is None:
        return ""
    calendar = Calendar.of(policy, table.control_type)
    for each in policy.legal_holds:
        ends_before = range_.upper is not None and not less(calendar.start_of(each.from_), range_.upper)
        begins_after = range_.lower is not None and not less(range_.lower, calendar.start_of(each.to))
        if not ends_before and not begins_after:
            return f"{each.reason} ({each.from_} to {each.to})"
    return ""


def busy(hold: Hold) -> TransientError:
    """A partition that was written while it was about to move."""
    return TransientError(
        f"{hold.partition} was written between the look for held rows and its move",
        remedy="Upkeep tries again. An index for the condition hold makes the second look cheap, whoever writes",
    )


def _cost(connection: psycopg.Connection[Any], question: sql.Composed) -> float:
    row = connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) {}").format(question)).fetchone()
    assert row is not None  # EXPLAIN has a row
    plan = json.loads(row[0]) if isinstance(row[0], str) else row[0]
    return float(plan[0]["Plan"]["Total Cost"])


def _changes(connection: psycopg.Connection[Any], leaves: Sequence[int]) -> int:
    _sql.forget_statistics(connection)
    row = _sql.read_changes(connection, oids=[Oid(oid) for oid in leaves])
    return int(row["changes"])


__all__ = ["Held", "Hold", "busy", "legally_held", "look"]
