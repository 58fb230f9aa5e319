"""What a plan is made from, seen the way its rules ask: which ranges are taken, where, and what would be locked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Partition, PartitionedTable, Range
from fleet.settings.partitions import LegalHold, PartitionSet
from tasks.partitions.calendar import Calendar, Period, less
from tasks.partitions.lines import Action, Batch, Known, Line
from tasks.partitions.ranges import overlap, without


@dataclass(kw_only=True)
class Draft:
    """One table, its policy and its archive at one moment."""

    policy: PartitionSet
    table: PartitionedTable
    archive: PartitionedTable | None
    batches: Sequence[Batch]
    clock: datetime
    known: Known
    calendar: Calendar
    companions: Sequence[PartitionedTable] = ()
    leaders: Sequence[PartitionedTable] = ()
    """Tables that this one is a companion of."""

    @cached_property
    def window(self) -> list[Period]:
        """The current period and those that are to be there ahead."""
        return self.calendar.ahead(self.clock, self.policy.premake)

    @cached_property
    def present(self) -> list[Partition]:
        """All partitions but the default one."""
        return [each for each in self.table.partitions if not each.is_default]

    @cached_property
    def default(self) -> Partition | None:
        """The default partition."""
        return self.table.default

    @cached_property
    def referenced(self) -> list[RelationName]:
        """Tables that this one has foreign keys to."""
        mine = self.table.name
        return sorted(
            {
                key.referenced
                for key in self.table.foreign_keys
                if key.referencing == mine and key.referenced != mine
            }
        )

    @cached_property
    def referencing(self) -> list[RelationName]:
        """Tables that have foreign keys to this one."""
        mine = self.table.name
        return sorted(
            {
                key.referencing
                for key in self.table.foreign_keys
                if key.referenced == mine and key.referencing != mine
            }
        )

    @cached_property
    def hot(self) -> list[Range]:
        """What they take. One whose detach is pending keeps its range from being made again, until that is finished."""
        return in_order(_taken(self.present))

    @cached_property
    def warm(self) -> list[Range]:
        """What the archive's partitions take."""
        return [] if self.archive is None else in_order(_taken(self.archive.partitions))

    @cached_property
    def gone(self) -> list[Range]:
        """What has left this database."""
        return [each.range for each in self.batches if each.cold or each.purged]

    @cached_property
    def names(self) -> set[RelationName]:
        """What no new partition can be called."""
        return {each.name for each in self.table.partitions} | set(self.known.taken)

    def holes(self, bounds: Range) -> list[Range]:
        """What of a range no partition has."""
        return without(bounds, (each for each in self.hot if overlap(each, bounds)))

    def gaps(self) -> list[Range]:
        """Ranges before the current period that no partition has, here or in the archive, nor has ever had."""
        now = self.calendar.start_of(self.window[0].first)
        known = in_order([*self.hot, *self.warm, *self.gone])
        lowers = [each.lower for each in known if each.lower is not None and less(each.lower, now)]
        return without(Range(lower=lowers[0], upper=now), known) if lowers else []

    def is_regular(self, bounds: Range) -> bool:
        """Whether a range is a period of the calendar."""
        return _is_regular(self.calendar, bounds)

    def days(self, hold: LegalHold) -> Range:
        """A legal hold in the control column's type."""
        return Range(lower=self.calendar.start_of(hold.from_), upper=self.calendar.start_of(hold.to))

    def line(
        self,
        action: Action,
        partition: RelationName | None,
        bounds: Range | None,
        reason: str,
        remedy: str = "",
        *,
        rows: int | None = None,
        locks: tuple[tuple[RelationName, str], ...] = (),
    ) -> Line:
        """One line about this table."""
        return Line(
            action=action,
            table=self.table.name,
            partition=partition,
            range=bounds,
            reason=reason,
            rows=rows,
            locks=locks,
            remedy=remedy,
        )

    def warning(
        self,
        reason: str,
        remedy: str,
        *,
        partition: RelationName | None = None,
        bounds: Range | None = None,
        rows: int | None = None,
    ) -> Line:
        """Something to know, with what to do about it."""
        return self.line(Action.WARN, partition, bounds, reason, rows=rows, remedy=remedy)

    def goes_with_another(self, bounds: Range) -> bool:
        """Whether a table that this one is a companion of still has its partition of a range: they go together."""
        return any(each.range == bounds for leader in self.leaders for each in leader.partitions)

    def companions_of(self, bounds: Range) -> list[RelationName]:
        """Whose rows go with a partition: all rows of its range, or a partition that has the same one."""
        return [
            each.name
            for each in self.companions
            if each.kind != "p" or any(own.range == bounds for own in each.partitions)
        ]

    def attach_locks(self) -> tuple[tuple[RelationName, str], ...]:
        """ATTACH of a new partition, which nobody else knows yet."""
        return (
            (self.table.name, "SHARE UPDATE EXCLUSIVE"),
            *(((self.default.name, "ACCESS EXCLUSIVE"),) if self.default is not None else ()),
            *((name, "SHARE ROW EXCLUSIVE") for name in self.referenced),
        )

    def move_locks(self, partition: Partition) -> tuple[tuple[RelationName, str], ...]:
        """DETACH and ATTACH in one transaction; the archive's columns are added to every leaf."""
        exclusive = [self.table.name, *([self.default.name] if self.default is not None else [])]
        exclusive += [partition.name, *(each for each in partition.leaves if each != partition.name)]
        locks = [(name, "ACCESS EXCLUSIVE") for name in [*exclusive, *self.referencing]]
        locks += [(name, "SHARE ROW EXCLUSIVE") for name in self.referenced]
        for companion in self.companions:
            locks += self._companion_locks(companion, partition)
        if self.archive is not None:
            locks.append((self.archive.name, "SHARE UPDATE EXCLUSIVE"))
            if self.archive.default is not None:
                locks.append((self.archive.default.name, "ACCESS EXCLUSIVE"))
        # A companion with a foreign key between the parents is there twice.
        return tuple(dict.fromkeys(locks))

    @staticmethod
    def _companion_locks(companion: PartitionedTable, partition: Partition) -> list[tuple[RelationName, str]]:
        """Its rows have moved before; if it is partitioned alike, its partition goes along in the same moment."""
        if companion.kind != "p":
            return []
        alike = [each for each in companion.partitions if each.range == partition.range]
        names = [companion.name, *(name for each in alike for name in (each.name, *each.leaves))]
        return [(name, "ACCESS EXCLUSIVE") for name in dict.fromkeys(names)] if alike else []


def in_order(ranges: Iterable[Range]) -> list[Range]:
    """By where they begin."""
    return sorted(ranges, key=_beginning)


def counted(count: int) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _beginning(bounds: Range) -> tuple[Any, ...]:
    return (0,) if bounds.lower is None else (1, bounds.lower)


def _taken(partitions: Iterable[Partition]) -> list[Range]:
    return [bounds for each in partitions if (bounds := each.range or each.hull) is not None]


# Sets with the same calendar ask the same of the same ranges.
@lru_cache(maxsize=16_384)
def _is_regular(calendar: Calendar, bounds: Range) -> bool:
    try:
        return bounds.lower is not None and calendar.range(calendar.period_of(bounds.lower)) == bounds
    except (OverflowError, ValueError, PermanentError):
        return False
