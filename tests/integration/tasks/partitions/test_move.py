"""Moving a partition to the archive: what is there afterwards, what stops it, and what it locks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import psycopg
import pytest
from psycopg import sql

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres import patience
from tasks.partitions import foreign_keys, hold, late
from tasks.partitions.archiving import archive
from tasks.partitions.hold import Held
from tasks.performing import Done
from tests import servers
from tests.integration.tasks.partitions.moving import FEBRUARY, META, ROWS, TABLE, System, new_system, policy
from tests.waiting import wait_until


@pytest.fixture
def system(database, role) -> Iterator[System]:
    made = new_system(database, role)
    yield made
    made.close()


def test_a_month_goes_to_the_archive_with_its_metadata(system: System) -> None:
    files = system.rows(
        "SELECT c.oid, pg_relation_filenode(c.oid) FROM pg_class c WHERE relname LIKE '%y2024m01_p_'"
    )
    before = system.rows("SELECT id, partition_date, amount, cents FROM public.transactions ORDER BY id")
    moved = system.move()
    assert not moved.already
    assert moved.companions == {"public.transaction_metadata": ROWS // 4}
    assert str(moved.archived) == "archive.transactions_y2024m01"
    assert system.partitions("public.transactions") == [f"transactions_y2024m0{month}" for month in (2, 3, 4)]
    assert system.partitions("archive.transactions") == ["archive.transactions_y2024m01"]
    assert system.partitions("archive.transactions_y2024m01") == [
        f"archive.transactions_y2024m01_p{part}" for part in (0, 1)
    ]
    assert system.partitions("archive.transaction_metadata") == ["archive.transaction_metadata_y2024m01"]
    assert system.scalar("SELECT count(*) FROM public.transactions") == ROWS * 3 // 4
    assert system.scalar("SELECT count(*) FROM public.transaction_metadata") == ROWS // 4
    # Every row once, with the same values, and with its batch.
    assert before == system.rows(
        "SELECT id, partition_date, amount, cents FROM archive.transactions_all ORDER BY id"
    )
    assert system.rows(
        "SELECT archive_batch_id, archived_at IS NOT NULL AS at, count(*) FROM archive.transactions_all"
        " GROUP BY 1, 2 ORDER BY 3"
    ) == [
        {"archive_batch_id": moved.batch, "at": True, "count": ROWS // 4},
        {"archive_batch_id": None, "at": False, "count": ROWS * 3 // 4},
    ]
    assert system.scalar("SELECT DISTINCT archive_batch_id FROM archive.transaction_metadata") == moved.batch
    # Nothing was written anew.
    assert files == system.rows(
        "SELECT c.oid, pg_relation_filenode(c.oid) FROM pg_class c WHERE relname LIKE '%y2024m01_p_'"
    )
    assert system.scalar("SELECT count(*) FROM pg_constraint WHERE conname = 'upkeep_range'") == 0
    assert system.scalar("SELECT count(*) FROM pg_constraint WHERE NOT convalidated") == 0
    assert system.rows(
        "SELECT kind, parent, partition, lower_bound, upper_bound FROM upkeep.archive_batch ORDER BY 1"
    ) == [
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


def constraint(system: System) -> dict[str, object]:
    (row,) = system.rows(
        "SELECT pg_get_constraintdef(oid) AS definition, convalidated,"
        " obj_description(oid, 'pg_constraint') AS comment,"
        " condeferrable, condeferred, confupdtype FROM pg_constraint WHERE conname = 'of_transaction'"
    )
    return row


def test_a_foreign_key_that_would_take_too_long_is_added_again_and_validated(system, monkeypatch):
    monkeypatch.setattr(foreign_keys, "JOINED_IN_TIME", -1)
    before, steps = constraint(system), []

    def told(step: str) -> None:
        steps.append(step)
        if step == "moved":
            assert constraint(system)["convalidated"] is False
            assert (
                system.scalar("SELECT constraint_name FROM upkeep.unvalidated_constraint") == "of_transaction"
            )

    system.move(told=told)
    assert "dropped of_transaction" in steps
    assert constraint(system) == before
    assert system.scalar("SELECT count(*) FROM upkeep.unvalidated_constraint") == 0
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        system.as_owner("INSERT INTO public.transaction_metadata VALUES (4, '2024-01-05', 'gone')")


def test_what_a_killed_run_left_unvalidated_is_validated_by_the_next(system, monkeypatch):
    monkeypatch.setattr(foreign_keys, "JOINED_IN_TIME", -1)

    class Killed(Exception):
        pass

    def told(step: str) -> None:
        if step == "moved":
            raise Killed

    with pytest.raises(Killed):
        system.move(told=told)
    assert constraint(system)["convalidated"] is False
    archive(system.connection, {TABLE: policy()}, policy())
    assert constraint(system)["convalidated"] is True
    assert system.scalar("SELECT count(*) FROM upkeep.unvalidated_constraint") == 0


def test_a_foreign_key_that_was_not_valid_stays_so(system, monkeypatch):
    monkeypatch.setattr(foreign_keys, "JOINED_IN_TIME", -1)
    system.as_owner("ALTER TABLE public.transaction_metadata DROP CONSTRAINT of_transaction")
    system.as_owner(
        "ALTER TABLE public.transaction_metadata ADD CONSTRAINT of_transaction"
        " FOREIGN KEY (transaction_id, partition_date)"
        " REFERENCES public.transactions ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED NOT VALID"
    )
    system.move()
    assert constraint(system)["convalidated"] is False


def test_what_is_referred_to_is_refused_with_counts_before_anything_happens(system):
    before = system.scalar("SELECT count(*) FROM pg_class")
    with pytest.raises(PermanentError) as refused:
        system.move(companions=())
    assert "60 of public.transaction_metadata (of_transaction, as (" in refused.value.message
    assert "companions" in refused.value.remedy
    assert system.scalar("SELECT count(*) FROM pg_constraint WHERE conname = 'upkeep_range'") == 0
    assert system.scalar("SELECT count(*) FROM upkeep.archive_batch") == 0
    assert system.scalar("SELECT count(*) FROM pg_class") > before  # the archive is there for the others
    assert len(system.partitions("public.transactions")) == 4


def test_an_unindexed_reference_is_refused_with_the_index(system, monkeypatch):
    monkeypatch.setattr(foreign_keys, "JOINED_IN_TIME", -1)
    system.as_owner("DROP INDEX public.metadata_date")
    with pytest.raises(PermanentError, match=r"CREATE INDEX CONCURRENTLY ON public\.transaction_metadata"):
        system.move()


HOLD = "transactions.status = 'pending' -- not settled"


def test_held_rows_stay_with_all_that_belongs_to_them(system):
    system.as_owner("UPDATE public.transactions SET status = 'pending' WHERE id = 4")
    with pytest.raises(Held, match="1 row that must not be moved yet"):
        system.move(hold=HOLD)
    assert system.scalar("SELECT count(*) FROM public.transaction_metadata") == ROWS // 2
    assert system.scalar("SELECT count(*) FROM pg_constraint WHERE conname = 'upkeep_range'") == 0
    system.as_owner("UPDATE public.transactions SET status = 'completed' WHERE id = 4")
    system.move(hold=HOLD)
    assert system.partitions("archive.transactions") == ["archive.transactions_y2024m01"]


@pytest.mark.parametrize("cheap", [True, False], ids=["looked up again", "by counters"])
def test_a_row_that_is_held_at_the_last_moment_keeps_its_partition(system, monkeypatch, cheap):
    if not cheap:
        monkeypatch.setattr(hold, "CHEAP", -1.0)

    def told(step: str) -> None:
        if step != "companions":
            return
        with system.database.connect() as writer:
            writer.execute("UPDATE public.transactions SET status = 'pending' WHERE id = 4")
            if writer.info.server_version >= 150000:
                writer.execute("SELECT pg_stat_force_next_flush()")
        changed = (
            "SELECT sum(n_tup_upd)::int FROM pg_stat_all_tables WHERE relname LIKE 'transactions_y2024m01%'"
        )
        wait_until(lambda: system.scalar(changed) > 0, 10, "the counters of the update")

    with pytest.raises(Held):
        system.move(hold=HOLD, told=told)
    assert len(system.partitions("public.transactions")) == 4
    assert system.scalar("SELECT count(*) FROM archive.transactions_all") == ROWS
    assert system.scalar("SELECT count(*) FROM archive.transaction_metadata_all") == ROWS // 2


def test_who_has_read_the_archive_before_misses_no_row(system: System, monkeypatch) -> None:
    """PostgreSQL tells an open transaction of a new partition when it next locks something, which may be never."""
    steps: list[str] = []
    tries: list[list[str]] = []
    # As if the reader had come right after the glance at who is there.
    monkeypatch.setattr(patience, "_long_holders", lambda *_: tries.append(steps[-1:]))
    count = "SELECT count(*) FROM archive.transaction_metadata_all"
    system.move()  # so that there is a view
    with psycopg.connect(system.database.url) as reader, ThreadPoolExecutor(1) as mover:
        assert reader.execute(count, prepare=True).fetchone() == (ROWS // 2,)
        moving = mover.submit(lambda: system.move(FEBRUARY, told=steps.append))
        wait_until(lambda: tries.count(["begun"]) > 1 or "companions" in steps, 30)
        assert reader.execute(count, prepare=True).fetchone() == (ROWS // 2,)
        reader.commit()
        assert moving.result(60).companions == {str(META): ROWS // 4}
        assert reader.execute(count, prepare=True).fetchone() == (ROWS // 2,)


def test_a_legal_hold(system):
    days = {"from": date(2024, 1, 31), "to": date(2024, 2, 1), "reason": "case 4711"}
    with pytest.raises(Held, match="case 4711"):
        system.move(legal_holds=[days])
    system.move(legal_holds=[days | {"from": date(2024, 2, 1), "to": date(2024, 2, 2)}])


def test_readers_and_row_security_come_along_and_writers_do_not(system, role):
    reader_url = role(system.database, "reader")
    system.as_owner(
        "GRANT SELECT, INSERT ON public.transactions TO reader;"
        "GRANT SELECT (transaction_id) ON public.transaction_metadata TO reader"
    )
    rls = system.connection.info.server_version >= 150000
    if rls:
        system.as_owner(
            "ALTER TABLE public.transactions ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY mine ON public.transactions FOR SELECT TO reader USING (account_id = 1)"
        )
    system.move()
    system.as_owner("GRANT USAGE ON SCHEMA archive TO reader")
    with psycopg.connect(reader_url, autocommit=True) as reader:
        for table in ("transactions", "transactions_all"):
            ids = {
                row[0]
                for row in reader.execute(
                    sql.SQL("SELECT DISTINCT account_id FROM {}").format(sql.Identifier("archive", table))
                )
            }
            assert (ids == {1}) == rls
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("INSERT INTO archive.transactions (id) VALUES (1)")
        reader.execute("SELECT transaction_id FROM archive.transaction_metadata")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute("SELECT note FROM archive.transaction_metadata")
    if rls:
        system.as_owner("ALTER POLICY mine ON public.transactions USING (account_id = 2)")
        system.move(FEBRUARY)
        with psycopg.connect(reader_url, autocommit=True) as reader:
            found = reader.execute("SELECT DISTINCT account_id FROM archive.transactions_all").fetchall()
            assert found == [(2,)]


def test_row_security_on_14_is_refused(system):
    if system.connection.info.server_version >= 150000:
        pytest.skip("its views can have their reader's rights")
    system.as_owner("ALTER TABLE public.transactions ENABLE ROW LEVEL SECURITY")
    with pytest.raises(PermanentError, match="row security"):
        system.move()


def test_the_archive_follows_the_table(system):
    system.move()
    system.as_owner(
        "ALTER TABLE public.transactions ADD COLUMN note text COLLATE \"C\" DEFAULT 'new' NOT NULL"
    )
    system.as_owner("ALTER TABLE public.transactions ALTER COLUMN amount DROP NOT NULL")
    system.move(FEBRUARY)
    assert system.partitions("archive.transactions") == [
        f"archive.transactions_y2024m0{month}" for month in (1, 2)
    ]
    assert system.rows(
        "SELECT note, archived_at IS NULL AS hot, count(*) FROM archive.transactions_all GROUP BY 1, 2 ORDER BY 1, 2"
    ) == [
        {"note": "new", "hot": False, "count": ROWS // 4},
        {"note": "new", "hot": True, "count": ROWS // 2},
        {"note": None, "hot": False, "count": ROWS // 4},
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ALTER TABLE public.transactions ALTER amount TYPE numeric(20, 4)", "amount is numeric"),
        ("ALTER TABLE public.transactions RENAME status TO state", "has a column status"),
        ("ALTER TABLE public.transactions ADD x int GENERATED ALWAYS AS (1) STORED", "generated column x"),
    ],
    ids=["type", "renamed", "generated"],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_before_anything_happens(system, change, said):
    system.move()
    if "amount TYPE" in change:
        system.as_owner(
            "DROP VIEW archive.transactions_all; ALTER TABLE public.transactions DROP COLUMN cents"
        )
        system.as_owner("ALTER TABLE archive.transactions DROP COLUMN cents")
    system.as_owner(change)
    with pytest.raises(PermanentError, match=said):
        system.move(FEBRUARY)
    assert len(system.partitions("public.transactions")) == 3
    assert system.scalar("SELECT count(*) FROM pg_constraint WHERE conname = 'upkeep_range'") == 0


def test_without_the_schema_the_statement_is_named(system):
    system.admin.execute("DROP SCHEMA archive")
    with pytest.raises(PermanentError) as refused:
        system.move()
    assert refused.value.remedy == 'CREATE SCHEMA "archive" AUTHORIZATION "app_owner";'
    system.admin.execute("CREATE SCHEMA archive")
    with pytest.raises(PermanentError) as refused:
        system.move()
    assert refused.value.remedy.startswith('GRANT USAGE, CREATE ON SCHEMA "archive" TO')


def test_a_name_that_is_taken_is_refused(system):
    system.as_owner("CREATE TABLE archive.transactions_y2024m01_p1 (i int)")
    with pytest.raises(PermanentError, match="there is a transactions_y2024m01_p1 already"):
        system.move()


def test_triggers_of_ours_stay_behind(system):
    for table in ("transactions", "transactions_y2024m01", "transactions_y2024m01_p0"):
        system.admin.execute(
            sql.SQL(
                "CREATE TRIGGER upkeep_on_write AFTER INSERT ON {} FOR EACH STATEMENT"
                " EXECUTE FUNCTION upkeep.note_write('public.v')"
            ).format(sql.Identifier("public", table))
        )
    system.move()
    assert system.rows(
        "SELECT tgrelid::regclass::text AS name FROM pg_trigger WHERE tgname = 'upkeep_on_write'"
    ) == [{"name": "transactions"}]


def test_a_pending_detach_of_somebody_is_finalized_first(system):
    pending_detach(system, "transactions_y2024m03")
    moved = archive(system.connection, {TABLE: policy()}, policy())
    assert isinstance(moved, Done)
    assert moved.result["finalized"] == ["public.transactions_y2024m03"]
    assert system.partitions("public.transactions") == []
    assert len(system.partitions("archive.transactions")) == 3
    assert system.scalar("SELECT count(*) FROM public.transactions_y2024m03") == ROWS // 4


def pending_detach(system: System, name: str) -> None:
    with system.database.connect() as reader, system.database.connect() as other:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM public.transactions")
        other.execute("SET statement_timeout = '300ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            other.execute(
                sql.SQL("ALTER TABLE public.transactions DETACH PARTITION {} CONCURRENTLY").format(
                    sql.Identifier("public", name)
                )
            )
        reader.execute("COMMIT")
    assert system.scalar("SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == 1


def test_a_companion_that_is_partitioned_alike_moves_as_it_is(system):
    system.as_owner(
        "CREATE TABLE public.audit (audit_id bigint NOT NULL, id bigint NOT NULL, partition_date date NOT NULL,"
        " FOREIGN KEY (id, partition_date) REFERENCES public.transactions) PARTITION BY RANGE (partition_date);"
        "CREATE TABLE public.audit_y2024m01 PARTITION OF public.audit FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');"
        "INSERT INTO public.audit SELECT 1, id, partition_date FROM public.transactions"
        " WHERE partition_date < '2024-02-01'"
    )
    audit = RelationName("public", "audit")
    system.move(companions=(META, audit), others={audit: policy(name=audit, companions=())})
    assert system.partitions("archive.audit") == ["archive.audit_y2024m01"]
    assert system.scalar("SELECT count(*) FROM archive.audit_all WHERE archived_at IS NOT NULL") == ROWS // 4
    assert system.scalar("SELECT count(DISTINCT id) FROM upkeep.archive_batch") == 1
    assert system.scalar("SELECT count(*) FROM upkeep.archive_batch") == 3


def test_a_constraint_between_partitions_moves_along_unchecked(system):
    system.as_owner(
        "CREATE TABLE public.audit (id bigint NOT NULL, partition_date date NOT NULL)"
        " PARTITION BY RANGE (partition_date);"
        "CREATE TABLE public.audit_y2024m01 PARTITION OF public.audit FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');"
        "ALTER TABLE public.audit_y2024m01 ADD CONSTRAINT aligned FOREIGN KEY (id, partition_date)"
        " REFERENCES public.transactions_y2024m01;"
        "INSERT INTO public.audit SELECT id, partition_date FROM public.transactions"
        " WHERE partition_date < '2024-02-01'"
    )
    audit = RelationName("public", "audit")
    system.move(companions=(META, audit), others={audit: policy(name=audit, companions=())})
    assert system.scalar(
        "SELECT conrelid::regclass::text FROM pg_constraint WHERE conname = 'aligned' AND conparentid = 0"
    ) == ("archive.audit_y2024m01")


def test_a_table_that_refers_to_itself_is_refused(system):
    system.as_owner(
        "ALTER TABLE public.transactions ADD of bigint, ADD of_date date,"
        " ADD CONSTRAINT corrects FOREIGN KEY (of, of_date) REFERENCES public.transactions"
    )
    with pytest.raises(PermanentError, match="refers to itself"):
        system.move()


def test_rows_elsewhere_are_never_deleted_along(system):
    system.as_owner(
        "CREATE TABLE public.notes (transaction_id bigint REFERENCES public.transaction_metadata ON DELETE CASCADE)"
    )
    with pytest.raises(PermanentError, match="would delete or change"):
        system.move()


def test_late_rows_go_to_the_archive_and_are_recorded(system):
    system.move()
    system.as_owner("CREATE TABLE public.transactions_default PARTITION OF public.transactions DEFAULT")
    system.as_owner(
        "INSERT INTO public.transactions (id, partition_date, amount)"
        " SELECT g, date '2024-01-03', 5 FROM generate_series(1001, 2500) AS g"
    )
    system.as_owner("INSERT INTO public.transaction_metadata VALUES (1001, '2024-01-03', 'late')")
    system.as_owner(
        "INSERT INTO public.transactions (id, partition_date, amount) VALUES (1, '2023-01-03', 5)"
    )
    found = late.take_in(system.connection, {TABLE: policy()}, policy())
    assert (found.moved, found.refused) == ({"archive.transactions_y2024m01": 1500}, [])
    assert found.companions == {"public.transaction_metadata": 1}
    assert system.scalar("SELECT count(*) FROM ONLY public.transactions_default") == 1
    assert system.scalar("SELECT count(*) FROM archive.transactions_all") == ROWS + 1501
    assert system.rows("SELECT parent, rows FROM upkeep.archive_batch WHERE kind = 'late' ORDER BY 1") == [
        {"parent": "public.transaction_metadata", "rows": 1},
        {"parent": "public.transactions", "rows": 1500},
    ]
    # Once the range is cold they wait.
    system.as_owner(
        "INSERT INTO public.transactions (id, partition_date, amount) VALUES (3000, '2024-01-03', 5)"
    )
    system.as_owner("ALTER TABLE archive.transactions DETACH PARTITION archive.transactions_y2024m01")
    system.admin.execute("UPDATE upkeep.archive_batch SET cold_at = now() WHERE kind = 'partition'")
    found = late.take_in(system.connection, {TABLE: policy()}, policy())
    assert (found.moved, found.cold) == ({}, 1)


AUDIT = RelationName("public", "audit")
# The key between the parents, or between the partitions of each month alone.
AUDIT_SCHEMA = """
CREATE TABLE public.audit (id bigint NOT NULL, partition_date date NOT NULL, PRIMARY KEY (id, partition_date))
    PARTITION BY RANGE (partition_date);
