"""Requests of writers, from the row or the mark to the refresh that has seen the write: none lost, none done twice."""

from __future__ import annotations

import threading
from datetime import timedelta

import psycopg
import pytest

from fleet import events, ledger
from fleet.events import NewEvent
from fleet.ledger import State
from fleet.postgres.connect import connect
from tasks.refresh import execute, requests, statement
from tasks.refresh.dispatch import NOTHING_ELSE, Dispatcher
from tasks.refresh.execute import REFRESH_VIEW
from tests.integration.tasks.refresh.conftest import SCHEMA, System, view
from tests.servers import Database
from tests.waiting import wait_until

NO_DELAY = {"delay": timedelta(milliseconds=1), "max_wait": timedelta(milliseconds=1)}


@pytest.fixture
def system(upkeep_database: Database) -> System:
    with upkeep_database.connect() as connection:
        connection.execute(SCHEMA)
    return System(
        upkeep_database,
        [
            view("public.base", **NO_DELAY),
            view("public.top", "fifteen_minutes", **NO_DELAY),
            view("public.keyless", "daily", delay=timedelta(hours=1), max_wait=timedelta(hours=2)),
        ],
    )


@pytest.fixture
def cascading(system: System) -> System:
    """The same, and public.top wants to follow public.base."""
    views = [v for v in system.settings.views.values() if str(v.name) != "public.top"]
    return System(system.database, [*views, view("public.top", "fifteen_minutes", cascade=True, **NO_DELAY)])


def ask(system: System, name: str, parameters: str | None = None) -> None:
    system.connection.execute("SELECT upkeep.request_refresh(%s, %s::jsonb)", (name, parameters))


def rows(system: System, name: str = "public.base") -> int:
    return system.scalar("SELECT count(*)::int FROM upkeep.refresh_request WHERE view = %s", name)


def dispatch(system: System) -> list[str]:
    """What a look at the rows puts into the ledger, once those of views without a delay are due."""
    dispatcher = Dispatcher(system.settings)
    created: list[str] = []

    def settled() -> bool:
        look = dispatcher.look_at_rows(system.connection)
        created.extend(each.target for each in look.created)
        return look.next_in is None or look.next_in > 1

    wait_until(settled, message="requests that are due")
    return sorted(created)


def work(system: System, name: str = "public.base") -> ledger.Run:
    """Do the newest open event run of a view here."""
    run = next(
        r for r in ledger.history(system.connection, target=name) if r.entry == "event" and not r.final
    )
    return system.deliver(run.id)


def event(name: str = "public.base", **arguments: object) -> NewEvent:
    return NewEvent(
        task=REFRESH_VIEW,
        target=name,
        queue="refresh",
        arguments=arguments,
        max_attempts=4,
        requested_by="a writer",
    )


def total(system: System) -> bool:
    return system.scalar(
        "SELECT NOT EXISTS ((SELECT id, n FROM public.base EXCEPT TABLE public.t)"
        " UNION ALL (TABLE public.t EXCEPT SELECT id, n FROM public.base))"
    )


