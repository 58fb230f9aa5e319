"""What counts as a batch's rows, and what comes after it."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet.errors import PermanentError
from fleet.ledger import Run
from fleet.settings import Job
from tasks.jobs import plan
from tasks.jobs.plan import LONGEST_STAY, Next, Tally
from tasks.jobs.statement import Effect

MINUTE = timedelta(minutes=1)


def job(**changes: Any) -> Job:
    given = {"name": "settle", "database": "kept", "sql": "SELECT 1", "repeat_until_zero": True}
    return Job.model_validate(given | changes)


def select(first: int | None = None, *, returned: int = 1, shown: str = "") -> Effect:
    return Effect(
        command="SELECT", affected=returned, columns=1, returned=returned, first=first, first_shown=shown
    )


def write(affected: int, *, command: str = "UPDATE", returning: int | None = None) -> Effect:
    """With RETURNING, the first column is whatever somebody asked for, and no count."""
    shown = {} if returning is None else {"columns": 1, "returned": affected, "first": returning}
    return Effect(command=command, affected=affected, **shown)


class TestRowsOfABatch:
    @pytest.mark.parametrize(
        ("effect", "rows"),
        [
            (select(1000), 1000),
            (select(0), 0),
            (Effect(command="CALL", columns=1, returned=1, first=7), 7),
            (write(12), 12),
            (write(0, command="DELETE"), 0),
            (write(1, command="DELETE", returning=4711), 1),
            (write(3, command="INSERT", returning=4711), 3),
            (write(5, command="MERGE"), 5),
        ],
    )
    def test_what_the_statement_says(self, effect: Effect, rows: int) -> None:
        assert plan.rows_of(effect, job=job()) == rows

    @pytest.mark.parametrize(
        ("effect", "said"),
        [
            (select(None, shown="NULL (int4)"), "it returned NULL (int4)"),
            (select(None, shown="a value of type text"), "it returned a value of type text"),
            (select(-1), "it returned -1"),
            (select(5, returned=2), "it returned 2 rows"),
            (select(None, returned=0), "it returned no row"),
            (Effect(command="DO"), "it returned nothing (DO)"),
            (Effect(command="CREATE TABLE"), "it returned nothing (CREATE TABLE)"),
            # CREATE TABLE AS: its tag is a SELECT's, but there is no row, and it does not become less.
            (Effect(command="SELECT", affected=20), "it returned nothing (SELECT)"),
        ],
    )
    def test_what_says_nothing_is_refused(self, effect: Effect, said: str) -> None:
        with pytest.raises(PermanentError) as caught:
            plan.rows_of(effect, job=job())
        assert caught.value.message.startswith("The job settle is repeated until zero")
        assert caught.value.message.endswith(said)
        assert "whole number" in caught.value.remedy

    @pytest.mark.parametrize(
        ("effect", "rows"),
        [
            (select(17), 1),
            (select(None, returned=0), 0),
            (select(None, returned=3, shown="a value of type text"), 3),
            (write(12), 12),
            (write(2, returning=4711), 2),
            (Effect(command="DO"), 0),
            (Effect(command="COPY", affected=9), 9),
            (Effect(command="SELECT", affected=20), 20),
        ],
    )
    def test_a_job_that_runs_once_may_return_anything(self, effect: Effect, rows: int) -> None:
        assert plan.rows_of(effect, job=job(repeat_until_zero=False)) == rows


class TestAfterABatch:
    def test_once_is_enough_where_nothing_is_repeated(self) -> None:
        step = plan.after(
            job(repeat_until_zero=False), Tally(batches=1), rows=5, stayed=MINUTE, stay=timedelta()
        )
        assert step is Next.END

    @pytest.mark.parametrize(
        ("batches", "rows", "stayed", "pause", "step"),
        [
            (1, 1000, timedelta(), timedelta(), Next.GO_ON),
            (1, 0, timedelta(), timedelta(), Next.END),
            (3, 1, timedelta(), timedelta(), Next.STOP),
            # Nothing left, or told to stop: no need to make room for others first.
            (3, 0, 9 * MINUTE, timedelta(), Next.END),
            (3, 1, 9 * MINUTE, timedelta(), Next.STOP),
            (1, 1, 5 * MINUTE, timedelta(), Next.GIVE_WAY),
            (1, 1, 5 * MINUTE - timedelta(seconds=1), timedelta(), Next.GO_ON),
            (1, 1, 5 * MINUTE - timedelta(seconds=1), timedelta(seconds=1), Next.GIVE_WAY),
        ],
    )
    def test_repeated(self, batches: int, rows: int, stayed: timedelta, pause: timedelta, step: Next) -> None:
        declared = job(max_batches=3, batch_pause=pause)
        found = plan.after(declared, Tally(batches=batches), rows=rows, stayed=stayed, stay=5 * MINUTE)
        assert found is step

    @pytest.mark.parametrize(
        ("soft_time_limit", "statement_timeout", "stay"),
        [
            (timedelta(hours=1), 15 * MINUTE, LONGEST_STAY),
            (20 * MINUTE, 19 * MINUTE, MINUTE),
            (timedelta(seconds=10), timedelta(seconds=9), timedelta(seconds=1)),
            # Settings refuse this; a batch is then all that is done at a time.
            (timedelta(seconds=10), timedelta(seconds=30), timedelta()),
        ],
    )
    def test_the_last_batch_of_a_stay_ends_before_the_task_is_stopped(
        self, soft_time_limit: timedelta, statement_timeout: timedelta, stay: timedelta
    ) -> None:
        assert plan.stay(job(statement_timeout=statement_timeout), soft_time_limit) == stay


class TestTally:
    def test_what_the_ledger_keeps_can_be_counted_on(self) -> None:
        tally = Tally().plus(rows=1000, duration=timedelta(seconds=1.5)).plus(rows=3, duration=MINUTE)
        assert tally.to_json() == {"batches": 2, "rows": 1003, "duration_s": 61.5}
        assert Tally.of(tally.to_json()) == tally

    @pytest.mark.parametrize("kept", [None, {}, {"batches": 3}, {"batches": "x", "rows": 1, "duration_s": 1}])
    def test_what_is_no_tally_is_a_beginning(self, kept: dict[str, Any] | None) -> None:
        assert Tally.of(kept) == Tally()

    def test_the_result_of_a_function_that_runs_once(self) -> None:
        once, tally = job(repeat_until_zero=False), Tally(batches=1, rows=1)
        assert plan.result(tally, select(42), job=once)["returned"] == 42
        assert plan.result(tally, select(0), job=once)["returned"] == 0
        for effect in (select(5, returned=3), select(None, shown="a value of type text"), write(4)):
            assert "returned" not in plan.result(tally, effect, job=once)
        assert "returned" not in plan.result(tally, select(0), job=job())

    def test_progress_says_where_it_is(self) -> None:
        assert plan.progress(Tally(batches=2, rows=2000)) == {
            "phase": "batch 3",
            "reason": "2,000 rows in 2 batches so far",
            "batches": 2,
            "rows": 2000,
        }


NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def run(**changes: Any) -> Run:
    given = dict.fromkeys(field.name for field in dataclasses.fields(Run))
    return Run(**(given | {"attempt": 1, "expires_at": NOW} | changes))


@pytest.mark.parametrize(
    ("changes", "overtaken"),
    [
        ({}, True),
        ({"expires_at": NOW + MINUTE}, False),
        # An operator's request is for no slot.
        ({"expires_at": None}, False),
        # It has failed and is tried again: to skip it would hide that.
        ({"attempt": 2}, False),
        ({"result": {"batches": 1, "rows": 5, "duration_s": 0.1}}, False),
        ({"result": {"batches": 0, "rows": 0, "duration_s": 0.0}}, True),
    ],
)
def test_a_tick_is_overtaken_before_it_has_begun(changes: dict[str, Any], overtaken: bool) -> None:
    assert plan.overtaken(run(**changes), NOW) is overtaken
