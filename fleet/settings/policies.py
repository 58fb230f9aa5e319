"""Policies of partitioned tables and of retention, and what one of them says against another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.settings.findings import Findings, Key, Table, path
from fleet.settings.partitions import PartitionSet, Retention

TABLES = ("partitions", "retention")


def read(found: Findings, database: Table, key: Key) -> dict[str, Any]:
    """`[databases.NAME.partitions]` and `[databases.NAME.retention]`, as fields of the database."""
    partitions: dict[RelationName, PartitionSet] = {}
    for name, value, here in relations(
        found,
        found.table(database.get("partitions", {}), (*key, "partitions")),
        (*key, "partitions"),
        kind="table",
    ):
        policy = found.model(PartitionSet, value, here, given={"name": name})
        if policy is not None:
            partitions[name] = policy
            _judge(found, policy, here)
    _judge_archives(found, partitions, (*key, "partitions"))
    retention: dict[RelationName, Retention] = {}
    for name, value, here in relations(
        found,
        found.table(database.get("retention", {}), (*key, "retention")),
        (*key, "retention"),
        kind="table",
    ):
        rule = found.model(Retention, value, here, given={"name": name})
        if rule is not None:
            retention[name] = rule
            _judge_retention(found, rule, partitions.get(name), here)
    return {"partitions": partitions, "retention": retention}


def relations(
    found: Findings, tables: Table, key: Key, *, kind: str
) -> Iterator[tuple[RelationName, object, Key]]:
    """The tables that have a relation's name for a key; what is wrong with the names goes to the findings."""
    seen: dict[RelationName, str] = {}
    for text, value in tables.items():
        here = (*key, text)
        if (
            "." not in text
            and isinstance(value, Mapping)
            and any(isinstance(each, Mapping) for each in value.values())
        ):
            # TOML reads [views.public.mv_x] as a view "public" with a table "mv_x".
            inner = next(name for name, each in value.items() if isinstance(each, Mapping))
            quoted = path((*key, f"{text}.{inner}"))
            found.error(
                here,
                value,
                "it is not a schema-qualified name",
                f"Quote schema and {kind} together: [{quoted}]",
            )
            continue
        try:
            name = RelationName.parse(text)
        except PermanentError as exc:
            found.error(here, None, exc.message, exc.remedy)
            name = RelationName("", text)
        if name in seen:
            found.error(here, None, f"it is the same {kind} as {seen[name]!r}", "Keep one of the two tables")
        seen.setdefault(name, text)
        yield name, value, here


def _judge(found: Findings, policy: PartitionSet, key: Key) -> None:
    if policy.name in policy.companions:
        found.error((*key, "companions"), str(policy.name), "it is the table itself", "Take it out")
    if policy.epoch is None and policy.epoch_shift:
        found.error(
            (*key, "epoch_shift"),
            policy.epoch_shift,
            "without epoch the control column is no number",
            'Add epoch = "milliseconds", or remove it',
        )
    if policy.archive == "none" and policy.archive_tablespace is not None:
        found.warn(
            (*key, "archive_tablespace"),
            policy.archive_tablespace,
            "nothing is archived",
            "Remove one of the two",
        )


def _judge_archives(found: Findings, policies: Mapping[RelationName, PartitionSet], key: Key) -> None:
    places: dict[RelationName, RelationName] = {}
    for policy in policies.values():
        if policy.archive == "none":
            continue
        place = RelationName(policy.archive_schema, policy.name.name)
        here = (*key, str(policy.name), "archive_schema")
        if place == policy.name or place in policies:
            found.error(
                here,
                policy.archive_schema,
                f"the archive would be {place}, a table that is kept itself",
                "Name another",
            )
        elif place in places:
            found.error(
                here, policy.archive_schema, f"{places[place]} has its archive in {place} too", "Name another"
            )
        places[place] = policy.name


def _judge_retention(found: Findings, rule: Retention, policy: PartitionSet | None, key: Key) -> None:
    if rule.archive_after_months > 12 * rule.years:
        found.error(
            (*key, "archive_after_months"),
            rule.archive_after_months,
            f"rows would be archived later than they may be kept, {rule.years} years",
            f"Write at most {12 * rule.years}",
        )
    if policy is None:
        found.warn(
            key,
            None,
            "the table has no policy for its partitions, so that nothing enforces this",
            "Declare one under partitions, or keep the rule as a note",
        )
        return
    kept = policy.cold.rough_days
    needed = 365.2425 * rule.years
    if kept < needed - 1:
        found.error(
            (*key, "years"),
            rule.years,
            f"{rule.framework} wants {rule.years} years, and the partitions' policy keeps {policy.cold} (cold)",
            f'Write cold = "{rule.years} years" in the partitions\' policy',
        )
    elif kept > needed + 31:
        found.warn(
            (*key, "years"),
            rule.years,
            f"the partitions' policy keeps {policy.cold} (cold), longer than {rule.framework} asks for",
            f'Write cold = "{rule.years} years" in the partitions\' policy, or more years here',
        )
    if policy.archive != "none" and policy.hot.months != rule.archive_after_months:
        found.error(
            (*key, "archive_after_months"),
            rule.archive_after_months,
            f"the partitions' policy archives after {policy.hot} (hot)",
            f'Write hot = "{rule.archive_after_months} months" in the partitions\' policy, or the same here',
        )
