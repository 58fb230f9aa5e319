"""Which tables' writes request refreshes (on_write = true), and what is to be done so that all of them do.

A statement fires the triggers of the table that it names and of no other, so one stands on every table through which
a row behind the view can be written: partitioned parents and every partition, inheritance parents and children, and
what is behind the managed views that the view reads. Decided here without a database; `trigger_ddl` does it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from psycopg import sql

from fleet.names import RelationName
from fleet.postgres.catalog.definition import DefinitionClass
from fleet.postgres.catalog.sources import Source, SourceKind
from fleet.postgres.catalog.triggers import TRIGGER_NAME, Table, WriteTrigger
from tasks.refresh.view import Subject

INSTALL = "upkeep triggers install"


class State(StrEnum):
    """How a table stands."""

    INSTALLED = "installed"
    MISSING = "missing"
    OUTDATED = "outdated"
    """It is there, but not for the views or the statements that are declared."""
    LEFTOVER = "leftover"
    """No view that is declared with on_write needs it."""
    DISABLED = "disabled"
    """Somebody has switched it off; that is theirs to take back."""
    FORBIDDEN = "not permitted"
    """This role may not do what would be needed."""
    IMPOSSIBLE = "not possible"
    """No trigger can tell of what changes there."""

    @property
    def fine(self) -> bool:
        """Whether nobody has to do anything, or nobody can."""
        return self in {State.INSTALLED, State.IMPOSSIBLE}


class Action(StrEnum):
    """What is to be done to a table."""

    INSTALL = "install"
    REPLACE = "replace"
    REMOVE = "remove"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One table, or something else that a view's rows come from, and what is to be done about it.

    `views` are canonical names: those that need it; of a leftover those that it was for. `action` leaves the
    trigger with `views` (REMOVE: without one), and drops the triggers `drops`: of ours there is one on each table.
    """

    object: str
    state: State
    views: tuple[str, ...]
    table: RelationName | None = None
    action: Action | None = None
    drops: tuple[str, ...] = ()
    reason: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Behind:
    """What is behind the views with on_write: tables by OID, and what no trigger can tell of."""

    tables: Mapping[int, frozenset[str]]
    blind: tuple[Line, ...]


def behind(subjects: Mapping[RelationName, Subject]) -> Behind:
    """The tables that the declared views with on_write = true take their rows from, and for which of them."""
    tables: dict[int, set[str]] = defaultdict(set)
    blind: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for name in sorted(name for name, subject in subjects.items() if subject.declared.on_write):
        for member in _with_upstream(subjects, name):
            for source in member.sources:
                if _takes_triggers(source):
                    tables[source.oid].add(str(name))
                elif (why := _blind(source, subjects)) is not None:
                    blind[str(source.name), *why].add(str(name))
            for function in _functions(member):
                why = (
                    f"it is called by {member.name}, and what a function reads is not known",
                    f"SELECT upkeep.request_refresh('{name}') where that is written",
                )
                blind[function, *why].add(str(name))
    return Behind(
        tables={oid: frozenset(views) for oid, views in tables.items()},
        blind=tuple(
            Line(
                object=object_,
                state=State.IMPOSSIBLE,
                views=tuple(sorted(views)),
                reason=reason,
                remedy=remedy,
            )
            for (object_, reason, remedy), views in sorted(blind.items())
        ),
    )


def plan(
    wanted: Behind, tables: Mapping[int, tuple[Table, ...]], installed: Iterable[WriteTrigger], *, role: str
) -> list[Line]:
    """What is to be done so that the triggers are those that the declaration asks for.

    `tables`: of every wanted table and of every table with a trigger, itself and those above it.
    """
    views: dict[int, set[str]] = defaultdict(set)
    known: dict[int, Table] = {}
    for written, several in tables.items():
        for table in several:
            known[table.oid] = table
            # A foreign parent takes none that would tell of what is written there.
            if written in wanted.tables and table.kind in _TABLES:
                views[table.oid] |= wanted.tables[written]
    there = _by_table(installed)
    lines = [
        _line(known[oid], tuple(sorted(views.get(oid, ()))), there.get(oid, ()), role=role)
        for oid in sorted(
            views.keys() | there.keys(), key=lambda oid: known[oid].name if oid in known else _GONE
        )
        if oid in known
    ]
    return [*(line for line in lines if line is not None), *wanted.blind]


