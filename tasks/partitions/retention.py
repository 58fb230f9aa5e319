"""How long rows must be kept, by whose rule: declared in upkeep.toml, kept beside the data, where auditors look."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from fleet import settings
from fleet.names import RelationName
from fleet.postgres.queries import load

_sql = load("tasks.partitions", "sql/retention.sql")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of upkeep.retention; `declared` False: it stands in upkeep.toml no longer."""

    table_name: str
    retention_years: int
    archive_after_months: int
    compliance_framework: str | None
    declared: bool
    last_purged_at: datetime | None
    updated_at: datetime


def declare(connection: psycopg.Connection[Any], database: settings.Database) -> None:
    """Write the declared rules down; those that have not changed are not written."""
    rules = [rule for _, rule in sorted(database.retention.items())]
    connection.execute(
        _sql.declare.sql,
        {
            "tables": [str(rule.name) for rule in rules],
            "years": [rule.years for rule in rules],
            "months": [rule.archive_after_months for rule in rules],
            "frameworks": [rule.framework for rule in rules],
        },
    )


def read_rules(connection: psycopg.Connection[Any]) -> list[Rule]:
    """All of them, by table."""
    return [Rule(**row) for row in _sql.read_rules(connection)]


def existing(connection: psycopg.Connection[Any], names: Collection[RelationName]) -> set[RelationName]:
    """Which of these tables are there."""
    rows = _sql.existing(
        connection, schemas=[name.schema for name in names], names=[name.name for name in names]
    )
    return {RelationName(row["schema"], row["name"]) for row in rows}
