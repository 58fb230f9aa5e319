"""`upkeep plan partitions` and what `upkeep check` says of policies, as people and programs read it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime

import pytest
from psycopg import sql

from tests.integration.worker.cli.conftest import Upkeep
from tests.servers import Database

pytestmark = pytest.mark.any_server

POLICY = """
[databases.kept.partitions."public.t"]
default = "drain"
hot = "1 year"
warm = "2 years"
"""


def month(ahead: int) -> date:
    now = datetime.now(UTC).date()
    year, index = divmod(now.year * 12 + now.month - 1 + ahead, 12)
    return date(year, index + 1, 1)


@pytest.fixture
def planned(upkeep_database: Database, upkeep_with: Callable[..., Upkeep]) -> Upkeep:
    """A table that lacks two months, has a row of the next one in its default, and one month too old."""
    with upkeep_database.connect() as conn:
        conn.execute("CREATE TABLE public.t (id int, day date NOT NULL) PARTITION BY RANGE (day)")
        conn.execute("CREATE TABLE public.t_default PARTITION OF public.t DEFAULT")
        for name, first, last in (
            ("t_old", month(-14), month(-13)),
            ("t_year", month(-13), month(1)),
            ("t_later", month(2), month(3)),
        ):
            conn.execute(
                sql.SQL("CREATE TABLE {} PARTITION OF public.t FOR VALUES FROM ({}) TO ({})").format(
                    sql.Identifier("public", name), sql.Literal(str(first)), sql.Literal(str(last))
                )
            )
        conn.execute("INSERT INTO public.t VALUES (1, %s)", [month(1)])
    upkeep = upkeep_with(upkeep_database.url, {})
    upkeep.write(upkeep.config.read_text() + POLICY)
    return upkeep


def test_the_plan_for_people(planned: Upkeep) -> None:
    said = planned("plan", "partitions")
    assert said.code == 0, said.err + said.out
    lines = [line.strip() for line in said.out.splitlines()]
    assert "public.t" in lines
    created = f"public.t_y{month(3):%Y}m{month(3):%m}"
    assert any(
        line.startswith(f"create  {created}") and f"{month(3)} to {month(4)}" in line for line in lines
    )
    assert any(line.startswith("drain") and line.endswith(" 1") for line in lines)
    assert any(line.startswith("move    public.t_old") for line in lines)
    whole = " ".join(lines)
    assert "create, drain locks SHARE UPDATE EXCLUSIVE: public.t; ACCESS EXCLUSIVE: public.t_default" in whole
    assert "move locks ACCESS EXCLUSIVE: public.t, public.t_default; and the partition itself" in whole
    assert "t_year" in said.out  # no month
    assert lines[-2].startswith("1 table: 1 to create, 1 to drain into, 1 to move, 1 to know of.")
    assert max(map(len, said.out.splitlines())) <= 100


def test_the_plan_for_programs(planned: Upkeep) -> None:
    said = planned("plan", "partitions", "--table", "public.t", "--json")
    assert said.code == 0
    (database,) = said.json["databases"]
    (table,) = database["tables"]
    assert (table["table"], table["problems"], table["unknown"]) == ("public.t", [], [])
    create, drain, move, warn = table["plan"]
    assert [each["action"] for each in (create, drain, move, warn)] == ["create", "drain", "move", "warn"]
    assert (drain["from"], drain["to"], drain["rows"]) == (str(month(1)), str(month(2)), 1)
    assert create["locks"][0] == {"table": "public.t", "mode": "SHARE UPDATE EXCLUSIVE"}
    assert set(create) == {"action", "partition", "from", "to", "rows", "reason", "locks", "remedy"}


def test_what_is_refused(planned: Upkeep, upkeep_database: Database) -> None:
    with upkeep_database.connect() as conn:
        conn.execute(
            sql.SQL("CREATE TABLE {} (id int)").format(
                sql.Identifier("public", f"t_y{month(3):%Y}m{month(3):%m}")
            )
        )
    said = planned("plan", "partitions")
    assert said.code == 1
    assert "another relation has this name" in said.out
    checked = planned("check", "--json")
    assert checked.code == 1
    (problem,) = [each for each in checked.json["problems"] if each["level"] == "error"]
    assert problem["key"] == 'databases.kept.partitions."public.t"'
    assert "rename" in problem["remedy"]


def test_check_names_the_setting(planned: Upkeep) -> None:
    planned.write(planned.config.read_text() + 'column = "id"\n')
    said = planned("check")
    assert said.code == 1
    assert 'databases.kept.partitions."public.t".column' in said.out
    assert 'column = "day"' in said.out
    plan = planned("plan", "partitions", "--json")
    assert plan.code == 1
    assert "1 table: 1 not planned, with errors. Nothing was changed." in planned("plan", "partitions").out
    assert plan.json["databases"][0]["tables"][0]["plan"] == []
    assert plan.json["databases"][0]["tables"][0]["problems"][0]["setting"] == "column"


def test_an_unknown_table(planned: Upkeep) -> None:
    said = planned("plan", "partitions", "--table", "public.tt")
    assert said.code == 2
    assert "public.t" in said.err


def test_no_policy(upkeep: Upkeep) -> None:
    said = upkeep("plan", "partitions")
    assert said.code == 0
    assert "no table has a policy" in said.out


def test_the_status_has_a_line_for_each_table(planned: Upkeep) -> None:
    said = planned("status")
    assert said.code == 0, said.err + said.out
    whole = " ".join(said.out.split())
    assert "public.t: partitions for " in whole
    assert "1 row in the default, 1 to create, 1 to drain into, 1 to move" in whole
    assert "public.t_default has 1 row" in whole
    (database,) = planned("status", "--json").json["databases"]
    (table,) = database["partitions"]
    assert table.pop("days_ahead") > 0
    assert table == {
        "table": "public.t",
        "default_rows": 1,
        "due": {"create": 1, "drain": 1, "move": 1},
    }
    assert any("t_default" in each["message"] for each in database["problems"])


def test_the_status_of_a_table_that_is_not_there(planned: Upkeep) -> None:
    planned.write(planned.config.read_text() + '[databases.kept.partitions."public.gone"]\n')
    said = planned("status")
    assert "public.gone: nothing is known" in said.out
    assert "There is no table public.gone" in " ".join(said.out.split())


def test_the_doctor_looks_at_partitions(planned: Upkeep, upkeep_database: Database) -> None:
    found = {each["object"]: each for each in planned("doctor", "--json").json["findings"]}
    assert found["public.t_default"]["level"] == "warning"
    assert "1 row" in found["public.t_default"]["message"]
    assert "partitions" not in found
    with upkeep_database.connect() as conn:
        conn.execute("TRUNCATE public.t_default")
        # On the last days of a month there would be too few days ahead.
        conn.execute(
            sql.SQL("CREATE TABLE public.t_next PARTITION OF public.t FOR VALUES FROM ({}) TO ({})").format(
                sql.Literal(str(month(1))), sql.Literal(str(month(2)))
            )
        )
    found = {each["object"]: each for each in planned("doctor", "--json").json["findings"]}
    assert found["partitions"]["level"] == "ok"
