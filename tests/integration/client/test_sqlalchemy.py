"""Requests that wait for the commit of a real session on a real PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from upkeep_client import AsyncUpkeep, InvalidRequest, Upkeep
from upkeep_client.sqlalchemy import request_refresh_after_commit
from worker.embedded.server import free_port

pytestmark = pytest.mark.any_server

PATIENT = 10.0

metadata = sa.MetaData()
entry = sa.Table(
    "entry",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("parent", sa.ForeignKey("entry.id", deferrable=True, initially="DEFERRED")),
)


@pytest.fixture
def engine(database):
    engine = sa.create_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
    metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def upkeep(redis_url):
    with Upkeep(redis_url, on_error="raise", timeout=PATIENT) as client:
        yield client


@pytest.fixture
def session(engine):
    with Session(engine) as session:
        yield session


def write(session, number):
    session.execute(sa.insert(entry).values(id=number))


def test_nothing_leaves_before_the_commit(session, upkeep, marks):
    write(session, 1)
    request_refresh_after_commit(session, upkeep, "public.v", database="shop")
    session.flush()
    assert marks.of("shop") == {}
    session.commit()
    assert set(marks.of("shop")) == {"public.v"}


def test_nothing_leaves_after_a_rollback_nor_later(session, upkeep, marks):
    write(session, 1)
    request_refresh_after_commit(session, upkeep, "public.v")
    session.rollback()
    write(session, 2)
    request_refresh_after_commit(session, upkeep, "public.w")
    session.commit()
    assert set(marks.of()) == {"public.w"}


def test_nothing_leaves_a_session_that_was_closed(session, upkeep, marks):
    write(session, 1)
    request_refresh_after_commit(session, upkeep, "public.v")
    session.close()
    write(session, 2)
    session.commit()
    assert marks.of() == {}


def test_a_commit_that_fails_asks_for_nothing(session, upkeep, marks):
    session.execute(sa.insert(entry).values(id=1, parent=99))
    request_refresh_after_commit(session, upkeep, "public.v")
    with pytest.raises(sa.exc.IntegrityError):
        session.commit()
    session.rollback()
    write(session, 2)
    session.commit()
    assert marks.of() == {}


def test_requests_are_merged_into_one_round_trip(session, upkeep, marks):
    upkeep.request_refresh("public.warm_up")
    marks.redis.config_resetstat()
    for number in range(50):
        write(session, number)
        request_refresh_after_commit(session, upkeep, ["public.v", "public.w"], keys=[number])
    request_refresh_after_commit(session, upkeep, "public.w")
    request_refresh_after_commit(session, upkeep, "public.v", database="other", parameters={"id": 1})
    session.commit()
    assert marks.calls("evalsha") == 1
    assert marks.keys("public.v") == {str(number) for number in range(50)}
    assert marks.keys("public.w") == {"*"}
    assert marks.parameters("public.v", "other") == {'{"id":1}'}


def test_two_transactions_of_a_session_are_two_round_trips(session, upkeep, marks):
    upkeep.request_refresh("public.warm_up")
    marks.redis.config_resetstat()
    for number in range(2):
        write(session, number)
        request_refresh_after_commit(session, upkeep, "public.v")
        session.commit()
    write(session, 9)
    session.commit()
    assert marks.calls("evalsha") == 2


def test_a_savepoint_that_is_rolled_back_takes_its_requests_along(session, upkeep, marks):
    write(session, 1)
    request_refresh_after_commit(session, upkeep, "public.outer")
    savepoint = session.begin_nested()
    write(session, 2)
    request_refresh_after_commit(session, upkeep, "public.dropped")
    savepoint.rollback()
    request_refresh_after_commit(session, upkeep, "public.after")
    session.commit()
    assert set(marks.of()) == {"public.outer", "public.after"}


def test_a_savepoint_that_is_released_waits_for_the_outermost(session, upkeep, marks):
    with session.begin_nested():
        write(session, 1)
        request_refresh_after_commit(session, upkeep, "public.v")
    assert marks.of() == {}
    session.commit()
    assert set(marks.of()) == {"public.v"}


def test_a_released_savepoint_goes_with_the_one_around_it(session, upkeep, marks):
    request_refresh_after_commit(session, upkeep, "public.outer")
    outer = session.begin_nested()
    request_refresh_after_commit(session, upkeep, "public.dropped1")
    with session.begin_nested():
        write(session, 1)
        request_refresh_after_commit(session, upkeep, "public.dropped2")
        session.flush()
    outer.rollback()
    with session.begin_nested():
        request_refresh_after_commit(session, upkeep, "public.inner")
    session.commit()
    assert set(marks.of()) == {"public.outer", "public.inner"}


def test_everything_goes_with_the_outermost_rollback(session, upkeep, marks):
    with session.begin_nested():
        request_refresh_after_commit(session, upkeep, "public.v")
    session.rollback()
    write(session, 1)
    session.commit()
    assert marks.of() == {}


def test_a_commit_releases_savepoints_that_are_still_open(session, upkeep, marks):
    session.begin_nested()
    session.begin_nested()
    write(session, 1)
    request_refresh_after_commit(session, upkeep, "public.v")
    while session.in_nested_transaction():
        session.get_nested_transaction().commit()
    assert marks.of() == {}
    session.commit()
    assert set(marks.of()) == {"public.v"}


def test_a_commit_with_a_savepoint_open_sends_what_it_commits(session, upkeep, marks):
    session.begin_nested()
    write(session, 1)
    request_refresh_after_commit(session, upkeep, "public.v")
    session.commit()
    assert set(marks.of()) == {"public.v"}


def test_what_was_asked_for_before_the_first_statement_belongs_to_what_follows(session, upkeep, marks):
    request_refresh_after_commit(session, upkeep, "public.v")
    write(session, 1)
    session.rollback()
    assert marks.of() == {}
    request_refresh_after_commit(session, upkeep, "public.w")
    write(session, 1)
    session.commit()
    assert set(marks.of()) == {"public.w"}


def test_a_request_from_within_a_flush(session, upkeep, marks):
    @sa.event.listens_for(session, "before_flush")
    def wrote(session, context, instances):
        request_refresh_after_commit(session, upkeep, "public.v")

    class Entry:
        pass

    registry = sa.orm.registry()
    registry.map_imperatively(Entry, entry)
    try:
        added = Entry()
        added.id = 1
        session.add(added)
        with session.begin_nested():
            session.flush()
        assert marks.of() == {}
        session.commit()
        assert set(marks.of()) == {"public.v"}
    finally:
        registry.dispose()


@pytest.mark.parametrize("on_error", ["warn", "raise", "broken"])
def test_a_redis_that_is_away_does_not_break_the_session(engine, session, caplog, on_error):
    def broken(error):
        raise ZeroDivisionError

    client = Upkeep(
        f"redis://127.0.0.1:{free_port()}", on_error=broken if on_error == "broken" else on_error, timeout=0.3
    )
    for number in range(3):
        write(session, number)
        request_refresh_after_commit(session, client, "public.v")
        session.commit()
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(entry)) == 3
    assert caplog.records


def test_mistakes_are_raised_at_the_call(session, upkeep):
    for wrong in ({"view": ""}, {"view": 3}, {"view": "v", "keys": "abc"}, {"view": "v", "parameters": [1]}):
        with pytest.raises(InvalidRequest):
            request_refresh_after_commit(session, upkeep, **wrong)
    with pytest.raises(TypeError):
        request_refresh_after_commit(session, AsyncUpkeep("redis://127.0.0.1"), "public.v")


def test_a_scoped_session(engine, upkeep, marks):
    scoped = scoped_session(sessionmaker(engine))
    write(scoped, 1)
    request_refresh_after_commit(scoped, upkeep, "public.v")
    scoped.commit()
    scoped.remove()
    assert set(marks.of()) == {"public.v"}


def test_sessions_know_nothing_of_each_other(engine, upkeep, marks):
    with Session(engine) as one, Session(engine) as other:
        write(one, 1)
        write(other, 2)
        request_refresh_after_commit(one, upkeep, "public.one")
        request_refresh_after_commit(other, upkeep, "public.other")
        one.rollback()
        other.commit()
    assert set(marks.of()) == {"public.other"}


def test_an_asyncio_session_awaits_an_asyncio_client(engine, redis_url, marks):
    asynchronous_orm = pytest.importorskip(
        "sqlalchemy.ext.asyncio", reason="it needs greenlet", exc_type=ImportError
    )
    sessions = asynchronous_orm.AsyncSession

    async def run():
        asynchronous = asynchronous_orm.create_async_engine(engine.url)
        async with AsyncUpkeep(redis_url, on_error="raise", timeout=PATIENT) as upkeep:
            async with sessions(asynchronous) as session:
                await session.execute(sa.insert(entry).values(id=1))
                request_refresh_after_commit(session, upkeep, "public.dropped")
                await session.rollback()
                await session.execute(sa.insert(entry).values(id=1))
                request_refresh_after_commit(session, upkeep, "public.v", keys=[1])
                async with session.begin_nested():
                    request_refresh_after_commit(session, upkeep, "public.v", keys=[2])
                assert marks.of() == {}
                await session.commit()
                assert set(marks.of()) == {"public.v"}
                assert marks.keys("public.v") == {"1", "2"}
            async with (
                AsyncUpkeep(f"redis://127.0.0.1:{free_port()}", on_error="raise") as away,
                sessions(asynchronous) as session,
            ):
                await session.execute(sa.insert(entry).values(id=2))
                request_refresh_after_commit(session, away, "public.v")
                await session.commit()
        await asynchronous.dispose()

    asyncio.run(run())
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(entry)) == 2
