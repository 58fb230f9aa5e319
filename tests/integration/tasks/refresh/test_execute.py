"""Refreshing on a real server: what is done, skipped, handed back, retried, refused, and what is recorded with it."""

from __future__ import annotations

import threading
from datetime import timedelta

import psycopg
import pytest

from fleet import ledger
from fleet.ledger import NewRun, State
from fleet.names import RelationName
from fleet.postgres import locks
from fleet.postgres.connect import connect
from tasks.refresh import execute, holding, statement
from tests.integration.tasks.refresh.conftest import System, view
from tests.waiting import wait_until


def counters_moved(system: System, inserted: int) -> None:
    wait_until(
        lambda: system.scalar("SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 't'") >= inserted,
        message="the writer's counters",
    )


def test_a_first_refresh_populates_and_the_next_is_concurrent(system):
    first = system.refresh("public.base")
    assert (first.state, first.result["strategy"], first.result["rows_changed"]) == (
        State.SUCCEEDED,
        "populate",
        20,
    )
    system.write(3)
    second = system.refresh("public.base")
    assert (second.result["strategy"], second.result["rows_changed"]) == ("concurrently", 3)
    assert system.scalar("SELECT count(*) FROM public.base") == 23
    assert system.age("public.base") < timedelta(minutes=1)


def test_what_the_run_and_the_state_say_is_committed_with_the_refresh(system):
    run = system.refresh("public.base")
    state = system.connection.execute(
        "SELECT run_id, snapshot_at, rows_changed, refresh_id FROM upkeep.view_state WHERE view = 'public.base'"
    ).fetchone()
    assert state[0] == run.id
    assert state[1].isoformat() == run.result["snapshot_at"]
    assert state[1] >= run.created_at
    # One transaction wrote both rows.
    assert system.scalar("SELECT xmin FROM upkeep.view_state WHERE view = 'public.base'") == system.scalar(
        "SELECT xmin FROM upkeep.run WHERE id = %s", run.id
    )


def test_a_request_that_a_refresh_has_overtaken_is_skipped(system):
    early = system.now()
    system.refresh("public.base")
    overtaken = system.refresh("public.base", as_of=early)
    assert (overtaken.state, overtaken.reason) == (State.SKIPPED, "already fresh")


def test_an_operators_refresh_is_never_skipped_because_nothing_changed(system):
    system.refresh("public.base")
    assert system.refresh("public.base").state == State.SUCCEEDED


def test_a_tick_over_unchanged_sources_is_skipped_and_verifies(system):
    system.refresh("public.base")
    slot = system.now()
    ticked = system.tick("public.base", slot)
    assert (ticked.state, ticked.reason) == (State.SKIPPED, "its sources have not changed")
    assert system.scalar("SELECT verified_at >= %s FROM upkeep.view_state WHERE view = 'public.base'", slot)
    again = system.tick("public.base", slot + timedelta(microseconds=1))
    assert again.reason in {"already fresh", "its sources have not changed"}
    # Only an event or an operator is not satisfied by counters.
    assert system.refresh("public.base", as_of=slot).state == State.SUCCEEDED


def test_a_tick_over_changed_sources_refreshes_and_says_what_changed(system):
    # On 14 a new database has no statistics, and no time of their reset, until the first of them arrive.
    system.write(1)
    counters_moved(system, 21)
    system.refresh("public.base")
    system.write(5)
    counters_moved(system, 26)
    ticked = system.tick("public.base", system.now())
    assert ticked.state == State.SUCCEEDED
    assert ticked.result["reason"] == "public.t: 5 rows inserted"


def test_upstream_is_refreshed_first_by_an_operators_request(system):
    system.refresh("public.top")
    assert system.scalar("SELECT total FROM public.top") == 210
    system.write(1)
    run = system.refresh("public.top")
    assert run.state == State.SUCCEEDED
    assert system.scalar("SELECT rows FROM public.top") == 21
    upstream = ledger.history(system.connection, target="public.base")[0]
    assert (upstream.entry, upstream.state, upstream.requested_by) == (
        "upstream",
        State.SUCCEEDED,
        f"run {run.id}",
    )


def test_an_open_tick_of_an_upstream_view_is_not_enough_for_an_operator(system):
    system.refresh("public.top")
    # It may end by counters, which an operator's request is not satisfied by.
    tick = {
        "task": execute.REFRESH_VIEW,
        "target": "public.base",
        "entry": "five_minutes",
        "queue": "refresh",
    }
    ledger.insert(system.connection, NewRun(**tick, slot=system.now() + timedelta(hours=1)))
    run = system.refresh("public.top")
    upstream = ledger.history(system.connection, target="public.base")[0]
    assert (upstream.entry, upstream.state, upstream.as_of) == ("upstream", State.SUCCEEDED, run.as_of)


