"""A tick's first look: which of its views need no refresh, told for all of them by one reading of the counters.

A view that nothing happened to costs a row in the ledger, not a message: with thousands of views, and with one
whose sources rest, that is most of what a tick does. What cannot be verified here is left to the view's own run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from fleet import settings
from fleet.names import RelationName
from fleet.postgres.catalog.server import Server, read_server
from tasks.refresh import view as views
from tasks.refresh.plan import Demand, changed, order, satisfied, upstream_needs
from tasks.refresh.readings import take_readings
from tasks.refresh.view import SourceReading, Subject


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A view that is fresh for a slot without a refresh.

    `entry` and `slot` are the key of the run that this spares: the tick's own, or for a view that one of the
    tick's is built on, that of its own tier. `by_counters`: not by a refresh that was later than the slot.
    """

    view: RelationName
    entry: str
    slot: datetime
    reason: str
    by_counters: bool


def verify(
    connection: psycopg.Connection[Any],
    database: settings.Database,
    targets: Iterable[RelationName],
    *,
    entry: str,
    slot: datetime,
) -> tuple[list[Verified], Server]:
    """Read the state and the counters of the targets and of what they are built on, and judge them.

    No lock is needed. The clock is read before the counters, so what is verified holds for the server's clock
    whatever a refresh of the same view does meanwhile; it can only make the view younger.
    """
    subjects = views.look_at(connection, database, targets)
    server = read_server(connection)
    if server.in_recovery or not subjects:
        return [], server
    readings = take_readings(connection, subjects.values(), server)
    return unchanged(subjects, targets, server=server, readings=readings, entry=entry, slot=slot), server


def unchanged(
    subjects: Mapping[RelationName, Subject],
    targets: Iterable[RelationName],
    *,
    server: Server,
    readings: Mapping[RelationName, SourceReading],
    entry: str,
    slot: datetime,
) -> list[Verified]:
    """The views that are fresh for their slots as they are; upstream first, each only if all its upstream is."""
    wanted = {name: (entry, slot) for name in targets if name in subjects}
    for name in list(wanted):
        for need in upstream_needs(subjects, name, as_of=slot, demand=Demand.TICK):
            wanted.setdefault(need.view, (need.entry, need.slot))
    found: dict[RelationName, Verified] = {}
    for name in order(subjects):
        if name not in wanted:
            continue
        subject, (by, at) = subjects[name], wanted[name]
        fresh = satisfied(subject, server, as_of=at, demand=Demand.TICK)
        if not fresh and (
            any(upstream not in found for upstream in subject.upstream)
            or changed(subject, server, readings[name], Demand.TICK) is not None
        ):
            continue
        found[name] = Verified(
            view=name,
            entry=by,
            slot=at,
            reason="already fresh" if fresh else "its sources have not changed",
            by_counters=not fresh,
        )
    return list(found.values())
