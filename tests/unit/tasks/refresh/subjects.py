"""Views for tests of pure decisions, made without a database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from fleet import settings
from fleet.names import RelationName
from fleet.postgres.catalog.definition import Definition, DefinitionClass
from fleet.postgres.catalog.reading import Markers, Reading, RelationReading
from fleet.postgres.catalog.server import Server
from fleet.postgres.catalog.sources import Source, SourceKind
from fleet.postgres.catalog.views import MaterializedView
from tasks.refresh.view import SourceReading, Subject, ViewState

NOW = datetime(2026, 3, 2, 12, 7, tzinfo=UTC)
SOURCE_OID = 900
TIERS = settings.model.BUILT_IN_TIERS

SERVER = Server(
    version_num=180000,
    system_identifier="7",
    timeline=1,
    in_recovery=False,
    timezone="UTC",
    settings_hash="h",
    today=date(2026, 3, 2),
    clock=NOW,
)


def name(text: str) -> RelationName:
    return RelationName("public", text)


def reading(
    inserted: int = 10,
    *,
    today: date = SERVER.today,
    refresh_ids: dict[str, int] | None = None,
    hash_: str = "h",
) -> SourceReading:
    relation = RelationReading(
        name="public.t", kind=SourceKind.TABLE, filenode=1, inserted=inserted, updated=0, deleted=0
    )
    markers = Markers(
        database=1, system_identifier=7, timeline=1, started_us=0, reset_us=None, crash_us=None, counted=True
    )
    return SourceReading(
        sources=Reading(taken_at=NOW, relations={SOURCE_OID: relation}, markers=markers),
        settings_hash=hash_,
        today=today,
        refresh_ids=refresh_ids or {},
    )


def subject(
    text: str,
    tier: str = "five_minutes",
    *,
    oid: int = 100,
    upstream: Iterable[str] = (),
    kind: DefinitionClass = DefinitionClass.DATA,
    found: dict[str, Any] | None = None,
    state: dict[str, Any] | None = None,
    view: dict[str, Any] | None = None,
) -> Subject:
    """A populated, eligible view over one table, never refreshed unless `state` says when."""
    matview = MaterializedView(
        oid=oid,
        name=name(text),
        owner="owner",
        populated=True,
        definition_hash="d",
        filenode=1,
        size_bytes=8192,
        row_estimate=1000,
        unique_index=f"{text}_key",
        unique_key=("id",),
        owner_has_temp=True,
        may_refresh=True,
    )
    return Subject(
        declared=settings.View(name=name(text), tier=tier, **(view or {})),
        tier=TIERS[tier],
        found=replace(matview, **(found or {})),
        definition=Definition(oid=oid, kind=kind, evidence=("now",), stored_timestamps=(), ordered_by=()),
        sources=(Source(oid=SOURCE_OID, name=name("t"), kind=SourceKind.TABLE, persistence="p"),),
        upstream=tuple(name(u) for u in upstream),
        unmanaged_upstream=(),
        state=known(text, oid=oid, **state) if state is not None else ViewState(view=f"public.{text}"),
    )


def known(text: str, *, oid: int = 100, ago: timedelta = timedelta(minutes=10), **changes: Any) -> ViewState:
    """The state after a refresh some time ago."""
    values: dict[str, Any] = {
        "view": f"public.{text}",
        "relation": oid,
        "definition_hash": "d",
        "system_identifier": "7",
        "timeline": 1,
        "snapshot_at": NOW - ago,
        "refresh_id": 1,
        "strategy": "concurrently",
        "duration": timedelta(seconds=1),
        "rows_changed": 10,
        "row_estimate": 1000,
        "reading": reading().to_json(),
    }
    return ViewState(**(values | changes))