def without(
    installed: Iterable[WriteTrigger],
    tables: Mapping[int, tuple[Table, ...]],
    views: Collection[str] | None,
    *,
    role: str,
) -> list[Line]:
    """What is to be done so that no trigger is there for these views (None: for any), declared or not."""
    lines = []
    for oid, triggers in _by_table(installed).items():
        ours = [each for each in triggers if each.ours]
        table = next((each for each in tables.get(oid, ()) if each.oid == oid), None)
        if table is None or not ours:
            continue
        now = sorted({view for each in ours for view in each.views})
        rest = () if views is None else tuple(view for view in now if view not in views)
        if views is not None and len(rest) == len(now):
            continue
        mended = _changed(
            table, rest, ours, State.OUTDATED if rest else State.LEFTOVER, shown=tuple(now), role=role
        )
        lines.append(mended)
    return lines


def concerning(
    lines: Iterable[Line], installed: Iterable[WriteTrigger], views: Collection[str]
) -> list[Line]:
    """The lines of tables that have or need a trigger for one of these views."""
    have = {each.table_name for each in installed if each.ours and not set(views).isdisjoint(each.views)}
    return [line for line in lines if line.table in have or not set(views).isdisjoint(line.views)]


_TABLES = frozenset({SourceKind.TABLE, SourceKind.PARTITIONED})
_GONE = RelationName("", "")


def _takes_triggers(source: Source) -> bool:
    return source.kind in _TABLES and source.persistence != "t"


def _with_upstream(subjects: Mapping[RelationName, Subject], name: RelationName) -> list[Subject]:
    """A view and the managed views that it is built on, directly or not."""
    found: dict[RelationName, Subject] = {}
    asked = [name]
    while asked:
        subject = subjects.get(asked.pop())
        if subject is not None and subject.name not in found:
            found[subject.name] = subject
            asked += subject.upstream
    return list(found.values())


def _functions(subject: Subject) -> Iterator[str]:
    """The functions of users that it calls and that may read tables: their names have a schema."""
    definition = subject.definition
    if definition is not None and definition.kind in {DefinitionClass.VOLATILE, DefinitionClass.OPAQUE}:
        yield from (each for each in definition.evidence if "." in each)


def _blind(source: Source, subjects: Mapping[RelationName, Subject]) -> tuple[str, str] | None:
    """Why no trigger can tell of what changes in a source, and what to do instead; None: there is none to tell."""
    tier = "The view's tier sees to it"
    match source.kind:
        case SourceKind.MATVIEW if source.name not in subjects:
            return (
                "it is a materialized view that is not managed: it changes when somebody refreshes it",
                "Declare it in upkeep.toml, or call upkeep.request_refresh after refreshing it",
            )
        case SourceKind.FOREIGN:
            return (
                "it is a foreign table: no trigger here fires for what is written there",
                f"{tier}; or let its writers request the refresh",
            )
        case SourceKind.SEQUENCE:
            return "it is a sequence, which has no triggers", tier
        case SourceKind.SYSTEM:
            return "it belongs to the system, whose tables take no triggers", tier
        case SourceKind.TABLE | SourceKind.PARTITIONED:
            return "it is a temporary table of one session", "Take it out of the inheritance"
    return None


def _by_table(installed: Iterable[WriteTrigger]) -> dict[int, tuple[WriteTrigger, ...]]:
    found: dict[int, tuple[WriteTrigger, ...]] = defaultdict(tuple)
    for each in installed:
        found[each.table] += (each,)
    return found


