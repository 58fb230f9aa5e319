"""What is declared stands in the database, and what is not any more is said to be so."""

from __future__ import annotations

import psycopg
import pytest
from pydantic import SecretStr

from fleet import settings
from fleet.names import RelationName
from fleet.settings.partitions import PartitionSet, Retention
from tasks.partitions.retention import read_rules
from tests.servers import Database
from worker.declaring import declare

pytestmark = pytest.mark.any_server

TABLE, VIEW = RelationName("public", "t"), RelationName("public", "v")


def kept(**declared: object) -> settings.Database:
    views = {VIEW: settings.View(name=VIEW, tier="daily")}
    return settings.Database.model_validate(
        {"name": "kept", "url": SecretStr("postgresql:///kept"), "views": views, **declared}
    )


def test_views_and_rules(upkeep_database: Database) -> None:
    rule = Retention(name=TABLE, years=7, archive_after_months=13, framework="SOX")
    with psycopg.connect(upkeep_database.url, autocommit=True) as connection:
        declare(connection, kept(retention={TABLE: rule}))
        assert [(each.table_name, each.declared) for each in read_rules(connection)] == [("public.t", True)]
        assert connection.execute("SELECT view, tier FROM upkeep.view_freshness").fetchall() == [
            ("public.v", "daily")
        ]
        # One that is taken out of upkeep.toml stays with what it was.
        declare(connection, kept(partitions={TABLE: PartitionSet(name=TABLE)}))
        assert [(each.table_name, each.declared) for each in read_rules(connection)] == [("public.t", False)]


def test_the_last_rule_is_withdrawn_with_the_last_policy(upkeep_database: Database) -> None:
    rule = Retention(name=TABLE, years=7, archive_after_months=13, framework="SOX")
    with psycopg.connect(upkeep_database.url, autocommit=True) as connection:
        declare(connection, kept(retention={TABLE: rule}, partitions={TABLE: PartitionSet(name=TABLE)}))
        declare(connection, kept())
        assert [(each.table_name, each.declared) for each in read_rules(connection)] == [("public.t", False)]
