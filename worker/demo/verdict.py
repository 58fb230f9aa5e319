"""How the demo went, for people and for programs: a demo in which a view failed must not end as if none had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console

from worker.cli import output
from worker.demo.live import Row
from worker.demo.processes import Fleet
from worker.demo.sample import Writer


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the demo went."""

    problems: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    bursts: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.problems

    def document(self) -> dict[str, Any]:
        """As --json prints it."""
        return {
            "ok": self.ok,
            "problems": list(self.problems),
            "bursts_written": self.bursts,
            "views": [
                {
                    "view": row.view,
                    "tier": row.tier,
                    "age_s": row.age.total_seconds() if row.age is not None else None,
                    "last_run": row.run.state if row.run else None,
                    "duration_s": row.duration.total_seconds() if row.duration is not None else None,
                    "rows_changed": row.rows_changed,
                    "seen_after_s": row.seen_after,
                    "next_slot": row.next_slot.isoformat(),
                    "refreshed": row.succeeded,
                }
                for row in self.rows
            ],
        }


def judge(
    console: Console, rows: list[Row], fleet: Fleet, writer: Writer, *, dead: str | None, interrupted: bool
) -> Verdict:
    """Say what failed, or that nothing did; who interrupts the demo does not ask for every view."""
    problems = [f"{row.view}: {row.problem}" for row in rows if row.problem]
    if not interrupted:
        problems += [f"{row.view} was never refreshed" for row in rows if not row.succeeded]
    if writer.error:
        problems.append(f"the application could not write: {writer.error}")
    if dead:
        problems.append(f"{dead} ended by itself; its log ends with\n{fleet.tail(dead)}")
    for problem in problems:
        console.print(f"[bold red]failed:[/] {problem}", highlight=False)
    if not problems and not interrupted:
        said = f"{output.count(len(rows), 'view')} refreshed, none failed, {writer.bursts} bursts of writes"
        console.print(f"[bold green]ok:[/] {said}")
    return Verdict(problems=tuple(problems), rows=tuple(rows), bursts=writer.bursts)
