"""Requests that wait for the commit of a real Django transaction on a real PostgreSQL."""

from __future__ import annotations

from contextlib import suppress

import pytest
from psycopg.conninfo import conninfo_to_dict

from upkeep_client import AsyncUpkeep, InvalidRequest, Upkeep
from worker.embedded.server import free_port

pytestmark = pytest.mark.any_server

django = pytest.importorskip("django", reason="make install brings it")

from django.conf import settings  # noqa: E402
from django.db import IntegrityError, connections, transaction  # noqa: E402

from upkeep_client.django import request_refresh_after_commit  # noqa: E402

PATIENT = 10.0


@pytest.fixture(scope="module")
def _django():
    if not settings.configured:
        settings.configure(DATABASES={}, USE_TZ=True)
        django.setup()


@pytest.fixture(params=["default", "second"])
def using(request, _django, database):
    """An alias of Django's for the test's database."""
    found = conninfo_to_dict(database.url)
    server = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": found["dbname"],
        "USER": found.get("user", ""),
        "PASSWORD": found.get("password", ""),
        "HOST": found["host"],
        "PORT": str(found["port"]),
    }
    vars(connections).pop("settings", None)  # what it was configured with for the test before
    connections._settings = {"default": dict(server), "second": dict(server)}
    for alias in ("default", "second"):
        with suppress(AttributeError):
            del connections[alias]
    with connections[request.param].cursor() as cursor:
        cursor.execute("CREATE TABLE entry (id int PRIMARY KEY, UNIQUE (id) DEFERRABLE INITIALLY DEFERRED)")
    yield request.param
    connections.close_all()


@pytest.fixture
def after_commit(using, redis_url):
    with Upkeep(redis_url, on_error="raise", timeout=PATIENT) as client:

        def request(view, **kwargs):
            request_refresh_after_commit(client, view, using=using, **kwargs)

        client.request_refresh("public.warm_up", database="warm_up")
        yield request


def write(using, number):
    with connections[using].cursor() as cursor:
        cursor.execute("INSERT INTO entry VALUES (%s)", [number])


def test_outside_of_a_transaction_it_is_at_once(after_commit, marks):
    after_commit("public.v", database="shop")
    assert set(marks.of("shop")) == {"public.v"}


def test_nothing_leaves_before_the_commit(using, after_commit, marks):
    with transaction.atomic(using=using):
        write(using, 1)
        after_commit("public.v")
        assert marks.of() == {}
    assert set(marks.of()) == {"public.v"}


def test_nothing_leaves_after_a_rollback_nor_later(using, after_commit, marks):
    with suppress(ZeroDivisionError), transaction.atomic(using=using):
        after_commit("public.v")
        raise ZeroDivisionError
    with transaction.atomic(using=using):
        write(using, 1)
    assert marks.of() == {}


def test_a_commit_that_fails_asks_for_nothing(using, after_commit, marks):
    with connections[using].cursor() as cursor:
        cursor.execute("CREATE TABLE later (id int, UNIQUE (id) DEFERRABLE INITIALLY DEFERRED)")

    def write_twice():
        with transaction.atomic(using=using):
            with connections[using].cursor() as cursor:
                cursor.execute("INSERT INTO later VALUES (1), (1)")
            after_commit("public.v")

    with pytest.raises(IntegrityError):
        write_twice()
    assert marks.of() == {}


def test_requests_are_merged_into_one_round_trip(using, after_commit, marks):
    marks.redis.config_resetstat()
    with transaction.atomic(using=using):
        for number in range(50):
            write(using, number)
            after_commit(["public.v", "public.w"], keys=[number])
        with transaction.atomic(using=using):
            after_commit("public.w")
            with transaction.atomic(using=using):
                after_commit("public.x")
        after_commit("public.v", database="other", parameters={"id": 1})
    assert marks.calls("evalsha") == 1
    assert marks.keys("public.v") == {str(number) for number in range(50)}
    assert marks.keys("public.w") == {"*"}
    assert set(marks.of()) == {"public.v", "public.w", "public.x"}
    assert marks.parameters("public.v", "other") == {'{"id":1}'}


def test_savepoints_that_are_rolled_back_take_their_requests_along(using, after_commit, marks):
    marks.redis.config_resetstat()
    with transaction.atomic(using=using):
        with suppress(ZeroDivisionError), transaction.atomic(using=using):
            after_commit("public.dropped1")
            with transaction.atomic(using=using):
                after_commit("public.dropped2")
            raise ZeroDivisionError
        after_commit("public.a")
        with transaction.atomic(using=using):
            after_commit("public.b")
        with suppress(ZeroDivisionError), transaction.atomic(using=using):
            after_commit("public.dropped3")
            raise ZeroDivisionError
    assert set(marks.of()) == {"public.a", "public.b"}
    assert marks.calls("evalsha") == 1


def test_only_requests_that_are_dropped_ask_for_nothing(using, after_commit, marks):
    marks.redis.config_resetstat()
    with transaction.atomic(using=using), suppress(ZeroDivisionError), transaction.atomic(using=using):
        after_commit("public.dropped")
        raise ZeroDivisionError
    assert marks.of() == {}
    assert marks.calls("evalsha") == 0


def test_other_hooks_of_the_transaction_run_as_they_would(using, after_commit, marks):
    ran = []
    with transaction.atomic(using=using):
        transaction.on_commit(lambda: ran.append(1), using=using)
        after_commit("public.a")
        transaction.on_commit(lambda: ran.append(2), using=using)
        after_commit("public.b")
        transaction.on_commit(lambda: ran.append(len(marks.of())), using=using)
    assert ran == [1, 2, 2]


def test_every_transaction_sends_its_own(using, after_commit, marks):
    marks.redis.config_resetstat()
    for _ in range(3):
        with transaction.atomic(using=using):
            after_commit("public.v")
    assert marks.calls("evalsha") == 3


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_redis_that_is_away_does_not_break_the_commit(using, caplog, on_error):
    client = Upkeep(f"redis://127.0.0.1:{free_port()}", on_error=on_error, timeout=0.3)
    ran = []
    with transaction.atomic(using=using):
        write(using, 1)
        request_refresh_after_commit(client, "public.v", using=using)
        transaction.on_commit(lambda: ran.append(1), using=using)
    request_refresh_after_commit(client, "public.v", using=using)
    assert ran == [1]
    assert caplog.records
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM entry")
        assert cursor.fetchone() == (1,)


def test_mistakes_are_raised_at_the_call(using, after_commit):
    for wrong in ({"view": ""}, {"view": 3}, {"view": "v", "keys": "abc"}, {"view": "v", "parameters": [1]}):
        with pytest.raises(InvalidRequest):
            after_commit(**wrong)
    with pytest.raises(TypeError):
        request_refresh_after_commit(AsyncUpkeep("redis://127.0.0.1"), "public.v", using=using)
