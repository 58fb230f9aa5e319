"""Named queries from .sql files, so that SQL is read, reviewed and prepared in tests as SQL.

A file holds queries of the form

    -- name: find_things
    -- Which things are there? (the question that the query answers)
    SELECT …  WHERE oid = ANY(:oids::oid[]);

and `load("fleet.postgres.catalog", "views.sql")` gives an object with one callable per name:
`queries.find_things(conn, oids=[…])`. Its `.sql` is the text for psycopg, with `:oids` turned into
`%(oids)s`, for callers with a cursor of their own.

What aiosql 15 and psycopg 3 ask of the author, each checked in the tests:

- `::type` is a cast and stays; `:name` is a parameter, also after `[` (write array slices in another way);
- a literal percent sign is `%%`, because the query is always sent with parameters;
- a comment has a line of its own, and no apostrophe if it shares one with SQL.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Protocol

import aiosql
from aiosql.types import QueryFn
from psycopg.rows import dict_row


class Queries(Protocol):
    """What a file holds, by name: `queries.find_things(conn, oids=[…])`, `queries.find_things.sql`."""

    @property
    def available_queries(self) -> list[str]:
        """The names, sorted; each query without a suffix also as `NAME_cursor`, a context manager."""

    def __getattr__(self, name: str) -> QueryFn:
        """One query."""


@cache
def load(package: str, filename: str) -> Queries:
    """The queries of a .sql file that is shipped in a package.

    Read through importlib.resources, so that it works from a wheel and a zip file alike. Rows come as
    dictionaries, whatever the connection's own row factory is. A query without a suffix returns an iterator
    and is sent when that is first asked for a row; `^` gives one row or None, `$` one value, `!` the number
    of rows.

    Raises:
        FileNotFoundError: the package has no such file.
        aiosql.SQLParseException: the file is not in aiosql's form.

    """
    text = files(package).joinpath(filename).read_text(encoding="utf-8")
    queries: Queries = aiosql.from_str(
        text, "psycopg", kwargs={"row_factory": dict_row}, mandatory_parameters=False
    )
    return queries
