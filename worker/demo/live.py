"""The live table: every view with its tier, age, last run, rows changed and next slot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import psycopg
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fleet import ledger, settings
from fleet.ledger import Run, State
from fleet.names import RelationName
from schedules.slots import next_slot
from tasks.refresh.execute import REFRESH_VIEW

_COLOURS = {
    State.SUCCEEDED: "green",
    State.SKIPPED: "cyan",
    State.RUNNING: "yellow",
    State.WAITING: "yellow",
    State.QUEUED: "dim",
    State.FAILED: "bold red",
    State.LOST: "bold red",
    State.MISSED: "red",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One view as the table shows it."""

    view: str
    tier: str
    age: timedelta | None
    run: Run | None
    rows_changed: int | None
    duration: timedelta | None
    next_slot: datetime
    succeeded: bool
    problem: str | None
    seen_after: float | None = None
    """Where the application looks: how many seconds after its commit a write can be read."""


def read_rows(
    connection: psycopg.Connection[Any],
    database: settings.Database,
    seen_after: Mapping[str, float] = MappingProxyType({}),
) -> list[Row]:
    """What the ledger and upkeep.view_freshness say of every managed view."""
    known = {
        view: (age, changed, duration)
        for view, age, changed, duration in connection.execute(
            "SELECT f.view, f.age, s.rows_changed, s.duration"
            " FROM upkeep.view_freshness f JOIN upkeep.view_state s USING (view)"
        )
    }
    newest = ledger.latest(connection, REFRESH_VIEW)
    running = {r.target: r for r in ledger.history(connection, task=REFRESH_VIEW, state=State.RUNNING)}
    failed = {r.target: r for r in ledger.history(connection, task=REFRESH_VIEW, state=State.FAILED)}
    now = datetime.now(UTC)
    rows = []
    for view in sorted(database.views.values(), key=lambda v: (v.tier, v.name)):
        name = str(view.name)
        tier = database.tier(view.tier)
        age, changed, duration = known.get(name, (None, None, None))
        failure = failed.get(name)
        rows.append(
            Row(
                view=name,
                tier=view.tier,
                age=age,
                run=running.get(name) or newest.get(name),
                rows_changed=changed,
                duration=duration,
                next_slot=next_slot(tier.cron, tier.timezone, now),
                succeeded=age is not None,
                problem=failure.reason if failure else None,
                seen_after=seen_after.get(name),
            )
        )
    return rows


@dataclass
class Board:
    """A titled table with notes under it, redrawn in place or printed again."""

    title: str
    notes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def shown(self, console: Console, *, live: bool) -> Iterator[Callable[[list[Row], str], None]]:
        """Yields what draws: in place on a terminal, one table after the other elsewhere."""
        if not live:
            console.print("\n".join(n for n in self.notes if n), highlight=False, soft_wrap=True)
            yield lambda rows, caption: console.print(self._table(rows, caption))
            return
        with Live(console=console, auto_refresh=False, transient=False) as place:
            notes = Text("\n".join(n for n in self.notes if n), style="dim", overflow="fold")
            yield lambda rows, caption: place.update(Group(self._table(rows, caption), notes), refresh=True)

    def _table(self, rows: list[Row], caption: str) -> Table:
        # A schema that all views share would only make the names wrap.
        schemas = {RelationName.parse(row.view).schema for row in rows}
        table = Table(
            title=self.title,
            caption=caption,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column(f"view in {schemas.copy().pop()}" if len(schemas) == 1 else "view", overflow="fold")
        looked = any(row.seen_after is not None for row in rows)
        for heading, right in (
            ("tier", False),
            ("age", True),
            ("last run", False),
            ("took", True),
            ("rows changed", True),
            *([("write read after", True)] if looked else []),
            ("next slot", False),
        ):
            table.add_column(heading, justify="right" if right else "left", no_wrap=True)
        for row in rows:
            state = State(row.run.state) if row.run else None
            table.add_row(
                RelationName.parse(row.view).name if len(schemas) == 1 else row.view,
                row.tier,
                shown_duration(row.age),
                Text(state.value, style=_COLOURS[state]) if state else Text("never", style="dim"),
                "" if row.duration is None else f"{row.duration.total_seconds() * 1000:,.0f} ms",
                "" if row.rows_changed is None else f"{row.rows_changed:,}",
                *(["" if row.seen_after is None else f"{row.seen_after:.2f} s"] if looked else []),
                row.next_slot.strftime("%H:%M UTC"),
            )
        return table


def shown_duration(value: timedelta | None) -> str:
    """An age for people: 7 s, 4 min, 3 h, 2 d."""
    if value is None:
        return "unknown"
    seconds = value.total_seconds()
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{max(0, seconds) / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
