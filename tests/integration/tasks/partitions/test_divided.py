"""pg_dump of a partition that is divided by hash: as a whole, its newest sibling's with other names and bounds."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Range
from tests.integration.tasks.partitions.creating import Kept, keep, month, partition
from tests.servers import Database

JANUARY, FEBRUARY, MARCH = (partition(2026, number) for number in (1, 2, 3))
# What the whole has, what its parts inherit of it, and what one of them alone has.
DIVIDED = """
CREATE TABLE app.accounts (id bigint PRIMARY KEY);
CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TABLE app.transactions (
    id bigint NOT NULL, created_at timestamptz NOT NULL, account_id bigint REFERENCES app.accounts,
    amount numeric(12, 2) NOT NULL DEFAULT 0 CHECK (amount >= 0), status text NOT NULL DEFAULT 'new', payload jsonb,
    doubled numeric GENERATED ALWAYS AS (amount * 2) STORED, PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE INDEX ON app.transactions (account_id, created_at DESC) INCLUDE (amount);
CREATE INDEX ON app.transactions (lower(status)) WHERE amount > 0;
CREATE TRIGGER noted AFTER INSERT ON app.transactions FOR EACH ROW EXECUTE FUNCTION app.note();

CREATE TABLE app.transactions_y2026m01 PARTITION OF app.transactions
  FOR VALUES FROM ('2026-01-01Z') TO ('2026-02-01Z') PARTITION BY HASH (id);
CREATE TABLE app.transactions_y2026m01_0 PARTITION OF app.transactions_y2026m01
  FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE UNLOGGED TABLE app.transactions_y2026m01_1 PARTITION OF app.transactions_y2026m01
  FOR VALUES WITH (MODULUS 4, REMAINDER 1) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.01);
CREATE TABLE app.transactions_y2026m01_3 PARTITION OF app.transactions_y2026m01
  FOR VALUES WITH (MODULUS 4, REMAINDER 3);

CREATE INDEX transactions_y2026m01_status ON app.transactions_y2026m01 (status);
ALTER TABLE app.transactions_y2026m01 ADD CONSTRAINT transactions_y2026m01_small CHECK (amount < 1000000);
CREATE UNIQUE INDEX transactions_y2026m01_3_own ON app.transactions_y2026m01_3 (created_at, id);
ALTER TABLE app.transactions_y2026m01_3 REPLICA IDENTITY USING INDEX transactions_y2026m01_3_own;
ALTER TABLE app.transactions_y2026m01_0 ADD CONSTRAINT transactions_y2026m01_0_odd CHECK (status <> 'odd') NOT VALID;
ALTER TABLE app.transactions_y2026m01_0 ALTER COLUMN account_id SET STATISTICS 500;
ALTER TABLE app.transactions_y2026m01_0 ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE STATISTICS app.transactions_y2026m01_0_related (ndistinct) ON account_id, status
  FROM app.transactions_y2026m01_0;
CREATE TRIGGER own BEFORE UPDATE ON app.transactions_y2026m01_0 FOR EACH ROW
  WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION app.note('own');
ALTER TABLE app.transactions_y2026m01_1 DISABLE TRIGGER noted;
ALTER TABLE app.transactions_y2026m01_0 ENABLE ROW LEVEL SECURITY;
CREATE POLICY readers ON app.transactions_y2026m01_0 FOR SELECT TO reader USING (status = 'done');

GRANT SELECT ON app.transactions_y2026m01 TO reader WITH GRANT OPTION;
GRANT SELECT, INSERT ON app.transactions_y2026m01_0 TO reader;
GRANT UPDATE (amount) ON app.transactions_y2026m01_3 TO reader;
REVOKE TRUNCATE ON app.transactions_y2026m01_1 FROM "app owner";