class TestRequestsInTheDatabase:
    def test_a_burst_is_one_run_that_deletes_them_with_its_refresh(self, system):
        system.refresh("public.base")
        for _ in range(10):
            system.write()
            ask(system, "public.base")
        assert dispatch(system) == ["public.base"]
        assert dispatch(system) == []
        run = work(system)
        assert (run.state, run.result["requests"]) == (State.SUCCEEDED, 10)
        assert total(system)
        assert rows(system) == 0

    def test_what_was_rolled_back_was_not_asked_for(self, system):
        with psycopg.connect(system.database.url) as writer:
            writer.execute("SELECT upkeep.request_refresh('public.base')")
            writer.rollback()
        assert dispatch(system) == []

    def test_nothing_is_due_before_its_delay(self, system):
        ask(system, "public.keyless")
        look = Dispatcher(system.settings).look_at_rows(system.connection)
        assert look.created == ()
        assert 3590 < look.next_in <= 3600

    def test_a_row_that_comes_while_its_view_is_refreshed_is_done_again(self, system, monkeypatch):
        system.refresh("public.base")
        ask(system, "public.base")
        assert dispatch(system) == ["public.base"]
        take = requests.take

        def take_and_be_overtaken(connection, name, within):
            taken = take(connection, name, within)
            with psycopg.connect(system.database.url, autocommit=True) as writer:
                writer.execute("INSERT INTO public.t VALUES (1000, 1)")
                writer.execute("SELECT upkeep.request_refresh('public.base')")
            return taken

        monkeypatch.setattr(requests, "take", take_and_be_overtaken)
        work(system)
        monkeypatch.undo()
        assert rows(system) == 1
        assert dispatch(system) == ["public.base"]
        assert work(system).state == State.SUCCEEDED
        assert rows(system) == 0

    def test_a_refresh_that_is_rolled_back_keeps_them(self, system, monkeypatch):
        system.refresh("public.base")
        ask(system, "public.base")
        dispatch(system)

        def fail(*args, **kwargs):
            raise psycopg.errors.DiskFull("on purpose")

        monkeypatch.setattr(statement.views, "record_refresh", fail)
        assert work(system).state == State.WAITING
        assert rows(system) == 1

    def test_a_tick_that_was_faster_leaves_nothing_to_do(self, system):
        system.refresh("public.base")
        system.write()
        ask(system, "public.base")
        dispatch(system)
        assert system.refresh("public.base").result["requests"] == 1
        run = work(system)
        assert (run.state, run.reason) == (State.SKIPPED, "another refresh has fulfilled its requests")

    def test_the_name_may_be_written_in_any_way_of_sql(self, system):
        ask(system, 'PUBLIC."base"')
        assert dispatch(system) == ["public.base"]
        assert work(system).result["requests"] == 1

    def test_a_request_before_the_clock_was_set_back_is_due(self, system):
        ask(system, "public.keyless")
        system.connection.execute(
            "UPDATE upkeep.refresh_request SET created_at = created_at + interval '1 day'"
        )
        assert dispatch(system) == ["public.keyless"]

    def test_a_view_that_nobody_manages_is_reported_once_and_forgotten_later(self, system):
        ask(system, "public.nobody")
        for _ in range(3):
            assert dispatch(system) == []
        reported = ledger.history(system.connection, target="public.nobody")
        assert [(r.state, r.entry) for r in reported] == [(State.FAILED, "event")]
        assert "not managed in the database kept" in reported[0].reason
        assert rows(system, "public.nobody") == 1
        system.connection.execute(
            "UPDATE upkeep.refresh_request SET created_at = created_at - interval '1 hour'"
        )
        dispatch(system)
        assert rows(system, "public.nobody") == 0


