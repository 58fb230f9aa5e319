"""Which materialized views a database has, and what is in the way of refreshing each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.queries import load

_sql = load("fleet.postgres.catalog", "views.sql")


@dataclass(frozen=True, kw_only=True)
class MaterializedView:
    """A materialized view as the catalogue knows it; no lock on it was needed to know this.

    `definition_hash` changes when the view, a plain view that it inlines, or a function that these call
    directly is defined anew in another way; it depends on no session setting.
    `size_bytes` and `row_estimate` (None: never counted) are as of the last VACUUM, ANALYZE or index build;
    a plain refresh of an indexed view is one.
    `unique_index` makes the view eligible for CONCURRENTLY once it is populated, `unique_key` are its key
    columns: indisunique, indisvalid, indimmediate, no predicate, no expression (REFRESH MATERIALIZED VIEW's
    own rule, matview.c). Of several it is the one with the fewest columns, then the first by name; it is in
    the view's schema.
    `owner_has_temp`: CONCURRENTLY creates a temporary table as the view's owner, whoever calls it.
    `may_refresh`: the current user owns the view, is a member of its owner, or holds MAINTAIN on 17 and
    later, and may use its schema.
    """

    oid: int
    name: RelationName
    owner: str
    populated: bool
    definition_hash: str
    filenode: int
    size_bytes: int
    row_estimate: int | None
    unique_index: str | None
    unique_key: tuple[str, ...]
    owner_has_temp: bool
    may_refresh: bool


def read_views(
    conn: psycopg.Connection[Any], oids: Sequence[int] | None = None
) -> dict[int, MaterializedView]:
    """Some materialized views of the connected database (None: all), by OID; what is none is left out.

    Works in autocommit and in a transaction, waits for no lock, reads no table of the user's.
    """
    return {
        row["oid"]: MaterializedView(
            oid=row["oid"],
            name=RelationName(row["schema"], row["name"]),
            owner=row["owner"],
            populated=row["populated"],
            definition_hash=row["definition_hash"],
            filenode=row["filenode"],
            size_bytes=row["size_bytes"],
            row_estimate=row["row_estimate"],
            unique_index=row["unique_index"],
            unique_key=tuple(row["unique_key"] or ()),
            owner_has_temp=row["owner_has_temp"],
            may_refresh=row["may_refresh"],
        )
        for row in _sql.read_views(conn, oids=None if oids is None else [Oid(oid) for oid in oids])
    }
