"""Five tables like 004's transactions, a month of which is due for the archive, and the ways back from what was done.

The first one has rows, metadata and its foreign key in one of two shapes; the application works on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

import examples.transactions
from benchmarks.stage import Place
from examples import copy_rows, run_script
from examples.transactions import generate, partitions
from fleet import settings

HOT = "transactions"
METADATA = "transaction_metadata"
TABLES = (HOT, "transactions_eu", "transactions_uk", "transactions_apac", "transactions_latam")
SEED = 1
ACCOUNTS = 50_000
ARCHIVE = "archive"
# Where contenders put it that know nothing of ours.
ELSEWHERE = "elsewhere"
ADDED = ("archived_at", "archive_batch_id")

_HERE = Path(examples.transactions.__file__).parent
_PLAN = "first_id rows starts_on starts_at step_us age_us held_from has_open accounts seed"
# As 004 has it: a plain table, one foreign key between it and the partitioned one. The last index is what moving a
# month's rows, or even looking for them, takes; without one every contender reads the whole table.
_BETWEEN_PARENTS = """
ALTER TABLE public.transaction_metadata RENAME TO transaction_metadata_by_month;
CREATE TABLE public.transaction_metadata (LIKE public.transaction_metadata_by_month INCLUDING DEFAULTS);
INSERT INTO public.transaction_metadata SELECT * FROM public.transaction_metadata_by_month;
DROP TABLE public.transaction_metadata_by_month;
ALTER TABLE public.transaction_metadata ADD PRIMARY KEY (transaction_id, partition_date);
CREATE INDEX idx_transaction_metadata_custom_fields
    ON public.transaction_metadata USING gin (custom_fields jsonb_path_ops);
CREATE INDEX idx_transaction_metadata_merchant
    ON public.transaction_metadata USING gin (merchant_data jsonb_path_ops);
CREATE INDEX idx_transaction_metadata_date ON public.transaction_metadata (partition_date);
ALTER TABLE public.transaction_metadata ADD CONSTRAINT fk_metadata_transaction
    FOREIGN KEY (transaction_id, partition_date) REFERENCES public.transactions (transaction_id, partition_date)
    DEFERRABLE INITIALLY DEFERRED;
"""


class Shape(StrEnum):
    """Where the metadata's foreign key is."""

    PARENTS = "parents"
    """From a plain table to the partitioned one, as 004 has it."""
    PARTITIONS = "partitions"
    """From each month's partition to the transactions' of the same month."""


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much there is; `months` are those with the due and the current one."""

    rows: int
    today: int
    months: int
    ahead: int = 3
    tables: Sequence[str] = TABLES
    sparse: bool = False
    """Without the months between: what takes long to load is their number."""

    @property
    def hot_months(self) -> int:
        """What a policy says so that just one month is due."""
        return self.months - 2


FULL = Extent(rows=2_000_000, today=100_000, months=15)
QUICK = Extent(rows=40_000, today=4_000, months=3, ahead=1, tables=TABLES[:2], sparse=True)


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """The months of a run, fixed when it begins."""

    now: datetime
    extent: Extent

    @property
    def firsts(self) -> list[date]:
        """The first days of the months that are there, oldest first."""
        found = generate.months(self.now, self.extent.months)
        return [found[0], found[-1]] if self.extent.sparse else found

    @property
    def firsts_of_others(self) -> list[date]:
        """Of the months, those that the other tables have too."""
        return self.firsts[-1:] if self.extent.sparse else self.firsts

    @property
    def due(self) -> date:
        """The month that is to leave."""
        return self.firsts[0]

    @property
    def ahead(self) -> list[date]:
        """The months to be made."""
        found = [generate.following(self.firsts[-1])]
        while len(found) < self.extent.ahead:
            found.append(generate.following(found[-1]))
        return found

    @property
    def today(self) -> date:
        """The application's day."""
        return self.now.astimezone(UTC).date()

    def plan(self) -> list[generate.Month]:
        """The rows of the due and of the current month."""
        age = self.now - _start(self.firsts[-1])
        length = _start(generate.following(self.due)) - _start(self.due)
        return [
            _month(1, self.extent.rows, self.due, length, self.now - _start(self.due)),
            _month(self.extent.rows + 1, self.extent.today, self.firsts[-1], age, age),
        ]


