"""What a watcher is told of real tables and a real ledger."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from fleet import ledger
from fleet.ledger import NewRun, State
from fleet.names import RelationName
from fleet.settings import Database as Kept
from fleet.settings.partitions import PartitionSet
from tasks.partitions import archive_tasks, watch
from tasks.partitions import tasks as maintain_tasks
from tasks.partitions.checks import Check, LastRuns, Severity
from tests.servers import Database

pytestmark = pytest.mark.any_server

NAME = RelationName("public", "t")
OTHER = RelationName("public", "other")


def kept(*names: RelationName) -> Kept:
    policies = [PartitionSet.model_validate({"name": name, "interval": "day"}) for name in names]
    return Kept(
        name="kept", url=SecretStr("postgresql:///kept"), partitions={each.name: each for each in policies}
    )


@pytest.fixture
def connection(upkeep_database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A table with partitions from two days ago on for two days more than today, but none for yesterday."""
    today = datetime.now(UTC).date()
    with psycopg.connect(upkeep_database.url, autocommit=True) as made:
        made.execute("CREATE TABLE public.t (day date) PARTITION BY RANGE (day)")
        for number in (-2, 0, 1, 2):
            first = today + timedelta(days=number)
            made.execute(
                sql.SQL("CREATE TABLE {} PARTITION OF public.t FOR VALUES FROM ({}) TO ({})").format(
                    sql.Identifier(f"t_{first:%Y_%m_%d}"),
                    sql.Literal(str(first)),
                    sql.Literal(str(first + timedelta(days=1))),
                )
            )
        made.execute("CREATE TABLE public.t_default PARTITION OF public.t DEFAULT")
        made.execute("INSERT INTO public.t VALUES (%s), (NULL)", [today - timedelta(days=1)])
        yield made


def ended(
    connection: psycopg.Connection[Any], task: str, state: State, message: str = "", remedy: str = ""
) -> int:
    run_id, _ = ledger.insert(
        connection, NewRun(task=task, target=str(NAME), entry=ledger.OPERATOR, queue="archive")
    )
    with ledger.claim(connection, run_id, worker="w"):
        error = {"kind": "permanent", "message": message, "remedy": remedy} if message else None
        ledger.finish(connection, run_id, state, error=error)
    return run_id


def test_the_names_are_those_of_the_tasks() -> None:
    assert (watch.MAINTAIN, watch.ARCHIVE) == (maintain_tasks.MAINTAIN, archive_tasks.ARCHIVE)


def test_without_policies_nothing_is_asked(connection: psycopg.Connection[Any]) -> None:
    connection.close()
    assert watch.check(connection, kept()) == []


def test_everything_that_somebody_must_look_at(connection: psycopg.Connection[Any]) -> None:
    ended(connection, watch.ARCHIVE, State.FAILED, "somebody refers to it", "Name it")
    found = {each.check: each for each in watch.check(connection, kept(NAME))}
    assert set(found) == {Check.LAG, Check.DEFAULT, Check.GAP, Check.MOVE}
    lag = found[Check.LAG]
    assert lag.severity is Severity.WARNING
    assert 2 <= lag.value <= 3
    assert found[Check.DEFAULT].value == 2
    assert found[Check.MOVE].message == "the last move of public.t failed: somebody refers to it"
    assert found[Check.MOVE].remedy == "Name it"


def test_how_a_table_stands(connection: psycopg.Connection[Any]) -> None:
    there, gone = sorted(watch.stand(connection, kept(NAME, OTHER)), key=lambda each: each.name == OTHER)
    assert there.default_rows == 2
    assert there.days_ahead is not None
    assert 2 <= there.days_ahead <= 3
    assert there.due == {"create": 1}
    assert (gone.looked.table, gone.findings, gone.due, gone.days_ahead) == (None, (), {}, None)


def test_only_runs_since_the_last_that_ended_well_count(connection: psycopg.Connection[Any]) -> None:
    database = kept(NAME)
    assert watch.read_failed(connection, database) == {}
    ended(connection, watch.ARCHIVE, State.FAILED, "long ago")
    ended(connection, watch.ARCHIVE, State.SKIPPED)
    ended(connection, watch.MAINTAIN, State.SUCCEEDED)
    assert watch.read_failed(connection, database) == {}
    ended(connection, watch.MAINTAIN, State.FAILED, "first")
    newest = ended(connection, watch.MAINTAIN, State.FAILED, "second")
    assert watch.read_failed(connection, database) == {
        (watch.MAINTAIN, NAME): LastRuns(failed=2, message="second", remedy=f"upkeep history --run {newest}")
    }
    # One that is under way says nothing yet.
    ledger.insert(
        connection, NewRun(task=watch.MAINTAIN, target=str(NAME), entry=ledger.OPERATOR, queue="maintenance")
    )
    (found,) = [each for each in watch.check(connection, database) if each.check is Check.MAINTAIN]
    assert found.message == "the last 2 runs of upkeep.partitions.maintain for public.t failed: second"
    ended(connection, watch.MAINTAIN, State.SUCCEEDED)
    assert watch.read_failed(connection, database) == {}