COMMENT ON TABLE app.transactions_y2026m01 IS 'the whole';
COMMENT ON TABLE app.transactions_y2026m01_0 IS 'a part of it';
COMMENT ON COLUMN app.transactions_y2026m01.amount IS 'in full';
COMMENT ON COLUMN app.transactions_y2026m01_1.amount IS 'of one part';
COMMENT ON INDEX app.transactions_y2026m01_status IS 'divided too';
COMMENT ON INDEX app.transactions_y2026m01_3_own IS 'of one part';
COMMENT ON CONSTRAINT transactions_y2026m01_pkey ON app.transactions_y2026m01 IS 'a key';
COMMENT ON CONSTRAINT transactions_y2026m01_0_odd ON app.transactions_y2026m01_0 IS 'a check';
COMMENT ON TRIGGER own ON app.transactions_y2026m01_0 IS 'a trigger';
COMMENT ON POLICY readers ON app.transactions_y2026m01_0 IS 'a policy';
"""


@pytest.fixture
def kept(database: Database, role: Any) -> Kept:
    if not (database.server.bin_dir / "pg_dump").exists():
        pytest.skip("this installation has no pg_dump")
    made = keep(database, role)
    made.set_up(DIVIDED)
    return made


def dumped(kept: Kept, name: RelationName, bounds: Range) -> list[str]:
    """The whole dump of a partition with its parts, entry by entry in pg_dump's own order, without names and bounds."""
    given = conninfo_to_dict(kept.database.url)
    text = subprocess.run(
        [kept.database.server.bin_dir / "pg_dump", "-s", "-t", f"{name.schema}.{name.name}*"],
        check=True,
        capture_output=True,
        text=True,
        env={
            "PGHOST": str(given["host"]),
            "PGPORT": str(given["port"]),
            "PGUSER": str(given["user"]),
            "PGPASSWORD": str(given["password"]),
            "PGDATABASE": str(given["dbname"]),
            "PGTZ": "UTC",
        },
    ).stdout
    # Newer ones put a random word around their dump.
    text = re.sub(r"(?m)^\\(un)?restrict .*$", "", text).replace(name.name, "PARTITION")
    for word, value in (("LOWER", bounds.lower), ("UPPER", bounds.upper)):
        text = re.sub(rf"'{value:%Y-%m-%d} [^']*'", word, text)
    entries = re.split(r"\n(?=--\n-- )", text)
    # Grants stand in the order in which they were given, which means nothing.
    return [
        "\n".join(sorted(each.splitlines())) if "\nGRANT " in each or "\nREVOKE " in each else each
        for each in entries
    ]


def test_a_divided_partition_is_dumped_as_its_sibling_is(kept: Kept) -> None:
    expected = dumped(kept, JANUARY, month(2026, 1))
    whole = "\n".join(expected)
    # Or the same that is missing from both would be the same.
    for each in (
        "CREATE TABLE app.PARTITION (",
        "PARTITION BY HASH (id)",
        "FROM (LOWER) TO (UPPER)",
        "CREATE UNLOGGED TABLE app.PARTITION_1 (",
        "ATTACH PARTITION app.PARTITION_3 FOR VALUES WITH (modulus 4, remainder 3)",
        "ATTACH PARTITION app.PARTITION_0_pkey",
        "CREATE UNIQUE INDEX PARTITION_3_own",
        "GRANT SELECT ON TABLE app.PARTITION TO reader WITH GRANT OPTION",
        "GRANT UPDATE(amount) ON TABLE app.PARTITION_3 TO reader",
        "COMMENT ON TABLE app.PARTITION_0 IS 'a part of it'",
        "COMMENT ON COLUMN app.PARTITION_1.amount IS 'of one part'",
        "COMMENT ON INDEX app.PARTITION_status IS 'divided too'",
        "CREATE POLICY readers ON app.PARTITION_0",
        "DISABLE TRIGGER noted",
    ):
        assert each in whole
    assert kept.make(FEBRUARY, month(2026, 2)).created
    assert dumped(kept, FEBRUARY, month(2026, 2)) == expected
    # And the one that is made like that one.
    assert kept.make(MARCH, month(2026, 3)).created
    assert dumped(kept, MARCH, month(2026, 3)) == expected
    kept.set_up(
        "INSERT INTO app.transactions (id, created_at) SELECT i, '2026-03-03Z' FROM generate_series(1, 99) i"
    )
    parts = [
        kept.scalar(
            sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("app", f"{MARCH.name}_{part}")).as_string()
        )
        for part in (0, 1, 3)
    ]  # fmt: skip
    assert sum(parts) == 99
    assert min(parts) > 0


def test_a_check_of_its_siblings_own_range_is_in_none_of_its_parts(kept: Kept) -> None:
    kept.set_up(
        "ALTER TABLE app.transactions_y2026m01"
        " ADD CHECK (created_at >= '2026-01-01Z' AND created_at < '2026-02-01Z')"
    )
    assert kept.make(FEBRUARY, month(2026, 2)).created
    kept.set_up(
        "INSERT INTO app.transactions (id, created_at) SELECT i, '2026-02-03Z' FROM generate_series(1, 9) i"
    )
    assert kept.scalar("SELECT count(*) FROM app.transactions_y2026m02") == 9
