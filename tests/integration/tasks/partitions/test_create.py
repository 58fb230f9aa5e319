"""A new partition is what its sibling is, as pg_dump shows it, and is there or is not: nothing in between."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from tests.integration.tasks.partitions.creating import Kept, keep, month, partition
from tests.servers import Database

EVERYTHING = """
CREATE TABLE app.accounts (id bigint PRIMARY KEY);
CREATE TABLE app.noted (id bigint);
CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE SEQUENCE app.counter;
CREATE TYPE app.state AS ENUM ('new', 'done');
CREATE TABLE app.transactions (
    id bigint GENERATED ALWAYS AS IDENTITY,
    created_at timestamptz NOT NULL,
    account_id bigint NOT NULL REFERENCES app.accounts,
    amount numeric(12, 2) NOT NULL DEFAULT 0 CHECK (amount >= 0),
    doubled numeric GENERATED ALWAYS AS (amount * 2) STORED,
    state app.state NOT NULL DEFAULT 'new',
    number bigint DEFAULT nextval('app.counter'),
    "Mixed ON Case" text COLLATE "C" DEFAULT 'it''s ON app.transactions',
    payload jsonb,
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE INDEX ON app.transactions (account_id, created_at DESC NULLS LAST) INCLUDE (amount);
CREATE INDEX ON app.transactions (lower("Mixed ON Case"));
CREATE TRIGGER noted AFTER INSERT OR UPDATE ON app.transactions FOR EACH ROW EXECUTE FUNCTION app.note();
CREATE TRIGGER silent AFTER UPDATE ON app.transactions FOR EACH ROW EXECUTE FUNCTION app.note();
CREATE TABLE app.transactions_y2026m01 PARTITION OF app.transactions FOR VALUES FROM ('2026-01-01Z') TO ('2026-02-01Z')
  WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_enabled = false);
CREATE UNIQUE INDEX transactions_y2026m01_own ON app.transactions_y2026m01 (number) WHERE number > 0;
CREATE INDEX own_of_january ON app.transactions_y2026m01 USING hash (state) WITH (fillfactor = 70);
CREATE INDEX transactions_y2026m01_expression ON app.transactions_y2026m01 ((amount + 1), "Mixed ON Case");
ALTER INDEX app.transactions_y2026m01_expression ALTER COLUMN 1 SET STATISTICS 321;
ALTER TABLE app.transactions_y2026m01 ADD CONSTRAINT transactions_y2026m01_small CHECK (amount < 1000000);
ALTER TABLE app.transactions_y2026m01 ADD CONSTRAINT big CHECK (number <> 7) NOT VALID;
ALTER TABLE app.transactions_y2026m01 ADD CONSTRAINT transactions_y2026m01_once UNIQUE (id, number)
  DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE app.transactions_y2026m01 ALTER COLUMN account_id SET STATISTICS 500;
ALTER TABLE app.transactions_y2026m01 ALTER COLUMN account_id SET (n_distinct = -0.2);
ALTER TABLE app.transactions_y2026m01 ALTER COLUMN payload SET STORAGE EXTERNAL;
ALTER TABLE app.transactions_y2026m01 ALTER COLUMN payload SET COMPRESSION pglz;
ALTER TABLE app.transactions_y2026m01 ALTER COLUMN payload SET DEFAULT '{"a": "%s {}"}';
CREATE UNIQUE INDEX transactions_y2026m01_identity ON app.transactions_y2026m01 (created_at, id);
ALTER TABLE app.transactions_y2026m01 REPLICA IDENTITY USING INDEX transactions_y2026m01_identity;
ALTER TABLE app.transactions_y2026m01 CLUSTER ON transactions_y2026m01_identity;
CREATE STATISTICS app.transactions_y2026m01_related (ndistinct, mcv)
  ON account_id, state FROM app.transactions_y2026m01;
