"""000's own views: the same five with `CURRENT_TIMESTAMP AS last_updated` in every row, as its document has them."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from fleet.names import RelationName

SCHEMA = "as_documented"


def build(connection: psycopg.Connection[Any], views: tuple[str, ...]) -> tuple[str, ...]:
    """Build them beside the others, over the same definitions, each with its unique index; returns their names.

    `views` upstream first. The definitions come from the catalogue, which prints the views that they read with
    their schema: those become the documented ones.
    """
    built: dict[str, str] = {}
    with connection.transaction():
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(SCHEMA)))
        connection.execute("SELECT set_config('search_path', 'pg_catalog', true)")
        for view in views:
            name = RelationName.parse(view)
            row = connection.execute(
                "SELECT pg_get_viewdef(%s::regclass),"
                " (SELECT array_agg(a.attname::text ORDER BY k.position) FROM pg_index x"
                "   CROSS JOIN LATERAL unnest(x.indkey::int2[]) WITH ORDINALITY AS k (number, position)"
                "   JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.number"
                "  WHERE x.indrelid = %s::regclass AND x.indisunique)",
                (view, view),
            ).fetchone()
            assert row is not None  # a view of the sample system
            definition: str = row[0].rstrip(" ;")
            for read, instead in built.items():
                definition = definition.replace(read, instead)
            copy = RelationName(SCHEMA, name.name)
            connection.execute(
                sql.SQL(
                    "CREATE MATERIALIZED VIEW {} AS SELECT v.*, CURRENT_TIMESTAMP AS last_updated FROM ({}) AS v"
                ).format(copy.identifier(), sql.SQL(definition))  # the catalogue's own text
            )
            connection.execute(
                sql.SQL("CREATE UNIQUE INDEX ON {} ({})").format(
                    copy.identifier(), sql.SQL(", ").join(map(sql.Identifier, row[1]))
                )
            )
            built[view] = str(copy)
    return tuple(built.values())
