"""Have the sources of a view changed? Told by counters that the server keeps anyway, reading no row.

The rules are measured (facts on refreshing, "Change detection by counters"): a reading is taken *before* a
refresh and compared with the next one. A counter may lag behind a commit, which makes a later reading
differ, never an earlier one agree wrongly for good. TRUNCATE and rewrites do not count, but give the
relation another file.

The lag has no bound for a session that stays in a transaction, nor, on PostgreSQL 14, for any session that
falls silent within half a second of its last statement (5 rows were still uncounted after 25 s; 15 and later
publish after 10 s): whoever skips on the strength of a reading must refresh now and then all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.types.numeric import Oid

from fleet.names import RelationName
from fleet.postgres.catalog.sources import KINDS, SourceKind
from fleet.postgres.queries import load

_sql = load("fleet.postgres.catalog", "reading.sql")

# Of the stored form. A reading in another one is never equal to ours.
FORMAT = 1

# How many relations a difference names before it only counts them.
NAMED_RELATIONS = 3

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class RelationReading:
    """One relation at one moment.

    `kind` None: it does not exist. `filenode` None: it has no file (a view, a partitioned parent, a foreign
    table). The counters are rows since they last began at zero, rolled-back ones included.
    """

    name: str
    kind: SourceKind | None
    filenode: int | None
    inserted: int
    updated: int
    deleted: int

    def difference(self, earlier: RelationReading) -> str | None:
        """What happened to the relation since `earlier`, in words without its name; None for nothing."""
        if self.kind is None:
            return "does not exist"
        if not self.kind.countable:
            return f"a {_CALLED[self.kind]}, whose changes cannot be counted"
        if self.kind is not earlier.kind:
            return f"now a {_CALLED[self.kind]}"
        counts = [
            (now - then, what)
            for now, then, what in (
                (self.inserted, earlier.inserted, "inserted"),
                (self.updated, earlier.updated, "updated"),
                (self.deleted, earlier.deleted, "deleted"),
            )
            if now != then
        ]
        if any(count < 0 for count, _ in counts):
            return "the counters began anew"
        said = [f"{count:,} {'row' if count == 1 else 'rows'} {what}" for count, what in counts]
        if self.filenode != earlier.filenode:
            said.append("refreshed" if self.kind is SourceKind.MATVIEW else "truncated or rewritten")
        return ", ".join(said) or None


_CALLED: Mapping[SourceKind, str] = {
    SourceKind.TABLE: "table",
    SourceKind.PARTITIONED: "partitioned table",
    SourceKind.VIEW: "view",
    SourceKind.MATVIEW: "materialized view",
    SourceKind.FOREIGN: "foreign table",
    SourceKind.SEQUENCE: "sequence",
    SourceKind.SYSTEM: "relation of the system",
}


@dataclass(frozen=True, kw_only=True)
class Markers:
    """What has to be the same for two readings' counters to be comparable. Times are microseconds since 1970.

    A crash sets counters to zero while the postmaster may live on: then the background writer's statistics
    carry the time of it. `counted` is False where track_counts is off here, or for any role in this
    database.
    """

    database: int
    system_identifier: int
    timeline: int
    started_us: int
    reset_us: int | None
    crash_us: int | None
    counted: bool

    def difference(self, earlier: Markers) -> str | None:
        """Why counters of the two moments cannot be compared; None if they can."""
        if not (self.counted and earlier.counted):
            return "track_counts is off, changes are not counted"
        for name, why in _WHAT_CHANGED.items():
            if getattr(self, name) != getattr(earlier, name):
                return why
        return None


_WHAT_CHANGED: Mapping[str, str] = {
    "system_identifier": "the earlier reading is of another server",
    "database": "the earlier reading is of another database",
    "timeline": "the server was restored or promoted",
    "reset_us": "the statistics of the database were reset",
    "started_us": "the server was restarted",
    "crash_us": "the statistics of the server were reset, by a crash or by hand",
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The counters of a set of relations at one moment of the server's clock."""

    taken_at: datetime
    relations: Mapping[int, RelationReading]
    markers: Markers
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, one short list per relation: a reading is stored with every refresh."""
        return {
            "format": self.format,
            "taken_us": (self.taken_at - _EPOCH) // timedelta(microseconds=1),
            "markers": asdict(self.markers),
            "relations": {
                str(oid): [r.name, r.kind, r.filenode, r.inserted, r.updated, r.deleted]
                for oid, r in self.relations.items()
            },
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """A stored reading.

        Raises:
            ValueError: another version of Upkeep stored it; there is nothing to compare with, so the view
            is stale.

        """
        if stored.get("format") != FORMAT:
            raise ValueError(f"a reading in format {stored.get('format')!r}, not {FORMAT}")
        try:
            return cls(
                taken_at=_EPOCH + timedelta(microseconds=stored["taken_us"]),
                markers=Markers(**stored["markers"]),
                relations={
                    int(oid): RelationReading(
                        name=name,
                        kind=None if kind is None else SourceKind(kind),
                        filenode=filenode,
                        inserted=inserted,
                        updated=updated,
                        deleted=deleted,
                    )
                    for oid, (name, kind, filenode, inserted, updated, deleted) in stored["relations"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"a damaged reading: {error}") from error

    def difference(self, earlier: Reading) -> str | None:
        """Why the relations may have changed since `earlier`, in words; None if they certainly have not.

        "public.payment: 5,000 rows inserted". When in doubt there is a difference: it costs one refresh.
        """
        if why := self.markers.difference(earlier.markers):
            return why
        if earlier.taken_at > self.taken_at:
            return "the earlier reading is from the future of the server's clock"
        said = []
        for oid, now in self.relations.items():
            then = earlier.relations.get(oid)
            what = "a new source" if then is None else now.difference(then)
            if what:
                said.append(f"{now.name}: {what}")
        said += [
            f"{then.name}: no longer a source"
            for oid, then in earlier.relations.items()
            if oid not in self.relations
        ]
        if not said:
            return None
        if len(said) > NAMED_RELATIONS:
            rest = len(said) - NAMED_RELATIONS
            said[NAMED_RELATIONS:] = [f"and {rest} more {'relation' if rest == 1 else 'relations'}"]
        return "; ".join(said)


def read_reading(conn: psycopg.Connection[Any], oids: Sequence[int]) -> Reading:
    """Read the counters of some relations: the leaves of a closure (more of it does no harm).

    One statement with one row per relation. Best in autocommit; in a transaction the statistics that it has
    read before are discarded first, because the server would return the same again.
    """
    if conn.info.transaction_status is not TransactionStatus.IDLE:
        _sql.forget_snapshot(conn)
    row = _sql.read_reading(conn, oids=[Oid(oid) for oid in oids])
    return Reading(
        taken_at=_EPOCH + timedelta(microseconds=row["taken_us"]),
        markers=Markers(**{field.name: row[field.name] for field in fields(Markers)}),
        relations=dict(_relations(row)),
    )


def _relations(row: Mapping[str, Any]) -> Iterator[tuple[int, RelationReading]]:
    columns = ("oids", "schemas", "names", "kinds", "filenodes", "inserted", "updated", "deleted")
    for oid, schema, name, kind, filenode, inserted, updated, deleted in zip(
        *(row[column] or () for column in columns), strict=True
    ):
        exists = name is not None
        yield (
            oid,
            RelationReading(
                name=str(RelationName(schema, name)) if exists else f"the relation with OID {oid}",
                kind=KINDS.get(kind) if exists else None,
                filenode=filenode,
                inserted=inserted,
                updated=updated,
                deleted=deleted,
            ),
        )
