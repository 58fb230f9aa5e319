"""`upkeep schedule pause` and `resume`: rows in the home database, which whoever leads reads every second."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import Settings
from schedules import state
from schedules.entries import Entry
from schedules.slots import next_slot
from schedules.state import EntryState
from worker.cli import options, output

# For a line in a list; a story has its place elsewhere.
LONGEST_REASON = 200


def pause(config: Path | None, names: Sequence[str], *, reason: str | None, as_json: bool) -> int:
    """Pause and print; what is paused already stays so, for the reason that it had."""
    why = _checked(reason)
    settings = options.load(config)
    chosen = _chosen(settings, names)
    done = []
    with _home(settings, doing="Pausing") as connection:
        for entry in chosen:
            # One row at a time: with several locked at once the scheduler could wait for us, and we for it.
            with connection.transaction():
                state.declare(connection, entry)
                was = state.pause(connection, entry.name, by=options.who(), reason=why)
                done.append((entry, state.read_states(connection)[entry.name], not was))
        clock = state.heartbeat(connection).clock
    if as_json:
        output.emit(
            {
                "entries": [
                    {"entry": entry.name, "changed": changed, "paused": document(found)}
                    for entry, found, changed in done
                ]
            }
        )
        return 0
    out = output.console()
    for entry, found, changed in done:
        if changed:
            out.print(
                f"{entry.name} is paused: its slots go by until upkeep schedule resume {entry.name}",
                soft_wrap=True,
            )
        else:
            out.print(f"{entry.name} is paused already, {described(found, now=clock)}", soft_wrap=True)
    return 0


def resume(config: Path | None, names: Sequence[str], *, as_json: bool) -> int:
    """Resume and print; what is not paused goes on as before."""
    settings = options.load(config)
    chosen = _chosen(settings, names)
    done = []
    with _home(settings, doing="Resuming") as connection:
        for entry in chosen:
            with connection.transaction():
                before = state.read_states(connection).get(entry.name)
                changed = bool(state.resume(connection, entry.name))
                done.append((entry, before, changed))
        clock = state.heartbeat(connection).clock
    if as_json:
        output.emit(
            {
                "entries": [
                    {
                        "entry": entry.name,
                        "changed": changed,
                        "was_paused": document(before),
                        "next_slot": next_slot(entry.cron, entry.timezone, clock),
                    }
                    for entry, before, changed in done
                ]
            }
        )
        return 0
    out = output.console()
    for entry, before, changed in done:
        if changed and before is not None:
            following = output.moment(next_slot(entry.cron, entry.timezone, clock), now=clock)
            said = (
                f"goes on with its next slot, {following} UTC; it was paused {described(before, now=clock)}"
            )
        else:
            said = "is not paused"
        out.print(f"{entry.name} {said}", soft_wrap=True)
    return 0


def read(settings: Settings) -> dict[str, EntryState]:
    """What is paused at the moment, by the entries' names."""
    with _home(settings, doing="Reading what is paused", read_only=True) as connection:
        states = state.read_states(connection)
    return {name: found for name, found in states.items() if found.paused_at is not None}


def document(found: EntryState | None) -> dict[str, Any] | None:
    """A pause as JSON has it; None where there is none."""
    if found is None or found.paused_at is None:
        return None
    return {"since": found.paused_at, "by": found.paused_by, "reason": found.pause_reason}


def described(found: EntryState, *, now: datetime) -> str:
    """A pause in words: since when, by whom, why."""
    why = f": {found.pause_reason}" if found.pause_reason else ""
    return f"since {output.moment(found.paused_at, now=now)} UTC by {found.paused_by or 'somebody'}{why}"


def _chosen(settings: Settings, names: Sequence[str]) -> list[Entry]:
    """All of them known, before anything is done; one that is named twice is one."""
    return [options.entry(settings, name) for name in dict.fromkeys(names)]


@contextmanager
def _home(settings: Settings, *, doing: str, read_only: bool = False) -> Iterator[psycopg.Connection[Any]]:
    with options.connection(settings.home, doing=doing, read_only=read_only) as connection:
        refuse_unless_current(connection, settings.home.name)
        state.refuse_newer(connection)
        yield connection


def _checked(reason: str | None) -> str | None:
    text = (reason or "").strip()
    if not text.isprintable() or len(text) > LONGEST_REASON:
        raise options.UsageMistakeError(
            f"--reason is one line of printable text, {LONGEST_REASON} characters at most",
            remedy='As in --reason "migration 42"',
        )
    return text or None
