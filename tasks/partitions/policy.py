"""Does a policy say of a table what the database says? Everything that would fail later, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import ControlType, PartitionedTable
from fleet.settings.partitions import PartitionSet
from fleet.settings.values import closest
from tasks.partitions.archive import place_of
from tasks.partitions.calendar import Calendar, name_of, subpartition_name
from tasks.partitions.ranges import overlap

_LIMITS: Mapping[str, int] = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}
# A view that reads with its reader's rights, so that row security holds for it, came with 15.
INVOKER_VIEWS = 150_000
# Storage parameters of tables (reloptions.c), with the version that brought each.
_PARAMETERS: Mapping[str, int] = {
    "fillfactor": 0,
    "parallel_workers": 0,
    "toast_tuple_target": 0,
    "user_catalog_table": 0,
    **dict.fromkeys(
        (
            "vacuum_index_cleanup",
            "vacuum_truncate",
            "log_autovacuum_min_duration",
            "autovacuum_enabled",
            "autovacuum_vacuum_threshold",
            "autovacuum_vacuum_scale_factor",
            "autovacuum_vacuum_insert_threshold",
            "autovacuum_vacuum_insert_scale_factor",
            "autovacuum_analyze_threshold",
            "autovacuum_analyze_scale_factor",
            "autovacuum_vacuum_cost_delay",
            "autovacuum_vacuum_cost_limit",
            "autovacuum_freeze_min_age",
            "autovacuum_freeze_max_age",
            "autovacuum_freeze_table_age",
            "autovacuum_multixact_freeze_min_age",
            "autovacuum_multixact_freeze_max_age",
            "autovacuum_multixact_freeze_table_age",
        ),
        0,
    ),
    "autovacuum_vacuum_max_threshold": 180_000,
    "vacuum_max_eager_freeze_failure_rate": 180_000,
}
_NOT_OF_TOAST = frozenset(
    {
        "fillfactor",
        "parallel_workers",
        "toast_tuple_target",
        "user_catalog_table",
        "autovacuum_analyze_threshold",
        "autovacuum_analyze_scale_factor",
    }
)


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Something that a policy says and the database does not; `setting` is the policy's key, or empty."""

    setting: str
    message: str
    remedy: str
    warning: bool = False
    """Whether work goes on all the same."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a policy depends on besides its table."""

    role: str
    version_num: int
    database: str = ""
    may_create_schemas: bool = False
    schemas: Mapping[str, bool] = field(default_factory=dict)
    """Those that are there, and whether tables may be made in them."""
    tablespaces: Mapping[str, bool] = field(default_factory=dict)
    """The same of tablespaces."""
    tables: Mapping[RelationName, PartitionedTable] = field(default_factory=dict)
    """Companions and archives."""
    policies: Mapping[RelationName, PartitionSet] = field(default_factory=dict)
    """Of all tables of the database."""
    hold_error: str = ""
    """What the server says of the policy's `hold`, if it cannot parse it."""


def judge(
    policy: PartitionSet, table: PartitionedTable | None, around: Surroundings, *, clock: datetime
) -> list[Contradiction]:
    """All contradictions, errors first; nothing is changed and nothing asked."""
    if table is None:
        return [
            _error("", f"There is no table {policy.name}", "Create it, or take its policy out of upkeep.toml")
        ]
    if table.kind != "p":
        return [
            _error(
                "",
                f"{policy.name} is not partitioned",
                f"upkeep convert-to-partitioned makes it so without stopping its writers; {_OR_OUT}",
            )
        ]
    if table.strategy != "range":
        return [
            _error(
                "",
                f"{policy.name} is partitioned by {table.strategy}, not by range",
                f"Partition it by range; {_OR_OUT}",
            )
        ]
    found = list(_key(policy, table))
    if not found and table.control_type is not None:
        found += _calendar(policy, table, table.control_type, clock)
    found += _subpartitions(policy, table)
    found += _privileges(policy, table, around)
    found += _storage(policy, around)
    if policy.archive != "none":
        found += _archive(policy, table, around)
    for name in policy.companions:
        found += _companion(policy, table, name, around)
    if around.hold_error:
        found.append(
            _error(
                "hold", f"the server cannot read it: {around.hold_error}", "Mend it; it stands as after WHERE"
            )
        )
    return sorted(found, key=lambda each: each.warning)


