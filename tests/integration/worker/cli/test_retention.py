"""upkeep retention: the rules as declared, as the database has them, and what stands against them."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from fleet import settings
from tasks.partitions.retention import declare, read_rules
from tests.integration.worker.cli.conftest import Upkeep, config
from tests.servers import Database

pytestmark = pytest.mark.any_server

FOUR = """
[databases.kept.retention."public.transactions"]
years = 7
archive_after_months = 13
framework = "SOX"

[databases.kept.retention."public.session_logs"]
years = 2
archive_after_months = 3
framework = "GDPR"
"""
POLICIES = """
[databases.kept.partitions."public.transactions"]
[databases.kept.partitions."public.session_logs"]
hot = "3 months"
warm = "1 year"
cold = "2 years"
"""
TABLES = """
CREATE TABLE public.transactions (id bigint, d date NOT NULL) PARTITION BY RANGE (d);
CREATE TABLE public.session_logs (id bigint, d date NOT NULL) PARTITION BY RANGE (d);
"""


@pytest.fixture
def kept(upkeep_database: Database) -> Database:
    upkeep_database.connect().execute(TABLES)
    return upkeep_database


def write(upkeep: Upkeep, text: str) -> settings.Database:
    upkeep.write(config({}) + text)
    return settings.load(upkeep.config).database("kept")


def test_rules_are_shown_with_when_they_were_last_enforced(
    kept: Database, upkeep_with: Callable[..., Upkeep]
) -> None:
    upkeep = upkeep_with(kept.url)
    database = write(upkeep, POLICIES + FOUR)
    connection = kept.connect()
    declare(connection, database)
    connection.execute(
        "UPDATE upkeep.retention SET last_purged_at = '2026-02-03T01:00Z' WHERE table_name = 'public.session_logs'"
    )
    said = upkeep("retention")
    assert said.code == 0, said
    logs, transactions = (line for line in said.out.splitlines() if line.strip().startswith("public."))
    assert [*logs.split()] == ["public.session_logs", "2", "3", "months", "GDPR", "2026-02-03"]
    assert [*transactions.split()] == ["public.transactions", "7", "13", "months", "SOX", "never"]
    document = upkeep("retention", "--json").json["databases"][0]
    assert [rule["table"] for rule in document["retention"]] == ["public.session_logs", "public.transactions"]
    assert document["retention"][0] == {
        "table": "public.session_logs",
        "declared": True,
        "retention_years": 2,
        "archive_after_months": 3,
        "compliance_framework": "GDPR",
        "last_purged_at": "2026-02-03T01:00:00+00:00",
        "problems": [],
    }


def test_what_stands_against_a_rule(kept: Database, upkeep_with: Callable[..., Upkeep]) -> None:
    kept.connect().execute("DROP TABLE public.transactions")
    upkeep = upkeep_with(kept.url)
    write(upkeep, FOUR)
    said = upkeep("retention")
    assert said.code == 1
    assert "there is no table public.transactions" in said.out
    assert "nothing enforces it" in said.out
    rules = upkeep("retention", "--json").json["databases"][0]["retention"]
    assert [len(rule["problems"]) for rule in rules] == [1, 2]


def test_a_rule_that_is_taken_out_is_remembered(kept: Database, upkeep_with: Callable[..., Upkeep]) -> None:
    upkeep = upkeep_with(kept.url)
    connection = kept.connect()
    declare(connection, write(upkeep, POLICIES + FOUR))
    before = {rule.table_name: rule for rule in read_rules(connection)}
    declare(connection, write(upkeep, POLICIES + FOUR))
    assert {rule.table_name: rule for rule in read_rules(connection)} == before, "nothing was written again"
    declare(connection, write(upkeep, POLICIES))
    assert [(rule.table_name, rule.declared) for rule in read_rules(connection)] == [
        ("public.session_logs", False),
        ("public.transactions", False),
    ]
    said = upkeep("retention")
    assert said.code == 0
    assert said.out.count("no longer declared in upkeep.toml") == 2
    declare(connection, write(upkeep, POLICIES + FOUR))
    assert [rule.declared for rule in read_rules(connection)] == [True, True]


def test_the_database_refuses_a_rule_that_keeps_nothing(kept: Database) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        kept.connect().execute("INSERT INTO upkeep.retention VALUES ('public.t', 0, 1)")
