"""Which relations does a materialized view take its rows from? One of them changes before the view can."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.queries import load

_sql = load("fleet.postgres.catalog", "sources.sql")


class SourceKind(StrEnum):
    """What a source is, which decides whether its changes can be counted."""

    TABLE = "table"
    PARTITIONED = "partitioned"
    """A partitioned parent has no rows and no counters of its own: its leaves are sources as well."""
    VIEW = "view"
    """A plain view on the way; what it reads is a source as well."""
    MATVIEW = "matview"
    """A leaf: its counters and its filenode tell of its own refreshes."""
    FOREIGN = "foreign"
    """Written elsewhere: its changes cannot be counted."""
    SEQUENCE = "sequence"
    """A sequence moves without a counter."""
    SYSTEM = "system"
    """A table or view of the system's own: its changes are not counted like those of tables."""

    @property
    def countable(self) -> bool:
        """Whether a reading can tell that it has not changed."""
        return self not in {SourceKind.FOREIGN, SourceKind.SEQUENCE, SourceKind.SYSTEM}

    @property
    def leaf(self) -> bool:
        """Whether rows come from it, not only through it."""
        return self not in {SourceKind.PARTITIONED, SourceKind.VIEW}


# pg_class.relkind, and what the query says of the system's own relations.
KINDS: Mapping[str, SourceKind] = {
    "r": SourceKind.TABLE,
    "p": SourceKind.PARTITIONED,
    "v": SourceKind.VIEW,
    "m": SourceKind.MATVIEW,
    "f": SourceKind.FOREIGN,
    "S": SourceKind.SEQUENCE,
    "system": SourceKind.SYSTEM,
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A relation that a materialized view reads, directly, through plain views, as a partition or as a child.

    `persistence` is pg_class.relpersistence: p(ermanent), u(nlogged), t(emporary).
    """

    oid: int
    name: RelationName
    kind: SourceKind
    persistence: str


def read_sources(
    conn: psycopg.Connection[Any], oids: Sequence[int] | None = None
) -> dict[int, tuple[Source, ...]]:
    """The closure of sources of some materialized views (None: of all), by the view's OID, ordered by name.

    Another materialized view is a leaf. Partitions and inheritance children are included at every level,
    whether attached for reading or not. An OID that is not a materialized view is left out of the answer.
    What a function reads is unknown here: its definition is opaque (see definition.py).
    """
    asked = None if oids is None else [Oid(oid) for oid in oids]
    found: dict[int, list[Source]] = {}
    for row in _sql.read_sources(conn, oids=asked):
        sources = found.setdefault(row["view"], [])
        if row["oid"] != row["view"]:
            sources.append(
                Source(
                    oid=row["oid"],
                    name=RelationName(row["schema"], row["name"]),
                    kind=KINDS[row["kind"]],
                    persistence=row["persistence"],
                )
            )
    return {view: tuple(sources) for view, sources in found.items()}


def upstream(sources: Mapping[int, Collection[Source]], views: Collection[int]) -> dict[int, frozenset[int]]:
    """The materialized views that each view reads directly or through plain views, of those in `views`.

    One step only: what these read in their turn is in their own closure.
    """
    return {
        view: frozenset(s.oid for s in closure if s.kind is SourceKind.MATVIEW and s.oid in views)
        for view, closure in sources.items()
    }