_OR_OUT = "or take its policy out of upkeep.toml"


def _key(policy: PartitionSet, table: PartitionedTable) -> Iterator[Contradiction]:
    key = table.key[0] if table.key else ""
    if not key:
        yield _error(
            "column",
            f"{table.name} is partitioned by an expression, whose bounds no calendar speaks of",
            f"Partition it by a column; {_OR_OUT}",
        )
    elif policy.column is not None and policy.column != key:
        what = (
            "is not a column of it"
            if policy.column not in table.columns
            else "is not what it is partitioned by"
        )
        yield _error("column", f"{policy.column} {what}", f'Write column = "{key}", or leave it out')
    elif table.control_type is None:
        yield _error(
            "column",
            f"{key} is of type {table.control_type_name}, of which no calendar speaks",
            f"Partition by a date, a timestamp, a whole number or a UUID of version 7; {_OR_OUT}",
        )
    elif table.control_nullable:
        yield _warning(
            "column",
            f"{key} may be NULL, and such a row has no partition but the default one",
            f"ALTER TABLE {table.name} ALTER COLUMN {key} SET NOT NULL",
        )


def _calendar(
    policy: PartitionSet, table: PartitionedTable, control: ControlType, clock: datetime
) -> Iterator[Contradiction]:
    try:
        calendar = Calendar.of(policy, control)
        ahead = [calendar.range(each) for each in calendar.ahead(clock, policy.premake)]
    except PermanentError as exc:
        yield _error("epoch", exc.message, exc.remedy)
        return
    limit = _LIMITS.get(table.control_type_name)
    last = ahead[-1].upper
    if limit is not None and isinstance(last, int) and last >= limit:
        yield _error(
            "epoch",
            f"{calendar.words(last)} is more than a {table.control_type_name} holds",
            f"Correct epoch, epoch_start or epoch_shift, or make {table.key[0]} a bigint",
        )
        return
    for bounds in ahead:
        try:
            name = name_of(policy, calendar, bounds)
            if policy.subpartitions is not None:
                subpartition_name(name, policy.subpartitions.count - 1)
        except PermanentError as exc:
            yield _error("partition_name", exc.message, exc.remedy)
            return
    for partition in table.partitions:
        hull = partition.hull
        if hull is not None and any(overlap(hull, each) for each in ahead):
            yield _error(
                "",
                f"{partition.name} overlaps with the periods that are to be made: {partition.odd}",
                "Detach it, and attach it again with bounds of the calendar",
            )


def _subpartitions(policy: PartitionSet, table: PartitionedTable) -> Iterator[Contradiction]:
    if policy.subpartitions is None:
        return
    columns = policy.subpartitions.columns
    for column in columns:
        if column not in table.columns:
            yield _error(
                "subpartitions", f"{table.name} has no column {column}", closest(column, table.columns)
            )
            return
    for unique in table.unique_keys:
        missing = [column for column in columns if column not in unique]
        if missing:
            yield _error(
                "subpartitions",
                f"a partition divided by {', '.join(columns)} cannot have the unique key ({', '.join(unique)}), "
                f"which has no {missing[0]}",
                "Divide by columns of every primary and unique key",
            )
            return


def _privileges(
    policy: PartitionSet, table: PartitionedTable, around: Surroundings
) -> Iterator[Contradiction]:
    owner = _quoted(table.owner)
    if not table.may_alter:
        yield _error(
            "",
            f"{around.role} may not alter {policy.name}: it is no member of its owner",
            _membership(table, around.role),
        )
    elif not table.may_create_in_schema:
        schema = _quoted(table.name.schema)
        yield _error(
            "",
            f"{around.role} may not create tables in {schema}",
            f"GRANT CREATE ON SCHEMA {schema} TO {owner}",
        )


