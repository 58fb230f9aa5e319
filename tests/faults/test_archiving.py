"""SIGKILL at each step of a move with a companion that is partitioned alike, and of taking in late rows.

Every row is counted through the views over the tables and their archives all the while, in both isolation levels,
and whoever comes next brings everything to where an undisturbed run would have brought it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tasks.partitions import late
from tasks.partitions.archiving import archive
from tests.faults import moving_child
from tests.faults.counting import counted, forking, nobody
from tests.faults.moving_child import ALIKE, AUDIT, LATE
from tests.integration.tasks.partitions.cloning import Template, templates, view_over_both
from tests.integration.tasks.partitions.moving import JANUARY, ROWS, TABLE, System
from tests.waiting import wait_until
from worker.embedded.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.slow, pytest.mark.any_server]

# The key between the parents is dropped when January leaves; that between its partitions moves along.
AUDIT_SCHEMA = """
CREATE TABLE public.audit (
    id bigint NOT NULL, partition_date date NOT NULL, said text, PRIMARY KEY (id, partition_date),
    CONSTRAINT of_transaction FOREIGN KEY (id, partition_date) REFERENCES public.transactions
) PARTITION BY RANGE (partition_date);
CREATE TABLE public.audit_y2024m01 PARTITION OF public.audit FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE public.audit_y2024m02 PARTITION OF public.audit FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
ALTER TABLE public.audit_y2024m01 ADD CONSTRAINT of_january FOREIGN KEY (id, partition_date)
    REFERENCES public.transactions_y2024m01;
INSERT INTO public.audit SELECT id, partition_date, 'a' || id FROM public.transactions
 WHERE partition_date < '2024-03-01';
"""
LATE_ROWS, LATE_METADATA = 23, 12
LATE_SCHEMA = """
CREATE TABLE public.transactions_default PARTITION OF public.transactions DEFAULT;
INSERT INTO public.transactions (id, partition_date, amount)
SELECT g, date '2024-01-01' + mod(g, 28)::int, g FROM generate_series(1001, 1023) AS g;
INSERT INTO public.transaction_metadata
SELECT id, partition_date, 'late' FROM public.transactions WHERE id BETWEEN 1001 AND 1012;
"""
COUNTS = """
SELECT (SELECT array[count(*), count(DISTINCT id), sum(id)::bigint] FROM archive.transactions_all),
       (SELECT array[count(*), count(DISTINCT transaction_id), sum(transaction_id)::bigint]
          FROM archive.transaction_metadata_all)
"""
COUNTS_WITH_AUDIT = (
    f"{COUNTS}, (SELECT array[count(*), count(DISTINCT id), sum(id)::bigint] FROM archive.audit_all)"
)
AUDIT_ROWS = """
SELECT id, partition_date, said, archived_at IS NOT NULL AS archived FROM archive.audit_all ORDER BY id
"""
# Two runs that were one before a kill are two batches; what they moved together is the same.
BATCHES = """
SELECT kind, parent, archive, partition, lower_bound, upper_bound, sum(rows)::int AS rows,
       bool_and(archived_at IS NOT NULL) AS over
  FROM upkeep.archive_batch WHERE kind = 'late' GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY parent
"""
MISCOUNTED = """
SELECT b.id, b.parent, b.rows, a.rows AS there
  FROM upkeep.archive_batch AS b
  FULL JOIN (SELECT archive_batch_id AS id, 'public.transactions' AS parent, count(*) AS rows
               FROM archive.transactions GROUP BY 1
              UNION ALL
             SELECT archive_batch_id, 'public.transaction_metadata', count(*)
               FROM archive.transaction_metadata GROUP BY 1) AS a USING (id, parent)
 WHERE b.kind IS DISTINCT FROM 'partition' AND b.rows IS DISTINCT FROM a.rows
