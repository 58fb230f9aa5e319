"""A new partition is what its sibling is, as pg_dump shows it, and is there or is not: nothing in between."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

import pytest
from psycopg import sql

from fleet.errors import PermanentError, TransientError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Range, read_partitioned
from tests.integration.tasks.partitions.creating import PLAIN, TABLE, Kept, keep, month, partition
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


REWRITTEN = """
CREATE TABLE app.transactions (
    id bigint NOT NULL, created_at timestamptz NOT NULL, status varchar(16) NOT NULL,
    CONSTRAINT known CHECK (status IN ('pending', 'done')), PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE UNIQUE INDEX open_ones ON app.transactions (created_at, id) WHERE status IN ('pending', 'late');
CREATE INDEX ON app.transactions ((status IN ('pending', 'odd')));
CREATE INDEX ON app.transactions (created_at);
CREATE INDEX ON app.transactions (created_at);
ALTER TABLE app.transactions ADD CONSTRAINT later CHECK (status NOT IN ('no', 'never')) NOT VALID;
CREATE TABLE app.transactions_y2026m01 PARTITION OF app.transactions FOR VALUES FROM ('2026-01-01Z') TO ('2026-02-01Z')
  PARTITION BY HASH (id);
CREATE TABLE app.transactions_y2026m01_0 PARTITION OF app.transactions_y2026m01
  FOR VALUES WITH (MODULUS 1, REMAINDER 0);
ALTER TABLE app.transactions_y2026m01_0 ADD CONSTRAINT own CHECK (status IN ('pending', 'done')) NOT VALID;
CREATE TRIGGER own BEFORE UPDATE ON app.transactions_y2026m01_0 FOR EACH ROW WHEN (NEW.status IN ('a', 'b'))
  EXECUTE FUNCTION app.note();
CREATE POLICY own ON app.transactions_y2026m01_0 USING (status IN ('pending', 'done'));
CREATE STATISTICS app.transactions_y2026m01_0_own ON (status IN ('a', 'b')), id FROM app.transactions_y2026m01_0;
"""


@pytest.mark.any_server
def test_an_expression_that_comes_back_from_its_text_as_another_one_is_copied_as_it_is(kept: Kept) -> None:
    kept.set_up("CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    kept.set_up(REWRITTEN)
    for made in (FEBRUARY, partition(2026, 3)):
        kept.make(made, month(2026, 2 if made == FEBRUARY else 3))
    count = (
        "SELECT count(*), count(*) FILTER (WHERE c.relispartition)"
        " FROM pg_index i JOIN pg_class c ON c.oid = indexrelid"
    )
    for name in ("transactions_y2026m02", "transactions_y2026m02_0", "transactions_y2026m03_0"):
        # None was made a second time because the first was not taken for the parent's.
        assert kept.rows(f"{count} WHERE indrelid = %s::regclass", f"app.{name}") == [(5, 5)]
        assert (
            kept.scalar(
                "SELECT count(DISTINCT pg_get_constraintdef(c.oid)) FROM pg_constraint c"
                " WHERE conname = 'known' AND conrelid IN ('app.transactions'::regclass, %s::regclass)",
                f"app.{name}",
            )
            == 1
        )


DIVIDED = """
CREATE TABLE app.transactions (
    id bigint NOT NULL, created_at timestamptz NOT NULL, amount numeric NOT NULL DEFAULT 0 CHECK (amount >= 0),
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE INDEX ON app.transactions (amount);
CREATE TABLE app.transactions_y2026m01 PARTITION OF app.transactions
  FOR VALUES FROM ('2026-01-01Z') TO ('2026-02-01Z') PARTITION BY HASH (id);
GRANT SELECT ON app.transactions_y2026m01 TO reader;
COMMENT ON INDEX app.transactions_y2026m01_amount_idx IS 'divided too';
CREATE TABLE app.transactions_y2026m01_0 PARTITION OF app.transactions_y2026m01
  FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE UNLOGGED TABLE app.transactions_y2026m01_1 PARTITION OF app.transactions_y2026m01
  FOR VALUES WITH (MODULUS 4, REMAINDER 1) WITH (fillfactor = 60);
CREATE TABLE app.transactions_y2026m01_3 PARTITION OF app.transactions_y2026m01
  FOR VALUES WITH (MODULUS 4, REMAINDER 3);
GRANT SELECT (amount) ON app.transactions_y2026m01_3 TO reader;
CREATE INDEX own ON app.transactions_y2026m01_3 (id);
"""


def test_what_a_sibling_is_divided_into_is_made_like_it(kept: Kept) -> None:
    kept.set_up(DIVIDED)
    expected = [
        each.replace("INDEX own ", "INDEX PARTITION_3_own ") for each in kept.dumped(JANUARY, month(2026, 1))
    ]
    kept.make(FEBRUARY, month(2026, 2))
    assert kept.dumped(FEBRUARY, month(2026, 2)) == sorted(expected)
    kept.set_up("INSERT INTO app.transactions SELECT i, '2026-02-03Z' FROM generate_series(1, 50) AS i")
    assert kept.scalar("SELECT count(*) FROM app.transactions_y2026m02") == 50


def test_a_sibling_without_a_place_for_every_hash_is_no_pattern(kept: Kept) -> None:
    kept.set_up(f"{DIVIDED} DROP TABLE app.transactions_y2026m01_3")
    with pytest.raises(PermanentError, match="no place for 25% of the hash values"):
        kept.make(FEBRUARY, month(2026, 2))
    assert kept.partitions() == [JANUARY.name]


def test_the_policy_divides_where_the_sibling_does_not(kept: Kept) -> None:
    kept.set_up(PLAIN)
    made = kept.make(
        FEBRUARY,
        month(2026, 2),
        subpartitions={"columns": ("id",), "count": 4},
        storage_parameters={"fillfactor": 75, "autovacuum_enabled": False},
    )
    assert made.created
    assert kept.rows(
        "SELECT c.relname::text, c.reloptions, pg_get_expr(c.relpartbound, 0) FROM pg_inherits i"
        " JOIN pg_class c ON c.oid = i.inhrelid WHERE inhparent = 'app.transactions_y2026m02'::regclass ORDER BY 1"
    ) == [
        (
            f"transactions_y2026m02_{n}",
            ["fillfactor=75", "autovacuum_enabled=false"],
            f"FOR VALUES WITH (modulus 4, remainder {n})",
        )
        for n in range(4)
    ]
    # The next one has nothing left to change.
    march = kept.make(partition(2026, 3), month(2026, 3), subpartitions={"columns": ("id",), "count": 4})
    assert march.created
    assert kept.dumped(FEBRUARY, month(2026, 2)) == kept.dumped(partition(2026, 3), month(2026, 3))


def test_the_first_partition_has_what_partition_of_would_give_it(kept: Kept) -> None:
    kept.set_up(f"{PLAIN} ALTER TABLE app.transactions ADD CHECK (amount < 10)")
    expected = kept.dumped(JANUARY, month(2026, 1))
    kept.set_up(
        "DROP TABLE app.transactions_y2026m01; COMMENT ON TABLE app.transactions IS 'the parent''s own'"
    )
    kept.make(FEBRUARY, month(2026, 2))
    assert kept.dumped(FEBRUARY, month(2026, 2)) == expected


def test_a_default_partition_is_made_where_the_policy_wants_one(kept: Kept) -> None:
    kept.set_up(DIVIDED)
    name = RelationName("app", "transactions_default")
    assert kept.make(name, None).created
    kept.set_up("INSERT INTO app.transactions VALUES (1, '2031-01-01Z')")
    assert kept.scalar("SELECT count(*) FROM ONLY app.transactions_default") == 1
    assert not kept.make(name, None).created


@pytest.mark.parametrize("key", ["date", "timestamp", "bigint", "uuid"])
def test_every_kind_of_control_column_has_its_bounds(kept: Kept, key: str) -> None:
    ranges = {
        "date": Range(lower=date(2026, 2, 1), upper=date(2026, 3, 1)),
        "timestamp": Range(lower=datetime(2026, 2, 1), upper=datetime(2026, 3, 1)),  # noqa: DTZ001 - as it is kept
        "bigint": Range(lower=1_000, upper=2_000),
        "uuid": Range(lower=UUID(int=1 << 80), upper=UUID(int=2 << 80)),
    }
    kept.set_up("CREATE TABLE app.transactions (at " + key + ") PARTITION BY RANGE (at)")
    assert kept.make(FEBRUARY, ranges[key]).created
    with kept.keeper() as connection:
        (found,) = read_partitioned(connection, [TABLE])[TABLE].partitions
    assert found.range == ranges[key]
    assert kept.scalar("SELECT count(*) FROM pg_constraint WHERE conname = 'upkeep_bound'") == 0


def test_a_check_of_the_siblings_own_range_is_not_carried_over(kept: Kept) -> None:
    kept.set_up(
        f"{PLAIN} ALTER TABLE app.transactions_y2026m01"
        " ADD CHECK (created_at >= '2026-01-01Z' AND created_at < '2026-02-01Z')"
    )
    kept.make(FEBRUARY, month(2026, 2))
    kept.set_up("INSERT INTO app.transactions VALUES (1, '2026-02-03Z')")


def test_long_names_stay_apart(kept: Kept) -> None:
    long = "transactions_of_all_the_branches_in_every_country_y2026m"
    kept.set_up(PLAIN.replace("transactions_y2026m01", f"{long}01"))
    kept.make(RelationName("app", f"{long}02"), month(2026, 2))
    kept.make(RelationName("app", f"{long}03"), month(2026, 3))
    names = [
        row[0] for row in kept.rows("SELECT relname FROM pg_class WHERE relname LIKE 'transactions_of%%'")
    ]
    assert len(names) == len(set(names)) == 6


def test_what_has_the_name_already_is_named_and_left_alone(kept: Kept) -> None:
    kept.set_up(f"{PLAIN} CREATE TABLE app.transactions_y2026m02 (of_somebody int)")
    with pytest.raises(
        PermanentError, match=r"app\.transactions_y2026m02 is there already, and is no partition"
    ) as error:
        kept.make(FEBRUARY, month(2026, 2))
    assert "ATTACH" in error.value.remedy.upper()
    assert kept.scalar("SELECT count(*) FROM pg_attribute WHERE attname = 'of_somebody'") == 1


def test_a_partition_of_another_name_that_has_the_range_is_enough(kept: Kept) -> None:
    kept.set_up(
        f"{PLAIN} CREATE TABLE app.by_hand PARTITION OF app.transactions"
        " FOR VALUES FROM ('2026-02-01Z') TO ('2026-02-15Z')"
    )
    made = kept.make(FEBRUARY, month(2026, 2))
    assert (made.created, made.reason) == (False, "app.by_hand has rows of that range already")


ALIGNED = """
CREATE TABLE app.orders (id bigint, created_at timestamptz NOT NULL, PRIMARY KEY (id, created_at))
  PARTITION BY RANGE (created_at);
CREATE TABLE app.orders_y2026m01 PARTITION OF app.orders FOR VALUES FROM ('2026-01-01Z') TO ('2026-02-01Z');
ALTER TABLE app.transactions_y2026m01 ADD CONSTRAINT transactions_y2026m01_order FOREIGN KEY (id, created_at)
  REFERENCES app.orders_y2026m01 ON DELETE CASCADE;
"""


def test_a_key_between_partitions_refers_to_that_of_the_same_range(kept: Kept) -> None:
    kept.set_up(PLAIN + ALIGNED)
    with pytest.raises(
        TransientError, match=r"a partition of app\.orders for the same range, which is not there yet"
    ):
        kept.make(FEBRUARY, month(2026, 2))
    kept.set_up(
        "CREATE TABLE app.orders_of_february PARTITION OF app.orders FOR VALUES FROM ('2026-02-01Z') TO ('2026-03-01Z')"
    )
    kept.make(FEBRUARY, month(2026, 2))
    assert kept.rows(
        "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE contype = 'f' AND conrelid = 'app.transactions_y2026m02'::regclass"
    ) == [
        (
            "transactions_y2026m02_order",
            "FOREIGN KEY (id, created_at) REFERENCES app.orders_of_february(id, created_at) ON DELETE CASCADE",
        )
    ]


def test_a_partition_is_its_siblings_owners_who_need_not_be_the_tables(kept: Kept) -> None:
    kept.set_up(PLAIN)
    with kept.database.connect() as admin:
        admin.execute('ALTER TABLE app.transactions_y2026m01 OWNER TO reader; GRANT reader TO "up-keep"')
        admin.execute("GRANT ALL ON SCHEMA app TO reader")
    kept.make(FEBRUARY, month(2026, 2))
    assert kept.dumped(FEBRUARY, month(2026, 2)) == kept.dumped(JANUARY, month(2026, 1))
    assert (
        kept.scalar("SELECT relowner::regrole::text FROM pg_class WHERE relname = %s", FEBRUARY.name)
        == "reader"
    )


def test_without_the_owners_rights_nothing_is_made(kept: Kept) -> None:
    kept.set_up(PLAIN)
    with kept.database.connect() as admin:
        admin.execute('REVOKE "app owner" FROM "up-keep"')
    with pytest.raises(PermanentError, match=r"permission denied|must be"):
        kept.make(FEBRUARY, month(2026, 2))


def test_partitions_that_request_refreshes_have_their_trigger(upkeep_database: Database, role: Any) -> None:
    kept = keep(upkeep_database, role)
    kept.set_up(PLAIN)
    with upkeep_database.connect() as admin:
        admin.execute(
            'GRANT USAGE ON SCHEMA upkeep TO "up-keep"; GRANT EXECUTE ON FUNCTION upkeep.note_write TO "up-keep";'
            "CREATE TRIGGER upkeep_on_write AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON app.transactions"
            " FOR EACH STATEMENT EXECUTE FUNCTION upkeep.note_write('public.v')"
        )
    kept.make(FEBRUARY, month(2026, 2))
    assert kept.scalar("SELECT count(*) FROM pg_trigger WHERE tgname = 'upkeep_on_write'") == 2
