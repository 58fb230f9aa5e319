"""pg_partman 4.7 beside us, from Debian's packages: its own names, no parts by hash, and no archive but another schema.

It looks for its months by their names (transactions_p2026_01), so that it has tables of its own with the same rows.
It cannot divide a month by hash, and knows nothing of foreign keys: what refers to the month is moved by hand before.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.partitions import tables
from benchmarks.partitions.contenders import take_metadata
from benchmarks.partitions.tables import ELSEWHERE, HOT, METADATA, Before, Calendar
from benchmarks.stage import Place
from examples import run_script
from examples.transactions import __file__ as _example

DEBIAN = Path("/usr/lib/postgresql/15/bin")
CONTROL = Path("/usr/share/postgresql/15/extension/pg_partman.control")
CANNOT = "months without parts by hash, which it cannot make"

_SCRIPTS = Path(_example).parent
# As it leaves them: default partition, LIKE and ATTACH, one transaction for all sets.
_ADOPT = """
SELECT partman.create_parent(%(table)s, 'partition_date', 'native', 'monthly',
                             p_premake => %(ahead)s, p_start_partition => %(from)s)
"""
# Without it a table without rows gets no month: it counts from the youngest row.
_INFINITE = "UPDATE partman.part_config SET infinite_time_partitions = true, retention_keep_table = true"
_RETAIN = """
UPDATE partman.part_config SET retention = %(retention)s, retention_schema = 'elsewhere'
 WHERE parent_table = 'public.transactions'
"""
_RETAIN_ALL = "UPDATE partman.part_config SET retention = NULL, retention_schema = NULL"


def server() -> Path | None:
    """Debian's server, where it and the extension are installed."""
    return DEBIAN if (DEBIAN / "postgres").exists() and CONTROL.exists() else None


@dataclass(kw_only=True)
class Partman:
    """run_maintenance, as pg_partman's own scheduler calls it."""

    place: Place
    superuser: psycopg.Connection[Any]
    calendar: Calendar
    before: Before

    @classmethod
    def install(
        cls, place: Place, base: Place, superuser: psycopg.Connection[Any], calendar: Calendar
    ) -> Partman:
        """The five tables as pg_partman makes them, with the same rows as everybody's."""
        superuser.execute("CREATE SCHEMA partman; CREATE EXTENSION pg_partman SCHEMA partman")
        with place.owner() as connection:
            run_script(connection, _SCRIPTS / "schema.sql")
            _adopt(superuser, HOT, calendar.due, calendar.extent.ahead)
            with base.owner() as source:
                _copy(source, connection, HOT)
                run_script(connection, _SCRIPTS / "indexes.sql")
                tables.make_plain(connection)
                _copy(source, connection, METADATA)
            for table in calendar.extent.tables[1:]:
                tables.like(connection, table)
                _adopt(superuser, table, calendar.firsts_of_others[0], calendar.extent.ahead)
            connection.execute("SELECT setval('public.transactions_transaction_id_seq', 100000000)")
            connection.execute("CREATE SCHEMA elsewhere")
            connection.execute(
                "CREATE TABLE elsewhere.transaction_metadata (LIKE public.transaction_metadata INCLUDING DEFAULTS)"
            )
            connection.execute("VACUUM (ANALYZE)")
        superuser.execute(_INFINITE)
        made = Before.of(superuser, calendar.extent.tables)
        ahead = {_name(table, first) for table in calendar.extent.tables for first in calendar.ahead}
        before = Before(children={table: names - ahead for table, names in made.children.items()})
        # It makes months ahead at once; they are to be made while the application works.
        tables.drop_new(superuser, before)
        return cls(place=place, superuser=superuser, calendar=calendar, before=before)

    def create(self) -> None:
        """All five in one transaction, as the function does it."""
        self.superuser.execute("SELECT partman.run_maintenance()")

    def move(self) -> None:
        """To the schema; nothing attaches it to an archive."""
        take_metadata(self.superuser, self.calendar)
        self.superuser.execute(_RETAIN, {"retention": f"{self.calendar.extent.hot_months} months"})
        self.superuser.execute("SELECT partman.run_maintenance('public.transactions')")

    def undo(self) -> None:
        """Drop what has been made, put back what has been moved."""
        due = self.calendar.due
        self.superuser.execute(_RETAIN_ALL)
        tables.drop_new(self.superuser, self.before)
        tables.bring_back(self.superuser, HOT, _name(HOT, due), due)
        tables.bring_back_metadata(self.superuser, ELSEWHERE)


def _adopt(superuser: psycopg.Connection[Any], table: str, first: date, ahead: int) -> None:
    superuser.execute(_ADOPT, {"table": f"public.{table}", "ahead": ahead, "from": f"{first}"})


def _copy(source: psycopg.Connection[Any], target: psycopg.Connection[Any], table: str) -> None:
    statement = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(tables.public(table))
    with tables.copied(source, table) as blocks, target.cursor().copy(statement) as copy:
        for block in blocks:
            copy.write(block)


def _name(table: str, first: date) -> str:
    return f"{table}_p{first:%Y_%m}"


__all__ = ["CONTROL", "DEBIAN", "Partman", "server"]
