"""The `upkeep` command: what an operator types, and how it ends.

Exit codes: 0 fine; 1 what was asked for failed, or errors were found; 2 the command line or the
configuration is wrong; 130 after Ctrl-C, 141 when the reader of our output went away. An error is told in two
lines, never as a traceback.

Here and in the modules that declare the commands nothing heavy is imported: `upkeep --help` answers at
once, and each command imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from fleet.errors import ConfigurationError, UpkeepError
from worker.cli import look, output, schedule, setup, triggers, work
from worker.cli.options import UsageMistakeError

FAILED, MISUSED, INTERRUPTED, READER_GONE = 1, 2, 130, 141

app = typer.Typer(
    name="upkeep",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""[bold]First steps[/bold]
$ upkeep init postgresql://me@db.example.com/lending --output upkeep.toml
$ upkeep check && upkeep migrate && upkeep doctor
$ upkeep run upkeep.refresh.all database=lending --wait

Every command has its own --help with examples, and --json for programs.
Exit codes: 0 fine, 1 failed or errors found, 2 wrong usage or configuration.""",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # noqa: PLC0415 - reads the installed metadata

        output.emit_text(f"upkeep {version('upkeep')}\n")
        raise typer.Exit


@app.callback()
def upkeep(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version.", show_default=False
        ),
    ] = False,
) -> None:
    """Keep PostgreSQL's materialized views fresh with a Celery fleet on Redis."""


for group in (setup.app, work.app, triggers.app, schedule.app, look.app, work.trial):
    app.add_typer(group)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `upkeep` script."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; what is unexpected is raised."""
    try:
        code = _run(list(argv), as_json="--json" in argv)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except (output.ReaderGoneError, BrokenPipeError):
        # What Python still has buffered must go nowhere when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    return code


def _run(argv: list[str], *, as_json: bool) -> int:
    try:
        return int(app(args=argv, prog_name="upkeep", standalone_mode=False) or 0)
    except typer.TyperException as exc:
        return _misused(exc, as_json=as_json)
    except (UsageMistakeError, ConfigurationError) as exc:
        output.report(exc, as_json=as_json)
        return MISUSED
    except UpkeepError as exc:
        output.report(exc, as_json=as_json)
        return FAILED


def _misused(exc: typer.TyperException, *, as_json: bool) -> int:
    context = getattr(exc, "ctx", None)
    if type(exc).__name__ == "NoArgsIsHelpError":
        return MISUSED  # the help has been printed
    message = getattr(exc, "format_message", lambda: str(exc))().replace("Value error, ", "")
    where = context.command_path if context is not None else "upkeep"
    output.report(UsageMistakeError(message, remedy=f"{where} --help"), as_json=as_json)
    return MISUSED
