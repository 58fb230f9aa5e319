"""The transactions under the fleet: months are made and moved as its upkeep.toml says, with no more than the grants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from examples import transactions
from fleet import settings
from fleet.postgres.connect import connect
from fleet.postgres.migrations import migrate
from tasks.partitions.archiving import archive
from tasks.partitions.keep import keep
from tasks.performing import Done, Skip
from tests.integration.deploy.test_grants import run_grants
from tests.servers import Database

pytestmark = pytest.mark.any_server

BEFORE = "SELECT count(*), count(DISTINCT transaction_id) FROM public.transactions"
AFTER = "SELECT count(*), count(DISTINCT transaction_id) FROM archive.transactions_all"


def test_every_month_is_made_and_moved_as_the_configuration_says(
    database: Database, role: Any, tmp_path: Path
) -> None:
    owner, fleet = role(database, "app_owner"), role(database, "up-keep")
    with database.connect() as admin:
        admin.execute("GRANT CREATE ON SCHEMA public TO app_owner")
    with psycopg.connect(owner) as connection:
        transactions.install(connection, scale=0.0001)
        before = connection.execute(BEFORE).fetchone()
    run_grants(database.url, role="up-keep", owner="app_owner", partitions=True)
    with database.connect() as admin:
        admin.execute("CREATE SCHEMA archive AUTHORIZATION app_owner")
    migrate(fleet)
    path = tmp_path / "upkeep.toml"
    path.write_text(transactions.CONFIG, encoding="utf-8")
    kept = settings.load(path, {"UPKEEP_TRANSACTIONS_URL": fleet}).databases["transactions"]

    with connect(fleet, application_name="upkeep/test") as connection:
        # The metadata's months refer to the transactions', which are declared before.
        for policy in kept.partitions.values():
            made = keep(connection, kept, policy)
            assert len(made.created) == 3, (policy.name, made.failures)
            assert not made.failures
            assert keep(connection, kept, policy).idle
        for policy in kept.partitions.values():
            assert isinstance(archive(connection, kept.partitions, policy), Done | Skip)
        # Twelve are older than thirteen months; one of them has rows that nobody took on.
        months = "SELECT count(*) FROM pg_inherits WHERE inhparent = %s::regclass"
        for table, left in (
            ("transactions", 18),
            ("transaction_metadata", 18),
            ("transaction_audit_log", 17),
        ):
            assert connection.execute(months, [f"public.{table}"]).fetchone() == (left,), table
        assert connection.execute(AFTER).fetchone() == before