class TestUpstream:
    def test_what_is_built_on_other_views_takes_what_those_have_seen(self, system):
        system.refresh("public.top")
        system.write()
        ask(system, "public.top")
        assert dispatch(system) == ["public.top"]
        run = work(system, "public.top")
        assert (run.state, run.result["requests"]) == (State.SUCCEEDED, 1)
        assert system.scalar("SELECT (SELECT rows FROM public.top) = (SELECT count(*) FROM public.t)")

    def test_what_was_restored_from_another_clusters_dump_is_not_done_for_ever(self, system):
        system.refresh("public.top")
        ask(system, "public.top")
        system.connection.execute("UPDATE upkeep.refresh_request SET xid = '9999999999'")
        assert dispatch(system) == ["public.top"]
        assert work(system, "public.top").result["requests"] == 1
        assert rows(system, "public.top") == 0

    def test_a_tick_that_left_the_upstream_alone_leaves_them(self, system):
        system.refresh("public.top")
        system.write()
        ask(system, "public.top")
        # The upstream's own slot is long past: it is not brought up, and the row's write is not in it.
        system.tick("public.top", system.now(), "fifteen_minutes")
        assert rows(system, "public.top") == 1

    def test_an_upstream_that_fails_leaves_them_and_the_next_refresh_waits(self, system):
        system.refresh("public.top")
        system.connection.execute("ALTER MATERIALIZED VIEW public.base RENAME COLUMN n TO m")
        system.connection.execute("ALTER MATERIALIZED VIEW public.base RENAME COLUMN m TO n")
        system.connection.execute("DROP INDEX public.base_key")
        system.connection.execute(
            "UPDATE upkeep.view_state SET plain_duration = '1 hour' WHERE view = 'public.base'"
        )
        ask(system, "public.top")
        dispatch(system)
        run = work(system, "public.top")
        assert run.result["upstream_stale"] == ["public.base"]
        assert rows(system, "public.top") == 1
        assert dispatch(system) == ["public.top"]
        paused = work(system, "public.top")
        assert paused.state == State.WAITING
        assert timedelta() < paused.not_before - system.now() <= execute.EVENT_PAUSE
        assert dispatch(system) == []
        # Whoever refreshes the upstream ends the pause: it is that which was the matter.
        system.connection.execute("CREATE UNIQUE INDEX base_key ON public.base (id)")
        assert system.refresh("public.base").state == State.SUCCEEDED
        assert ledger.get(system.connection, paused.id).not_before <= system.now()
        assert system.deliver(paused.id).state == State.SUCCEEDED
        assert rows(system, "public.top") == 0

    def test_only_what_lies_on_the_path_from_the_written_table(self, system):
        system.refresh("public.top")
        system.connection.execute(
            "CREATE TABLE public.other (id int); CREATE MATERIALIZED VIEW public.both AS"
            " SELECT (SELECT count(*) FROM public.other) AS others, (SELECT total FROM public.top) AS total, 1 AS one;"
            " CREATE UNIQUE INDEX both_key ON public.both (one)"
        )
        wide = System(
            system.database, [*system.settings.views.values(), view("public.both", "daily", **NO_DELAY)]
        )
        wide.refresh("public.both")
        before = system.scalar("SELECT max(id) FROM upkeep.run")
        wide.connection.execute(
            "INSERT INTO upkeep.refresh_request (view, source) VALUES ('public.both', 'public.other'::regclass)"
        )
        assert dispatch(wide) == ["public.both"]
        assert work(wide, "public.both").state == State.SUCCEEDED
        assert wide.scalar("SELECT count(*)::int FROM upkeep.run WHERE id > %s", before) == 1
        wide.connection.execute(
            "INSERT INTO upkeep.refresh_request (view, source) VALUES ('public.both', 'public.t'::regclass)"
        )
        dispatch(wide)
        assert work(wide, "public.both").state == State.SUCCEEDED
        made = wide.connection.execute(
            "SELECT DISTINCT target FROM upkeep.run WHERE id > %s AND entry = 'upstream' ORDER BY 1",
            (before,),
        )
        assert [name for (name,) in made] == ["public.base", "public.top"]

    def test_a_refreshed_view_asks_for_those_that_follow_it(self, cascading):
        cascading.refresh("public.top")
        cascading.write()
        cascading.refresh("public.base")
        assert rows(cascading, "public.top") == 1
        assert dispatch(cascading) == ["public.top"]
        before = cascading.scalar("SELECT max(id) FROM upkeep.run")
        assert work(cascading, "public.top").result["requests"] == 1
        # The view that set it off was not refreshed for that again, and did not set it off again.
        assert cascading.scalar("SELECT max(id) FROM upkeep.run") == before
        assert rows(cascading, "public.top") == 0

    def test_a_refresh_that_changed_nothing_asks_for_nothing(self, cascading):
        cascading.refresh("public.top")
        cascading.refresh("public.base")
        assert rows(cascading, "public.top") == 0

    def test_bringing_up_what_follows_leaves_no_request_behind(self, cascading):
        cascading.refresh("public.top")
        cascading.write()
        ask(cascading, "public.top")
        dispatch(cascading)
        work(cascading, "public.top")
        assert rows(cascading, "public.top") == 0