def test_a_tick_brings_upstream_to_its_own_tiers_slot_only(system):
    system.refresh("public.top")
    before = ledger.history(system.connection, target="public.base")
    system.write(1)
    counters_moved(system, 21)
    # base's latest five-minute slot is before its last refresh, so the fifteen-minute tick leaves it alone.
    slot = system.scalar("SELECT date_bin('5 min', clock_timestamp(), 'epoch')")
    system.tick("public.top", slot, "fifteen_minutes")
    assert [r.id for r in ledger.history(system.connection, target="public.base")] == [r.id for r in before]


def test_a_failed_upstream_does_not_stop_the_view(system):
    system.refresh("public.top")
    with psycopg.connect(system.database.url) as writer:
        writer.execute("DROP INDEX public.base_key")
        writer.execute("UPDATE upkeep.view_state SET plain_duration = '1 min' WHERE view = 'public.base'")
    run = system.refresh("public.top")
    assert run.state == State.SUCCEEDED
    assert run.result["upstream_stale"] == ["public.base"]
    failed = ledger.history(system.connection, target="public.base")[0]
    assert (failed.state, failed.error["kind"]) == (State.FAILED, "permanent")
    # A tick that could skip by counters does not: the last refresh used a stale upstream.
    again = system.tick("public.top", system.now(), "fifteen_minutes")
    assert again.state == State.SUCCEEDED


def test_somebody_elses_work_on_the_view_hands_the_run_back(system, monkeypatch):
    monkeypatch.setattr(holding, "BUSY_WAIT_S", 0.2)
    system.refresh("public.base")
    oid = system.scalar("SELECT 'public.base'::regclass::oid::int")
    with system.database.connect() as other:
        assert locks.try_acquire(other, locks.relation_key(oid))
        run = system.refresh("public.base")
    assert (run.state, run.waits_for, run.attempt) == (State.WAITING, "public.base", 0)
    assert run.error is None
    # Whoever finishes that view wakes it.
    system.refresh("public.base")
    assert ledger.ring_due(system.connection)[0].id == run.id


def test_no_more_refreshes_at_once_than_allowed(system, monkeypatch):
    monkeypatch.setattr(holding, "BUSY_WAIT_S", 0.2)
    with system.database.connect() as other:
        for number in range(2):
            assert locks.try_acquire(other, locks.slot_key(number))
        run = system.refresh("public.base")
        assert (run.state, run.attempt) == (State.WAITING, 0)
        assert "2 refreshes are running" in run.reason
    assert system.refresh("public.base").state == State.SUCCEEDED


def test_a_lock_that_stays_held_is_a_transient_error_that_is_tried_again(system, monkeypatch):
    monkeypatch.setattr(statement, "LOCK_TRIES", 2)
    monkeypatch.setattr("tasks.refresh.strategy.CONCURRENT_LOCK_TIMEOUT", timedelta(milliseconds=50))
    system.refresh("public.base")
    with psycopg.connect(system.database.url) as holder:
        holder.execute("COMMENT ON MATERIALIZED VIEW public.base IS 'locked: SHARE UPDATE EXCLUSIVE'")
        run = system.refresh("public.base")
    assert (run.state, run.attempt, run.max_attempts) == (State.WAITING, 1, 4)
    assert (run.error["kind"], run.error["sqlstate"]) == ("transient", "55P03")
    wait = run.not_before - run.started_at
    assert timedelta(seconds=3.9) < wait < timedelta(seconds=7)


def test_a_short_lock_is_waited_for_within_the_attempt(system, monkeypatch):
    monkeypatch.setattr("tasks.refresh.strategy.CONCURRENT_LOCK_TIMEOUT", timedelta(milliseconds=50))
    system.refresh("public.base")
    holder = psycopg.connect(system.database.url)
    holder.execute("COMMENT ON MATERIALIZED VIEW public.base IS 'locked: SHARE UPDATE EXCLUSIVE'")
    tries: list[int] = []
    original = statement._transaction

    def counting(*args):
        tries.append(1)
        if len(tries) == 2:
            holder.close()
        return original(*args)

    monkeypatch.setattr(statement, "_transaction", counting)
    run = system.refresh("public.base")
    assert (run.state, run.attempt, len(tries)) == (State.SUCCEEDED, 1, 2)


