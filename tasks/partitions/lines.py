"""What a plan says: lines, and what it has to go on beside the catalogue."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Range
from tasks.partitions.calendar import Period


class Action(StrEnum):
    """What a line of a plan says, in the order in which it is done."""

    FINALIZE = "finalize"
    """Somebody's DETACH … CONCURRENTLY was interrupted; nothing else can be detached before."""
    CREATE = "create"
    """A partition that the clock will need, or that rows in the default partition need."""
    DRAIN = "drain"
    """Rows of the default partition into a partition that is made in the same transaction."""
    LATE = "late"
    """Rows of the default partition whose range has been archived: into the archive's partition."""
    MOVE = "move"
    """A partition to the archive, its companions' rows first."""
    EXPORT = "export"
    """Due for cold storage."""
    PURGE = "purge"
    """Past its retention."""
    HOLD = "hold"
    """Due, and kept: rows that must not be moved yet, or a legal hold."""
    REFUSE = "refuse"
    """Due, and impossible as it is: the reason and the remedy say why."""
    WARN = "warn"
    """A gap, an overlap with what the calendar wants, a range outside of the policy."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing to do, or to know; `partition` is the one that is there, or the name of the one to be made."""

    action: Action
    table: RelationName
    partition: RelationName | None = None
    range: Range | None = None
    reason: str = ""
    rows: int | None = None
    """About how many rows it concerns, where that is known."""
    locks: tuple[tuple[RelationName, str], ...] = ()
    """What it locks for a moment, in that order, in which mode (as in LOCK TABLE)."""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A range that left the table, as upkeep.archive_batch has it; `cold` once it is in no partition any more."""

    partition: RelationName
    range: Range
    cold: bool = False
    purged: bool = False


@dataclass(frozen=True, kw_only=True)
class DefaultRows:
    """How many rows of the default partition are of which period; `stray` ones are of none (NULL, infinity)."""

    periods: Mapping[Period, int]
    stray: int = 0


@dataclass(frozen=True, kw_only=True)
class Known:
    """What rows say about a plan, where somebody has looked; everything else comes from the catalogue."""

    default_rows: DefaultRows | None = None
    """None: not known."""
    held: Mapping[RelationName, int] | None = None
    """How many rows of a partition the policy's `hold` keeps; one that is not here: not known."""
    referenced: Mapping[RelationName, Mapping[str, int]] | None = None
    """How many rows refer to a partition, by the name of the foreign key; one that is not here: not known."""
    taken: Collection[RelationName] = ()
    """Names that other relations have."""