def _start(first: date) -> datetime:
    return datetime.combine(first, datetime.min.time(), tzinfo=UTC)


def _month(first_id: int, rows: int, first: date, within: timedelta, age: timedelta) -> generate.Month:
    microsecond = timedelta(microseconds=1)
    return generate.Month(
        first_id=first_id,
        rows=rows,
        starts_on=first,
        step_us=max(1, within // microsecond // rows),
        age_us=age // microsecond,
        held_from=rows,
        has_open=False,
    )


def install(place: Place, calendar: Calendar) -> None:
    """The five tables with their months and rows, without any foreign key."""
    with place.owner() as connection, connection.transaction():
        run_script(connection, _HERE / "schema.sql")
        partitions.create(connection, calendar.firsts)
        run_script(connection, _HERE / "staging.sql")
        copy_rows(
            connection,
            sql.Identifier("pg_temp", "transactions_month"),
            _PLAN.split(),
            [month.line(accounts=ACCOUNTS, seed=SEED) for month in calendar.plan()],
        )
        run_script(connection, _HERE / "load.sql")
        run_script(connection, _HERE / "indexes.sql")
        for table in calendar.extent.tables[1:]:
            like(connection, table)
            for first in calendar.firsts_of_others:
                make_month(connection, table, first)
    with place.owner() as connection:
        # Nothing is left to autovacuum for the while.
        connection.execute("VACUUM (ANALYZE)")


def like(connection: psycopg.Connection[Any], table: str) -> None:
    """One more table like the first, with no partition."""
    connection.execute(
        sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL) PARTITION BY RANGE (partition_date)").format(
            public(table), public(HOT)
        )
    )


def make_month(connection: psycopg.Connection[Any], table: str, first: date) -> None:
    """One more month in eight parts, as anybody would write it down."""
    month = partitions.name(table, first)
    connection.execute(
        sql.SQL(
            "CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({}) PARTITION BY HASH (transaction_id)"
        ).format(public(month), public(table), *_bounds(first))
    )
    for remainder in range(partitions.HASH_PARTITIONS):
        connection.execute(
            sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES WITH (MODULUS {}, REMAINDER {})").format(
                public(f"{month}_{remainder}"),
                public(month),
                sql.Literal(partitions.HASH_PARTITIONS),
                sql.Literal(remainder),
            )
        )


def refer(place: Place, shape: Shape, calendar: Calendar) -> None:
    """004's foreign key, in one of its shapes."""
    with place.owner() as connection, connection.transaction():
        if shape is Shape.PARENTS:
            make_plain(connection)
        else:
            partitions.reference(connection, calendar.firsts)
    with place.owner() as connection:
        connection.execute("VACUUM (ANALYZE) public.transaction_metadata")


def make_plain(connection: psycopg.Connection[Any]) -> None:
    """The metadata in one plain table that refers to the partitioned one."""
    connection.execute(_BETWEEN_PARENTS)


def database(place: Place, shape: Shape | None, calendar: Calendar, folder: Path) -> settings.Database:
    """The fleet's policies for them, as examples/transactions has them; without a shape nothing refers to the first."""
    hot = f'hot = "{calendar.extent.hot_months} months"'
    lines = ["[fleet]", f'home = "{place.name}"', f"[databases.{place.name}]"]
    for table in calendar.extent.tables:
        lines += [
            f'[databases.{place.name}.partitions."public.{table}"]',
            hot,
            f"premake = {calendar.extent.ahead}",
            'subpartitions = { columns = ["transaction_id"], count = 8 }',
            "hold = \"status IN ('pending', 'processing') OR completed_at IS NULL"
            " OR completed_at > now() - interval '30 days'\"",
        ]
        if table == HOT and shape is not None:
            lines.append(f'companions = ["public.{METADATA}"]')
    if shape is Shape.PARTITIONS:
        lines += [
            f'[databases.{place.name}.partitions."public.{METADATA}"]',
            hot,
            f"premake = {calendar.extent.ahead}",
        ]
    path = folder / f"{place.name}.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    environment = {
        f"UPKEEP_{place.name.upper()}_URL": place.fleet_url,
        "UPKEEP_REDIS_URL": "redis://localhost",
    }
    return settings.load(path, environment).databases[place.name]


