"""The commands as declared: help that reads well and comes at once, the same options everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from fleet.ledger import State
from worker import cli
from worker.cli.look import RunState

COMMANDS = [
    "init",
    "check",
    "migrate",
    "doctor",
    "plan refresh",
    "plan partitions",
    "run",
    "schedule list",
    "schedule pause",
    "schedule resume",
    "schedule run-now",
    "status",
    "history",
    "retention",
    "demo",
]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*command.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert "Examples" in said
    assert f"$ upkeep {command}" in said
    if command != "demo":
        assert "--json" in said
    if command not in ("demo", "init"):
        assert "--config" in said


def test_the_help_groups_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    said = capsys.readouterr().out
    panels = [said.index(f"─ {panel} ─") for panel in ("Set up", "Refresh", "Schedule", "Look", "Try it")]
    assert panels == sorted(panels)
    assert all(f"│ {command.split()[0]} " in said for command in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, worker.cli; worker.cli.run(['--help']);"
        "heavy = {'celery', 'alembic', 'sqlalchemy', 'psycopg', 'pydantic', 'redis'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"upkeep {version('upkeep')}\n"


def test_the_states_are_the_ledgers() -> None:
    assert [state.value for state in RunState] == [state.value for state in State]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["statsu"], "Did you mean 'status'?"),
        (["status", "--no-such"], "--no-such"),
        (["history", "--state", "broken"], "'broken' is not one of"),
        (["history", "--limit", "0"], "greater than or equal to 1"),
        (["history", "--run", "x"], "--run"),
        (["init"], "Missing argument 'URL'"),
        (["run", "upkeep.refresh.all", "--timeout", "-1"], "greater than or equal to 0"),
        (["schedule", "wait"], "No such command 'wait'"),
        (["schedule", "pause"], "Missing argument 'ENTRY'"),
        (["schedule", "resume", "--reason", "why"], "--reason"),
        (["schedule", "run-now", "kept/daily", "kept/hourly"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2_in_both_forms(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert lines[1].startswith("remedy: upkeep")
    assert cli.run([*words, "--json"]) == 2
    captured = capsys.readouterr()
    assert said in json.loads(captured.out)["error"]["message"]
    assert captured.err == ""


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    assert "Usage: upkeep" in "".join(capsys.readouterr())


def test_the_demo_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def run(**options: object) -> int:
        given.update(options)
        return 3

    monkeypatch.setattr("worker.demo.run", run)
    assert cli.run(["demo", "--example", "trading", "--scale", "0.5", "--duration", "60", "--no-ui"]) == 3
    assert given == {
        "example": "trading",
        "scale": 0.5,
        "duration": 60.0,
        "interactive": False,
        "as_json": False,
    }


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    # History's own output would need a database; --json of a usage error is printed by the same functions.
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", "import worker.cli; worker.cli.main(['statsu', '--json'])"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (cli.READER_GONE, "")
