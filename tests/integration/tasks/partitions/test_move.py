"""Moving a partition to the archive: what is there afterwards, what stops it, and what it locks."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.integration.tasks.partitions.moving import JANUARY, META, ROWS, System, new_system


@pytest.fixture
def system(database, role) -> Iterator[System]:
    made = new_system(database, role)
    yield made
    made.close()


def test_a_month_goes_to_the_archive_with_its_metadata(system: System) -> None:
    files = system.rows("SELECT c.oid, pg_relation_filenode(c.oid) FROM pg_class c WHERE relname LIKE '%y2024m01_p_'")
    before = system.rows("SELECT id, partition_date, amount, cents FROM public.transactions ORDER BY id")
    moved = system.move()
    assert not moved.already
    assert moved.companions == {"public.transaction_metadata": ROWS // 4}
    assert str(moved.archived) == "archive.transactions_y2024m01"
    assert system.partitions("public.transactions") == [
        f"transactions_y2024m0{month}" for month in (2, 3, 4)
    ]
    assert system.partitions("archive.transactions") == ["archive.transactions_y2024m01"]
    assert system.partitions("archive.transactions_y2024m01") == [
        f"archive.transactions_y2024m01_p{part}" for part in (0, 1)
    ]
    assert system.partitions("archive.transaction_metadata") == ["archive.transaction_metadata_y2024m01"]
    assert system.scalar("SELECT count(*) FROM public.transactions") == ROWS * 3 // 4
    assert system.scalar("SELECT count(*) FROM public.transaction_metadata") == ROWS // 4
    # Every row once, with the same values, and with its batch.
    assert before == system.rows("SELECT id, partition_date, amount, cents FROM archive.transactions_all ORDER BY id")
    assert system.rows(
        "SELECT archive_batch_id, archived_at IS NOT NULL AS at, count(*) FROM archive.transactions_all GROUP BY 1, 2 ORDER BY 3"
    ) == [
        {"archive_batch_id": moved.batch, "at": True, "count": ROWS // 4},
        {"archive_batch_id": None, "at": False, "count": ROWS * 3 // 4},
    ]
    assert (
        system.scalar("SELECT DISTINCT archive_batch_id FROM archive.transaction_metadata") == moved.batch
    )
    # Nothing was written anew.
    assert files == system.rows(
        "SELECT c.oid, pg_relation_filenode(c.oid) FROM pg_class c WHERE relname LIKE '%y2024m01_p_'"
    )
    assert system.scalar("SELECT count(*) FROM pg_constraint WHERE conname = 'upkeep_range'") == 0
    assert system.scalar("SELECT count(*) FROM pg_constraint WHERE NOT convalidated") == 0
    assert system.rows("SELECT kind, parent, partition, lower_bound, upper_bound FROM upkeep.archive_batch ORDER BY 1") == [
        {
            "kind": kind,
            "parent": f"public.{table}",
            "partition": f"archive.{table}_y2024m01",
            "lower_bound": "2024-01-01",
            "upper_bound": "2024-02-01",
        }
        for kind, table in (("partition", "transactions"), ("rows", "transaction_metadata"))
    ]
    assert {row["owner"] for row in system.catalogue()["partitions"]} == {"app_owner"}
    # The foreign keys of the table are its partition's own now.
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        system.as_owner("UPDATE archive.transactions_y2024m01 SET account_id = 99")
    assert system.move().already