"""

Work = Callable[[str, int, Path], None]


@pytest.fixture(scope="module")
def _templates(postgres_server: EmbeddedPostgres) -> Iterator[tuple[Template, Template]]:
    with templates(postgres_server, "archiving_alike", "archiving_late") as (alike, late_rows):
        with alike.system() as system:
            system.as_owner(AUDIT_SCHEMA)
            view_over_both(system, AUDIT)
        with late_rows.system() as system:
            # January leaves without a row of its companion, so that the first late one finds no place in the archive.
            system.as_owner("DELETE FROM public.transaction_metadata WHERE partition_date < '2024-02-01'")
            system.move(JANUARY, companions=())
            system.as_owner(LATE_SCHEMA)
        yield alike, late_rows


@pytest.fixture(scope="module")
def alike(_templates: tuple[Template, Template]) -> Template:
    """A companion that is partitioned as the transactions are, with rows of two months, beside the plain one."""
    return _templates[0]


@pytest.fixture(scope="module")
def late_rows(_templates: tuple[Template, Template]) -> Template:
    """January is archived, and rows of it have come into the default partition, with rows of the plain companion."""
    return _templates[1]


@pytest.fixture(scope="module")
def children() -> BaseContext:
    return forking("tests.faults.moving_child")


def child(children: BaseContext, work: Work, system: System, dies_at: int, notes: Path) -> int | None:
    process = children.Process(target=work, args=(system.url, dies_at, notes))
    process.start()
    process.join(120)
    return process.exitcode


def answer(system: System, question: str) -> Any:
    with psycopg.connect(system.database.url) as connection:
        return connection.execute(question).fetchone()


@dataclass(frozen=True, kw_only=True)
class Killing:
    """Work that is killed at each of its steps, in a copy of the same database each time."""

    children: BaseContext
    template: Template
    work: Work
    again: Callable[[System], object]
    question: str
    state: Callable[[System], Any]
    notes: Path
    left: Callable[[System], None] = lambda system: None
    """Looks at what a kill has left, before anybody comes."""

    def undisturbed(self) -> tuple[list[str], Any]:
        """Its steps, and what it leaves."""
        with self.template.cloned() as system:
            assert child(self.children, self.work, system, 0, self.notes) == 0
            return self.notes.read_text().splitlines(), self.state(system)

    def at_each_of(self, steps: list[str], wanted: Any) -> None:
        for number, step in enumerate(steps, 1):
            with self.template.cloned() as system:
                with counted(system, {self.question: answer(system, self.question)}):
                    said = child(self.children, self.work, system, number, self.notes)
                    assert (said, self.notes.read_text().splitlines()) == (-9, steps[:number])
                    wait_until(lambda system=system: nobody(system), 20, "the end of the session")
                    self.left(system)
                    self.again(system)
                assert self.state(system) == wanted, f"killed at {number}: {step}"


@pytest.mark.timeout(300)
def test_a_move_with_a_companion_that_is_partitioned_alike(
    alike: Template, children: BaseContext, tmp_path: Path
) -> None:
    """Both partitions go in one transaction: there is no step at which one of them is there without the other."""

    def state(system: System) -> dict[str, Any]:
        return {**system.catalogue(), "audit": system.rows(AUDIT_ROWS)}

    def together(system: System) -> None:
        assert system.partitions("archive.audit") == [
            name.replace("transactions", "audit") for name in system.partitions("archive.transactions")
        ]

    killing = Killing(
        children=children,
        template=alike,
        work=moving_child.move_with_one_alike,
        again=lambda system: archive(system.connection, ALIKE, ALIKE[TABLE]),
        question=COUNTS_WITH_AUDIT,
        state=state,
        left=together,
        notes=tmp_path / "steps",
    )
    steps, wanted = killing.undisturbed()
    assert {
        "detached public.audit_y2024m01",
        "attached public.audit_y2024m01",
        "detached public.transactions_y2024m01",
        "batch of public.transaction_metadata",
        "about to commit",
        "moved",
    } <= set(steps)
    assert not any("m02" in step for step in steps)
    assert sum(each["archived"] for each in wanted["audit"]) == ROWS // 4
    assert [each["over"] for each in wanted["batches"]] == [True] * 3
    killing.at_each_of(steps, wanted)


@pytest.mark.timeout(300)
def test_late_rows_with_those_of_their_companion(
    late_rows: Template, children: BaseContext, tmp_path: Path
) -> None:
    def state(system: System) -> dict[str, Any]:
        assert system.rows(MISCOUNTED) == []
        return {**system.catalogue(), "batches": system.rows(BATCHES)}

    killing = Killing(
        children=children,
        template=late_rows,
        work=moving_child.take_in_late,
        again=lambda system: late.take_in(system.connection, LATE, LATE[TABLE]),
        question=COUNTS,
        state=state,
        notes=tmp_path / "steps",
    )
    steps, wanted = killing.undisturbed()
    assert steps == [
        *["late batch of public.transaction_metadata"] * 3,
        *["late batch of public.transactions"] * 5,
    ]
    assert [each["rows"] for each in wanted["batches"]] == [LATE_METADATA, LATE_ROWS]
    assert not [each for each in wanted["rows"] if each["id"] > 1000 and not each["archived"]]
    killing.at_each_of(steps, wanted)
