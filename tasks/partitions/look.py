"""Reads all that a plan needs, for many tables at once: the catalogue first, then rows where a plan depends on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

import psycopg

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import (
    ControlType,
    PartitionedTable,
    Range,
    bound_value,
    read_partitioned,
)
from fleet.postgres.queries import load
from fleet.settings import Database
from fleet.settings.partitions import PartitionSet, leaders
from tasks.jobs.statement import parse
from tasks.partitions.calendar import subpartition_name
from tasks.partitions.counts import Rows, held_rows
from tasks.partitions.lines import Action, Batch, DefaultRows, Known, Line
from tasks.partitions.plan import plan
from tasks.partitions.policy import Contradiction, Surroundings, judge

T = TypeVar("T")

_sql = load("tasks.partitions", "sql/look.sql")
_move = load("tasks.partitions", "sql/move.sql")

_NOTHING_MORE = Known(taken=frozenset())
# So many tables are in memory at a time.
AT_ONCE = 100


@dataclass(frozen=True, kw_only=True)
class Looked:
    """One policy and what became of looking at its table."""

    policy: PartitionSet
    table: PartitionedTable | None
    archive: PartitionedTable | None = None
    contradictions: tuple[Contradiction, ...] = ()
    lines: tuple[Line, ...] = ()
    """Empty where a contradiction is an error: then nothing is done."""
    unknown: tuple[str, ...] = ()
    """What could not be counted, and why."""
    default_rows: DefaultRows | None = None
    """None: not counted, or there is no default partition."""
    batches: tuple[Batch, ...] = ()
    """Which ranges have left this database."""

    @property
    def refused(self) -> bool:
        """Whether something is to be done, or to be put right, that cannot be as it is."""
        return any(not each.warning for each in self.contradictions) or any(
            line.action is Action.REFUSE for line in self.lines
        )


def look(
    connection: psycopg.Connection[Any],
    database: Database,
    names: Iterable[RelationName] | None = None,
    *,
    clock: datetime,
    rows: bool = True,
    due: bool = True,
) -> Iterator[Looked]:
    """Judge and plan the tables with a policy (None: all), in the order of their names; changes nothing.

    `rows`: count those that a plan depends on; `due`: also those that keep what is due where it is. Needs an
    autocommit connection.
    """
    wanted = sorted(database.partitions if names is None else names)
    for start in range(0, len(wanted), AT_ONCE):
        yield from _Look(
            connection, database, wanted[start : start + AT_ONCE], clock=clock, rows=rows, due=due
        )()


def refuse_contradictions(
    connection: psycopg.Connection[Any], database: Database, policy: PartitionSet
) -> None:
    """Stop before anything is done for a policy that says of its table what the database does not.

    Raises:
        PermanentError: all that is wrong, and what to do about the first of it.
    """
    (looked,) = look(connection, database, [policy.name], clock=_move.clock(connection), rows=False)
    wrong = [each for each in looked.contradictions if not each.warning]
    if wrong:
        raise contradicted(policy, wrong)


def contradicted(policy: PartitionSet, wrong: Sequence[Contradiction]) -> PermanentError:
    """All that is wrong with a policy, as one error."""
    return PermanentError(
        f"The policy of {policy.name}: {'; '.join(each.message for each in wrong)}",
        remedy=wrong[0].remedy or "upkeep check",
    )


class _Look:
    """A few tables at once."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        database: Database,
        names: Sequence[RelationName],
        *,
        clock: datetime,
        rows: bool,
        due: bool,
    ) -> None:
        self.connection, self.clock = connection, clock
        self.rows, self.due = rows, due
        self.policies = [database.partitions[name] for name in names]
        asked = {
            *names,
            *map(_archive_of, self.policies),
            *(c for each in self.policies for c in each.companions),
            *(leader for name in names for leader in leaders(database.partitions, name)),
        }
        self.tables = read_partitioned(connection, asked)
        row = _sql.read_surroundings(
            connection, schemas=sorted({each.archive_schema for each in self.policies})
        )
        self.around = Surroundings(
            role=row["role"],
            version_num=row["version_num"],
            database=row["database"],
            may_create_schemas=row["may_create_schemas"],
            schemas=row["schemas"] or {},
            tablespaces=row["tablespaces"] or {},
            tables=self.tables,
            policies=database.partitions,
        )
        self.batches = self._gone()

    def __call__(self) -> Iterator[Looked]:
        found = [self._first(policy) for policy in self.policies]
        taken = self._taken(found)
        for each in found:
            table = each.table
            if table is None or any(not said.warning for said in each.contradictions):
                yield each
                continue
            known = Known(taken=frozenset(taken & _names(each)))
            asked = Rows(self.connection, each.policy, table, each.lines, self.clock) if self.rows else None
            if asked is not None:
                known = replace(known, default_rows=asked.default_rows())
                if self.due:
                    known = replace(known, held=asked.held(), referenced=asked.referenced())
            # Where nobody knows more than the catalogue, the plan is there already.
            lines = each.lines if known == _NOTHING_MORE else tuple(self._plan(each.policy, table, known))
            yield replace(
                each,
                lines=lines,
                unknown=tuple(asked.unknown) if asked is not None else (),
                default_rows=known.default_rows,
            )

    def _first(self, policy: PartitionSet) -> Looked:
        """What the catalogue alone says."""
        table = self.tables.get(policy.name)
        around = replace(self.around, hold_error=self._hold_error(policy, table))
        contradictions = tuple(judge(policy, table, around, clock=self.clock))
        wrong = table is None or any(not each.warning for each in contradictions)
        return Looked(
            policy=policy,
            table=table,
            archive=self.tables.get(_archive_of(policy)),
            contradictions=contradictions,
            batches=tuple(self.batches.get(policy.name, ())),
            lines=() if wrong or table is None else tuple(self._plan(policy, table, Known())),
        )

    def _plan(self, policy: PartitionSet, table: PartitionedTable, known: Known) -> list[Line]:
        return plan(
            policy,
            table,
            archive=self.tables.get(_archive_of(policy)) if policy.archive != "none" else None,
            batches=self.batches.get(policy.name, ()),
            companions=[self.tables[name] for name in policy.companions if name in self.tables],
            leaders=[
                self.tables[name]
                for name in leaders(self.around.policies, policy.name)
                if name in self.tables
            ],
            clock=self.clock,
            known=known,
        )

    def _hold_error(self, policy: PartitionSet, table: PartitionedTable | None) -> str:
        if policy.hold is None or table is None:
            return ""
        question = held_rows(policy.name, policy, policy.hold)
        try:
            parse(self.connection, question.as_string(self.connection))
        except psycopg.Error as exc:
            if self.connection.closed:
                raise
            return exc.diag.message_primary or str(exc).strip()
        return ""

    def _gone(self) -> dict[RelationName, list[Batch]]:
        row = self.connection.execute("SELECT pg_catalog.to_regclass('upkeep.archive_batch')").fetchone()
        if row is None or row[0] is None:
            return {}
        found: dict[RelationName, list[Batch]] = {}
        for each in _sql.read_gone(self.connection, parents=[str(policy.name) for policy in self.policies]):
            name = RelationName.parse(each["parent"])
            table = self.tables.get(name)
            if table is not None and table.control_type is not None:
                found.setdefault(name, []).append(_batch(each, table.control_type))
        return found

    def _taken(self, found: Iterable[Looked]) -> set[RelationName]:
        """Which names that the plans would give are given already."""
        names = sorted(set().union(*map(_names, found)))
        return {
            RelationName(row["schema"], row["name"])
            for row in _sql.read_taken(
                self.connection, schemas=[each.schema for each in names], names=[each.name for each in names]
            )
        }


def _names(looked: Looked) -> set[RelationName]:
    """What a plan would call new tables."""
    policy, found = looked.policy, set()
    for line in looked.lines:
        if line.partition is None:
            continue
        if line.action in (Action.CREATE, Action.DRAIN):
            found.add(line.partition)
            if policy.subpartitions is not None and line.range is not None:
                found |= {subpartition_name(line.partition, r) for r in range(policy.subpartitions.count)}
        elif line.action is Action.MOVE:
            found.add(RelationName(policy.archive_schema, line.partition.name))
    return found


def _archive_of(policy: PartitionSet) -> RelationName:
    return RelationName(policy.archive_schema, policy.name.name)


def _batch(row: Mapping[str, Any], control: ControlType) -> Batch:
    lower, upper = (
        None if row[each] is None else bound_value(row[each], control)
        for each in ("lower_bound", "upper_bound")
    )
    return Batch(
        partition=RelationName.parse(row["partition"]),
        range=Range(lower=lower, upper=upper),
        cold=row["cold"],
        purged=row["purged"],
    )
