"""What is known of a managed view: how it is declared, what the catalogue says, what its last refresh recorded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from fleet import settings
from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.definition import Definition, read_definitions
from fleet.postgres.catalog.reading import Reading
from fleet.postgres.catalog.server import Server
from fleet.postgres.catalog.sources import Source, SourceKind, read_sources
from fleet.postgres.catalog.views import MaterializedView, read_views
from fleet.postgres.queries import load

_sql = load("tasks.refresh", "sql/state.sql")

# pg_stat_force_next_flush() makes our own counters visible to the next reading at once.
FORCE_FLUSH_SINCE = 150000


@dataclass(frozen=True, kw_only=True)
class ViewState:
    """One row of upkeep.view_state.

    `snapshot_at` is a lower bound of what a real refresh saw, `verified_at` when counters said that nothing
    had changed.
    """

    view: str
    tier: str | None = None
    relation: int | None = None
    definition_hash: str | None = None
    system_identifier: str | None = None
    timeline: int | None = None
    snapshot_at: datetime | None = None
    verified_at: datetime | None = None
    refresh_id: int = 0
    run_id: int | None = None
    strategy: str | None = None
    duration: timedelta | None = None
    plain_duration: timedelta | None = None
    rows_changed: int | None = None
    row_estimate: int | None = None
    reading: Mapping[str, Any] | None = None
    upstream_stale: tuple[str, ...] | list[str] = ()


@dataclass(frozen=True, kw_only=True)
class SourceReading:
    """Everything that a view's contents depend on, read before a refresh and compared before the next.

    `refresh_ids` of the managed views it reads: their counters may lag, these do not.
    """

    sources: Reading
    settings_hash: str
    today: date
    refresh_ids: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """As upkeep.view_state keeps it."""
        return {
            "sources": self.sources.to_json(),
            "settings": self.settings_hash,
            "today": self.today.isoformat(),
            "refresh_ids": dict(self.refresh_ids),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SourceReading | None:
        """A stored reading, or None where another version wrote one that this one does not understand."""
        try:
            return cls(
                sources=Reading.from_json(stored["sources"]),
                settings_hash=stored["settings"],
                today=date.fromisoformat(stored["today"]),
                refresh_ids={str(k): int(v) for k, v in stored["refresh_ids"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A managed view with all that a decision about it needs.

    `definition` None: it has not been read; only a skip needs it.
    """

    declared: settings.View
    tier: settings.Tier
    found: MaterializedView
    definition: Definition | None
    sources: tuple[Source, ...]
    upstream: tuple[RelationName, ...]
    unmanaged_upstream: tuple[RelationName, ...]
    state: ViewState

    @property
    def name(self) -> RelationName:
        """The view's name."""
        return self.declared.name

    @property
    def leaves(self) -> tuple[int, ...]:
        """The relations whose counters say whether anything changed."""
        return tuple(s.oid for s in self.sources if s.kind.leaf)


def look(
    connection: psycopg.Connection[Any], database: settings.Database, target: RelationName
) -> dict[RelationName, Subject]:
    """A view and every managed view that it is built on, directly or not; without their definitions.

    Raises:
        PermanentError: the view is not declared, does not exist, or is something other than a materialized
        view.

    """
    database.view(target)
    subjects = _subjects(connection, database, _closure(connection, database, [target]), definitions=None)
    if target not in subjects:
        raise missing(connection, target)
    return subjects


def look_at(
    connection: psycopg.Connection[Any], database: settings.Database, targets: Iterable[RelationName]
) -> dict[RelationName, Subject]:
    """Some views and every managed view that they are built on; what does not exist is left out."""
    sources = _closure(connection, database, targets)
    definitions = read_definitions(connection, sorted(sources))
    return _subjects(connection, database, sources, definitions=definitions)


def look_at_all(
    connection: psycopg.Connection[Any], database: settings.Database
) -> tuple[dict[RelationName, Subject], dict[RelationName, PermanentError]]:
    """Every managed view of a database, and what is wrong with those that cannot be found."""
    names = {view.name: oid for oid, view in read_views(connection).items()}
    present = [names[n] for n in database.views if n in names]
    definitions = read_definitions(connection, present)
    subjects = _subjects(connection, database, read_sources(connection, present), definitions=definitions)
    return subjects, {n: missing(connection, n) for n in database.views if n not in subjects}


def followers(
    connection: psycopg.Connection[Any], database: settings.Database, subject: Subject
) -> tuple[RelationName, ...]:
    """The managed views that read this one and want to be refreshed after it."""
    asking = [view.name for view in database.views.values() if view.cascade and view.name != subject.name]
    if not asking:
        return ()
    found = connection.execute(
        _sql.materialized_views.sql,
        {"schemas": [n.schema for n in asking], "names": [n.name for n in asking]},
    )
    sources = read_sources(connection, sorted(int(oid) for (oid,) in found))
    names = {oid: view.name for oid, view in read_views(connection, list(sources)).items()}
    return tuple(
        sorted(
            names[oid]
            for oid, each in sources.items()
            if oid in names and any(source.oid == subject.found.oid for source in each)
        )
    )


def read_states(connection: psycopg.Connection[Any]) -> dict[str, ViewState]:
    """The recorded state of every view, by canonical name."""
    with connection.cursor(row_factory=class_row(ViewState)) as cursor:
        return {s.view: s for s in cursor.execute(_sql.states.sql)}


