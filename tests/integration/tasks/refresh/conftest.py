"""A small system of three views on one table, and a way to run refreshes in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, ClassVar

import psycopg
import pytest
from pydantic import SecretStr

from fleet import ledger, settings
from fleet.ledger import NewRun, Run
from fleet.names import RelationName
from fleet.postgres.connect import connect
from tasks.performing import perform
from tasks.refresh.announce import Announcer
from tasks.refresh.execute import REFRESH_VIEW, Refresher
from tests.servers import Database
from tests.waiting import wait_until

SCHEMA = """
CREATE TABLE public.t (id int PRIMARY KEY, n int NOT NULL); INSERT INTO public.t SELECT i, i FROM
generate_series(1, 20) i; CREATE MATERIALIZED VIEW public.base AS SELECT id, n FROM public.t ORDER BY id WITH
NO DATA; CREATE UNIQUE INDEX base_key ON public.base (id); CREATE MATERIALIZED VIEW public.top AS SELECT
count(*) AS rows, sum(n) AS total, 1 AS one FROM public.base WITH NO DATA; CREATE UNIQUE INDEX top_key ON
public.top (one); CREATE MATERIALIZED VIEW public.keyless AS SELECT id FROM public.t WITH NO DATA;
"""


def view(text: str, tier: str = "five_minutes", **changes: Any) -> settings.View:
    return settings.View(name=RelationName.parse(text), tier=tier, **changes)


class System:
    """A kept database in this process: refresh, write, look."""

    made: ClassVar[list[System]] = []

    def __init__(self, database: Database, views: list[settings.View], **changes: Any) -> None:
        self.settings = settings.Database(
            name="kept", url=SecretStr(database.url), views={v.name: v for v in views}, **changes
        )
        self.connection = connect(database.url, application_name="upkeep/test")
        self.database = database
        self.announcer: Announcer | None = None
        System.made.append(self)

    @contextmanager
    def run(self, name: str, **changes: Any) -> Iterator[Run]:
        declared = self.settings.views.get(RelationName.parse(name))
        new = {
            "task": REFRESH_VIEW,
            "target": name,
            "entry": "operator",
            "queue": "refresh",
            "max_attempts": 1 + len(declared.retries) if declared else 1,
        }
        run_id, _ = ledger.insert(self.connection, NewRun(**(new | changes)))
        with ledger.claim(self.connection, run_id, worker="test") as run:
            assert run is not None
            yield run

    def refresh(self, name: str, **changes: Any) -> Run:
        """Ask for a refresh, do it here, and return the run as the ledger has it afterwards."""
        with self.run(name, **changes) as run:
            return self._perform(run)

    def deliver(self, run_id: int) -> Run:
        """Do what a run asks for here, as a worker would, and return it as the ledger has it afterwards."""
        with ledger.claim(self.connection, run_id, worker="test") as run:
            assert run is not None
            return self._perform(run)

    def _perform(self, run: Run) -> Run:
        refresher = Refresher(
            connection=self.connection, database=self.settings, worker="test", announcer=self.announcer
        )
        declared = self.settings.views.get(RelationName.parse(run.target))
        perform(
            self.connection,
            run,
            lambda: refresher.refresh(run, RelationName.parse(run.target)),
            retries=declared.retries if declared else (),
            event="view.refresh",
            doing=f"Refreshing {run.target}",
        )
        ended = ledger.get(self.connection, run.id)
        assert ended is not None
        return ended

    def tick(self, name: str, slot: datetime, tier: str = "five_minutes") -> Run:
        return self.refresh(name, entry=tier, slot=slot)

    def now(self) -> datetime:
        return self.scalar("SELECT clock_timestamp()")

    def scalar(self, query: str, *values: Any) -> Any:
        row = self.connection.execute(query, values).fetchone()
        assert row is not None
        return row[0]

    def age(self, name: str) -> timedelta | None:
        return self.scalar("SELECT age FROM upkeep.view_freshness WHERE view = %s", name)

    def write(self, count: int = 1) -> None:
        """Add rows in a session of its own, which flushes its counters by ending."""
        with psycopg.connect(self.database.url, autocommit=True) as writer:
            writer.execute(
                "INSERT INTO public.t SELECT m + i, i"
                " FROM (SELECT max(id) AS m FROM public.t) x, generate_series(1, %s) i",
                (count,),
            )


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Every system that a test made is closed, however the test ended."""
    yield
    while System.made:
        System.made.pop().connection.close()


@pytest.fixture
def system(upkeep_database: Database) -> System:
    with upkeep_database.connect() as connection:
        connection.execute(SCHEMA)
    made = System(
        upkeep_database,
        [view("public.base"), view("public.top", "fifteen_minutes"), view("public.keyless", "daily")],
    )
    # On 14 the counters of a session that has ended come a moment later, and would look like a write.
    wait_until(
        lambda: made.scalar("SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 't'") == 20,
        message="the counters of what the schema inserted",
    )
    return made