def _storage(policy: PartitionSet, around: Surroundings) -> Iterator[Contradiction]:
    for setting, name in (
        ("tablespace", policy.tablespace),
        ("archive_tablespace", policy.archive_tablespace),
    ):
        if name is None:
            continue
        if name not in around.tablespaces:
            yield _error(setting, f"there is no tablespace {name}", closest(name, around.tablespaces))
        elif not around.tablespaces[name]:
            yield _error(
                setting,
                f"{around.role} may not use the tablespace {name}",
                f"GRANT CREATE ON TABLESPACE {_quoted(name)} TO {_quoted(around.role)}",
            )
    for parameter in policy.storage_parameters:
        plain = parameter.removeprefix("toast.")
        since = _PARAMETERS.get(plain)
        if since is None or (plain != parameter and plain in _NOT_OF_TOAST):
            yield _error(
                "storage_parameters", f"tables have no parameter {parameter}", closest(parameter, _PARAMETERS)
            )
        elif around.version_num < since:
            yield _error(
                "storage_parameters", f"{parameter} came with PostgreSQL {since // 10_000}", "Take it out"
            )


def _archive(policy: PartitionSet, table: PartitionedTable, around: Surroundings) -> Iterator[Contradiction]:
    schema, role = policy.archive_schema, _quoted(around.role)
    try:
        place, _ = place_of(policy.name, schema)
    except PermanentError as exc:
        yield _error("archive", exc.message, exc.remedy)
        return
    there = around.tables.get(place)
    if schema not in around.schemas:
        if not around.may_create_schemas:
            yield _error(
                "archive_schema",
                f"there is no schema {schema}, and {around.role} may not create one",
                f"CREATE SCHEMA {_quoted(schema)} AUTHORIZATION {_quoted(table.owner)}",
            )
    elif there is None and not around.schemas[schema]:
        yield _error(
            "archive_schema",
            f"{around.role} may not create tables in the schema {schema}",
            f"GRANT CREATE ON SCHEMA {_quoted(schema)} TO {role}",
        )
    if there is not None:
        if there.strategy != "range" or there.key != table.key:
            yield _error(
                "archive_schema",
                f"{place} is there and is not partitioned as {policy.name} is",
                "Rename it, or name another archive_schema",
            )
        elif not there.may_alter:
            yield _error(
                "archive_schema",
                f"{around.role} may not alter {place}: it is no member of its owner",
                _membership(there, around.role),
            )
    if table.row_security and around.version_num < INVOKER_VIEWS:
        yield _error(
            "archive",
            f"{policy.name} has row security, past which a view over it and its archive would go before PostgreSQL 15",
            'Write archive = "none", or upgrade the server',
        )


def _companion(
    policy: PartitionSet, table: PartitionedTable, name: RelationName, around: Surroundings
) -> Iterator[Contradiction]:
    companion = around.tables.get(name)
    if companion is None or companion.kind not in ("r", "p"):
        yield _error("companions", f"there is no table {name}", "Correct its name, or take it out")
        return
    control = table.key[0] if table.key else ""
    refers = any(key.referencing == name and key.referenced == table.name for key in table.foreign_keys)
    if not refers and control not in companion.columns:
        yield _error(
            "companions",
            f"{name} has neither a foreign key to {table.name} nor a column {control} that says which rows go along",
            "Add the foreign key, or take it out",
        )
    elif companion.kind == "p" and (
        (own := around.policies.get(name)) is None or own.archive == "none" or own.interval != policy.interval
    ):
        yield _error(
            "companions",
            f"{name} is partitioned, and no policy with an archive and the same interval says where its partitions go",
            f"Declare one like that of {policy.name}",
        )
    if not companion.may_alter:
        yield _error(
            "companions",
            f"{around.role} may not work on {name}: it is no member of its owner",
            _membership(companion, around.role),
        )


def _membership(table: PartitionedTable, role: str) -> str:
    """How a role comes to act as a table's owner; never by becoming a superuser."""
    if table.owner_is_superuser:
        return (
            f"{table.owner} is a superuser: ALTER TABLE {table.name} OWNER TO another role, with its partitions, "
            f"and make {role} a member of that one"
        )
    return f"GRANT {_quoted(table.owner)} TO {_quoted(role)}"


def _quoted(name: str) -> str:
    """A single name as SQL needs it."""
    return str(RelationName("x", name)).removeprefix("x.")


def _error(setting: str, message: str, remedy: str) -> Contradiction:
    return Contradiction(setting=setting, message=message, remedy=remedy)


def _warning(setting: str, message: str, remedy: str) -> Contradiction:
    return Contradiction(setting=setting, message=message, remedy=remedy, warning=True)
