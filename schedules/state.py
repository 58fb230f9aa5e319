"""How far each entry has been put into the ledger, and what is paused: rows in the home database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from fleet.errors import PermanentError
from fleet.postgres.queries import load
from schedules.entries import Entry

_sql = load("schedules", "sql/state.sql")

# Of a row. One in a higher format was written by a newer Upkeep.
FORMAT = 1
# Held by the session of the scheduler that leads.
LEADER = "upkeep/scheduler"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryState:
    """One row of upkeep.schedule_state."""

    entry: str
    definition: Mapping[str, Any]
    last_slot: datetime
    paused_at: datetime | None = None
    paused_by: str | None = None
    pause_reason: str | None = None
    removed_at: datetime | None = None
    """Since when it is declared no longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """What the home database says to the scheduler that leads."""

    clock: datetime
    leads: bool
    in_recovery: bool
    paused: frozenset[str]


def refuse_newer(connection: psycopg.Connection[Any]) -> None:
    """Stop where a newer version has written rows that this one would misread.

    Raises:
        PermanentError: with the entries and the remedy.
    """
    found = connection.execute(_sql.newer_rows.sql, {"format": FORMAT}).fetchall()
    if found:
        names = ", ".join(f"{entry} (format {form})" for entry, form in found[:3])
        rows = "a row" if len(found) == 1 else f"{len(found)} rows"
        raise PermanentError(
            f"upkeep.schedule_state has {rows} of a newer version of Upkeep: {names}",
            remedy=f"Upgrade Upkeep here: this version knows format {FORMAT}",
        )


def reconcile(
    connection: psycopg.Connection[Any], entries: Iterable[Entry], now: datetime
) -> dict[str, EntryState]:
    """Make the declared entries known and return their states; one that is new or changed begins now."""
    refuse_newer(connection)
    declared = [{"entry": e.name, "definition": e.definition} for e in entries]
    connection.execute(_sql.reconcile.sql, {"entries": Jsonb(declared), "now": now})
    return read_states(connection)


def read_states(connection: psycopg.Connection[Any], *, removed: bool = False) -> dict[str, EntryState]:
    """The states of the declared entries, by name; with `removed` also of those that no scheduler declares any more."""
    with connection.cursor(row_factory=class_row(EntryState)) as cursor:
        found = cursor.execute(_sql.read_states.sql, {"removed": removed}).fetchall()
    return {state.entry: state for state in found}


def declare(connection: psycopg.Connection[Any], entry: Entry) -> None:
    """Make an entry known that no scheduler has made known yet, so that it can be paused before its first slot."""
    connection.execute(_sql.declare.sql, {"entry": entry.name, "definition": Jsonb(entry.definition)})


def heartbeat(connection: psycopg.Connection[Any]) -> Heartbeat:
    """Ask the home database for the time, and whether this session leads still."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_sql.heartbeat.sql, {"key": LEADER}).fetchone()
    assert row is not None  # SELECT without FROM
    return Heartbeat(**row | {"paused": frozenset(row["paused"])})


def advance(connection: psycopg.Connection[Any], slots: Mapping[str, datetime]) -> set[str]:
    """Note up to which slot entries have been put into the ledger; returns those whose rows somebody else holds."""
    names = sorted(slots)
    found = connection.execute(_sql.advance.sql, {"entries": names, "slots": [slots[n] for n in names]})
    return {entry for (entry,) in found}


def take_back(connection: psycopg.Connection[Any], entries: Iterable[str], now: datetime) -> None:
    """Say that entries have been put into the ledger up to now only, although they were up to a later moment."""
    connection.execute(_sql.take_back.sql, {"entries": sorted(entries), "now": now})


def pause(connection: psycopg.Connection[Any], entry: str, *, by: str, reason: str | None) -> bool | None:
    """Pause an entry until it is resumed; whether it was paused before, None where it is not known."""
    row = connection.execute(_sql.pause.sql, {"entry": entry, "by": by, "reason": reason}).fetchone()
    return None if row is None else bool(row[0])


def resume(connection: psycopg.Connection[Any], entry: str) -> bool | None:
    """Resume an entry with its next slot; whether it was paused, None where it is not known."""
    row = connection.execute(_sql.resume.sql, {"entry": entry}).fetchone()
    return None if row is None else bool(row[0])


def leader(connection: psycopg.Connection[Any]) -> dict[str, Any] | None:
    """The session that leads: pid, backend_start, client, application_name."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_sql.leader.sql, {"key": LEADER}).fetchone()
