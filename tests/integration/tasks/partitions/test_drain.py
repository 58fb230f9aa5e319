"""Rows of the default partition come into their own: each is seen once at every moment, and nobody waits for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, errors

from fleet.errors import PermanentError, TransientError
from fleet.postgres.patience import Deadline, Patience
from tasks.partitions.create import Maker
from tasks.partitions.drain import Drain
from tests.integration.tasks.partitions.creating import PLAIN, Kept, keep, month, partition, policy
from tests.servers import Database
from tests.waiting import wait_until

FEBRUARY = partition(2026, 2)
WITH_DEFAULT = f"""
{PLAIN}
CREATE TABLE app.transactions_default PARTITION OF app.transactions DEFAULT;
"""
FILL = "INSERT INTO app.transactions SELECT i, '2026-02-03Z', i FROM generate_series(1, 5000) AS i"


@pytest.fixture
def kept(database: Database, role: Any) -> Kept:
    kept = keep(database, role)
    kept.set_up(WITH_DEFAULT)
    return kept


def counts(kept: Kept) -> tuple[int, int]:
    return kept.rows(
        "SELECT (SELECT count(*) FROM app.transactions), (SELECT count(*) FROM ONLY app.transactions_default)"
    )[0]


def test_rows_come_into_their_partition(kept: Kept) -> None:
    kept.set_up(f"{FILL}; INSERT INTO app.transactions VALUES (1, '2026-03-01Z'), (2, '2026-01-31Z')")
    made = kept.make(FEBRUARY, month(2026, 2), drain=True)
    assert (made.created, made.rows) == (True, 5000)
    assert counts(kept) == (5002, 1)
    assert kept.scalar("SELECT sum(amount) FROM app.transactions_y2026m02") == 5000 * 5001 / 2


def test_rows_that_nobody_planned_for_come_along(kept: Kept) -> None:
    kept.set_up(FILL)
    assert kept.make(FEBRUARY, month(2026, 2)).rows == 5000


def test_identity_and_generated_columns_keep_their_values(kept: Kept) -> None:
    kept.set_up(
        "DROP TABLE app.transactions; CREATE TABLE app.transactions ("
        " id bigint GENERATED ALWAYS AS IDENTITY, created_at timestamptz NOT NULL, gone int,"
        ' n int, "Twice" int GENERATED ALWAYS AS (n * 2) STORED) PARTITION BY RANGE (created_at);'
        "CREATE TABLE app.transactions_default (n int, created_at timestamptz NOT NULL, id bigint NOT NULL, gone int,"
        ' "Twice" int GENERATED ALWAYS AS (n * 2) STORED);'
        "ALTER TABLE app.transactions ATTACH PARTITION app.transactions_default DEFAULT;"
        "ALTER TABLE app.transactions DROP COLUMN gone;"
        "INSERT INTO app.transactions (created_at, n) SELECT '2026-02-03Z', i FROM generate_series(1, 3) AS i"
    )
    before = kept.rows('SELECT id, created_at, n, "Twice" FROM app.transactions ORDER BY id')
    assert kept.make(FEBRUARY, month(2026, 2), drain=True).rows == 3
    assert kept.rows('SELECT id, created_at, n, "Twice" FROM app.transactions_y2026m02 ORDER BY id') == before
    kept.set_up("INSERT INTO app.transactions (created_at, n) VALUES ('2026-02-04Z', 9)")
    assert kept.scalar("SELECT id FROM app.transactions WHERE n = 9") == 4


REFERRED = """
CREATE TABLE app.lines (id bigint, at timestamptz,
  FOREIGN KEY (id, at) REFERENCES app.transactions (id, created_at) ON DELETE CASCADE);