def test_new_data_that_breaks_the_unique_index_fails_for_good_with_its_key(upkeep_database):
    with upkeep_database.connect() as connection:
        connection.execute(
            "CREATE TABLE public.s (k int, v int); INSERT INTO public.s VALUES (1, 1), (2, 2);"
            "CREATE MATERIALIZED VIEW public.v AS SELECT k, v FROM public.s;"
            "CREATE UNIQUE INDEX v_key ON public.v (k)"
        )
    system = System(upkeep_database, [view("public.v")])
    system.connection.execute("INSERT INTO public.s VALUES (2, 3)")
    run = system.refresh("public.v")
    assert (run.state, run.attempt) == (State.FAILED, 1)
    assert (run.error["kind"], run.error["sqlstate"]) == ("permanent", "23505")
    assert "(k)=(2)" in run.error["detail"]
    assert "unique index" in run.error["remedy"]
    # Rows that are equal in every column are another error of the server's.
    system.connection.execute("UPDATE public.s SET v = 2 WHERE k = 2")
    run = system.refresh("public.v")
    assert (run.state, run.error["kind"]) == (State.FAILED, "permanent")
    assert "(2,2)" in run.error["detail"]
    # The view still has its old contents, and the next good refresh works.
    assert system.scalar("SELECT count(*) FROM public.v") == 2
    system.connection.execute("DELETE FROM public.s WHERE ctid = (SELECT max(ctid) FROM public.s)")
    assert system.refresh("public.v").state == State.SUCCEEDED
    system.connection.close()


def test_a_quick_keyless_view_is_refreshed_plainly_within_the_bound(system):
    system.refresh("public.keyless")
    run = system.refresh("public.keyless")
    assert (run.state, run.result["strategy"]) == (State.SUCCEEDED, "plain, bounded")


def test_a_slow_keyless_view_is_cancelled_and_refused_from_then_on(upkeep_database):
    with upkeep_database.connect() as connection:
        connection.execute(
            "CREATE TABLE public.s (k int); INSERT INTO public.s VALUES (1);"
            "CREATE MATERIALIZED VIEW public.v AS SELECT k, pg_sleep(0.02)::text FROM public.s"
        )
    system = System(upkeep_database, [view("public.v")])
    assert system.refresh("public.v").state == State.SUCCEEDED
    system.connection.execute("INSERT INTO public.s SELECT generate_series(2, 30)")
    cancelled = system.refresh("public.v")
    assert (cancelled.state, cancelled.error["kind"]) == (State.FAILED, "permanent")
    assert "200 ms" in cancelled.error["message"]
    refused = system.refresh("public.v")
    assert refused.state == State.FAILED
    assert "allow_blocking" in refused.error["remedy"]
    assert (refused.finished_at - refused.started_at) < timedelta(milliseconds=200)
    allowed = System(upkeep_database, [view("public.v", allow_blocking=True)])
    assert allowed.refresh("public.v").result["strategy"] == "plain"
    for each in (system, allowed):
        each.connection.close()


def test_a_readers_wait_behind_a_bounded_plain_refresh_is_bounded(system):
    """Promise 3: the reader in front makes the refresh give up, so the reader behind does not queue for long."""
    system.refresh("public.keyless")
    with psycopg.connect(system.database.url) as first:
        first.execute("SELECT * FROM public.keyless")  # holds ACCESS SHARE until the block ends
        waits: list[timedelta] = []

        def read() -> None:
            with psycopg.connect(system.database.url, autocommit=True) as reader:
                while not done.is_set():
                    began = reader.execute("SELECT clock_timestamp()").fetchone()[0]
                    reader.execute("SELECT count(*) FROM public.keyless")
                    waits.append(reader.execute("SELECT clock_timestamp()").fetchone()[0] - began)

        done = threading.Event()
        behind = threading.Thread(target=read)
        behind.start()
        run = system.refresh("public.keyless")
        done.set()
        behind.join()
    assert (run.state, run.error["kind"]) == (State.WAITING, "transient")
    assert max(waits) < timedelta(milliseconds=250)


def test_a_statement_timeout_is_the_views_own(upkeep_database):
    with upkeep_database.connect() as connection:
        connection.execute(
            "CREATE MATERIALIZED VIEW public.v AS SELECT pg_sleep(30)::text AS s, 1 AS k WITH NO DATA"
        )
    system = System(upkeep_database, [view("public.v", statement_timeout=timedelta(seconds=1))])
    run = system.refresh("public.v")
    assert (run.state, run.error["sqlstate"], run.error["kind"]) == (State.WAITING, "57014", "transient")
    assert "statement_timeout" in run.error["remedy"]
    system.connection.close()


