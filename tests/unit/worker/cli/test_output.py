"""What people read: spans, times, tables that survive a pipe."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from fleet.errors import PermanentError
from worker.cli import output


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 ms"),
        (0.0123, "12 ms"),
        (1.24, "1.2 s"),
        (9.99, "10.0 s"),
        (42.4, "42 s"),
        (59.7, "1m"),
        (250, "4m 10s"),
        (7200, "2h"),
        (7260, "2h 1m"),
        (273_600, "3d 4h"),
        (-5, "-5.0 s"),
    ],
)
def test_spans_have_two_units_at_most(seconds: float, shown: str) -> None:
    assert output.span(timedelta(seconds=seconds)) == shown


def test_a_time_of_today_needs_no_date() -> None:
    now = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert output.moment(now - timedelta(hours=1), now=now) == "11:00:00"
    assert output.moment(now - timedelta(days=1), now=now) == "2026-06-30 12:00:00"
    assert output.moment(None) == ""


def test_a_table_in_a_pipe_has_no_colours_no_trailing_spaces_and_loses_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = output.table("view", "state")
    table.add_row("public." + "x" * 120, output.styled("failed"))
    table.add_row("[bold]not markup[/bold]", "ok")
    output.console().print(table)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert all(line == line.rstrip() and len(line) <= output.PIPE_WIDTH for line in said.splitlines())
    assert said.replace("\n", "").replace(" ", "").count("x") == 120
    assert "[bold]not markup[/bold]" in said


def test_an_error_is_two_lines_or_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    error = PermanentError("It broke [really]", remedy="Mend it")
    output.report(error, as_json=False)
    assert capsys.readouterr().err == "error: It broke [really]\nremedy: Mend it\n"
    output.report(error, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "error": {"message": "It broke [really]", "remedy": "Mend it"}
    }
