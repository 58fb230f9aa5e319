"""The sample systems that the demo, the tests and the benchmarks keep fresh, and what they need to be loaded.

Each of them has the same face: `VIEWS` (upstream first), `TIERS`, `CONFIG` (its upkeep.toml), `install`,
`write` and `touch_all`. payments has no views, and so nothing to touch: a job works on what it writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow, tuple_row

# What one COPY message carries. Measured: from 64 kB on, the server is the one that waits for rows.
COPY_BLOCK_CHARACTERS = 128 * 1024


def run_script(conn: psycopg.Connection[Any], path: Path) -> None:
    """Send a whole .sql file; it has no parameters, so the server takes all its statements at once."""
    cursor(conn).execute(path.read_bytes())


def copy_rows(
    conn: psycopg.Connection[Any],
    table: sql.Identifier,
    columns: Iterable[str],
    rows: Iterable[str],
) -> None:
    """Stream rows of COPY's text format, each one or more lines ended by a newline, into a table.

    The table must have been created in the same transaction: FREEZE writes the rows as VACUUM would leave
    them, so that the first refresh of a view does not pay for their hint bits.
    """
    statement = sql.SQL("COPY {table} ({columns}) FROM STDIN WITH (FREEZE)").format(
        table=table, columns=sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with cursor(conn).copy(statement) as copy:
        for block in _blocks(rows):
            copy.write(block)


def continue_numbering(conn: psycopg.Connection[Any], table: sql.Identifier) -> None:
    """Let the identity column `id` go on after the loaded ids, which COPY did not take from it."""
    cursor(conn).execute(
        sql.SQL("SELECT setval(pg_get_serial_sequence({name}, 'id'), max(id)) FROM {table}").format(
            name=sql.Literal(table.as_string()), table=table
        )
    )


def refresh(conn: psycopg.Connection[Any], views: Iterable[str]) -> None:
    """Populate views in the order given, plainly: nobody reads them yet."""
    for view in views:
        schema, name = view.split(".")
        cursor(conn).execute(
            sql.SQL("REFRESH MATERIALIZED VIEW {view}").format(view=sql.Identifier(schema, name))
        )


def cursor(conn: psycopg.Connection[Any]) -> psycopg.Cursor[TupleRow]:
    """A cursor that returns tuples, whatever row factory the caller's connection has."""
    return conn.cursor(row_factory=tuple_row)


def _blocks(rows: Iterable[str]) -> Iterator[str]:
    block: list[str] = []
    size = 0
    for row in rows:
        block.append(row)
        size += len(row)
        if size >= COPY_BLOCK_CHARACTERS:
            yield "".join(block)
            block.clear()
            size = 0
    if block:
        yield "".join(block)
