"""Decides what is refreshed, in which order, up to when, and why: pure, so that a plan can be printed alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from graphlib import TopologicalSorter

from fleet.errors import PermanentError
from fleet.ledger import EVENT, OPERATOR, UPSTREAM
from fleet.names import RelationName
from fleet.postgres.catalog.definition import Definition, DefinitionClass
from fleet.postgres.catalog.server import Server
from schedules.slots import latest_slot
from tasks.refresh.strategy import Strategy, choose
from tasks.refresh.view import SourceReading, Subject


class Demand(StrEnum):
    """Who wants the view fresh; it decides what counts as fresh enough.

    A tick is satisfied by counters that say nothing has changed, an event or an operator only by a real
    refresh.
    """

    TICK = "tick"
    EVENT = "event"
    OPERATOR = "operator"

    @classmethod
    def of(cls, entry: str) -> Demand:
        """The demand behind a run's entry; an upstream's real refresh is as good as its operator's."""
        if entry in {OPERATOR, UPSTREAM}:
            return cls.OPERATOR
        return cls.EVENT if entry == EVENT else cls.TICK


@dataclass(frozen=True, kw_only=True)
class Need:
    """An upstream view that must be brought up to a moment first, and the key of the run that does so."""

    view: RelationName
    as_of: datetime
    entry: str
    slot: datetime


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One line of a plan."""

    view: RelationName
    tier: str
    as_of: datetime
    action: str
    reason: str
    how: str | None = None
    after: tuple[RelationName, ...] = ()
    warning: str | None = None
    remedy: str | None = None


def order(subjects: Mapping[RelationName, Subject]) -> list[RelationName]:
    """Upstream before downstream, otherwise by name. PostgreSQL's views cannot form a cycle."""
    sorter = TopologicalSorter({n: s.upstream for n, s in subjects.items()})
    sorter.prepare()
    ordered: list[RelationName] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        ordered += [n for n in ready if n in subjects]
        sorter.done(*ready)
    return ordered


def upstream_needs(
    subjects: Mapping[RelationName, Subject],
    target: RelationName,
    *,
    as_of: datetime,
    demand: Demand,
    written: Collection[int] | None = None,
) -> list[Need]:
    """What must be fresh before the target, in order.

    For a tick each upstream view to the latest slot of its own tier, so that a five-minute view never drags a
    daily one along; for an event or an operator to as_of: all of them, or those on the path from the relations
    that are known to have been `written`.
    """
    above = _above(subjects, target)
    if written is not None:
        above = {name for name in above if reach(subjects, name).intersection(written)}
    needs = []
    for name in order({n: subjects[n] for n in above}):
        if demand is Demand.TICK:
            tier = subjects[name].tier
            slot = latest_slot(tier.cron, tier.timezone, as_of)
            needs.append(Need(view=name, as_of=slot, entry=tier.name, slot=slot))
        else:
            needs.append(Need(view=name, as_of=as_of, entry=UPSTREAM, slot=as_of))
    return needs


def reach(subjects: Mapping[RelationName, Subject], name: RelationName) -> frozenset[int]:
    """Every relation whose change can change a view: its sources, and those of the managed views among them."""
    names = {name} | _above(subjects, name)
    return frozenset(source.oid for each in names for source in subjects[each].sources)


def own_sources(subjects: Mapping[RelationName, Subject], name: RelationName) -> frozenset[int]:
    """The relations that a view reads and none of the managed views that it is built on does."""
    through = {oid for above in subjects[name].upstream for oid in reach(subjects, above)}
    return frozenset(source.oid for source in subjects[name].sources) - through


def recorded(subject: Subject, server: Server) -> str | None:
    """Why the recorded times say nothing about the view as it is now; None where they do."""
    state, found = subject.state, subject.found
    checks: Sequence[tuple[bool, str]] = (
        (state.snapshot_at is None, "never refreshed by Upkeep"),
        (not found.populated, "not populated"),
        (state.relation != found.oid, "the view was recreated"),
        (state.definition_hash != found.definition_hash, "the definition changed"),
        (state.system_identifier != server.system_identifier, "another database cluster"),
        (state.timeline != server.timeline, "the server was promoted or recovered since"),
        (
            any(t is not None and t > server.clock for t in (state.snapshot_at, state.verified_at)),
            "the recorded time is in the future",
        ),
    )
    return next((reason for failed, reason in checks if failed), None)


def of_another_timeline(subject: Subject, server: Server) -> bool:
    """Whether the view was last refreshed before a promotion or a restore."""
    state = subject.state
    return state.snapshot_at is not None and (state.system_identifier, state.timeline) != (
        server.system_identifier,
        server.timeline,
    )


def fresh_as_of(subject: Subject, server: Server, demand: Demand) -> datetime | None:
    """The moment that the view is known not to be older than, for this demand."""
    if recorded(subject, server) is not None:
        return None
    times = [subject.state.snapshot_at, subject.state.verified_at if demand is Demand.TICK else None]
    return max(t for t in times if t is not None)


def satisfied(subject: Subject, server: Server, *, as_of: datetime, demand: Demand) -> bool:
    """Whether nothing has to be done: redelivery, two schedulers and double clicks end here."""
    fresh = fresh_as_of(subject, server, demand)
    return fresh is not None and fresh >= as_of