CREATE TABLE public.audit_y2024m01 PARTITION OF public.audit FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE public.audit_default PARTITION OF public.audit DEFAULT;
CREATE TABLE public.transactions_default PARTITION OF public.transactions DEFAULT;
INSERT INTO public.audit SELECT id, partition_date FROM public.transactions WHERE partition_date < '2024-02-01';
"""
PARENTS = (
    "ALTER TABLE public.audit ADD CONSTRAINT of_transaction FOREIGN KEY (id, partition_date)"
    " REFERENCES public.transactions"
)
PARTITIONS = (
    "ALTER TABLE public.audit_y2024m01 ADD CONSTRAINT of_january FOREIGN KEY (id, partition_date)"
    " REFERENCES public.transactions_y2024m01 DEFERRABLE INITIALLY DEFERRED"
)
DEFAULTS = (
    "ALTER TABLE public.audit_default ADD CONSTRAINT of_default FOREIGN KEY (id, partition_date)"
    " REFERENCES public.transactions_default"
)
LATE_ROWS = (
    "INSERT INTO public.transactions (id, partition_date, amount) VALUES (1001, '2024-01-03', 5);"
    "INSERT INTO public.audit VALUES (1001, '2024-01-03')"
)


@pytest.mark.parametrize(
    "keys",
    [PARENTS, PARTITIONS, DEFAULTS, "SELECT"],
    ids=["between parents", "between partitions", "between defaults", "none"],
)
def test_late_rows_of_a_companion_that_is_partitioned_alike_go_in_the_order_that_the_keys_allow(system, keys):
    system.as_owner(AUDIT_SCHEMA)
    system.as_owner(keys)
    own, theirs = policy(companions=(META, AUDIT)), policy(name=AUDIT, companions=())
    policies = {TABLE: own, AUDIT: theirs}
    system.move(companions=own.companions, others={AUDIT: theirs})
    assert system.partitions("public.audit") == ["audit_default"]
    system.as_owner(LATE_ROWS)
    assert late.take_in(system.connection, policies, theirs) == late.Late()
    found = late.take_in(system.connection, policies, own)
    assert (found.moved, found.refused) == ({"archive.transactions_y2024m01": 1}, [])
    assert found.companions == {"public.audit": 1, "public.transaction_metadata": 0}
    assert system.scalar("SELECT count(*) FROM public.audit") == 0
    assert system.scalar("SELECT count(*) FROM archive.audit WHERE id = 1001") == 1
    assert system.scalar("SELECT count(*) FROM upkeep.archive_batch WHERE kind = 'late'") == 2
    # One that comes alone, for a row that went in its time.
    if keys != DEFAULTS:
        system.as_owner("DELETE FROM archive.audit WHERE id = 4")
        system.as_owner("ALTER TABLE public.audit DROP CONSTRAINT IF EXISTS of_transaction")
        system.as_owner("INSERT INTO public.audit VALUES (4, '2024-01-05')")
        found = late.take_in(system.connection, policies, own)
        assert (found.moved, found.companions) == ({}, {"public.audit": 1})


@pytest.mark.parametrize("keys", [PARENTS, DEFAULTS], ids=["between parents", "between defaults"])
def test_late_rows_that_something_refers_to_wait_for_it_with_the_reason(system, keys):
    """The companion's policy holds its rows, so that those that they refer to stay too."""
    system.as_owner(AUDIT_SCHEMA)
    system.as_owner(keys)
    own = policy(companions=(META, AUDIT))
    theirs = policy(name=AUDIT, companions=(), hold="id > 1000")
    system.move(companions=own.companions, others={AUDIT: theirs})
    system.as_owner(LATE_ROWS)
    found = late.take_in(system.connection, {TABLE: own, AUDIT: theirs}, own)
    assert (found.moved, sum(found.companions.values())) == ({}, 0)
    (refused,) = found.refused
    assert "audit" in refused.message
    assert refused.remedy
    (held,) = found.held
    assert "audit_default has 1 row that must not be moved yet" in held.message
    assert system.scalar("SELECT count(*) FROM public.transactions WHERE id = 1001") == 1
    assert system.scalar("SELECT count(*) FROM public.audit WHERE id = 1001") == 1


