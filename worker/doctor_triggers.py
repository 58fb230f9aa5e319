"""What `upkeep doctor` says of the triggers by which writes request refreshes; as pure as `worker.doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tasks.refresh.triggers import Line, State
from worker.doctor import About, Finding, Level


def judge_triggers(database: str, lines: Sequence[Line]) -> Iterator[Finding]:
    """Judge how the tables behind views with on_write = true stand; where there are none nothing is said."""
    for line in lines:
        about, why = About(database, line.object), f": {line.reason}" if line.reason else ""
        match line.state:
            case State.IMPOSSIBLE:
                yield about.says(
                    Level.INFO,
                    f"No trigger tells of what changes there ({', '.join(line.views)}): {line.reason}",
                    line.remedy,
                )
            case State.MISSING:
                yield about.warning(
                    f"It has no trigger: writes to it do not request {', '.join(line.views)} (on_write = true)",
                    line.remedy,
                )
            case State.INSTALLED:
                pass
            case _:
                yield about.warning(
                    f"Its trigger for {', '.join(line.views)} is {line.state}{why}", line.remedy
                )
    fine = sum(line.state is State.INSTALLED for line in lines)
    if fine and all(line.state.fine for line in lines):
        yield About(database, "triggers").ok(
            f"Each table behind a view with on_write has its trigger ({fine})"
        )
