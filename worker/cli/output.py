"""What the command line prints: tables for people, one JSON document for programs, errors in two lines.

Tables read the same on a terminal and in a pipe: no colour codes there, 100 columns wide, nothing cut off.
Whatever comes from a database is printed as it is: square brackets are no markup.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TextIO, cast

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fleet.errors import UpkeepError

# Where there is no terminal to ask: wide enough for the tables, narrow enough for a ticket or a mail.
PIPE_WIDTH = 100
_TRAILING = re.compile(r" +\n")

STYLES: Mapping[str, str] = {
    "ok": "green",
    "succeeded": "green",
    "refresh": "green",
    "create": "green",
    "drain": "green",
    "move": "green",
    "finalize": "green",
    "late": "green",
    "export": "cyan",
    "purge": "cyan",
    "hold": "yellow",
    "info": "cyan",
    "running": "cyan",
    "waiting": "yellow",
    "paused": "yellow",
    "warning": "yellow",
    "missed": "yellow",
    "error": "bold red",
    "refuse": "bold red",
    "failed": "bold red",
    "lost": "bold red",
    "skipped": "dim",
    "skip": "dim",
}


class ReaderGoneError(Exception):
    """Whoever read our output has closed it: `upkeep history | head`."""


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        raise ReaderGoneError


class _Trimmed:
    """A stream without the spaces that tables put at the end of a line: nobody wants to paste those."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        self._file.write(_TRAILING.sub("\n", text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def console(*, stderr: bool = False) -> Console:
    """A console on the stream as it is now (tests replace it)."""
    file: TextIO = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    trimmed = file if file.isatty() else cast(TextIO, _Trimmed(file))
    return _Console(file=trimmed, width=width, markup=False, highlight=False, emoji=False)


def emit(document: Mapping[str, Any]) -> None:
    """Print the one JSON document."""
    try:
        sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2, default=_plain) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGoneError from None


def emit_text(text: str) -> None:
    """Print text exactly as it is, for a file: unlike a console's, its lines are never wrapped."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderGoneError from None


def report(error: UpkeepError, *, as_json: bool) -> None:
    """An error in two lines on stderr, or as JSON on stdout."""
    problems = getattr(error, "problems", ())
    if as_json:
        described: dict[str, Any] = {"message": error.message, "remedy": error.remedy}
        if problems:
            described["problems"] = [problem(each) for each in problems]
        emit({"error": described})
        return
    out = console(stderr=True)
    out.print(Text.assemble(("error: ", "bold red"), error.message), soft_wrap=True)
    for each in problems:
        out.print(f"  {each}", soft_wrap=True)
    if error.remedy:
        out.print(Text.assemble(("remedy: ", "bold"), error.remedy), soft_wrap=True)


def problem(found: Any) -> dict[str, str]:
    """A problem of the configuration as JSON has it."""
    return {"key": found.key, "value": found.value, "message": found.message, "remedy": found.remedy}


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """A table without a frame; long words are folded, never cut."""
    made = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold"
    )
    right = set(right)
    for column in columns:
        made.add_column(column, overflow="fold", justify="right" if column in right else "left")
    return made


def listing(rows: Iterable[tuple[str, str | Text, str]]) -> Table:
    """Findings below each other: the level, what was found, and in the next line what to do about it."""
    made = Table.grid(padding=(0, 2))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for level, message, remedy in rows:
        made.add_row(styled(level), message)
        if remedy:
            made.add_row("", Text(f"→ {remedy}", style="cyan"))
    return made


def details(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """One thing in full: a name and a value per line."""
    made = Table.grid(padding=(0, 2))
    made.add_column(no_wrap=True, style="bold")
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made


def styled(word: str, text: str | None = None) -> Text:
    """A state or a level in its colour."""
    return Text(text or word, style=STYLES.get(word, ""))


def count(number: int, thing: str) -> str:
    """`1 view`, `3 views`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def number(value: int | None) -> str:
    """With thousands separators; nothing for nothing."""
    return "" if value is None else f"{value:,}"


def span(value: timedelta | None) -> str:
    """An age or a duration in at most two units: `12 ms`, `1.2 s`, `4m 10s`, `3d 4h`."""
    if value is None:
        return ""
    seconds = value.total_seconds()
    sign, seconds = ("-" if seconds < 0 else ""), abs(seconds)
    if seconds < 1:
        return f"{sign}{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{sign}{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{sign}{whole} s"
    for unit, name, smaller, small_name in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{sign}{whole // unit}{name}" + (f" {rest}{small_name}" if rest else "")
    raise AssertionError(seconds)  # 60 s and more fit the last row


def moment(value: datetime | None, *, now: datetime | None = None) -> str:
    """A time in UTC; without its date where that is today's."""
    if value is None:
        return ""
    value = value.astimezone(UTC)
    if now is not None and value.date() == now.astimezone(UTC).date():
        return f"{value:%H:%M:%S}"
    return f"{value:%Y-%m-%d %H:%M:%S}"


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)