def _line(
    table: Table, views: tuple[str, ...], triggers: Collection[WriteTrigger], *, role: str
) -> Line | None:
    ours = [each for each in triggers if each.ours]
    if not views:
        if not ours:
            return None  # somebody else's, and nobody wants that name
        shown = tuple(sorted({view for each in ours for view in each.views}))
        reason = "no view that is declared with on_write = true needs it"
        return _changed(table, (), ours, State.LEFTOVER, shown=shown, reason=reason, role=role)
    if taken := [each for each in triggers if not each.ours]:
        return Line(
            object=str(table.name),
            table=table.name,
            state=State.FORBIDDEN,
            views=views,
            reason=f"a trigger {taken[0].name} that is not ours stands on it",
            remedy=f"{_statement('ALTER TRIGGER {} ON {} RENAME TO …', TRIGGER_NAME, table)}; then: {INSTALL}",
        )
    main = next((each for each in ours if each.name == TRIGGER_NAME), None)
    if main is None and not ours:
        return _changed(table, views, ours, State.MISSING, shown=views, role=role)
    if main is not None and not main.enabled:
        return Line(
            object=str(table.name),
            table=table.name,
            state=State.DISABLED,
            views=views,
            reason="somebody has disabled it: writes request nothing",
            remedy=f"{_statement('ALTER TABLE {1} ENABLE TRIGGER {0}', TRIGGER_NAME, table)};",
        )
    reason = _outdated(views, ours, main)
    if reason:
        return _changed(table, views, ours, State.OUTDATED, shown=views, reason=reason, role=role)
    return Line(object=str(table.name), table=table.name, state=State.INSTALLED, views=views)


def _outdated(views: tuple[str, ...], ours: list[WriteTrigger], main: WriteTrigger | None) -> str:
    if main is None:
        return f"its trigger is called {ours[0].name}"
    if not main.whole:
        return "it does not fire for every statement that writes"
    said = []
    if more := [view for view in views if view not in main.views]:
        said.append(f"it lacks {', '.join(more)}")
    if less := [view for view in main.views if view not in views]:
        said.append(f"{', '.join(less)} needs it no longer")
    if not said and sorted(main.views) != list(views):
        said.append("it names a view twice")
    if len(ours) > 1:
        said.append(f"there are {len(ours)} of them")
    return "; ".join(said)


def _changed(
    table: Table,
    views: tuple[str, ...],
    ours: Collection[WriteTrigger],
    state: State,
    *,
    shown: tuple[str, ...],
    role: str,
    reason: str = "",
) -> Line:
    """The line of a table whose triggers must become one for `views`, or none; or why this role may not do it."""
    spare = tuple(each.name for each in ours if each.name != TRIGGER_NAME or not views)
    # What is left over and may not be dropped is no worse for that: no view waits for it.
    refused = State.FORBIDDEN if views else State.LEFTOVER
    lacks = []
    if not table.may_use_schema:
        lacks.append(
            (
                f"USAGE on its schema {table.name.schema}",
                _grant("USAGE ON SCHEMA {}", role, table.name.schema),
            )
        )
    if views and not table.may_install:
        lacks.append(("TRIGGER on it", _grant("TRIGGER ON {}", role, table.name.schema, table.name.name)))
    if lacks:
        return Line(
            object=str(table.name),
            table=table.name,
            state=refused,
            views=shown,
            reason=f"the role {role} lacks {' and '.join(what for what, _ in lacks)}",
            remedy=" ".join(grant for _, grant in lacks),
        )
    if spare and not table.may_remove:
        return Line(
            object=str(table.name),
            table=table.name,
            state=refused,
            views=shown,
            reason=f"only its owner {table.owner} may drop a trigger on it"
            + (f"; {reason}" if reason else ""),
            remedy=" ".join(f"{_statement('DROP TRIGGER {} ON {}', name, table)};" for name in spare),
        )
    action = Action.REMOVE if not views else Action.REPLACE if ours else Action.INSTALL
    return Line(
        object=str(table.name),
        table=table.name,
        state=state,
        views=shown if action is Action.REMOVE else views,
        action=action,
        drops=spare,
        reason=reason,
        remedy=INSTALL,
    )


def _statement(text: str, trigger: str, table: Table) -> str:
    """A statement for a person to run."""
    return sql.SQL(text).format(sql.Identifier(trigger), table.name.identifier()).as_string()


def _grant(what: str, role: str, *name: str) -> str:
    granted = sql.SQL(what).format(sql.Identifier(*name))
    return sql.SQL("GRANT {} TO {};").format(granted, sql.Identifier(role)).as_string()
