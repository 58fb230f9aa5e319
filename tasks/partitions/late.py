"""Rows that came after their range had left: from the default partition into the archive's partition of that range.

A companion that is partitioned alike has late rows in a default partition of its own. They go in the run of the table
that they belong to, in the order that the keys allow: before its rows where the key is between the parents, because
nothing may refer to what leaves; after them where it is between the partitions of a month, because that key has moved
to the archive with both, and the companion's row must find there what it refers to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import errors, sql

from fleet.errors import PermanentError, UpkeepError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Partition, PartitionedTable, Range, read_partitioned
from fleet.postgres.queries import load
from fleet.settings.partitions import PartitionSet
from tasks.partitions import archive as archives
from tasks.partitions import companions as accompanying
from tasks.partitions import foreign_keys, hold
from tasks.partitions.batches import Transfer, transfer
from tasks.partitions.foreign_keys import Reference, between, covers
from tasks.partitions.hold import Held, legally_held
from tasks.partitions.move import printed

_sql = load("tasks.partitions", "sql/late.sql")
_move = load("tasks.partitions", "sql/move.sql")


@dataclass(kw_only=True)
class Late:
    """What was found in the default partition of ranges that have left, and what became of it."""

    moved: dict[str, int] = field(default_factory=dict)
    """Rows by the archive's partition that has them now."""
    companions: dict[str, int] = field(default_factory=dict)
    cold: int = 0
    """Rows whose range is not in this database any more: they wait for a supplement."""
    held: list[Held] = field(default_factory=list)
    refused: list[UpkeepError] = field(default_factory=list)


def take_in(
    connection: psycopg.Connection[Any],
    policies: Mapping[RelationName, PartitionSet],
    policy: PartitionSet,
    *,
    run_id: int | None = None,
    told: Callable[[str], object] = lambda step: None,
) -> Late:
    """Move what is late, its companions' rows with it; a range that cannot be moved stops no other.

    On a connection in autocommit mode, under the advisory locks of the table and its companions. Asked for a companion
    it does nothing: the run of the table that it belongs to moves its rows.
    """

    def of(one: PartitionSet) -> Late:
        return _of_table(connection, policies, one, run_id=run_id, told=told)

    if any(policy.name in each.companions and each.archive != "none" for each in policies.values()):
        return Late()
    theirs = [policies[name] for name in policy.companions if name in policies]
    before = {each.name: of(each) for each in theirs if each.archive != "none"}
    late = of(policy)
    for name, first in before.items():
        # What was refused may have had to wait for the rows that have gone just now.
        _add(late, name, replace(first, refused=[], held=[], cold=0) if first.refused else first)
        if first.refused:
            _add(late, name, of(policies[name]))
    return late


def _add(late: Late, name: RelationName, companion: Late) -> None:
    if companion.moved:
        moved = late.companions.get(str(name), 0) + sum(companion.moved.values())
        late.companions[str(name)] = moved
    late.cold += companion.cold
    late.held += companion.held
    late.refused += companion.refused


def _of_table(
    connection: psycopg.Connection[Any],
    policies: Mapping[RelationName, PartitionSet],
    policy: PartitionSet,
    *,
    run_id: int | None,
    told: Callable[[str], object],
) -> Late:
    late = Late()
    name = RelationName(policy.archive_schema, policy.name.name)
    read = read_partitioned(connection, [policy.name, name])
    table, archive = read.get(policy.name), read.get(name)
    if table is None or archive is None or table.default is None or len(table.key) != 1:
        return late
    default = table.default
    leaves = default.leaves or (default.name,)
    for row in _sql.read_cold(connection, parent=str(table.name)):
        within = between(table.key[0], row["lower"], row["upper"])
        late.cold += sum(_count(connection, leaf, within) for leaf in leaves)
    for child in archive.partitions:
        for leaf in leaves:
            if child.range is None or not _count(
                connection, leaf, covers(table.key[0], child.range), limit=1
            ):
                continue
            try:
                _take_in(
                    connection,
                    policies,
                    policy,
                    late,
                    table=table,
                    child=child,
                    leaf=leaf,
                    run_id=run_id,
                    told=told,
                )
            except Held as exc:
                late.held.append(exc)
            except UpkeepError as exc:
                late.refused.append(exc)
            except errors.IntegrityError as exc:
                late.refused.append(_refused(child.name, leaf, exc))
    return late


def _refused(child: RelationName, leaf: RelationName, exc: psycopg.Error) -> UpkeepError:
    said = ". ".join(each for each in (exc.diag.message_primary, exc.diag.message_detail) if each)
    remedy = f"Mend these rows of {leaf}, or delete those that {child} has already"
    if isinstance(exc, errors.ForeignKeyViolation):
        remedy = "Move or delete what refers to them first: a companion partitioned alike needs a policy of its own"
    return PermanentError(f"Late rows of {leaf} cannot go to {child}: {said}", remedy=remedy)