def test_keys_that_allow_no_order_are_named(system):
    system.as_owner(AUDIT_SCHEMA)
    system.as_owner(PARTITIONS)
    system.as_owner(DEFAULTS)
    own, theirs = policy(companions=(META, AUDIT)), policy(name=AUDIT, companions=())
    system.move(companions=own.companions, others={AUDIT: theirs})
    system.as_owner(LATE_ROWS)
    found = late.take_in(system.connection, {TABLE: own, AUDIT: theirs}, own)
    said = " ".join(each.message for each in found.refused)
    assert "of_january" in said
    assert "of_default" in said
    assert system.scalar("SELECT count(*) FROM archive.transactions_all WHERE id = 1001") == 1


def test_late_rows_that_the_archive_cannot_take_stop_no_others(system):
    system.as_owner("CREATE TABLE public.transactions_default PARTITION OF public.transactions DEFAULT")
    system.move()
    system.move(FEBRUARY)
    system.as_owner(
        "INSERT INTO public.transactions (id, partition_date, amount)"
        " SELECT id, partition_date, 5 FROM archive.transactions WHERE partition_date < '2024-02-01' LIMIT 1;"
        "INSERT INTO public.transactions (id, partition_date, amount) VALUES (1001, '2024-02-03', 5)"
    )
    found = late.take_in(system.connection, {TABLE: policy()}, policy())
    assert found.moved == {"archive.transactions_y2024m02": 1}
    (refused,) = found.refused
    assert "cannot go to archive.transactions_y2024m01: duplicate key value" in refused.message


