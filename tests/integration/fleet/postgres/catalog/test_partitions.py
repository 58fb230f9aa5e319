"""Partitioned tables as the catalogue has them: bounds of every kind, trees, keys, privileges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import (
    ControlType,
    Partition,
    PartitionedTable,
    Range,
    read_partitioned,
)
from tests.conftest import NewRole
from tests.integration.fleet.postgres.catalog.conftest import ODD_NAMES
from tests.servers import Database
from tests.waiting import wait_until

Connection = psycopg.Connection[Any]


def table(conn: Connection, name: str = "public.t") -> PartitionedTable:
    parsed = RelationName.parse(name)
    return read_partitioned(conn, [parsed])[parsed]


def by_name(found: PartitionedTable) -> dict[str, Partition]:
    return {each.name.name: each for each in found.partitions}


@contextmanager
def partitioned(conn: Connection, control: str, bounds: dict[str, str]) -> Iterator[PartitionedTable]:
    conn.execute(
        sql.SQL("CREATE TABLE public.t (at {}, n int) PARTITION BY RANGE (at)").format(sql.SQL(control))
    )
    for name, bound in bounds.items():
        conn.execute(
            sql.SQL("CREATE TABLE {} PARTITION OF public.t {}").format(
                sql.Identifier("public", name), sql.SQL(bound)
            )
        )
    yield table(conn)


NATIVE = {
    "date": (
        "('2024-01-01') TO ('2024-02-01')",
        ControlType.DATE,
        Range(lower=date(2024, 1, 1), upper=date(2024, 2, 1)),
    ),
    "timestamptz": (
        "('2024-01-01 00:00 America/Sao_Paulo') TO ('2024-02-01 00:00:00.25+00')",
        ControlType.TIMESTAMPTZ,
        Range(
            lower=datetime(2024, 1, 1, 3, tzinfo=UTC),
            upper=datetime(2024, 2, 1, 0, 0, 0, 250_000, tzinfo=UTC),
        ),
    ),
    "timestamp": (
        "('2024-01-01') TO ('2024-01-31 23:59:59.999999')",
        ControlType.TIMESTAMP,
        Range(lower=datetime(2024, 1, 1), upper=datetime(2024, 1, 31, 23, 59, 59, 999_999)),  # noqa: DTZ001
    ),
    "smallint": ("(-5) TO (5)", ControlType.INTEGER, Range(lower=-5, upper=5)),
    "bigint": ("(-5) TO (9223372036854775807)", ControlType.INTEGER, Range(lower=-5, upper=2**63 - 1)),
    "numeric(20, 0)": ("(10) TO (1e3)", ControlType.INTEGER, Range(lower=10, upper=1000)),
    "uuid": (
        "('018cc251-f400-0000-0000-000000000000') TO ('018D-61F6-0C00-0000-0000-000000000000')",
        ControlType.UUID,
        Range(
            lower=UUID("018cc251-f400-0000-0000-000000000000"),
            upper=UUID("018d61f6-0c00-0000-0000-000000000000"),
        ),
    ),
    "public.day": (
        "('2024-01-01') TO ('2024-02-01')",
        ControlType.DATE,
        Range(lower=date(2024, 1, 1), upper=date(2024, 2, 1)),
    ),
}


@pytest.mark.parametrize("control", NATIVE)
def test_bounds_in_the_columns_own_type(conn: Connection, control: str) -> None:
    conn.execute("CREATE DOMAIN public.day AS date")
    conn.execute("SET DateStyle = 'German, DMY'; SET TimeZone = 'Asia/Kathmandu'")
    bound, kind, expected = NATIVE[control]
    with partitioned(conn, control, {"p": f"FOR VALUES FROM {bound}"}) as found:
        assert found.control_type is kind
        assert (found.kind, found.strategy, found.key) == ("p", "range", ("at",))
        assert [each.range for each in found.partitions] == [expected]
        assert found.partitions[0].odd == ""
    assert conn.execute("SHOW TimeZone").fetchone() == ("Asia/Kathmandu",)


def test_nothing_of_ours_stays_in_the_callers_transaction(conn: Connection) -> None:
    with conn.transaction():
        conn.execute("SET LOCAL TimeZone = 'Asia/Kathmandu'")
        read_partitioned(conn, [])
        assert conn.execute("SHOW TimeZone").fetchone() == ("Asia/Kathmandu",)


def test_in_order_of_the_ranges_the_default_last(conn: Connection) -> None:
    bounds = {
        "b": "FOR VALUES FROM ('2024-02-01') TO ('2024-03-01')",
        "last": "FOR VALUES FROM ('2025-01-01') TO (MAXVALUE)",
        "d": "DEFAULT",
        "first": "FOR VALUES FROM (MINVALUE) TO ('2020-01-01')",
    }
    with partitioned(conn, "date", bounds) as found:
        assert [each.name.name for each in found.partitions] == ["first", "b", "last", "d"]
        assert by_name(found)["first"].range == Range(lower=None, upper=date(2020, 1, 1))
        assert by_name(found)["last"].range == Range(lower=date(2025, 1, 1), upper=None)
        assert found.default is found.partitions[-1]
        assert found.partitions[-1].range is None
        assert not found.partitions[-1].odd


ODD = {
    "before Christ": (
        "date",
        "FROM ('0050-01-01 BC') TO ('1990-01-01')",
        Range(lower=None, upper=date(1990, 1, 1)),
    ),
    "all before Christ": (
        "date",
        "FROM ('0050-01-01 BC') TO ('0040-01-01 BC')",
        Range(lower=None, upper=date.min),
    ),
    "infinity": ("date", "FROM ('2030-01-01') TO ('infinity')", Range(lower=date(2030, 1, 1), upper=None)),
    "minus infinity": (
        "timestamptz",
        "FROM ('-infinity') TO ('2030-01-01 00:00+00')",
        Range(lower=None, upper=datetime(2030, 1, 1, tzinfo=UTC)),
    ),
    "far years": (
        "timestamp",
        "FROM ('12000-01-01') TO ('13000-01-01')",
        Range(lower=datetime.max, upper=None),  # noqa: DTZ901
    ),
    "a fraction": ("numeric", "FROM (1.5) TO (7.5)", Range(lower=1, upper=8)),
    "no number": ("numeric", "FROM (1) TO ('NaN')", Range(lower=1, upper=None)),
}


@pytest.mark.parametrize("what", ODD)
def test_bounds_that_no_calendar_has(conn: Connection, what: str) -> None:
    control, bound, hull = ODD[what]
    with partitioned(conn, control, {"p": f"FOR VALUES {bound}"}) as found:
        (partition,) = found.partitions
        assert partition.range is None
        assert "none of any calendar" in partition.odd
        assert partition.hull == hull


def test_several_key_columns(conn: Connection) -> None:
    conn.execute(
        'CREATE TABLE public.t (at date, "the (name, TO" text) PARTITION BY RANGE (at, "the (name, TO")'
    )
    for name, bound in {
        "whole": "FROM ('2024-01-01', MINVALUE) TO ('2024-02-01', MINVALUE)",
        "first": "FROM (MINVALUE, MINVALUE) TO ('2023-01-01', MINVALUE)",
        "half": "FROM ('2024-02-01', MINVALUE) TO ('2024-02-01', 'it''s, TO (''x''')",
        "rest": "FROM ('2024-02-01', 'it''s, TO (''x''') TO ('2024-03-01', MINVALUE)",
        "last": "FROM ('2025-01-01', MINVALUE) TO (MAXVALUE, MAXVALUE)",
    }.items():
        conn.execute(
            sql.SQL("CREATE TABLE {} PARTITION OF public.t FOR VALUES {}").format(
                sql.Identifier("public", name), sql.SQL(bound)
            )
        )
    found = by_name(table(conn))
    assert found["whole"].range == Range(lower=date(2024, 1, 1), upper=date(2024, 2, 1))
    assert found["first"].range == Range(lower=None, upper=date(2023, 1, 1))
    assert found["last"].range == Range(lower=date(2025, 1, 1), upper=None)
    assert found["half"].range is None
    assert "more than the control column" in found["half"].odd
    assert found["half"].hull == Range(lower=date(2024, 2, 1), upper=date(2024, 2, 2))
    assert found["rest"].hull == Range(lower=date(2024, 2, 1), upper=date(2024, 3, 1))


def test_what_is_no_range_of_a_calendar(conn: Connection) -> None:
    conn.execute(
        """
        CREATE TABLE public.listed (n int) PARTITION BY LIST (n);
        CREATE TABLE public.listed_1 PARTITION OF public.listed FOR VALUES IN (1, NULL);
        CREATE TABLE public.hashed (n int) PARTITION BY HASH (n);
        CREATE TABLE public.hashed_0 PARTITION OF public.hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE public.texts (n text) PARTITION BY RANGE (n);
        CREATE TABLE public.texts_a PARTITION OF public.texts FOR VALUES FROM ('a''') TO ('b');
        CREATE TABLE public.expressed (at timestamptz) PARTITION BY RANGE ((at AT TIME ZONE 'UTC'));
        CREATE TABLE public.scaled (n numeric(12, 2)) PARTITION BY RANGE (n);
        CREATE TABLE public.plain (id int PRIMARY KEY);
        CREATE VIEW public.seen AS SELECT id FROM public.plain;
        """
    )
    names = ["listed", "hashed", "texts", "expressed", "scaled", "plain", "seen", "absent"]
    found = {k.name: v for k, v in read_partitioned(conn, [RelationName("public", n) for n in names]).items()}
    assert set(found) == set(names) - {"absent"}
    assert (found["listed"].strategy, found["hashed"].strategy) == ("list", "hash")
    assert all("no calendar" in found[n].partitions[0].odd for n in ("listed", "hashed", "texts"))
    assert found["texts"].control_type is None
    assert found["texts"].control_type_name == "text"
    assert found["expressed"].key == ("",)
    assert found["expressed"].control_type is None
    assert found["scaled"].control_type is None
    assert found["scaled"].control_type_name == "numeric(12,2)"
    assert (found["plain"].kind, found["plain"].strategy, found["plain"].key) == ("r", "", ())
    assert found["plain"].unique_keys == (("id",),)
    assert found["plain"].columns == ("id",)
    assert found["seen"].kind == "v"


def test_names_with_quotes_and_capitals(conn: Connection) -> None:
    conn.execute('CREATE SCHEMA "Odd ""Schéma"" %"')
    for name in ODD_NAMES:
        conn.execute(
            sql.SQL('CREATE TABLE {} ("An ""odd"" %s" date) PARTITION BY RANGE ("An ""odd"" %s")').format(
                name.identifier()
            )
        )
    found = read_partitioned(conn, ODD_NAMES)
    assert set(found) == set(ODD_NAMES)
    assert all(each.key == ('An "odd" %s',) for each in found.values())


def test_trees(conn: Connection) -> None:
    conn.execute(
        """
        CREATE SCHEMA other;
        CREATE TABLE public.t (at date NOT NULL, id int, note text) PARTITION BY RANGE (at);
        CREATE TABLE public.y PARTITION OF public.t FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')
            PARTITION BY RANGE (at);
        CREATE TABLE public.m PARTITION OF public.y FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')
            PARTITION BY HASH (id);
        CREATE TABLE public.m_1 PARTITION OF public.m FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        CREATE TABLE other.m_0 PARTITION OF public.m FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE public.p PARTITION OF public.t FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
        CREATE TABLE public.e PARTITION OF public.t FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')
            PARTITION BY HASH (id);
        CREATE INDEX ON public.t (id);
        INSERT INTO public.t SELECT '2024-01-01', i, repeat('x', 100) FROM generate_series(1, 3000) AS i;
        INSERT INTO public.t SELECT '2025-01-01', i, '' FROM generate_series(1, 10) AS i;
        ANALYZE;
        """
    )
    found = table(conn)
    partitions = by_name(found)
    assert partitions["y"].leaves == (RelationName("other", "m_0"), RelationName("public", "m_1"))
    assert (partitions["y"].kind, partitions["y"].subpartition_key) == ("p", "RANGE (at)")
    assert (partitions["y"].rows, partitions["p"].rows) == (3000, 10)
    assert partitions["y"].bytes > 3000 * 100 > partitions["p"].bytes > 0
    assert partitions["p"].leaves == (RelationName("public", "p"),)
    assert partitions["e"].leaves == ()
    assert partitions["e"].missing_remainders == 100
    assert (partitions["y"].missing_remainders, partitions["p"].missing_remainders) == (0, 0)
    # Before 15 the statistics come a moment later.
    analyzed = wait_until(lambda: table(conn).last_analyzed, message="the time of ANALYZE")
    assert abs(analyzed - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("remainders", "missing"),
    [
        ([(2, 0), (2, 1)], 0),
        ([(8, 0), (8, 4), (4, 1), (4, 2), (4, 3)], 0),
        ([(4, 0), (4, 1), (8, 2), (4, 3)], 12),
        ([(8, 0), (4, 1), (8, 2)], 50),
        ([(3, 0), (3, 1), (6, 2), (6, 5)], 0),
        ([(3, 0), (3, 1), (6, 2)], 17),
        ([(1000, each) for each in range(999)], 1),
    ],
)
def test_missing_remainders(conn: Connection, remainders: list[tuple[int, int]], missing: int) -> None:
    conn.execute("CREATE TABLE public.t (at date, id int) PARTITION BY RANGE (at)")
    conn.execute(
        "CREATE TABLE public.p PARTITION OF public.t FOR VALUES FROM ('2024-01-01') TO ('2025-01-01') "
        "PARTITION BY HASH (id)"
    )
    for modulus, remainder in remainders:
        conn.execute(
            sql.SQL(
                "CREATE TABLE {} PARTITION OF public.p FOR VALUES WITH (MODULUS {}, REMAINDER {})"
            ).format(
                sql.Identifier("public", f"p_{modulus}_{remainder}"),
                sql.Literal(modulus),
                sql.Literal(remainder),
            )
        )
    assert table(conn).partitions[0].missing_remainders == missing


def test_hash_within_hash(conn: Connection) -> None:
    conn.execute(
        """
        CREATE TABLE public.t (at date, a int, b int) PARTITION BY RANGE (at);
        CREATE TABLE public.p PARTITION OF public.t FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')
            PARTITION BY HASH (a);
        CREATE TABLE public.p0 PARTITION OF public.p FOR VALUES WITH (MODULUS 2, REMAINDER 0) PARTITION BY HASH (b);
        CREATE TABLE public.p00 PARTITION OF public.p0 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE public.p1 PARTITION OF public.p FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        """
    )
    assert table(conn).partitions[0].missing_remainders == 25


def test_a_pending_detach(database: Database, conn: Connection) -> None:
    bounds = {
        "a": "FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')",
        "b": "FOR VALUES FROM ('2024-02-01') TO ('2024-03-01')",
    }
    with partitioned(conn, "date", bounds):
        with database.connect(autocommit=False) as reader, database.connect() as ddl:
            # Somebody who still uses the table keeps the second half from being done.
            reader.execute("SELECT * FROM public.t").fetchall()
            ddl.execute("SET statement_timeout = '300ms'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                ddl.execute("ALTER TABLE public.t DETACH PARTITION public.a CONCURRENTLY")
            reader.rollback()
        found = by_name(table(conn))
    assert (found["a"].detach_pending, found["b"].detach_pending) == (True, False)
    assert found["a"].range == Range(lower=date(2024, 1, 1), upper=date(2024, 2, 1))


def test_foreign_tables_and_tablespaces(conn: Connection) -> None:
    conn.execute("CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nowhere FOREIGN DATA WRAPPER nothing")
    with partitioned(conn, "date", {"a": "FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')"}):
        conn.execute(
            "CREATE FOREIGN TABLE public.f PARTITION OF public.t FOR VALUES FROM ('2023-01-01') TO ('2024-01-01') "
            "SERVER nowhere"
        )
        found = by_name(table(conn))
    assert (found["f"].kind, found["a"].kind) == ("f", "r")
    assert found["f"].range == Range(lower=date(2023, 1, 1), upper=date(2024, 1, 1))
    assert (found["f"].leaves, found["f"].tablespace) == ((RelationName("public", "f"),), "")


def test_keys(conn: Connection) -> None:
    conn.execute(
        """
        CREATE TABLE public.account (id int PRIMARY KEY);
        CREATE TABLE public.t (at date, id int, other int REFERENCES public.account, PRIMARY KEY (id, at))
            PARTITION BY RANGE (at);
        CREATE UNIQUE INDEX t_lower ON public.t (at, id) INCLUDE (other);
        CREATE TABLE public.a PARTITION OF public.t FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
        CREATE TABLE public.b PARTITION OF public.t FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
        CREATE TABLE public.meta (id int, day date, FOREIGN KEY (id, day) REFERENCES public.t (id, at)
            DEFERRABLE INITIALLY DEFERRED) PARTITION BY RANGE (day);
        CREATE TABLE public.meta_a PARTITION OF public.meta FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
        CREATE TABLE public.leafy (id int, at date, FOREIGN KEY (id, at) REFERENCES public.a (id, at));
        """
    )
    found = table(conn)
    assert found.unique_keys == (("id", "at"), ("at", "id"))
    assert [(k.name, k.referencing.name, k.referenced.name) for k in found.foreign_keys] == [
        ("meta_id_day_fkey", "meta", "t"),
        ("t_other_fkey", "t", "account"),
    ]
    key = found.foreign_keys[0]
    assert (key.columns, key.referenced_columns) == (("id", "day"), ("id", "at"))
    assert (key.validated, key.deferrable) == (True, True)
    both = read_partitioned(conn, [RelationName("public", "t"), RelationName("public", "meta")])
    assert [k.name for k in both[RelationName("public", "meta")].foreign_keys] == ["meta_id_day_fkey"]


def test_a_key_to_itself_is_one(conn: Connection) -> None:
    conn.execute(
        """
        CREATE TABLE public.t (at date, id int, before date, prior int, PRIMARY KEY (id, at),
            FOREIGN KEY (prior, before) REFERENCES public.t (id, at)) PARTITION BY RANGE (at);
        CREATE TABLE public.a PARTITION OF public.t FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
        """
    )
    assert len(table(conn).foreign_keys) == 1


def test_privileges(database: Database, role: NewRole) -> None:
    owner_url, fleet_url = role(database, "the owner"), role(database, "the fleet")
    name = RelationName("app", "t")
    with database.connect() as admin:
        admin.execute('CREATE SCHEMA app AUTHORIZATION "the owner"')
        with psycopg.connect(owner_url, autocommit=True) as owner:
            owner.execute("CREATE TABLE app.t (at date NOT NULL) PARTITION BY RANGE (at)")
            assert read_partitioned(owner, [name])[name].may_alter
        with psycopg.connect(fleet_url, autocommit=True) as fleet:
            found = read_partitioned(fleet, [name])[name]
            assert (found.owner, found.may_alter, found.may_create_in_schema) == ("the owner", False, False)
            assert not found.owner_is_superuser
            assert not found.control_nullable
            admin.execute('GRANT "the owner" TO "the fleet"')
            found = read_partitioned(fleet, [name])[name]
            assert (found.may_alter, found.may_create_in_schema) == (True, True)
            admin.execute("ALTER TABLE app.t OWNER TO postgres")
            found = read_partitioned(fleet, [name])[name]
            assert (found.owner_is_superuser, found.may_alter) == (True, False)


def test_waits_for_nobody(database: Database, conn: Connection) -> None:
    with (
        partitioned(conn, "date", {"a": "FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')"}),
        database.connect(autocommit=False) as blocker,
    ):
        blocker.execute("LOCK TABLE public.t, public.a IN ACCESS EXCLUSIVE MODE")
        conn.execute("SET lock_timeout = '100ms'")
        assert len(table(conn).partitions) == 1


def test_as_many_statements_for_many_tables_as_for_one(conn: Connection) -> None:
    sent = []

    class Counting(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            sent.append(query)
            return super().execute(query, *args, **kwargs)

    conn.cursor_factory = Counting
    counts = []
    for tables in (1, 20):
        for number in range(tables):
            conn.execute(
                sql.SQL("CREATE TABLE IF NOT EXISTS {} (at date) PARTITION BY RANGE (at)").format(
                    sql.Identifier("public", f"t{number}")
                )
            )
        sent.clear()
        read_partitioned(conn, [RelationName("public", f"t{number}") for number in range(tables)])
        counts.append(len(sent))
    assert counts[0] == counts[1]
    assert counts[0] <= 8
