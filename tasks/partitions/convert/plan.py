"""What a conversion would do, lock and lose, and why it is refused: from the catalogue and the calendar alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from psycopg import sql

from fleet.errors import PermanentError
from fleet.names import MAX_IDENTIFIER_BYTES, RelationName
from fleet.postgres.catalog.partitions import ControlType, Range, Value
from fleet.settings import PartitionSet
from tasks.partitions.calendar import Calendar, fitting, less, name_of
from tasks.partitions.convert.facts import CONTROL_TYPES, OLD, Facts, Row, working

# More partitions than this make every plan slow; somebody has mistaken the interval.
MOST_PARTITIONS = 1000
BOUND = "upkeep_conversion_bound"


class How(StrEnum):
    """The two ways."""

    ATTACH = "attach"
    """The table itself becomes the partition of everything so far."""
    FILL = "fill"
    """Its rows are copied into partitions, one for each period."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What somebody wants; kept with the conversion, so that it goes on with the same."""

    how: How
    policy: PartitionSet
    accept_weaker_keys: bool = False

    @property
    def column(self) -> str:
        """The control column."""
        assert self.policy.column is not None  # the command line insists
        return self.policy.column

    def stored(self) -> dict[str, Any]:
        """As upkeep.conversion keeps it."""
        policy = self.policy
        kept: dict[str, Any] = {
            "column": policy.column,
            "interval": policy.interval,
            "timezone": policy.timezone,
            "premake": policy.premake,
            "partition_name": policy.partition_name,
            "default": policy.default,
            "lock_budget": f"{int(policy.lock_budget.total_seconds() * 1000)}ms",
            "epoch_shift": policy.epoch_shift,
        }
        if policy.epoch is not None:
            kept["epoch"] = policy.epoch
        return {
            "policy": kept,
            "epoch_start": policy.epoch_start.isoformat(),
            "accept_weaker_keys": self.accept_weaker_keys,
        }

    @classmethod
    def restored(cls, name: RelationName, how: str, kept: dict[str, Any]) -> Asked:
        """From there."""
        epoch_start = datetime.fromisoformat(kept["epoch_start"]).date()
        policy = PartitionSet(**kept["policy"], name=name, epoch_start=epoch_start)
        return cls(how=How(how), policy=policy, accept_weaker_keys=kept["accept_weaker_keys"])


