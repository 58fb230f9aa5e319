"""What two readings say to each other, without a server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet.postgres.catalog.reading import Markers, Reading, RelationReading
from fleet.postgres.catalog.sources import SourceKind

MARKERS = Markers(
    database=5, system_identifier=7, timeline=1, started_us=1, reset_us=None, crash_us=2, counted=True
)
TABLE = RelationReading(
    name="public.t", kind=SourceKind.TABLE, filenode=100, inserted=5, updated=6, deleted=7
)
READING = Reading(taken_at=datetime(2024, 5, 1, tzinfo=UTC), relations={100: TABLE}, markers=MARKERS)


def later(**changes: Any) -> Reading:
    return replace(
        READING, taken_at=READING.taken_at + timedelta(seconds=1), relations={100: replace(TABLE, **changes)}
    )


def test_the_same() -> None:
    assert later().difference(READING) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inserted": 5_005}, "public.t: 5,000 rows inserted"),
        (
            {"inserted": 6, "updated": 8, "deleted": 8},
            "public.t: 1 row inserted, 2 rows updated, 1 row deleted",
        ),
        ({"filenode": 101}, "public.t: truncated or rewritten"),
        ({"filenode": 101, "inserted": 6}, "public.t: 1 row inserted, truncated or rewritten"),
        ({"inserted": 4, "updated": 100}, "public.t: the counters began anew"),
        ({"kind": SourceKind.PARTITIONED}, "public.t: now a partitioned table"),
        ({"kind": None}, "public.t: does not exist"),
        ({"kind": SourceKind.FOREIGN}, "public.t: a foreign table, whose changes cannot be counted"),
    ],
)
def test_a_relation(changes: dict[str, Any], said: str) -> None:
    assert later(**changes).difference(READING) == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"database": 6}, "another database"),
        ({"system_identifier": 6}, "another server"),
        ({"timeline": 2}, "restored or promoted"),
        ({"started_us": 2}, "restarted"),
        ({"reset_us": 2}, "were reset"),
        ({"crash_us": None}, "crash"),
        ({"counted": False}, "track_counts"),
    ],
)
def test_markers(changes: dict[str, Any], said: str) -> None:
    other = replace(later(), markers=replace(MARKERS, **changes))
    assert said in (other.difference(READING) or "")
    if "counted" in changes:
        assert said in (
            replace(later(), markers=MARKERS).difference(replace(READING, markers=other.markers)) or ""
        )


def test_from_the_future() -> None:
    assert "future" in (READING.difference(later()) or "")


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"format": 0},
        {**READING.to_json(), "format": 99},
        {**READING.to_json(), "relations": {"100": ["public.t"]}},
        {**READING.to_json(), "relations": {"100": ["public.t", "nonsense", 1, 1, 1, 1]}},
        {**READING.to_json(), "markers": {}},
        {**READING.to_json(), "taken_us": "yesterday"},
    ],
)
def test_what_another_version_stored(stored: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="reading"):
        Reading.from_json(stored)


def test_json_is_the_reading() -> None:
    assert Reading.from_json(READING.to_json()) == READING