def test_nothing_is_deleted_along_with_late_rows(system):
    system.as_owner(AUDIT_SCHEMA)
    system.as_owner(
        "ALTER TABLE public.audit_default ADD CONSTRAINT of_default FOREIGN KEY (id, partition_date)"
        " REFERENCES public.transactions_default ON DELETE CASCADE"
    )
    system.move()
    system.as_owner(
        "INSERT INTO public.transactions (id, partition_date, amount) VALUES (1001, '2024-01-03', 5)"
    )
    found = late.take_in(system.connection, {TABLE: policy()}, policy())
    assert found.moved == {}
    assert "of_default of public.audit_default would delete" in found.refused[0].message


def test_an_update_that_misses_is_told_where_the_row_is_and_counted(system, role):
    app_url = role(system.database, "app")
    system.move()
    system.admin.execute(
        "GRANT USAGE ON SCHEMA upkeep TO app;GRANT EXECUTE ON FUNCTION upkeep.note_archive_miss TO app"
    )
    ask = "SELECT upkeep.note_archive_miss('public.transactions', %s)"
    with psycopg.connect(app_url, autocommit=True) as app:
        assert [app.execute(ask, [day]).fetchone()[0] for day in ("2024-01-31", "2024-01-01", "2024-02-01")] == [
            "warm", "warm", "hot"
        ]  # fmt: skip
        assert app.execute(ask, ["nonsense"]).fetchone()[0] is None
        assert app.execute(ask, [None]).fetchone()[0] is None
        with app.transaction():
            app.execute("SET TRANSACTION READ ONLY")
            assert app.execute(ask, ["2024-01-31"]).fetchone()[0] == "warm"
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute("SELECT * FROM upkeep.archive_miss")
    assert system.rows("SELECT table_name, tier, misses FROM upkeep.archive_misses") == [
        {"table_name": "public.transactions", "tier": "warm", "misses": 2}
    ]
    system.admin.execute("UPDATE upkeep.archive_batch SET cold_at = now()")
    assert system.scalar(ask, "2024-01-31") == "cold"