def test_a_view_is_refreshed_in_its_declared_zone(upkeep_database):
    with upkeep_database.connect() as connection:
        connection.execute(
            "CREATE MATERIALIZED VIEW public.v AS SELECT current_setting('TimeZone') AS zone WITH NO DATA"
        )
    there = System(upkeep_database, [view("public.v", timezone="Asia/Kolkata")])
    there.refresh("public.v")
    assert there.scalar("SELECT zone FROM public.v") == "Asia/Kolkata"
    own = System(upkeep_database, [view("public.v")])
    own.refresh("public.v")
    assert own.scalar("SELECT zone FROM public.v") == own.scalar("SHOW TimeZone")
    for each in (there, own):
        each.connection.close()


@pytest.mark.parametrize("declared", [None, "77MB"])
def test_a_refresh_has_the_memory_that_its_view_declares(upkeep_database, declared):
    with upkeep_database.connect() as connection:
        connection.execute(
            "CREATE MATERIALIZED VIEW public.v AS SELECT current_setting('work_mem') AS m WITH NO DATA"
        )
    system = System(upkeep_database, [view("public.v", work_mem=declared)])
    own = system.scalar("SHOW work_mem")
    system.refresh("public.v")
    assert system.scalar("SELECT m FROM public.v") == (declared or own)
    assert system.scalar("SHOW work_mem") == own


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("public.nope", "does not exist"),
        ("public.t", "is a table, not a materialized view"),
        ("public.unmanaged", "is not managed"),
    ],
)
def test_what_cannot_be_refreshed_fails_for_good_and_says_why(upkeep_database, name, says):
    with upkeep_database.connect() as connection:
        connection.execute(
            "CREATE TABLE public.t (i int); CREATE MATERIALIZED VIEW public.unmanaged AS SELECT 1"
        )
    system = System(upkeep_database, [view("public.nope"), view("public.t")])
    run = system.refresh(name)
    assert (run.state, run.error["kind"]) == (State.FAILED, "permanent")
    assert says in run.error["message"]
    assert run.error["remedy"]
    system.connection.close()


def test_a_recreated_view_is_refreshed_at_the_next_tick(system):
    system.refresh("public.base")
    slot = system.now()
    assert system.tick("public.base", slot).state == State.SKIPPED
    with system.database.connect() as other:
        other.execute(
            "DROP MATERIALIZED VIEW public.base CASCADE;"
            "CREATE MATERIALIZED VIEW public.base AS SELECT id, n + 1 AS n FROM public.t WITH NO DATA;"
            "CREATE UNIQUE INDEX base_key ON public.base (id)"
        )
    assert system.age("public.base") is None
    run = system.tick("public.base", slot + timedelta(microseconds=1))
    assert (run.state, run.result["reason"]) == (State.SUCCEEDED, "not populated")


def test_a_role_without_rights_is_refused_with_the_grant(system, role):
    url = role(system.database, "stranger")
    with system.database.connect() as admin:
        admin.execute(
            "GRANT USAGE ON SCHEMA upkeep TO stranger; GRANT ALL ON ALL TABLES IN SCHEMA upkeep TO stranger"
        )
    stranger = System(system.database, [view("public.base")])
    stranger.connection.close()
    stranger.connection = connect(url, application_name="upkeep/test")
    run = stranger.refresh("public.base")
    assert (run.state, run.error["kind"]) == (State.FAILED, "permanent")
    assert "GRANT" in run.error["remedy"]
    stranger.connection.close()


def test_names_that_need_quotes_are_refreshed_like_any_other(upkeep_database):
    odd = RelationName("Äpfel & Co", 'say "hi" zoë')
    with upkeep_database.connect() as connection:
        connection.execute('CREATE SCHEMA "Äpfel & Co"')
        connection.execute('CREATE MATERIALIZED VIEW "Äpfel & Co"."say ""hi"" zoë" AS SELECT 1 AS k')
        connection.execute('CREATE UNIQUE INDEX ON "Äpfel & Co"."say ""hi"" zoë" (k)')
    system = System(upkeep_database, [view(str(odd))])
    run = system.refresh(str(odd))
    assert (run.state, run.result["strategy"]) == (State.SUCCEEDED, "concurrently")
    system.connection.close()


def test_a_broken_connection_leaves_the_run_to_be_found_again(system):
    system.refresh("public.base")
    refresher = execute.Refresher(connection=system.connection, database=system.settings, worker="t")
    with system.database.connect() as admin, system.run("public.base") as run:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (system.connection.info.backend_pid,))
        with pytest.raises(psycopg.OperationalError):
            refresher.refresh(run, RelationName.parse("public.base"))
    with system.database.connect() as other:
        assert [d.id for d in ledger.ring_due(other, grace=timedelta())] == [run.id]
        with ledger.claim(other, run.id, worker="t2") as again:
            assert again.attempt == 2