class TestRuns:
    def test_one_waits_while_one_works_and_no_third(self, system):
        first = events.insert(system.connection, [event(keys=[1])])
        again = events.insert(system.connection, [event(keys=[2, 1])])
        assert [(a.id, a.created) for a in first + again] == [(first[0].id, True), (first[0].id, False)]
        with (
            connect(system.database.url, application_name="upkeep/other") as other,
            ledger.claim(other, first[0].id, worker="other") as run,
        ):
            assert run is not None
            assert run.arguments == {"keys": [1, 2]}
            second = events.insert(system.connection, [event(keys=[3])])
            assert [a.created for a in second] == [True]
            assert [a.created for a in events.insert(system.connection, [event(keys=[4])])] == [False]
        assert ledger.get(system.connection, second[0].id).arguments == {"keys": [3, 4]}

    def test_a_request_without_limits_lifts_them(self, system):
        [taken] = events.insert(system.connection, [event(**NOTHING_ELSE)])
        events.insert(system.connection, [event(parameters=[{"id": 1}])])
        assert ledger.get(system.connection, taken.id).arguments == {"parameters": [{"id": 1}]}
        events.insert(system.connection, [event()])
        assert ledger.get(system.connection, taken.id).arguments == {}

    def test_new_requests_join_a_run_that_waits_and_do_not_shorten_its_wait(self, system):
        [taken] = events.insert(system.connection, [event(keys=[1])])
        with ledger.claim(system.connection, taken.id, worker="t"):
            ledger.hand_back(
                system.connection, taken.id, wait=timedelta(minutes=1), reason="failed", counts=True
            )
        before = ledger.get(system.connection, taken.id).not_before
        assert events.insert(system.connection, [event(keys=[2])]) == []
        after = ledger.get(system.connection, taken.id)
        assert (after.not_before, after.arguments) == (before, {"keys": [1, 2]})

    def test_one_that_was_queued_meanwhile_joins_the_one_that_failed(self, system):
        [first] = events.insert(system.connection, [event(keys=[1])])
        with ledger.claim(system.connection, first.id, worker="t"):
            [second] = events.insert(system.connection, [event(keys=[2])])
            ledger.hand_back(
                system.connection, first.id, wait=timedelta(minutes=1), reason="failed", counts=True
            )
        run = system.deliver(second.id)
        assert (run.state, run.reason) == (State.SKIPPED, f"run {first.id} takes its requests in")
        assert ledger.get(system.connection, first.id).arguments == {"keys": [1, 2]}

    def test_as_of_is_read_after_the_claim(self, system):
        system.refresh("public.base")
        [taken] = events.insert(system.connection, [event()])
        # Refreshed after the request, before the claim: what was written in between joined the queued run.
        system.refresh("public.base")
        assert system.deliver(taken.id).state == State.SUCCEEDED

    def test_after_it_has_failed_for_good_it_is_left_alone_until_somebody_refreshes_it(self, system):
        system.refresh("public.base")
        [first] = events.insert(system.connection, [event()])
        with ledger.claim(system.connection, first.id, worker="t"):
            ledger.finish(system.connection, first.id, State.FAILED, reason="on purpose")
        [second] = events.insert(system.connection, [event()])
        paused = system.deliver(second.id)
        assert (paused.state, paused.attempt) == (State.WAITING, 0)
        assert f"run {first.id}, failed" in paused.reason
        system.refresh("public.base")
        assert ledger.get(system.connection, second.id).not_before <= system.now()
        assert system.deliver(second.id).state == State.SUCCEEDED

    def test_nobody_waits_for_one_that_waits_for_long(self, system):
        """What is built on a view that is left alone for a while goes on without it."""
        [taken] = events.insert(system.connection, [event()])
        before = system.now() - timedelta(minutes=1)
        asked = {"task": REFRESH_VIEW, "target": "public.base", "as_of": before}
        assert ledger.open_run_for(system.connection, **asked) == taken.id
        with ledger.claim(system.connection, taken.id, worker="t"):
            ledger.hand_back(system.connection, taken.id, wait=timedelta(minutes=5), reason="left alone")
        assert ledger.open_run_for(system.connection, **asked) is None

    def test_many_at_once_insert_one(self, system):
        made: list[bool] = []

        def insert() -> None:
            with connect(system.database.url, application_name="upkeep/other") as other:
                for number in range(50):
                    made.extend(
                        each.created
                        for each in events.insert(
                            other, [event(f"public.v{i}", keys=[number]) for i in range(20)]
                        )
                    )

        threads = [threading.Thread(target=insert) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(made) == 20
        assert system.scalar("SELECT count(*)::int FROM upkeep.run") == 20