def test_everything_that_is_due_goes_and_the_rest_is_reported(system):
    system.as_owner("UPDATE public.transactions SET status = 'pending' WHERE id = 5")
    done = archive(system.connection, {TABLE: policy()}, policy(hold=HOLD))
    assert isinstance(done, Done)
    assert done.result["moved"] == [f"public.transactions_y2024m0{month}" for month in (1, 3, 4)]
    assert list(done.result["held"]) == ["public.transactions_y2024m02"]
    assert done.result["companion_rows"] == ROWS // 4
    with pytest.raises(PermanentError, match=r"60 of public\.transaction_metadata"):
        archive(system.connection, {TABLE: policy()}, policy(companions=()))


@pytest.fixture
def tablespace(postgres_server) -> Iterator[str]:
    """One beside the server's data; dropped after the databases that use it."""
    with servers.admin(postgres_server) as admin:
        if admin.info.server_version < 150000:
            pytest.skip("its tablespaces need a directory of their own")
        admin.execute("SET allow_in_place_tablespaces = on")
        admin.execute("CREATE TABLESPACE slow LOCATION ''")
    yield "slow"
    with servers.admin(postgres_server) as admin:
        admin.execute("DROP TABLESPACE slow")


def test_leaves_are_copied_to_the_archives_tablespace_after_the_move(tablespace, system):
    system.admin.execute("GRANT CREATE ON TABLESPACE slow TO app_owner")
    steps = []
    system.move(archive_tablespace=tablespace, told=steps.append)
    assert steps.index("moved") < steps.index("settled")
    assert system.rows(
        "SELECT c.relname, c.relkind FROM pg_class c JOIN pg_tablespace t ON t.oid = c.reltablespace"
        " WHERE t.spcname = 'slow' AND c.relname LIKE 'transactions_y2024m01_p_' ORDER BY 1"
    ) == [{"relname": f"transactions_y2024m01_p{part}", "relkind": "r"} for part in (0, 1)]
    assert system.scalar("SELECT count(*) FROM archive.transactions_all") == ROWS


def test_a_killed_copy_is_gone_on_with(tablespace, system):
    class Killed(Exception):
        pass

    def told(step: str) -> None:
        if step == "moved":
            raise Killed

    system.admin.execute("GRANT CREATE ON TABLESPACE slow TO app_owner")
    own = policy(archive_tablespace=tablespace)
    with pytest.raises(Killed):
        system.move(archive_tablespace=tablespace, told=told)
    archive(system.connection, {TABLE: own}, own)
    assert (
        system.scalar(
            "SELECT count(*) FROM pg_class c JOIN pg_tablespace t ON t.oid = c.reltablespace"
            " WHERE t.spcname = 'slow' AND c.relname LIKE 'transactions_y2024m0__p_' AND c.relkind = 'r'"
        )
        == 8
    )