def _take_in(
    connection: psycopg.Connection[Any],
    policies: Mapping[RelationName, PartitionSet],
    policy: PartitionSet,
    late: Late,
    *,
    table: PartitionedTable,
    child: Partition,
    leaf: RelationName,
    run_id: int | None,
    told: Callable[[str], object],
) -> None:
    range_ = child.range
    assert range_ is not None  # the caller has looked
    control = table.key[0]
    within = covers(control, range_)
    if reason := legally_held(policy, table, range_):
        raise Held(
            f"Late rows of {child.name} are held by law: {reason}",
            remedy="Take it out of legal_holds when it ends",
        )
    held = None if policy.hold is None else f"{within.as_string(connection)} AND (\n{policy.hold}\n)"
    look = partial(hold.look, connection, condition=held, table=table.name, partition=leaf, leaves=())
    look()
    archive = archives.ensure(connection, table.name, policy.archive_schema, budget=policy.lock_budget)
    going = accompanying.look(connection, policies, policy, table, range_)
    references = foreign_keys.read_references(connection, table.oid, control)
    oid = _sql.read_oid(connection, schema=leaf.schema, name=leaf.name)
    # What refers to the table is looked at below; this is what refers to that one partition.
    foreign_keys.refuse_destructive(connection, oid, leaf)
    own = {each.name for each in going.plain}
    referred = partial(_refuse, connection, references, range_, leaf)
    referred(ignored=own)
    batch: UUID = uuid4()
    at: datetime = _move.clock(connection)

    def note(parent: RelationName, place: RelationName, archived: RelationName, rows: int) -> None:
        _move.note_batch(
            connection,
            id=batch,
            kind="late",
            parent=str(parent),
            archive=str(place),
            archived=str(archived),
            control_type=str(table.control_type),
            lower=printed(range_.lower),
            upper=printed(range_.upper),
            rows=rows,
            run_id=run_id,
            archived_at=at,
        )
        told(f"late batch of {parent}")

    for companion in going.plain:
        place = archives.ensure(
            connection,
            companion.name,
            policy.archive_schema,
            budget=policy.lock_budget,
            partition_by=companion.column,
        )
        archived = accompanying.ensure_child(
            connection,
            companion,
            place,
            accompanying.child_name(
                companion.name,
                table=table.name,
                partition=RelationName(table.name.schema, child.name.name),
                schema=policy.archive_schema,
            ),
            bound=_bound(connection, child.name),
            budget=policy.lock_budget,
        )
        rows = accompanying.move_rows(
            connection,
            companion,
            place,
            range_=range_,
            batch=batch,
            at=at,
            budget=policy.lock_budget,
            before=look,
            after=partial(note, companion.name, place.name, archived),
        )
        late.companions[str(companion.name)] = late.companions.get(str(companion.name), 0) + rows
    columns = [each.name for each in archives.read_columns(connection, table.oid) if not each.generated]

    def ready() -> None:
        # With the rows locked nothing can begin to refer to them, and what does already is seen now.
        look()
        referred()

    moved = transfer(
        connection,
        Transfer(
            source=leaf,
            target=archive.name,
            columns=columns,
            condition=within,
            batch=batch,
            at=at,
            budget=policy.lock_budget,
            before=ready,
            after=partial(note, table.name, archive.name, child.name),
        ),
    )
    late.moved[str(child.name)] = late.moved.get(str(child.name), 0) + moved


def _refuse(
    connection: psycopg.Connection[Any],
    references: list[Reference],
    range_: Range,
    leaf: RelationName,
    ignored: set[RelationName] | frozenset[RelationName] = frozenset(),
) -> None:
    foreign_keys.refuse_referred(
        connection, [each for each in references if each.table not in ignored], range_, partition=leaf
    )


def _bound(connection: psycopg.Connection[Any], name: RelationName) -> str:
    with connection.transaction(force_rollback=True):
        _move.print_plainly(connection)
        row = _move.read_partition(connection, schema=name.schema, name=name.name, constraint="")
    return str(row["bound"])


def _count(
    connection: psycopg.Connection[Any],
    leaf: RelationName,
    within: sql.Composable,
    *,
    limit: int | None = None,
) -> int:
    with connection.transaction(force_rollback=True):
        _move.without_row_security(connection)
        row = connection.execute(
            sql.SQL("SELECT count(*) FROM (SELECT FROM ONLY {} WHERE {} LIMIT {}) AS late").format(
                leaf.identifier(), within, sql.Literal(limit) if limit else sql.SQL("ALL")
            )
        ).fetchone()
    assert row is not None  # an aggregate
    return int(row[0])


__all__ = ["Late", "take_in"]