@dataclass(frozen=True, kw_only=True)
class Before:
    """The partitions that were there, by table: what is not among them has been made, what lacks has been moved."""

    children: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, connection: psycopg.Connection[Any], tables: Iterable[str]) -> Before:
        """As they are now."""
        return cls(children={table: frozenset(_children(connection, table)) for table in tables})


def drop_new(connection: psycopg.Connection[Any], before: Before) -> int:
    """Take away what has been made since then, what refers to others first; returns how many there were."""
    dropped = 0
    for table in sorted(before.children, key=TABLES.__contains__):
        for name in sorted(set(_children(connection, table)) - before.children[table]):
            connection.execute(
                sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(public(table), public(name))
            )
            connection.execute(sql.SQL("DROP TABLE {}").format(public(name)))
            dropped += 1
    return dropped


def bring_back(connection: psycopg.Connection[Any], table: str, month: str, first: date) -> bool:
    """Put a month back where it was, from wherever it has been moved to; returns whether it had been moved."""
    row = connection.execute(
        "SELECT c.oid, n.nspname, i.inhparent::regclass::text FROM pg_class AS c"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid"
        " WHERE c.relname = %s AND c.relkind IN ('r', 'p')",
        [month],
    ).fetchone()
    assert row is not None  # nobody drops rows here
    oid, schema, parent = row
    if parent == table:
        return False
    with connection.transaction():
        if parent is not None:
            connection.execute(
                sql.SQL("ALTER TABLE {} DETACH PARTITION {}").format(
                    sql.Identifier(*parent.split(".")), sql.Identifier(schema, month)
                )
            )
        members = connection.execute(
            "SELECT n.nspname, c.relname FROM pg_partition_tree(%s) AS t JOIN pg_class AS c ON c.oid = t.relid"
            " JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " UNION SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.oid = %s",
            [oid, oid],
        ).fetchall()
        for of, name in members:
            if of != "public":
                connection.execute(
                    sql.SQL("ALTER TABLE {} SET SCHEMA public").format(sql.Identifier(of, name))
                )
        for column in ADDED:
            connection.execute(
                sql.SQL("ALTER TABLE {} DROP COLUMN IF EXISTS {}").format(
                    public(month), sql.Identifier(column)
                )
            )
        connection.execute(
            sql.SQL("ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
                public(table), public(month), *_bounds(first)
            )
        )
    return True


def bring_back_metadata(connection: psycopg.Connection[Any], archive: str) -> int:
    """Put the rows of a plain table's archive back; returns how many there were."""
    if connection.execute("SELECT to_regclass(%s)", [f"{archive}.{METADATA}"]).fetchone() == (None,):
        return 0
    columns = sql.SQL(", ").join(map(sql.Identifier, _METADATA_COLUMNS))
    source = sql.Identifier(archive, METADATA)
    with connection.transaction():
        moved = connection.execute(
            sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(
                public(METADATA), columns, columns, source
            )
        ).rowcount
        connection.execute(sql.SQL("TRUNCATE {}").format(source))
    if moved:
        connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(public(METADATA)))
    return moved


@contextlib.contextmanager
def copied(source: psycopg.Connection[Any], table: str) -> Iterator[Iterator[bytes | bytearray | memoryview]]:
    """All rows of a table, as COPY sends them."""
    query = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT (FORMAT binary)").format(public(table))
    with source.cursor().copy(query) as copy:
        yield iter(copy)


def public(name: str) -> sql.Identifier:
    """A table of the application's."""
    return sql.Identifier("public", name)


def _bounds(first: date) -> Sequence[sql.Literal]:
    return [sql.Literal(first.isoformat()), sql.Literal(generate.following(first).isoformat())]


def _children(connection: psycopg.Connection[Any], table: str) -> list[str]:
    return [
        name
        for (name,) in connection.execute(
            "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = %s::regclass",
            [f"public.{table}"],
        )
    ]


_METADATA_COLUMNS = (
    "transaction_id",
    "partition_date",
    "merchant_data",
    "customer_data",
    "device_fingerprint",
    "geolocation_data",
    "custom_fields",
)
