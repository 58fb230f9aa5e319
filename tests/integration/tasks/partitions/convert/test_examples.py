"""The two tables of the examples, converted while their application writes to them."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg import sql

from examples import lending, lp
from fleet.postgres.migrations import migrate
from tests.integration.tasks.partitions.convert.conftest import Conversions, Writer, asked, dump

pytestmark = [pytest.mark.slow, pytest.mark.any_server]


def matviews_are_right(connection: psycopg.Connection[Any]) -> bool:
    """Whether every materialized view has the rows that its definition gives."""
    names = connection.execute(
        "SELECT schemaname, matviewname, definition FROM pg_matviews WHERE schemaname = 'public'"
    ).fetchall()
    assert names
    for schema, name, definition in names:
        view = sql.Identifier(schema, name)
        connection.execute(sql.SQL("REFRESH MATERIALIZED VIEW {}").format(view))
        differing = connection.execute(
            sql.SQL(
                "SELECT count(*) FROM ((TABLE {v} EXCEPT ALL ({d})) UNION ALL (({d}) EXCEPT ALL TABLE {v})) AS x"
            ).format(v=view, d=sql.SQL(definition.rstrip().removesuffix(";")))
        ).fetchone()
        if differing != (0,):
            return False
    return True


def test_capital_activities_is_attached_while_it_is_written_to(clone):
    database = clone(lp)
    migrate(database.url)
    admin = database.connect()
    commitment, fund = admin.execute(
        "SELECT id, fund_id FROM lp_fund_commitments ORDER BY id LIMIT 1"
    ).fetchone()
    written: list[int] = []

    def book(connection: psycopg.Connection[Any], number: int) -> None:
        row = connection.execute(
            "INSERT INTO public.capital_activities (commitment_id, fund_id, activity_type, activity_date, amount_cents)"
            " VALUES (%s, %s, 'capital_call', current_date, %s) RETURNING id",
            (commitment, fund, number + 1),
        ).fetchone()
        assert row is not None
        written.append(row[0])

    before = admin.execute("SELECT count(*) FROM capital_activities").fetchone()[0]
    there = dump(database)
    wanted = asked("public.capital_activities", "attach", "activity_date")
    operator = Conversions(database.url)
    assert not operator.plan(wanted).refused
    assert dump(database) == there
    with Writer(database.url, book) as writer:
        assert operator.prepare(wanted).state == "ready"
        assert operator.back(wanted).state == "undone"
        assert dump(database) == there
        done = operator.switch(wanted)
        count = writer.count
        while writer.count < count + 50 and writer.failed is None:
            pass
    writer.check()
    assert done.state == "switched"
    assert done.run_id is not None
    assert admin.execute(
        "SELECT relkind FROM pg_class WHERE oid = 'capital_activities'::regclass"
    ).fetchone() == ("p",)
    assert admin.execute("SELECT count(*) FROM capital_activities").fetchone()[0] == before + len(written)
    kept = {
        row[0] for row in admin.execute("SELECT id FROM capital_activities WHERE id = ANY (%s)", (written,))
    }
    assert kept == set(written)
    assert len(set(written)) == len(written)
    assert matviews_are_right(admin)
    with pytest.raises(psycopg.errors.RestrictViolation):
        admin.execute("DELETE FROM capital_activities")


def test_collections_event_is_filled_while_it_is_written_to(clone):
    database = clone(lending)
    migrate(database.url)
    admin = database.connect()
    (loan,) = admin.execute("SELECT min(id) FROM loan").fetchone()
    mine: dict[int, int] = {}

    def note(connection: psycopg.Connection[Any], number: int) -> None:
        if number % 4 == 1 and mine:
            key = next(iter(mine))
            connection.execute("UPDATE collections_event SET dpd_snapshot = %s WHERE id = %s", (number, key))
            mine[key] = number
        elif number % 4 == 2 and len(mine) > 3:
            key = next(iter(mine))
            connection.execute("DELETE FROM collections_event WHERE id = %s", (key,))
            del mine[key]
        elif number % 4 == 3:
            connection.execute(
                "UPDATE collections_event SET resolution_status = %s WHERE id = (SELECT id FROM collections_event"
                " ORDER BY id OFFSET %s LIMIT 1)",
                (f"r{number}", number % 150),
            )
        else:
            (key,) = connection.execute(
                "INSERT INTO collections_event (loan_id, event_type, event_at, dpd_snapshot)"
                " VALUES (%s, 'call_attempt', now() - %s * interval '1 day', %s) RETURNING id",
                (loan, number % 900, number),
            ).fetchone()
            mine[key] = number

    wanted = asked("public.collections_event", "fill", "event_at")
    there = dump(database)
    operator = Conversions(database.url)
    assert not operator.plan(wanted).refused
    with Writer(database.url, note) as writer:
        assert operator.prepare(wanted).state == "ready"
        assert operator.back(wanted).state == "undone"
        assert dump(database) == there
        done = operator.switch(wanted)
        count = writer.count
        while writer.count < count + 50 and writer.failed is None:
            pass
    writer.check()
    assert done.state == "switched"
    kept = dict(
        admin.execute("SELECT id, dpd_snapshot FROM collections_event WHERE id = ANY (%s)", (list(mine),))
    )
    assert kept == mine
    assert done.verified["equal"]
    assert matviews_are_right(admin)
    assert admin.execute("SELECT count(*) FROM collections_event_before_conversion").fetchone()[0] > 0