@dataclass(frozen=True, kw_only=True)
class Extent:
    """What the control column holds; infinite values are counted apart."""

    lowest: Value | None = None
    highest: Value | None = None
    nulls: int = 0
    infinite: int = 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step, as the dry run tells it."""

    name: str
    what: str
    locks: str = ""
    long: bool = False
    """It takes as long as the table is large; nobody waits for it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the dry run prints, and that the conversion does."""

    facts: Facts
    asked: Asked
    boundary: Value | None = None
    ranges: tuple[tuple[RelationName, Range], ...] = ()
    kept_as: RelationName | None = None
    """What the old table is called afterwards."""
    steps: tuple[Step, ...] = ()
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = field(default=())
    """Message and remedy."""

    @property
    def calendar(self) -> Calendar:
        """Of the control column."""
        return calendar_of(self.facts, self.asked)


def control_type(facts: Facts, asked: Asked) -> ControlType | None:
    """What the control column holds, if a calendar speaks of that."""
    column = facts.column(asked.column)
    return None if column is None else CONTROL_TYPES.get(column.base_type)


def calendar_of(facts: Facts, asked: Asked) -> Calendar:
    """The calendar; raises PermanentError where the policy contradicts the column."""
    control = control_type(facts, asked)
    assert control is not None  # judged before
    return Calendar.of(asked.policy, control)


def beside(name: RelationName) -> RelationName:
    """What is built for a relation is called so until the switch."""
    return RelationName(name.schema, working(name.name))


def renamed(name: str, table: str, kept_as: str) -> str:
    """What an index or sequence of the old table is called when that has made room."""
    suffix = name.removeprefix(table) if name.startswith(table) else f"_{name}"
    return working(kept_as, suffix if len(suffix.encode()) < MAX_IDENTIFIER_BYTES - 12 else "_key")


def judge(facts: Facts, asked: Asked) -> tuple[tuple[str, str], ...]:
    """Everything that is in the way and shows in the catalogue; nothing of what the rows say."""
    return tuple(_refusals(facts, asked))


def _refusals(facts: Facts, asked: Asked) -> Iterator[tuple[str, str]]:
    table, name = facts.table, facts.name
    if table.kind == "p":
        yield (
            f"{name} is partitioned already",
            "Declare its policy in upkeep.toml: the fleet takes it as it is",
        )
        return
    if table.kind != "r":
        what = {"f": "a foreign table", "v": "a view", "m": "a materialized view"}.get(table.kind, "no table")
        yield f"{name} is {what}", "Convert a plain table"
        return
    if table.persistence == "t":
        yield f"{name} is a temporary table", "It is gone with its session: convert a permanent one"
    if table.is_partition:
        yield f"{name} is a partition itself", "Divide it further through the policy's subpartitions"
    elif table.has_children or table.has_parent:
        yield (
            f"{name} has inheritance children or parents, which a partitioned table cannot have",
            "End the inheritance: ALTER TABLE … NO INHERIT …",
        )
    if table.typed:
        yield f"{name} is a table OF a type", f"ALTER TABLE {name} NOT OF"
    if not table.may_alter:
        grant = sql.SQL("GRANT {} TO {}").format(sql.Identifier(table.owner), sql.Identifier(table.role))
        yield (
            f"The role {table.role} may not act as the owner of {name}, {table.owner}",
            f"{table.owner} is a superuser: ALTER TABLE {name} OWNER TO another role, and make the fleet's role a "
            "member of that one"
            if table.owner_is_superuser
            else grant.as_string(),
        )
    if not table.owner_may_create:
        grant = sql.SQL("GRANT CREATE ON SCHEMA {} TO {}").format(
            sql.Identifier(table.schema), sql.Identifier(table.owner)
        )
        yield f"The owner of {name}, {table.owner}, may not create tables in its schema", grant.as_string()
    if asked.policy.subpartitions is not None:
        yield (
            f"The policy of {name} divides its partitions by hash, which a conversion does not",
            "Take subpartitions out of it until it is converted: new partitions will have them",
        )
    if asked.how is How.FILL and table.forced_row_security:
        yield (
            f"{name} has FORCE ROW LEVEL SECURITY, so that not even its owner can copy every row",
            f"--how attach, or ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY",
        )
    yield from _column_refusals(facts, asked)
    yield from _key_refusals(facts, asked)
    yield from _dependent_refusals(facts, asked)


def _column_refusals(facts: Facts, asked: Asked) -> Iterator[tuple[str, str]]:
    column = facts.column(asked.column)
    if column is None:
        known = ", ".join(each.name for each in facts.columns if each.base_type in CONTROL_TYPES)
        yield f"{facts.name} has no column {asked.column}", f"Those that tell of time: {known or 'none'}"
        return
    if column.generated:
        yield f"The column {asked.column} is computed, and no partition key may be", "Choose another one"
    if column.base_type not in CONTROL_TYPES:
        yield (
            f"The column {asked.column} is {column.type}, of which no calendar speaks",
            "Choose a date, a timestamp, an integer that counts time, or a uuid of version 7",
        )
        return
    try:
        calendar_of(facts, asked)
    except PermanentError as exc:
        yield exc.message, exc.remedy


def _key_refusals(facts: Facts, asked: Asked) -> Iterator[tuple[str, str]]:
    key = facts.primary_key
    if asked.how is How.FILL and key is None:
        yield (
            f"{facts.name} has no primary key, by which its rows could be copied in batches",
            f"ALTER TABLE {facts.name} ADD PRIMARY KEY …, or --how attach, which needs none",
        )
    for each in facts.indexes:
        if not each.valid:
            yield (
                f"The index {each.name} was never finished",
                f"DROP INDEX CONCURRENTLY {each.name}, or REINDEX it",
            )
        if each.constraint_kind == "x":
            yield (
                f"The exclusion constraint {each.name} cannot be kept over partitions",
                f"ALTER TABLE {facts.name} DROP CONSTRAINT {each.name}",
            )
        elif each.deferrable:
            yield f"The key {each.name} is deferrable", "Replace it by one that is not"
        elif each.is_unique and asked.column not in each.columns and each.special:
            yield (
                f"The unique index {each.name} has an expression, a condition or an operator class of its own, "
                f"to which {asked.column} cannot be added",
                f"DROP INDEX CONCURRENTLY {each.name}, or make it one that is not unique",
            )
    weaker = facts.keys(asked.column)
    if weaker and not asked.accept_weaker_keys:
        lost = "; ".join(_weaker(each, asked.column) for each in weaker)
        yield (
            f"A unique index on a partitioned table must have the partition key: {lost}",
            "If nothing relies on it (no ON CONFLICT on these columns either), add --accept-weaker-keys",
        )


def _weaker(index: Row, control: str) -> str:
    columns = ", ".join(index.columns)
    return f"{index.name} would be over ({columns}, {control}), so that ({columns}) may repeat in other rows"


def _dependent_refusals(facts: Facts, asked: Asked) -> Iterator[tuple[str, str]]:
    for each in facts.constraints:
        if each.ours and not each.validated:
            yield (
                f"The constraint {each.name} is not validated",
                f"ALTER TABLE {facts.name} VALIDATE CONSTRAINT {each.name}",
            )
        if each.ours and each.kind == "c" and each.no_inherit:
            yield f"The constraint {each.name} is NO INHERIT, which no partitioned table has", "Replace it"
        if each.kind == "f" and each.to_us:
            yield from _incoming(facts, each, asked)
    for each in facts.triggers:
        if each.for_each_row and each.transition:
            yield (
                f"The trigger {each.name} has transition tables for each row, which no partition may have",
                "Make it FOR EACH STATEMENT",
            )
    for each in facts.publications:
        if each.in_part:
            yield (
                f"The publication {each.name} has some rows or columns of it only",
                f"Publish {facts.name} whole, or take it out: ALTER PUBLICATION {each.name} DROP TABLE {facts.name}",
            )
        elif not each.may_alter:
            yield (
                f"The publication {each.name} belongs to {each.owner}",
                f"GRANT {each.owner} TO {facts.table.role}",
            )
    for each in (*facts.readers, *facts.bodies):
        if not each.may_alter:
            yield (
                f"{each.name} reads it, has to be made anew, and belongs to {each.owner}",
                f"GRANT {each.owner} TO {facts.table.role}",
            )
    for each in facts.others:
        yield (
            f"{each.what} depends on {each.on_what}, and cannot be pointed to another table",
            "Drop it, convert, and create it again",
        )


def _incoming(facts: Facts, key: Row, asked: Asked) -> Iterator[tuple[str, str]]:
    where = RelationName(key.schema, key.relation_name)
    if key.ours:
        yield (
            f"The foreign key {key.name} points to its own table",
            f"ALTER TABLE {where} DROP CONSTRAINT {key.name}",
        )
    elif asked.column not in key.referenced_columns:
        yield (
            f"The foreign key {key.name} of {where} refers to ({', '.join(key.referenced_columns)}), "
            f"which is unique no longer without {asked.column}",
            f"Add {asked.column} to {where} and to the key, or ALTER TABLE {where} DROP CONSTRAINT {key.name}",
        )
    elif key.relation_kind == "p":
        yield (
            f"The foreign key {key.name} is of a partitioned table, {where}, where it cannot be added NOT VALID",
            f"ALTER TABLE {where} DROP CONSTRAINT {key.name}, and add it again afterwards",
        )
    elif not key.may_alter:
        yield (
            f"The foreign key {key.name} is of {where}, of {key.owner}",
            f"GRANT {key.owner} TO {facts.table.role}",
        )


def plan(
    facts: Facts, asked: Asked, extent: Extent, *, clock: datetime, boundary: Value | None = None
) -> Plan:
    """The whole plan; `boundary`: the one that a conversion has begun with."""
    refused = list(judge(facts, asked))
    if refused:
        return Plan(facts=facts, asked=asked, refused=tuple(refused))
    column = facts.column(asked.column)
    assert column is not None
    if extent.nulls:
        refused.append(
            (
                f"{extent.nulls} rows of {facts.name} have no {asked.column}",
                f"No period has them: give them a value where {asked.column} IS NULL",
            )
        )
    try:
        ranges, boundary = _ranges(facts, asked, extent, clock, boundary)
        kept_as = _kept_as(facts, asked, boundary)
    except PermanentError as exc:
        refused.append((exc.message, exc.remedy))
        return Plan(facts=facts, asked=asked, refused=tuple(refused))
    if extent.infinite and asked.how is How.ATTACH:
        refused.append(
            (
                f"{extent.infinite} rows of {facts.name} have an infinite {asked.column}",
                "They would be after every boundary: give them a date, or --how fill",
            )
        )
    if len(ranges) > MOST_PARTITIONS:
        refused.append(
            (
                f"{len(ranges)} partitions, one for each {asked.policy.interval}, are too many",
                "Choose a longer --interval",
            )
        )
    return Plan(
        facts=facts,
        asked=asked,
        boundary=boundary,
        ranges=tuple(ranges),
        kept_as=kept_as,
        steps=tuple(_steps(facts, asked, boundary, kept_as, len(ranges))),
        lost=tuple(_lost(facts, asked)),
        notes=tuple(_notes(facts, asked, boundary)),
        refused=tuple(refused),
    )


def _ranges(
    facts: Facts, asked: Asked, extent: Extent, clock: datetime, boundary: Value | None
) -> tuple[list[tuple[RelationName, Range]], Value | None]:
    calendar = calendar_of(facts, asked)
    ahead = calendar.ahead(clock, max(asked.policy.premake, 2))
    if asked.how is How.ATTACH:
        if boundary is None:
            boundary = calendar.start_of(ahead[2].first)
            if extent.highest is not None and not less(extent.highest, boundary):
                boundary = calendar.start_of(calendar.period_of(extent.highest).after)
        period = calendar.period_of(boundary)
    else:
        boundary = None
        period = ahead[0]
        if extent.lowest is not None and less(extent.lowest, calendar.start_of(period.first)):
            period = calendar.period_of(extent.lowest)
    last = ahead[-1]
    if extent.highest is not None and asked.how is How.FILL:
        last = max(last, calendar.period_of(extent.highest))
    found: list[tuple[RelationName, Range]] = []
    while period <= last or not found:
        bounds = calendar.range(period)
        if bounds.lower != bounds.upper:
            found.append((name_of(asked.policy, calendar, bounds), bounds))
        period = calendar.following(period)
        if len(found) > MOST_PARTITIONS:
            break
    return found, boundary


def _kept_as(facts: Facts, asked: Asked, boundary: Value | None) -> RelationName:
    name = facts.name
    if asked.how is How.FILL or boundary is None:
        return RelationName(name.schema, fitting(f"{name.name}_before_conversion"))
    day = calendar_of(facts, asked).period_of(boundary).first
    return RelationName(name.schema, fitting(f"{name.name}_until_{day:%Y%m%d}"))


def _lost(facts: Facts, asked: Asked) -> Iterator[str]:
    for each in facts.keys(asked.column):
        yield _weaker(each, asked.column)
    for provider in facts.table.labels:
        yield f"the security label of {provider}, which is the operator's to set again"
    if any(each.clustered for each in facts.indexes):
        yield "the index that CLUSTER uses, which a partitioned table has not"


def _notes(facts: Facts, asked: Asked, boundary: Value | None) -> Iterator[str]:
    if boundary is not None:
        yield (
            f"From the step `bound` until the switch, rows with {asked.column} of "
            f"{calendar_of(facts, asked).words(boundary)} or later are refused"
        )
    if asked.how is How.FILL:
        yield "Until the switch every write to it is done twice, by a trigger; the copy takes as much room as the table"
        yield "Writes of transactions in REPEATABLE READ or above are noted, and done again under a short lock"
    for each in facts.triggers:
        if not each.for_each_row:
            yield f"The trigger {each.name} fires for statements on the table, not for those on a partition"
    if facts.table.persistence == "u":
        yield "Its partitions are unlogged, as it is"


def _steps(
    facts: Facts, asked: Asked, boundary: Value | None, kept_as: RelationName, partitions: int
) -> Iterator[Step]:
    name, parent = facts.name, beside(facts.name)
    budget = f"at most {int(asked.policy.lock_budget.total_seconds() * 1000)} ms"
    referenced = len({each.referenced for each in facts.outgoing})
    yield Step(name="parent", what=f"create {parent}, with {partitions} partitions")
    if referenced:
        yield Step(
            name="references",
            what="give it the foreign keys, one partition after the other",
            locks=f"each: SHARE ROW EXCLUSIVE on the table referred to, {budget}",
        )
    if asked.how is How.ATTACH:
        for each in facts.keys(asked.column):
            yield Step(
                name="keys",
                what=f"build {working(each.name, OLD)} ({', '.join([*each.columns, asked.column])}) CONCURRENTLY",
                locks=f"SHARE UPDATE EXCLUSIVE on {name}",
                long=True,
            )
        words = calendar_of(facts, asked).words(boundary)
        yield Step(
            name="bound",
            what=f"CHECK ({asked.column} < {words}) NOT VALID on {name}",
            locks=f"ACCESS EXCLUSIVE on {name}, {budget}",
        )
        yield Step(name="validate", what="validate it", locks=f"SHARE UPDATE EXCLUSIVE on {name}", long=True)
        yield Step(
            name="attach",
            what=f"attach {name} as the partition of everything before {words}",
            locks=f"ACCESS EXCLUSIVE on {name}{f' and {referenced} referenced tables' if referenced else ''}, {budget}",
        )
    else:
        yield Step(
            name="mirror",
            what=f"triggers on {name} that write to {parent} as well",
            locks=f"SHARE ROW EXCLUSIVE on {name}, {budget}",
        )
        yield Step(
            name="copy",
            what=f"copy about {facts.table.rows:,} rows by ranges of the primary key",
            locks=f"each batch: ROW SHARE on {name}, its rows FOR SHARE, {budget}",
            long=True,
        )
    for each in facts.matviews:
        yield Step(
            name="views",
            what=f"build {beside(RelationName(each.schema, each.name))} on {parent}, with its indexes",
            locks=f"for its definition ACCESS EXCLUSIVE on {name} and the materialized views on it, {budget}",
            long=True,
        )
    yield Step(name="verify", what="compare rows and a sum of both sides in one snapshot", long=True)
    dependents = [RelationName(each.schema, each.name) for each in facts.readers]
    also = f", {', '.join(map(str, dependents))}" if dependents else ""
    yield Step(
        name="switch",
        what=f"{name} becomes {kept_as}, {parent} becomes {name}; what depends on it is pointed there",
        locks=f"ACCESS EXCLUSIVE on {name}{also}, {budget}",
    )