ALTER STATISTICS app.transactions_y2026m01_related SET STATISTICS 200;
CREATE TRIGGER "own ON rows" BEFORE UPDATE OF amount, "Mixed ON Case" ON app.transactions_y2026m01
  FOR EACH ROW WHEN (OLD.amount IS DISTINCT FROM NEW.amount AND OLD."Mixed ON Case" <> 'x ON y')
  EXECUTE FUNCTION app.note('an ON argument', '2');
CREATE TRIGGER own_statement AFTER DELETE ON app.transactions_y2026m01 REFERENCING OLD TABLE AS gone
  FOR EACH STATEMENT EXECUTE FUNCTION app.note();
ALTER TABLE app.transactions_y2026m01 ENABLE REPLICA TRIGGER own_statement;
ALTER TABLE app.transactions_y2026m01 ENABLE ALWAYS TRIGGER "own ON rows";
ALTER TABLE app.transactions_y2026m01 DISABLE TRIGGER silent;
ALTER TABLE app.transactions_y2026m01 ENABLE ROW LEVEL SECURITY;
ALTER TABLE app.transactions_y2026m01 FORCE ROW LEVEL SECURITY;
CREATE POLICY readers ON app.transactions_y2026m01 FOR SELECT TO reader USING (state = 'done' AND amount > 0);
CREATE POLICY everybody ON app.transactions_y2026m01 AS RESTRICTIVE USING (true) WITH CHECK (amount < 10);
GRANT SELECT, INSERT ON app.transactions_y2026m01 TO reader WITH GRANT OPTION;
GRANT SELECT ON app.transactions_y2026m01 TO PUBLIC;
GRANT UPDATE (amount, "Mixed ON Case") ON app.transactions_y2026m01 TO reader;
REVOKE TRUNCATE ON app.transactions_y2026m01 FROM "app owner";
COMMENT ON TABLE app.transactions_y2026m01 IS 'the newest';
COMMENT ON COLUMN app.transactions_y2026m01.amount IS 'in {cents}, 100%';
COMMENT ON INDEX app.transactions_y2026m01_own IS 'an index';
COMMENT ON CONSTRAINT transactions_y2026m01_pkey ON app.transactions_y2026m01 IS 'a key';
COMMENT ON CONSTRAINT transactions_y2026m01_small ON app.transactions_y2026m01 IS 'a check';
COMMENT ON TRIGGER own_statement ON app.transactions_y2026m01 IS 'a trigger';
COMMENT ON POLICY readers ON app.transactions_y2026m01 IS 'a policy';
COMMENT ON STATISTICS app.transactions_y2026m01_related IS 'statistics';
ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT DELETE ON TABLES TO reader;
"""
JANUARY, FEBRUARY = partition(2026, 1), partition(2026, 2)


@pytest.fixture
def kept(database: Database, role: Any) -> Kept:
    return keep(database, role)


def test_pg_dump_tells_a_new_partition_from_its_sibling_by_name_and_bounds_alone(kept: Kept) -> None:
    kept.set_up(EVERYTHING)
    with kept.database.connect() as admin:
        version = admin.info.server_version
        admin.execute(
            sql.SQL('GRANT CREATE ON DATABASE {} TO "app owner"').format(sql.Identifier(kept.database.name))
        )
    kept.set_up("CREATE PUBLICATION whole FOR TABLE app.transactions_y2026m01")
    if version >= 150_000:
        kept.set_up(
            "CREATE PUBLICATION part FOR TABLE app.transactions_y2026m01 (id, created_at) WHERE (id > 7)"
        )
    # A name that was not made from the partition's gets that in front.
    expected = [
        each.replace("own_of_january", "PARTITION_own_of_january")
        for each in kept.dumped(JANUARY, month(2026, 1))
    ]
    made = kept.make(FEBRUARY, month(2026, 2))
    assert made.created
    assert kept.dumped(FEBRUARY, month(2026, 2)) == sorted(expected)
    assert len(expected) > 30
    # And it was made like it once more.
    assert kept.make(FEBRUARY, month(2026, 2)).reason == "app.transactions_y2026m02 is there already"
