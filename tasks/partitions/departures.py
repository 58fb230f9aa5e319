"""What of a plan is about partitions that are no longer hot: to the archive, to cold storage, to their end, or held."""

from __future__ import annotations

from collections.abc import Iterator

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Partition, PartitionedTable, Range
from tasks.partitions.draft import Draft, counted
from tasks.partitions.lines import Action, Line
from tasks.partitions.ranges import ends_by, overlap


class Departures(Draft):
    """Lines about what leaves."""

    def old(self) -> Iterator[Line]:
        """Of the table's own partitions."""
        cutoff = self.calendar.cutoff(self.clock, self.policy.hot)
        for partition in self.present:
            bounds = partition.range
            if bounds is None or partition.detach_pending or not ends_by(bounds, cutoff):
                continue
            if partition.kind == "f" or self.goes_with_another(bounds):
                continue
            if self.policy.archive == "none":
                yield from self._due(partition, bounds, self.table)
                continue
            yield (
                self._held(partition.name, bounds)
                or self._held_rows(partition, bounds)
                or self._move(partition, bounds)
            )

    def _move(self, partition: Partition, bounds: Range) -> Line:
        reason = f"older than hot = {self.policy.hot}"
        if along := self.companions_of(bounds):
            reason += f", with its rows of {', '.join(map(str, along))}"
        place = RelationName(self.policy.archive_schema, partition.name.name)
        kept = self.archive.partitions if self.archive is not None else ()
        for each in kept:
            other = each.range or each.hull
            if each.name == place or (other is not None and overlap(other, bounds)):
                return self._refused_move(
                    partition,
                    bounds,
                    f"{reason}, but the archive has {each.name} in its place",
                    "Detach the one that should not be there, or give it another range",
                )
        if place in self.known.taken:
            return self._refused_move(
                partition,
                bounds,
                f"{reason}, but there is another relation {place}",
                "Rename or drop that one",
            )
        uncovered = [
            key
            for key in self.table.foreign_keys
            if key.referenced == self.table.name and key.referencing not in self.policy.companions
        ]
        if uncovered:
            counts = (self.known.referenced or {}).get(partition.name)
            if counts is None:
                said = ", ".join(f"{key.referencing} ({key.name})" for key in uncovered)
            else:
                said = ", ".join(
                    f"{counts[key.name]:,} of {key.referencing} ({key.name})"
                    for key in uncovered
                    if counts.get(key.name)
                )
            if said:
                return self._refused_move(
                    partition,
                    bounds,
                    f"{reason}, but rows refer to it: {said}",
                    "Name the tables as companions, so that their rows move first, or delete what refers to it",
                )
        return self.line(
            Action.MOVE,
            partition.name,
            bounds,
            reason,
            rows=partition.rows,
            locks=self.move_locks(partition),
        )

    def _refused_move(self, partition: Partition, bounds: Range, reason: str, remedy: str) -> Line:
        return self.line(Action.REFUSE, partition.name, bounds, reason, rows=partition.rows, remedy=remedy)

    def archived(self) -> Iterator[Line]:
        """Of the archive's."""
        if self.archive is not None and self.policy.archive != "none":
            for partition in self.archive.partitions:
                if partition.range is not None and not partition.detach_pending:
                    yield from self._due(partition, partition.range, self.archive)
        limit = self.calendar.cutoff(self.clock, self.policy.cold)
        for batch in self.batches:
            if batch.cold and not batch.purged and ends_by(batch.range, limit):
                yield self._held(batch.partition, batch.range) or self.line(
                    Action.PURGE,
                    batch.partition,
                    batch.range,
                    f"cold, and older than cold = {self.policy.cold}",
                )

    def _due(self, partition: Partition, bounds: Range, parent: PartitionedTable) -> Iterator[Line]:
        for action, span, name in (
            (Action.PURGE, self.policy.cold, "cold"),
            (Action.EXPORT, self.policy.warm, "warm"),
        ):
            if ends_by(bounds, self.calendar.cutoff(self.clock, span)):
                locks = [(each, "ACCESS EXCLUSIVE") for each in (parent.name, partition.name)]
                yield self._held(partition.name, bounds) or self.line(
                    action,
                    partition.name,
                    bounds,
                    f"older than {name} = {span}",
                    rows=partition.rows,
                    locks=tuple(locks) if action is Action.PURGE else (),
                )
                return

    def _held(self, name: RelationName, bounds: Range) -> Line | None:
        """A legal hold over any of it: everything stays as it is."""
        for hold in self.policy.legal_holds:
            if overlap(bounds, self.days(hold)):
                return self.line(
                    Action.HOLD, name, bounds, f"legal hold from {hold.from_} to {hold.to}: {hold.reason}"
                )
        return None

    def _held_rows(self, partition: Partition, bounds: Range) -> Line | None:
        count = (self.known.held or {}).get(partition.name, 0)
        if not count:
            return None
        return self.line(
            Action.HOLD,
            partition.name,
            bounds,
            f"{counted(count)} must not be moved yet (hold: {self.policy.hold})",
            rows=count,
            remedy="It is moved when there are none; the policy's hold says which they are",
        )
