"""Jobs on a real server: once, in batches, one at a time; what is committed with them, and how they fail."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from fleet import ledger
from fleet.errors import TransientError
from fleet.ledger import State
from fleet.postgres import locks
from fleet.postgres.connect import connect
from tasks.jobs import execute
from tasks.jobs.execute import job_key, tidy
from tests.integration.tasks.jobs.conftest import System, job
from tests.waiting import wait_until

pytestmark = pytest.mark.any_server

BATCHES = "SELECT public.do_some()"


def only_numbers(result: dict[str, Any] | None) -> dict[str, Any]:
    assert result is not None
    assert all(isinstance(value, int | float | bool) for value in result.values()), result
    return {key: value for key, value in result.items() if key != "duration_s"}


class TestOnce:
    def test_a_function_that_returns_how_much_it_did(self, system: System) -> None:
        run = system.run(BATCHES)
        assert (run.state, run.attempt, run.reason) == (State.SUCCEEDED, 1, None)
        assert only_numbers(run.result) == {"batches": 1, "rows": 1, "returned": 10}
        assert system.done() == {0: 15, 1: 10}

    @pytest.mark.parametrize(
        ("sql", "rows"),
        [
            ("UPDATE public.todo SET done = 1 WHERE id <= 7", 7),
            ("DELETE FROM public.todo WHERE id > 20 RETURNING id", 5),
            ("SELECT id FROM public.todo", 25),
            ("CREATE TABLE public.made (id int)", 0),
            ("DO $$ BEGIN UPDATE public.todo SET done = 1; END $$", 0),
        ],
    )
    def test_the_ledger_keeps_how_many_rows(self, system: System, sql: str, rows: int) -> None:
        run = system.run(sql)
        assert run.state == State.SUCCEEDED
        assert only_numbers(run.result) == {"batches": 1, "rows": rows}

    def test_the_end_of_the_run_is_committed_with_the_effect(self, system: System) -> None:
        run = system.run("UPDATE public.todo SET done = 1 WHERE id = 1")
        assert system.scalar("SELECT xmin FROM public.todo WHERE id = 1") == system.scalar(
            "SELECT xmin FROM upkeep.run WHERE id = %s", run.id
        )

    def test_timeouts_are_the_jobs_for_its_statement_alone(self, system: System) -> None:
        before = system.scalar("SELECT current_setting('statement_timeout')")
        system.run(
            "CREATE TABLE public.seen AS SELECT current_setting('statement_timeout') AS statement,"
            " current_setting('lock_timeout') AS lock",
            statement_timeout="90s",
            lock_timeout="250ms",
        )
        seen = system.connection.execute("SELECT statement, lock FROM public.seen").fetchone()
        assert seen == ("90s", "250ms")
        assert system.scalar("SELECT current_setting('statement_timeout')") == before


class TestUntilZero:
    def test_each_batch_is_a_transaction_until_nothing_is_left(self, system: System) -> None:
        run = system.run(BATCHES, repeat_until_zero=True)
        assert (run.state, run.attempt) == (State.SUCCEEDED, 1)
        assert only_numbers(run.result) == {"batches": 3, "rows": 25}
        assert system.done() == {1: 25}
        assert system.scalar("SELECT count(DISTINCT xmin::text) FROM public.todo") == 3

    def test_a_write_counts_its_rows_whatever_it_returns(self, system: System) -> None:
        run = system.run(
            "DELETE FROM public.todo WHERE id IN (SELECT id FROM public.todo ORDER BY id LIMIT 12) RETURNING id",
            repeat_until_zero=True,
        )
        assert only_numbers(run.result) == {"batches": 3, "rows": 25}
        assert system.scalar("SELECT count(*) FROM public.todo") == 0

    def test_nothing_to_do_is_skipped_and_says_so(self, system: System) -> None:
        system.connection.execute("UPDATE public.todo SET done = 1")
        run = system.run(BATCHES, repeat_until_zero=True)
        assert (run.state, run.reason, run.result) == (State.SKIPPED, "nothing was left to do", None)

    def test_it_stops_at_max_batches_and_says_that_more_may_be_left(self, system: System) -> None:
        run = system.run(BATCHES, repeat_until_zero=True, max_batches=2)
        assert run.state == State.SUCCEEDED
        assert run.reason == "stopped after max_batches = 2: more may be left"
        assert only_numbers(run.result) == {"batches": 2, "rows": 20, "more": True}
        assert system.done() == {0: 5, 1: 20}
        # The next one goes on from there.
        run = system.run(BATCHES, repeat_until_zero=True, max_batches=2)
        assert only_numbers(run.result) == {"batches": 1, "rows": 5}

    def test_the_ledger_shows_every_committed_batch(self, system: System) -> None:
        """Held up in its third batch by a row that somebody else has locked."""
        declared = job(
            "UPDATE public.todo SET done = 1 WHERE id = (SELECT min(id) FROM public.todo WHERE done = 0)",
            repeat_until_zero=True,
            lock_timeout="10s",
        )
        run_id = system.insert(declared)
        with psycopg.connect(system.database.url) as holder:
            holder.execute("SELECT FROM public.todo WHERE id = 3 FOR UPDATE")
            worker = threading.Thread(target=system.work, args=(declared, run_id))
            worker.start()
            try:
                with psycopg.connect(system.database.url, autocommit=True) as watcher:

                    def shown() -> dict[str, Any] | None:
                        run = ledger.get(watcher, run_id)
                        assert run is not None
                        at_two = run.progress is not None and run.progress["batches"] == 2
                        return run.progress if at_two else None

                    progress = wait_until(shown)
                assert progress == {
                    "phase": "batch 3",
                    "reason": "2 rows in 2 batches so far",
                    "batches": 2,
                    "rows": 2,
                }
                assert system.done() == {0: 23, 1: 2}
            finally:
                holder.rollback()
                worker.join()
        assert only_numbers(system.run_row(run_id).result) == {"batches": 25, "rows": 25}

    def test_the_pause_is_between_batches_and_in_no_transaction(
        self, system: System, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        paused = []

        def look(seconds: float) -> None:
            paused.append((seconds, system.done(), system.connection.info.transaction_status.name))

        monkeypatch.setattr(execute.time, "sleep", look)
        system.run(BATCHES, repeat_until_zero=True, batch_pause="50ms")
        assert paused == [
            (0.05, {0: 15, 1: 10}, "IDLE"),
            (0.05, {0: 5, 1: 20}, "IDLE"),
            (0.05, {1: 25}, "IDLE"),
        ]

    def test_a_long_one_gives_way_and_goes_on_where_it_was(self, system: System) -> None:
        declared = job(BATCHES, repeat_until_zero=True)
        first = system.run(declared, stay=timedelta())
        assert first.state == State.WAITING
        assert first.reason == "10 rows in 1 batch so far; others have their turn"
        assert (first.attempt, first.error) == (0, None)
        assert only_numbers(first.result) == {"batches": 1, "rows": 10}
        assert system.done() == {0: 15, 1: 10}
        # It is due at once; nobody is kept from other work meanwhile.
        assert [due.id for due in ledger.ring_due(system.connection)] == [first.id]
        assert locks.try_acquire(system.connection, job_key("settle"))
        locks.release(system.connection, job_key("settle"))
        ended = system.work(declared, first.id)
        assert (ended.state, ended.attempt) == (State.SUCCEEDED, 1)
        assert only_numbers(ended.result) == {"batches": 3, "rows": 25}
        assert system.done() == {1: 25}

    def test_max_batches_counts_those_of_earlier_attempts(self, system: System) -> None:
        declared = job(BATCHES, repeat_until_zero=True, max_batches=2)
        first = system.run(declared, stay=timedelta())
        ended = system.work(declared, first.id)
        assert only_numbers(ended.result) == {"batches": 2, "rows": 20, "more": True}

    @pytest.mark.parametrize(
        ("sql", "said"),
        [
            ("SELECT NULL::int FROM public.do_some()", "NULL (int4)"),
            ("SELECT public.do_some()::text", "a value of type text"),
            ("SELECT id FROM public.todo", "25 rows"),
            ("SELECT -public.do_some()", "-10"),
            ("DO $$ BEGIN PERFORM public.do_some(); END $$", "nothing (DO)"),
        ],
    )
    def test_a_batch_that_does_not_say_how_much_it_did(self, system: System, sql: str, said: str) -> None:
        run = system.run(sql, repeat_until_zero=True)
        assert (run.state, run.attempt) == (State.FAILED, 1)
        assert run.error is not None
        assert run.error["kind"] == "permanent"
        assert run.error["message"].endswith(said) or run.error["message"].endswith(f"it returned {said}")
        assert "whole number" in run.error["remedy"]
        assert system.done() == {0: 25}

    def test_a_run_that_somebody_has_ended_goes_no_further(self, system: System) -> None:
        """Its next batch is rolled back, however far it came."""
        declared = job(
            "WITH ended AS (UPDATE upkeep.run SET state = 'failed', finished_at = clock_timestamp(),"
            " reason = 'an operator said so' WHERE target = 'settle' RETURNING 1)"
            " SELECT public.do_some() FROM ended",
            repeat_until_zero=True,
        )
        # In its own transaction, for want of a second one: the effect on the batch is the same.
        run = system.run(declared)
        assert run.state == State.FAILED
        assert run.error is not None
        assert "Somebody has ended run" in run.error["message"]
        assert system.done() == {0: 25}


class TestOneAtATime:
    def test_a_job_that_is_running_is_waited_for_and_handed_back(
        self, system: System, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(execute, "BUSY_WAIT_S", 0.05)
        declared = job(BATCHES)
        with connect(system.database.url, application_name="other") as other:
            assert locks.try_acquire(other, job_key("settle"))
            run = system.run(declared)
            assert (run.state, run.attempt) == (State.WAITING, 0)
            assert run.reason == "the job settle is running already"
            assert system.done() == {0: 25}
            # Another job is not in its way.
            assert system.run("SELECT 1", name="another").state == State.SUCCEEDED
            assert system.run_row(run.id).waits_for == "job settle"
        wait_until(lambda: locks.try_acquire(system.connection, job_key("settle")))
        locks.release(system.connection, job_key("settle"))
        assert run.not_before is not None
        # The next end of the job wakes it.
        system.run(declared)
        assert [due.id for due in ledger.ring_due(system.connection)] == [run.id]
        assert system.work(declared, run.id).state == State.SUCCEEDED

    @pytest.mark.parametrize("busy", [True, False])
    def test_a_tick_that_waited_until_the_next_one_came_is_skipped(
        self, system: System, monkeypatch: pytest.MonkeyPatch, busy: bool
    ) -> None:
        """Else the ticks of a job that takes longer than its interval would wait in an ever longer row."""
        monkeypatch.setattr(execute, "BUSY_WAIT_S", 0.05)
        declared = job(BATCHES)
        slot = system.scalar("SELECT clock_timestamp()") - timedelta(minutes=5)
        late = system.insert(declared, entry="job.settle", slot=slot, expires_at=slot + timedelta(minutes=5))
        in_time = system.insert(
            declared,
            entry="job.settle",
            slot=slot + timedelta(minutes=5),
            expires_at=slot + timedelta(hours=1),
        )
        with connect(system.database.url, application_name="other") as other:
            if busy:
                locks.try_acquire(other, job_key("settle"))
            run = system.work(declared, late)
            assert (run.state, run.reason) == (State.SKIPPED, "its next slot came before it could begin")
            expected = State.WAITING if busy else State.SUCCEEDED
            assert system.work(declared, in_time).state == expected
        assert system.done() == ({0: 25} if busy else {0: 15, 1: 10})

    def test_a_tick_that_has_begun_goes_on_after_the_next_one_came(self, system: System) -> None:
        declared = job(BATCHES, repeat_until_zero=True)
        slot = system.scalar("SELECT clock_timestamp()")
        run_id = system.insert(
            declared, entry="job.settle", slot=slot, expires_at=slot + timedelta(minutes=5)
        )
        assert system.work(declared, run_id, stay=timedelta()).state == State.WAITING
        system.connection.execute(
            "UPDATE upkeep.run SET expires_at = clock_timestamp() WHERE id = %s", [run_id]
        )
        assert system.work(declared, run_id).state == State.SUCCEEDED
        assert system.done() == {1: 25}

    @pytest.mark.parametrize("sql", [BATCHES, "SELECT 1 / 0", "SELECT missing()"])
    def test_its_lock_is_given_back(self, system: System, sql: str) -> None:
        system.run(sql)
        with connect(system.database.url, application_name="other") as other:
            assert locks.try_acquire(other, job_key("settle"))

    def test_two_at_once_do_every_row_once(self, system: System, monkeypatch: pytest.MonkeyPatch) -> None:
        """A statement without SKIP LOCKED would do rows twice beside itself, and two runs wait for each other."""
        monkeypatch.setattr(execute, "BUSY_WAIT_S", 20.0)
        declared = job(
            "UPDATE public.todo SET done = done + 1 WHERE id IN"
            " (SELECT id FROM public.todo WHERE done = 0 AND pg_sleep(0.005)::text = '' ORDER BY id LIMIT 5)",
            repeat_until_zero=True,
        )
        other = System(system.database)
        second = other.insert(declared)
        worker = threading.Thread(target=other.work, args=(declared, second))
        worker.start()
        run = system.run(declared)
        worker.join()
        assert {run.state, system.run_row(second).state} == {State.SUCCEEDED, State.SKIPPED}
        assert system.done() == {1: 25}


class TestFailures:
    @pytest.mark.parametrize(
        ("sql", "sqlstate", "remedy"),
        [
            ("VACUUM public.todo", "25001", "maintenance tasks"),
            ("CREATE INDEX CONCURRENTLY ON public.todo (done)", "25001", "maintenance tasks"),
            ("SELECT 1; SELECT 2", "42601", "A job is one statement"),
            ("SELECT missing()", "42883", "search_path"),
            ("SELECT * FROM missing", "42P01", "search_path"),
            ("SELECT missing FROM public.todo", "42703", "Correct the name"),
            ("SELECT 1 / 0", "22012", "[jobs.settle]"),
            ("INSERT INTO public.todo VALUES (1)", "23505", "[jobs.settle]"),
            ("DO $$ BEGIN RAISE 'no'; END $$", "P0001", "raised this itself"),
            ("DO $$ BEGIN COMMIT; END $$", "2D000", "repeat_until_zero"),
        ],
    )
    def test_what_nobody_can_wait_for_fails_at_once(
        self, system: System, sql: str, sqlstate: str, remedy: str
    ) -> None:
        run = system.run(sql)
        assert (run.state, run.attempt, run.max_attempts) == (State.FAILED, 1, 4)
        assert run.error is not None
        assert (run.error["kind"], run.error["sqlstate"]) == ("permanent", sqlstate)
        assert run.error["message"].startswith("The job settle failed: ")
        assert remedy in run.error["remedy"]
        assert "view" not in run.error["remedy"]

    @pytest.mark.parametrize("sql", ["COMMIT", "ROLLBACK", "PREPARE TRANSACTION 'x'"])
    def test_a_statement_that_ends_the_transaction(self, system: System, sql: str) -> None:
        run = system.run(sql)
        assert run.state == State.FAILED
        assert run.error is not None
        # Where prepared transactions are switched off, the server says so first.
        if sql != "PREPARE TRANSACTION 'x'":
            assert "ended the transaction" in run.error["message"]
            assert "Leave BEGIN" in run.error["remedy"]

    def test_a_statement_of_comments_alone(self, system: System) -> None:
        run = system.run("-- later")
        assert run.state == State.FAILED
        assert run.error is not None
        assert "nothing but comments" in run.error["message"]

    def test_too_long_is_tried_again(self, system: System) -> None:
        run = system.run("SELECT pg_sleep(60)", statement_timeout="1s", retries=["1m"])
        assert (run.state, run.attempt) == (State.WAITING, 1)
        assert run.error is not None
        assert (run.error["kind"], run.error["sqlstate"]) == ("transient", "57014")
        assert "statement_timeout = 1s" in run.error["remedy"]
        assert "[jobs.settle]" in run.error["remedy"]

    def test_a_lock_that_is_not_free_is_tried_again(self, system: System) -> None:
        with psycopg.connect(system.database.url) as holder:
            holder.execute("LOCK TABLE public.todo")
            run = system.run(BATCHES, lock_timeout="50ms")
        assert (run.state, run.attempt) == (State.WAITING, 1)
        assert run.error is not None
        assert run.error["sqlstate"] == "55P03"
        assert "lock_timeout = 50ms" in run.error["remedy"]

    def test_committed_batches_stay_and_the_retry_goes_on(self, system: System) -> None:
        """The third batch meets a row that cannot be done, until somebody has mended it."""
        system.connection.execute("ALTER TABLE public.todo ADD CHECK (id <> 23 OR done = 0) NOT VALID")
        declared = job(BATCHES, repeat_until_zero=True)
        run = system.run(declared)
        assert run.state == State.FAILED
        assert run.error is not None
        assert run.error["sqlstate"] == "23514"
        assert "before that 20 rows in 2 batches were committed, and stay" in run.error["message"]
        assert system.done() == {0: 5, 1: 20}
        system.connection.execute("ALTER TABLE public.todo DROP CONSTRAINT todo_check")
        again = system.run(declared)
        assert only_numbers(again.result) == {"batches": 1, "rows": 5}
        assert system.done() == {1: 25}

    def test_a_failed_attempt_is_counted_on_by_the_next(self, system: System) -> None:
        with psycopg.connect(system.database.url) as holder:
            holder.execute("SELECT FROM public.todo WHERE id = 15 FOR UPDATE")
            declared = job(
                "UPDATE public.todo SET done = done + 1 WHERE id IN"
                " (SELECT id FROM public.todo WHERE done = 0 ORDER BY id LIMIT 10)",
                repeat_until_zero=True,
                lock_timeout="50ms",
                retries=["1ms"],
            )
            run = system.run(declared)
            assert (run.state, run.attempt) == (State.WAITING, 1)
            assert only_numbers(run.result) == {"batches": 1, "rows": 10}
        wait_until(lambda: ledger.ring_due(system.connection))
        ended = system.work(declared, run.id)
        assert (ended.state, ended.attempt) == (State.SUCCEEDED, 2)
        assert only_numbers(ended.result) == {"batches": 3, "rows": 25}
        assert system.done() == {1: 25}

    def test_a_session_that_is_ended_is_raised_for_another_to_write(self, system: System) -> None:
        declared = job("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(10)")
        run_id = system.insert(declared)
        with pytest.raises(TransientError, match="The job settle failed"):
            system.work(declared, run_id)
        assert system.connection.broken


class TestWhatASessionIsLeftWith:
    def test_nothing_of_the_statements(self, system: System) -> None:
        system.connection.execute("CREATE ROLE jobs_other")
        try:
            system.connection.execute("GRANT USAGE ON SCHEMA upkeep TO jobs_other")
            system.connection.execute("GRANT ALL ON upkeep.run TO jobs_other")
            for sql in (
                "CREATE TEMPORARY TABLE left_behind AS SELECT 1 AS id",
                "DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1",
                "LISTEN left_behind",
                "PREPARE left_behind AS SELECT 1",
                "SET ROLE jobs_other",
            ):
                run = system.run(sql)
                assert run.state == State.SUCCEEDED, run.error
            assert system.scalar("SELECT current_user") == "jobs_other"
            tidy(system.connection)
            assert system.scalar("SELECT current_user = session_user")
            assert system.scalar("SELECT to_regclass('pg_temp.left_behind')") is None
            assert system.scalar("SELECT count(*) FROM pg_cursors WHERE name = 'left_behind'") == 0
            assert system.scalar("SELECT count(*) FROM pg_listening_channels()") == 0
            assert system.scalar("SELECT count(*) FROM pg_prepared_statements WHERE from_sql") == 0
            # What the driver had prepared for itself is prepared again.
            for _ in range(8):
                assert system.run("SELECT 1").state == State.SUCCEEDED
        finally:
            tidy(system.connection)
            system.connection.execute("DROP OWNED BY jobs_other")
            system.connection.execute("DROP ROLE jobs_other")

    def test_a_role_that_may_not_write_the_ledger_takes_the_effect_back(self, system: System) -> None:
        system.connection.execute("CREATE ROLE jobs_other")
        try:
            run = system.run("SET ROLE jobs_other")
            assert run.state == State.FAILED
            assert run.error is not None
            assert run.error["sqlstate"] == "42501"
            assert system.scalar("SELECT current_user = session_user")
        finally:
            system.connection.execute("DROP ROLE jobs_other")

    def test_a_session_that_is_gone_is_left_alone(self, system: System) -> None:
        system.connection.close()
        tidy(system.connection)
        with system.database.connect() as busy, busy.transaction():
            busy.execute("CREATE TEMPORARY TABLE kept AS SELECT 1 AS id")
            tidy(busy)
            assert busy.execute("SELECT id FROM kept").fetchone() == (1,)
