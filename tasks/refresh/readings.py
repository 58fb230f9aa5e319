"""Takes what views' contents depend on, before a refresh or instead of one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

import psycopg

from fleet.names import RelationName
from fleet.postgres.catalog.reading import read_reading
from fleet.postgres.catalog.server import Server
from tasks.refresh import view as views
from tasks.refresh.view import SourceReading, Subject


def take_readings(
    connection: psycopg.Connection[Any], subjects: Iterable[Subject], server: Server
) -> dict[RelationName, SourceReading]:
    """Read once for all of them; before a refresh, so that a reading errs towards one refresh too many."""
    subjects = list(subjects)
    states = views.read_states(connection) if any(s.upstream for s in subjects) else {}
    taken = read_reading(connection, sorted({oid for s in subjects for oid in s.leaves}))
    readings = {}
    for subject in subjects:
        zone = subject.declared.timezone
        readings[subject.name] = SourceReading(
            sources=replace(taken, relations={oid: taken.relations[oid] for oid in subject.leaves}),
            settings_hash=server.settings_hash,
            today=server.clock.astimezone(ZoneInfo(zone)).date() if zone else server.today,
            refresh_ids={str(n): states[str(n)].refresh_id for n in subject.upstream if str(n) in states},
        )
    return readings
