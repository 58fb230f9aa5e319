"""What is to be done about a partitioned table, from the catalogue's bounds and the calendar alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Partition, PartitionedTable, Range
from fleet.settings.partitions import PartitionSet
from tasks.partitions.calendar import Calendar, Period, fitting, name_of, subpartition_name
from tasks.partitions.departures import Departures
from tasks.partitions.draft import counted
from tasks.partitions.lines import Action, Batch, DefaultRows, Known, Line
from tasks.partitions.ranges import ends_by, intersection, overlap, without

__all__ = ["Action", "Batch", "DefaultRows", "Known", "Line", "plan"]

# Nobody has looked at any row.
NOTHING_KNOWN = Known()
_IN_THE_WAY = (
    "another relation has this name, which is no partition of this range",
    "Attach that one if it is meant to be it, or rename it",
)
# How many partitions a warning names before it only counts them.
_NAMED = 3


def plan(
    policy: PartitionSet,
    table: PartitionedTable,
    *,
    archive: PartitionedTable | None = None,
    batches: Iterable[Batch] = (),
    companions: Iterable[PartitionedTable] = (),
    leaders: Iterable[PartitionedTable] = (),
    clock: datetime,
    known: Known = NOTHING_KNOWN,
) -> list[Line]:
    """Everything to do about one table, in the order in which it is done; changes and reads nothing.

    `companions` go with it, `leaders` are what it is a companion of. `clock` is the server's.
    What the policy and the table contradict each other in is for `policy.judge`.
    """
    if table.control_type is None or table.strategy != "range":
        return [
            Line(
                action=Action.REFUSE,
                table=table.name,
                reason="it is not partitioned by ranges of a column that a calendar speaks of",
                remedy="upkeep check says more",
            )
        ]
    try:
        calendar = Calendar.of(policy, table.control_type)
    except PermanentError as exc:
        return [Line(action=Action.REFUSE, table=table.name, reason=exc.message, remedy=exc.remedy)]
    draft = _Plan(
        policy=policy,
        table=table,
        archive=archive,
        batches=tuple(batches),
        clock=clock,
        known=known,
        calendar=calendar,
        companions=tuple(companions),
        leaders=tuple(leaders),
    )
    order = list(Action)
    # Sorting keeps the order of ranges and names within an action.
    return sorted(draft.lines(), key=lambda line: order.index(line.action))


class _Plan(Departures):
    """One table's plan in the making."""

    def lines(self) -> Iterator[Line]:
        yield from self._pending()
        yield from self._ahead()
        yield from self._default()
        yield from self.old()
        yield from self.archived()
        yield from self._gaps()
        yield from self._outside()

    # What is to be made.

    def _ahead(self) -> Iterator[Line]:
        rows = self.known.default_rows
        for period in self.window:
            waiting = rows.periods.get(period, 0) if rows is not None else 0
            if not waiting or self.policy.default != "drain":
                yield from self._missing(period, waiting)

    def _missing(self, period: Period, waiting: int) -> Iterator[Line]:
        """The pieces of a period that no partition has."""
        bounds = self.calendar.range(period)
        pieces = self.holes(bounds)
        if pieces and (overlapping := self._overlapping(bounds)):
            yield overlapping
            return
        for piece in pieces:
            if waiting:
                yield self.line(
                    Action.REFUSE,
                    None,
                    piece,
                    f"the default partition has {counted(waiting)} of it, and the policy drains none",
                    remedy='Write default = "drain" in the policy, or move them by hand',
                    rows=waiting,
                )
                continue
            reason = "the current period" if period == self.window[0] else "ahead"
            if piece != bounds:
                reason += f", what others leave of {self.calendar.said(bounds)}"
            yield self._made(Action.CREATE, piece, reason)

    def _overlapping(self, bounds: Range) -> Line | None:
        """What to say of a period that a partition with odd bounds may have rows of."""
        for each in self.present:
            if each.hull is not None and overlap(each.hull, bounds):
                return self.warning(
                    f"overlap: {each.name} may have rows of {self.calendar.said(bounds)}, so nothing is made for it",
                    f"Give it bounds of the calendar: {each.odd}",
                    partition=each.name,
                    bounds=bounds,
                )
        return None

    def _made(self, action: Action, piece: Range, reason: str, rows: int | None = None) -> Line:
        try:
            name = name_of(self.policy, self.calendar, piece)
            divided = self.policy.subpartitions.count if self.policy.subpartitions is not None else 0
            wanted = [name, *(subpartition_name(name, remainder) for remainder in range(divided))]
        except PermanentError as exc:
            return self.line(Action.REFUSE, None, piece, exc.message, exc.remedy)
        taken = next((each for each in wanted if each in self.names), None)
        if taken is not None:
            return self.line(
                Action.REFUSE,
                taken,
                piece,
                *_IN_THE_WAY,
            )
        return self.line(action, wanted[0], piece, reason, rows=rows, locks=self.attach_locks())

    def _default(self) -> Iterator[Line]:
        default, found = self.table.default, self.known.default_rows
        if default is None:
            if self.policy.default == "drain":
                yield self._made_default()
            return
        if found is None:
            return
        if found.stray:
            yield self.warning(
                f"{counted(found.stray)} of the default partition without a period: NULL, infinity, no calendar's year",
                "They stay there; correct them, or declare the column NOT NULL",
                partition=default.name,
                rows=found.stray,
            )
        for period, count in sorted(found.periods.items()):
            if not count:
                continue
            if self.policy.default != "drain":
                if period not in self.window:
                    yield self._stay(default, period, count, 'Write default = "drain" in the policy')
            elif self.window[-1] < period:
                yield self._stay(
                    default, period, count, "They go when their period is ahead; or correct them"
                )
            else:
                yield from self._drained(default, period, count)

    def _made_default(self) -> Line:
        name = RelationName(self.table.name.schema, f"{self.table.name.name}_default")
        try:
            fitting(name.name)
        except PermanentError as exc:
            return self.line(
                Action.REFUSE, None, None, exc.message, remedy="Make a DEFAULT partition by hand"
            )
        if name in self.names:
            return self.line(Action.REFUSE, name, None, *_IN_THE_WAY)
        reason = "the default partition, which the policy wants"
        return self.line(Action.CREATE, name, None, reason, locks=self.attach_locks())

    def _stay(self, default: Partition, period: Period, count: int, remedy: str) -> Line:
        bounds = self.calendar.range(period)
        return self.warning(
            f"the default partition keeps {counted(count)} of {self.calendar.said(bounds)}",
            remedy,
            partition=default.name,
            bounds=bounds,
            rows=count,
        )

    def _drained(self, default: Partition, period: Period, count: int) -> Iterator[Line]:
        """Where the default's rows of a period belong: to a partition that is made, or to the archive's."""
        bounds = self.calendar.range(period)
        holes = self.holes(bounds)
        if holes and (overlapping := self._overlapping(bounds)):
            yield overlapping
            return
        away = [*self.warm, *self.gone]
        pieces = [(each, False) for hole in holes for each in without(hole, away)]
        pieces += [(intersection(hole, each), True) for hole in holes for each in away if overlap(hole, each)]
        # Which of several pieces they are in, nobody has counted.
        rows = count if len(pieces) == 1 else None
        for piece, archived in pieces:
            if archived:
                yield self._late(default, piece, count, rows)
            elif ends_by(piece, self.calendar.cutoff(self.clock, self.policy.cold)):
                # A clock that said 1970: a partition of it would be archived, and purged, the same day.
                remedy = f"They are older than cold = {self.policy.cold}: correct or delete them"
                yield self._stay(default, period, count, remedy)
            else:
                yield self._made(Action.DRAIN, piece, f"{counted(count)} of it in {default.name}", rows)

    def _late(self, default: Partition, piece: Range, count: int, rows: int | None) -> Line:
        cold = any(overlap(piece, each) for each in self.gone)
        goes = [
            each.name
            for each in (self.archive.partitions if self.archive is not None else ())
            if each.range is not None and overlap(each.range, piece)
        ]
        return self.line(
            Action.LATE,
            None if cold or not goes else goes[0],
            piece,
            f"{counted(count)} in {default.name} came after their range was archived"
            + (", and it is cold: they wait for a supplement" if cold else ""),
            rows=rows,
            locks=() if cold else tuple((name, "ROW EXCLUSIVE") for name in (default.name, *goes)),
        )

    # What is to be known.

    def _pending(self) -> Iterator[Line]:
        for partition in self.present:
            if partition.detach_pending:
                yield self.line(
                    Action.FINALIZE,
                    partition.name,
                    partition.range,
                    "a DETACH … CONCURRENTLY was interrupted: its rows are in no partition, and its range takes none",
                    rows=partition.rows,
                    locks=((self.table.name, "SHARE UPDATE EXCLUSIVE"), (partition.name, "ACCESS EXCLUSIVE")),
                )

    def _gaps(self) -> Iterator[Line]:
        drained = self.known.default_rows.periods if self.known.default_rows is not None else {}
        for hole in self.gaps():
            assert hole.lower is not None
            if self.policy.default == "drain" and drained.get(self.calendar.period_of(hole.lower)):
                continue
            goes = "are refused" if self.table.default is None else f"go to {self.table.default.name}"
            yield self.warning(
                f"gap: no partition has {self.calendar.said(hole)}; rows of it {goes}",
                f"CREATE TABLE … PARTITION OF {self.table.name} with these bounds, if there should be any",
                bounds=hole,
            )

    def _outside(self) -> Iterator[Line]:
        other: list[Partition] = []
        for each in self.present:
            if each.missing_remainders:
                yield self.warning(
                    f"about {each.missing_remainders} % of its rows would find no place: remainders are missing",
                    "CREATE TABLE … PARTITION OF it FOR VALUES WITH the missing ones",
                    partition=each.name,
                    bounds=each.range,
                )
            if each.kind == "f":
                yield self.warning(
                    "a foreign table, which is neither moved nor counted",
                    "Move it yourself, or detach it",
                    partition=each.name,
                    bounds=each.range,
                )
            elif each.range is None:
                yield self.warning(
                    f"outside of the policy: {each.odd}",
                    "It stays as it is; move it yourself",
                    partition=each.name,
                )
            elif each.range.upper is None:
                yield self.warning(
                    "it goes up to MAXVALUE: nothing can be made ahead of it",
                    "Give it an upper bound: detach it, and attach it again",
                    partition=each.name,
                    bounds=each.range,
                )
            elif not self.is_regular(each.range):
                other.append(each)
        if other:
            named = ", ".join(each.name.name for each in other[:_NAMED])
            rest = f" and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
            yield self.warning(
                f"outside of the calendar, not of one {self.policy.interval} each: {named}{rest}",
                "They are kept as they are, and move when all of their range is old",
            )