def manage(connection: psycopg.Connection[Any], database: settings.Database) -> None:
    """Tell the state which views are managed, and in which tier: what upkeep.view_freshness shows."""
    views = [(str(v.name), v.tier) for v in database.views.values()]
    connection.execute(_sql.manage.sql, {"views": [v for v, _ in views], "tiers": [t for _, t in views]})


def record_verified(connection: psycopg.Connection[Any], names: Iterable[RelationName], at: datetime) -> None:
    """Counters said at `at` that nothing had changed since the recorded readings of these views."""
    connection.execute(_sql.verified.sql, {"views": [str(n) for n in names], "verified_at": at})


def record_refresh(
    connection: psycopg.Connection[Any],
    subject: Subject,
    *,
    server: Server,
    snapshot_at: datetime,
    run_id: int,
    strategy: str,
    duration: timedelta,
    plain: bool,
    rows_changed: int,
    row_estimate: int | None,
    reading: SourceReading,
    upstream_stale: Iterable[str],
) -> int:
    """Record a real refresh; call it in the refresh's transaction. Returns the view's new refresh id."""
    row = connection.execute(
        _sql.refreshed.sql,
        {
            "view": str(subject.name),
            "tier": subject.declared.tier,
            "relation": subject.found.oid,
            "definition_hash": subject.found.definition_hash,
            "system_identifier": server.system_identifier,
            "timeline": server.timeline,
            "snapshot_at": snapshot_at,
            "run_id": run_id,
            "strategy": strategy,
            "duration": duration,
            "plain_duration": duration if plain else None,
            "rows_changed": rows_changed,
            "row_estimate": row_estimate,
            "reading": Jsonb(reading.to_json()),
            "upstream_stale": sorted(upstream_stale),
        },
    ).fetchone()
    assert row is not None  # INSERT … ON CONFLICT DO UPDATE always returns its row
    return int(row[0])


def record_too_slow(connection: psycopg.Connection[Any], view: RelationName, at_least: timedelta) -> None:
    """A bounded plain refresh ran out of its time."""
    connection.execute(_sql.too_slow_for_plain.sql, {"view": str(view), "at_least": at_least})


def rows_written(connection: psycopg.Connection[Any], relation: int, server: Server) -> int:
    """Rows that this session has counted as written to a relation: in its transaction, and before, if not sent off.

    Where the server can, the counters are sent off with the commit.
    """
    query = _sql.rows_written_and_told if server.version_num >= FORCE_FLUSH_SINCE else _sql.rows_written
    row = connection.execute(query.sql, {"relation": relation}).fetchone()
    assert row is not None  # SELECT without FROM
    return int(row[0])


def _closure(
    connection: psycopg.Connection[Any], database: settings.Database, targets: Iterable[RelationName]
) -> dict[int, tuple[Source, ...]]:
    """The sources of the targets and of the managed views among those, as far down as there are any."""
    targets = list(targets)
    found = connection.execute(
        _sql.materialized_views.sql,
        {"schemas": [n.schema for n in targets], "names": [n.name for n in targets]},
    )
    asked = {int(oid) for (oid,) in found}
    sources: dict[int, tuple[Source, ...]] = {}
    while asked:
        sources |= read_sources(connection, sorted(asked))
        read = {s for oid in asked for s in sources.get(oid, ()) if s.kind is SourceKind.MATVIEW}
        asked = {s.oid for s in read if s.name in database.views} - sources.keys()
    return sources


def _subjects(
    connection: psycopg.Connection[Any],
    database: settings.Database,
    sources: Mapping[int, tuple[Source, ...]],
    *,
    definitions: Mapping[int, Definition] | None,
) -> dict[RelationName, Subject]:
    """The managed views whose sources have been read, and their definitions, unless nobody wants those."""
    oids = list(sources)
    states = read_states(connection)
    subjects = {}
    for oid, found in read_views(connection, oids).items():
        if found.name not in database.views or (definitions is not None and oid not in definitions):
            continue
        declared = database.view(found.name)
        upstream = sorted(s.name for s in sources[oid] if s.kind is SourceKind.MATVIEW)
        subjects[found.name] = Subject(
            declared=declared,
            tier=database.tier(declared.tier),
            found=found,
            definition=None if definitions is None else definitions[oid],
            sources=sources[oid],
            upstream=tuple(n for n in upstream if n in database.views),
            unmanaged_upstream=tuple(n for n in upstream if n not in database.views),
            state=states.get(str(found.name), ViewState(view=str(found.name))),
        )
    return subjects


_KINDS = {
    "r": "a table",
    "v": "a plain view",
    "p": "a partitioned table",
    "f": "a foreign table",
    "i": "an index",
    "S": "a sequence",
    "c": "a type",
}


def missing(connection: psycopg.Connection[Any], name: RelationName) -> PermanentError:
    """Why a declared view is not among the materialized views, and what its name may have meant."""
    kind, like = connection.execute(
        _sql.other_relation.sql, {"schema": name.schema, "name": name.name}
    ).fetchone() or (None, None)
    if kind is not None:
        return PermanentError(
            f"{name} is {_KINDS.get(kind, 'not a view')}, not a materialized view",
            remedy="Only materialized views are refreshed; take it out of upkeep.toml",
        )
    hint = "Create it, or take it out of upkeep.toml"
    if like:
        hint = (
            f"Did you mean {', '.join(str(RelationName(*n)) for n in like)}? Else {hint[0].lower()}{hint[1:]}"
        )
    return PermanentError(f"The materialized view {name} does not exist", remedy=hint)