def changed(subject: Subject, server: Server, reading: SourceReading, demand: Demand) -> str | None:
    """Why the view must be refreshed; None where a tick may be skipped because its sources have not changed.

    Two halves, because only a skip needs to know what the definition depends on, which takes as long to read
    as everything else together.
    """
    why = differs(subject, server, reading, demand)
    if why is None:
        if subject.definition is None:
            raise ValueError(f"{subject.name} was looked at without its definition")
        why = depends(subject, subject.definition, reading)
    return why


def differs(subject: Subject, server: Server, reading: SourceReading, demand: Demand) -> str | None:
    """What makes another result possible, by the demand, the state and the counters; None for nothing.

    For at most `max_skip` since the last real refresh, because a counter's lag has no upper bound.
    """
    if demand is not Demand.TICK:
        return f"asked for by an {demand.value}" if demand is not Demand.EVENT else "asked for after a write"
    stale = recorded(subject, server)
    if stale is not None:
        return stale
    earlier = _earlier(subject)
    if earlier is None:
        return "no source reading recorded"
    if subject.state.upstream_stale:
        return f"its last refresh used a stale {', '.join(subject.state.upstream_stale)}"
    if earlier.settings_hash != reading.settings_hash:
        return "the session's settings changed"
    if earlier.refresh_ids != reading.refresh_ids:
        moved = sorted(v for v in reading.refresh_ids if earlier.refresh_ids.get(v) != reading.refresh_ids[v])
        return f"refreshed upstream: {', '.join(moved) or 'another set of views'}"
    difference = reading.sources.difference(earlier.sources)
    if difference is not None:
        return difference
    assert subject.state.snapshot_at is not None  # recorded() said so
    if server.clock - subject.state.snapshot_at >= subject.declared.max_skip:
        return f"unchanged by its counters, but last read more than {subject.declared.max_skip} ago"
    return None


def depends(subject: Subject, definition: Definition, reading: SourceReading) -> str | None:
    """What else than its sources the view's result depends on, where that may have moved."""
    kind = definition.kind
    if not kind.skippable:
        evidence = ", ".join(definition.evidence[:3])
        return f"its definition is {kind.value}-dependent" + (f" ({evidence})" if evidence else "")
    earlier = _earlier(subject)
    if kind is DefinitionClass.DATE and (earlier is None or earlier.today != reading.today):
        return f"the date changed to {reading.today}"
    return None


def _earlier(subject: Subject) -> SourceReading | None:
    return SourceReading.from_json(subject.state.reading) if subject.state.reading else None


def plan(
    subjects: Mapping[RelationName, Subject],
    targets: Iterable[RelationName],
    *,
    server: Server,
    readings: Mapping[RelationName, SourceReading],
    as_of: Mapping[RelationName, datetime],
    demand: Demand,
) -> list[Planned]:
    """What would be refreshed now, in order, how and why. Upstream views that are pulled in are part of it."""
    wanted: dict[RelationName, datetime] = {}
    asked = list(targets)
    for target in asked:
        for need in upstream_needs(subjects, target, as_of=as_of[target], demand=demand):
            wanted[need.view] = max(need.as_of, wanted.get(need.view, need.as_of))
        wanted[target] = max(as_of[target], wanted.get(target, as_of[target]))
    refreshed: set[RelationName] = set()
    lines = []
    for name in order(subjects):
        if name not in wanted:
            continue
        line = _line(
            subjects[name],
            wanted[name],
            server=server,
            reading=readings[name],
            demand=demand,
            refreshed=refreshed,
        )
        if line.action == "refresh":
            refreshed.add(name)
        lines.append(line)
    return lines


def _line(
    subject: Subject,
    as_of: datetime,
    *,
    server: Server,
    reading: SourceReading,
    demand: Demand,
    refreshed: set[RelationName],
) -> Planned:
    warning = None
    if subject.unmanaged_upstream:
        warning = f"reads {', '.join(map(str, subject.unmanaged_upstream))}, which nothing here refreshes"
    after = tuple(n for n in subject.upstream if n in refreshed)

    def line(
        action: str, reason: str, strategy: Strategy | None = None, remedy: str | None = None
    ) -> Planned:
        return Planned(
            view=subject.name,
            tier=subject.declared.tier,
            as_of=as_of,
            action=action,
            reason=reason,
            how=f"{strategy.how.value} ({strategy.reason})" if strategy else None,
            after=after,
            warning=warning,
            remedy=remedy,
        )

    if satisfied(subject, server, as_of=as_of, demand=demand):
        return line("skip", "already fresh")
    reason = changed(subject, server, reading, demand)
    if reason is None and after:
        reason = f"after {', '.join(map(str, after))}, if that changes rows"
    if reason is None:
        return line("skip", "its sources have not changed")
    try:
        return line("refresh", reason, choose(subject))
    except PermanentError as exc:
        return line("refuse", exc.message, remedy=exc.remedy)


def _above(subjects: Mapping[RelationName, Subject], target: RelationName) -> set[RelationName]:
    above: set[RelationName] = set()
    asked = list(subjects[target].upstream)
    while asked:
        name = asked.pop()
        if name not in above:
            above.add(name)
            asked.extend(subjects[name].upstream)
    return above