"""


def test_rows_that_somebody_refers_to_stay_and_so_does_what_refers_to_them(kept: Kept) -> None:
    kept.set_up(f"{REFERRED} {FILL}; INSERT INTO app.lines VALUES (7, '2026-02-03Z'), (4999, '2026-02-03Z')")
    with pytest.raises(PermanentError, match=r"rows of app\.lines refer to them"):
        kept.make(FEBRUARY, month(2026, 2), drain=True)
    assert counts(kept) == (5000, 5000)
    assert kept.scalar("SELECT count(*) FROM app.lines") == 2
    kept.set_up("DELETE FROM app.lines")
    assert kept.make(FEBRUARY, month(2026, 2), drain=True).rows == 5000


def test_a_trigger_that_would_believe_in_a_deletion_is_a_reason_not_to_begin(kept: Kept) -> None:
    kept.set_up(
        f"{FILL}; CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';"
        "CREATE TRIGGER audit AFTER DELETE ON app.transactions FOR EACH ROW EXECUTE FUNCTION app.note()"
    )
    with pytest.raises(PermanentError, match=r"the trigger audit on app\.transactions_default"):
        kept.make(FEBRUARY, month(2026, 2), drain=True)
    kept.set_up("ALTER TABLE app.transactions_default DISABLE TRIGGER audit")
    assert kept.make(FEBRUARY, month(2026, 2), drain=True).rows == 5000


def test_row_security_that_would_hide_rows_is_an_error_and_not_a_loss(kept: Kept) -> None:
    kept.set_up(
        f"{FILL}; ALTER TABLE app.transactions_default ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY few ON app.transactions_default USING (id < 10)"
    )
    with pytest.raises(PermanentError, match="row-level security"):
        kept.make(FEBRUARY, month(2026, 2), drain=True)


def test_who_waits_for_a_row_is_let_through_with_what_he_wrote(kept: Kept) -> None:
    """An UPDATE of a row that is being moved away would change nothing; the move gives way."""
    kept.set_up(FILL)
    with busy(kept, "UPDATE app.transactions SET amount = amount + 1 WHERE id = 17", every_s=0.05) as writer:
        made = None
        while made is None:
            try:
                made = kept.make(FEBRUARY, month(2026, 2), drain=True)
            except TransientError:
                continue
    assert made.rows == 5000
    assert kept.scalar("SELECT amount FROM app.transactions WHERE id = 17") == 17 + writer.done
    assert writer.slowest_s < 0.2 + MARGIN_S


# Of a machine that does other things too.
MARGIN_S = 0.6


class Busy:
    """Somebody who does the same all the time, and how long it took him at most."""

    def __init__(self) -> None:
        self.done = 0
        self.slowest_s = 0.0
        self.seen: set[Any] = set()
        self.error: BaseException | None = None


@contextmanager
def busy(kept: Kept, statement: str, *, every_s: float = 0.0, **changes: Any) -> Iterator[Busy]:
    found, stop = Busy(), threading.Event()

    def work() -> None:
        try:
            with kept.owner(**changes) as connection:
                while not stop.is_set():
                    began = time.monotonic()
                    cursor = connection.execute(statement)
                    found.slowest_s = max(found.slowest_s, time.monotonic() - began)
                    found.done += cursor.rowcount if cursor.description is None else 1
                    if cursor.description is not None:
                        found.seen.add(cursor.fetchone())
                    stop.wait(every_s)
        except BaseException as exc:
            found.error = exc

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: found.done or found.error, message="the first statement of somebody busy")
        yield found
    finally:
        stop.set()
        thread.join()
    if found.error is not None:
        raise found.error


@pytest.mark.any_server
def test_every_row_is_seen_once_at_every_moment(kept: Kept) -> None:
    kept.set_up(FILL)
    kept.set_up("CREATE SEQUENCE app.ids START 5001")
    count = "SELECT count(*), count(DISTINCT id) FROM app.transactions WHERE id <= 5000"
    with (
        busy(kept, count) as checker,
        busy(kept, count, prepare_threshold=0) as prepared,
        busy(kept, f"{count} AND created_at >= '2026-02-01Z'") as pruned,
        busy(kept, "INSERT INTO app.transactions SELECT nextval('app.ids'), '2026-02-09Z'") as writer,
    ):
        for number in range(8):
            made = eventually(lambda: kept.make(FEBRUARY, month(2026, 2), drain=True))
            assert made.rows >= 5000, number
            wait_until(lambda seen=pruned.done: pruned.done > seen + 3)  # type: ignore[misc]
            # Back to where they were, in a moment in which nobody can look.
            kept.set_up(
                "BEGIN; LOCK TABLE app.transactions; ALTER TABLE app.transactions DETACH PARTITION"
                " app.transactions_y2026m02; INSERT INTO app.transactions SELECT * FROM app.transactions_y2026m02;"
                "DROP TABLE app.transactions_y2026m02; COMMIT"
            )
    assert checker.seen == prepared.seen == pruned.seen == {(5000, 5000)}
    assert kept.scalar("SELECT count(*) FROM app.transactions WHERE id > 5000") == writer.done
    for each in (checker, prepared, pruned, writer):
        assert each.done > 20


def eventually(make: Callable[[], Any]) -> Any:
    for _ in range(20):
        try:
            return make()
        except TransientError:
            continue
    raise AssertionError("it was never free")


def test_nobody_waits_longer_than_the_budget_while_a_report_is_open(kept: Kept) -> None:
    kept.set_up(f"{FILL}; INSERT INTO app.transactions VALUES (1, '2026-01-03Z')")
    with kept.owner() as report, busy(kept, "SELECT count(*) FROM app.transactions") as reader:
        with report.transaction():
            report.execute("SELECT count(*) FROM app.transactions")
            with kept.keeper() as connection, pytest.raises(TransientError, match="no moment") as error:
                Maker(
                    connection=connection,
                    policy=policy(),
                    patience=Patience(tries=3, total=timedelta(seconds=2)),
                ).make(FEBRUARY, month(2026, 2), drain=True)
            assert "process" in error.value.message
        assert reader.slowest_s < 0.2 + MARGIN_S
        assert eventually(lambda: kept.make(FEBRUARY, month(2026, 2), drain=True)).rows == 5000
    assert kept.partitions() == ["transactions_default", "transactions_y2026m01", FEBRUARY.name]
    assert reader.slowest_s < 0.2 + MARGIN_S


def test_nothing_is_left_of_a_session_that_is_killed(kept: Kept) -> None:
    kept.set_up(FILL)
    with kept.keeper() as connection:
        pid = connection.info.backend_pid
        stop = threading.Event()

        def kill() -> None:
            with psycopg.connect(kept.database.url, autocommit=True) as admin:
                while not stop.is_set():
                    row = admin.execute(
                        "SELECT query FROM pg_stat_activity WHERE pid = %s AND query LIKE 'WITH moved%%'",
                        (pid,),
                    ).fetchone()
                    if row is not None:
                        admin.execute("SELECT pg_terminate_backend(%s)", (pid,))
                        return

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            with pytest.raises((TransientError, errors.AdminShutdown)):
                Maker(connection=connection, policy=policy(), patience=Patience(tries=1)).make(
                    FEBRUARY, month(2026, 2), drain=True
                )
        finally:
            stop.set()
            thread.join()
    assert kept.scalar("SELECT count(*) FROM pg_class WHERE relname LIKE %s", f"{FEBRUARY.name}%") == 0
    assert counts(kept) == (5000, 5000)
    assert kept.make(FEBRUARY, month(2026, 2), drain=True).rows == 5000


def test_who_looks_with_an_old_snapshot_is_waited_for(kept: Kept) -> None:
    """He would find the rows where they were, and look for them where they are."""
    kept.set_up(FILL)
    ours = "SELECT count(*) FROM app.transactions WHERE created_at >= '2026-02-01Z' AND created_at < '2026-03-01Z'"
    with psycopg.connect(kept.reader_url) as reader, kept.owner() as owner:
        owner.execute("GRANT USAGE ON SCHEMA app TO reader; GRANT SELECT ON app.transactions TO reader")
        reader.isolation_level = IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT")
        with pytest.raises(TransientError, match=f"process {reader.info.backend_pid} looks at the database"):
            kept.make(FEBRUARY, month(2026, 2), drain=True)
        # By somebody who has counted on it as well: rows of its range have come since it was planned.
        with pytest.raises(TransientError, match=f"process {reader.info.backend_pid} looks at the database"):
            kept.make(FEBRUARY, month(2026, 2))
        assert reader.execute(ours).fetchone() == (5000,)
        reader.commit()
        # One that is open without a snapshot is in nobody's way.
        reader.isolation_level = IsolationLevel.READ_COMMITTED
        reader.execute("SELECT")
        assert kept.make(FEBRUARY, month(2026, 2), drain=True).rows == 5000
        assert reader.execute(ours).fetchone() == (5000,)


def test_no_trigger_takes_moved_rows_for_new_ones(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither most of them, nor those that come in the last moment; and all are switched as before."""
    kept.set_up(
        f"{FILL}; CREATE TABLE app.noted (trigger text, id bigint);"
        "CREATE FUNCTION app.note() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO app.noted VALUES (TG_NAME, NEW.id); RETURN NEW; END';"
        + "".join(
            f"CREATE TRIGGER {name} BEFORE INSERT ON app.transactions_y2026m01"
            " FOR EACH ROW EXECUTE FUNCTION app.note();"
            for name in ("usual", "never", "always")
        )
        + "ALTER TABLE app.transactions_y2026m01 DISABLE TRIGGER never, ENABLE ALWAYS TRIGGER always"
    )
    lock = Drain.lock

    def late(self: Drain, deadline: Deadline) -> None:
        kept.set_up("INSERT INTO app.transactions VALUES (5001, '2026-02-04Z')")
        lock(self, deadline)

    monkeypatch.setattr(Drain, "lock", late)
    assert kept.make(FEBRUARY, month(2026, 2), drain=True).rows == 5001
    assert kept.rows("SELECT * FROM app.noted") == []
    kept.set_up("INSERT INTO app.transactions VALUES (5002, '2026-02-04Z')")
    assert kept.rows("SELECT trigger FROM app.noted ORDER BY 1") == [("always",), ("usual",)]
    assert kept.dumped(FEBRUARY, month(2026, 2)) == kept.dumped(partition(2026, 1), month(2026, 1))


def test_no_update_is_ended_as_a_deadlock_however_long_the_budget(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.set_up(FILL)
    lock, tries = Drain.lock, []
    changed: list[int] = []

    def update() -> None:
        with kept.owner() as owner:
            changed.append(owner.execute("UPDATE app.transactions SET amount = 0 WHERE id = 7").rowcount)

    thread = threading.Thread(target=update)

    def meet(self: Drain, deadline: Deadline) -> None:
        # He comes after the last look at who waits for a row.
        tries.append(self)
        if not thread.ident:
            thread.start()
            wait_until(
                lambda: kept.scalar(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
                )
            )
        lock(self, deadline)

    monkeypatch.setattr(Drain, "lock", meet)
    made = kept.make(FEBRUARY, month(2026, 2), drain=True, lock_budget="5s")
    thread.join()
    assert (changed, made.rows, len(tries)) == ([1], 5000, 2)
    assert kept.scalar("SELECT amount FROM app.transactions WHERE id = 7") == 0
