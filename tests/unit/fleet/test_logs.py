"""Logs: one parseable line each, context on all of them, no secret in any."""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from fleet import logs
from fleet.errors import PermanentError
from fleet.names import RelationName

SECRET = "hunter2"


class Printed:
    """What has come out on stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    @property
    def text(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Printed]:
    """What is printed; what configure() changed for the process is put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    structlog.contextvars.clear_contextvars()
    yield Printed(capsys)
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def fail(message: str, remedy: str = "") -> None:
    local = SECRET  # noqa: F841 - what must not be printed
    raise PermanentError(message, remedy=remedy)


def test_our_events_and_the_libraries_look_the_same(stderr: Printed) -> None:
    logs.configure()
    structlog.contextvars.bind_contextvars(run_id=7, task_id="t", database="lending", view="public.mv_x")
    structlog.get_logger("tasks.refresh").info("view.refreshed", rows_changed=3, duration_s=0.25)
    logging.getLogger("celery.worker").warning("Connection to broker lost: %s, retry %d", "gone", 2)
    ours, theirs = stderr.lines
    assert ours["event"] == "view.refreshed"
    assert ours["rows_changed"] == 3
    assert theirs["event"] == "Connection to broker lost: gone, retry 2"
    assert (ours["logger"], theirs["logger"]) == ("tasks.refresh", "celery.worker")
    assert (ours["level"], theirs["level"]) == ("info", "warning")
    for line in (ours, theirs):
        assert (line["run_id"], line["task_id"], line["database"], line["view"]) == (
            7,
            "t",
            "lending",
            "public.mv_x",
        )
        assert line["timestamp"].endswith("Z")
        moment = datetime.fromisoformat(line["timestamp"])
        assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
        assert not any(key.startswith("_") for key in line)


def test_a_module_logger_made_before_follows(stderr: Printed) -> None:
    log = structlog.get_logger("early")
    logs.configure("WARNING")
    log.info("not.shown")
    log.warning("shown")
    logs.configure("INFO")
    log.info("shown.too")
    assert [line["event"] for line in stderr.lines] == ["shown", "shown.too"]


def test_configuring_again_does_not_double_the_lines(stderr: Printed) -> None:
    for _ in range(3):
        logs.configure()
    logging.getLogger("x").info("once")
    assert len(stderr.lines) == 1


def test_other_handlers_of_the_root_stay(stderr: Printed) -> None:
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    logs.configure()
    assert other in logging.getLogger().handlers


def test_levels(stderr: Printed) -> None:
    logs.configure(logging.ERROR)
    logging.getLogger("x").warning("no")
    structlog.get_logger("x").error("yes")
    logs.configure("debug".upper())
    structlog.get_logger("x").debug("yes")
    assert [line["event"] for line in stderr.lines] == ["yes", "yes"]
    with pytest.raises(ValueError, match="LOUD"):
        logs.configure("LOUD")


def test_exceptions_are_fields_without_local_variables(stderr: Printed) -> None:
    logs.configure()
    try:
        fail("The view public.mv_x is not there", "Create it")
    except PermanentError:
        structlog.get_logger("a").exception("view.failed")
        logging.getLogger("b").exception("Task failed")
    for line in stderr.lines:
        assert line["remedy"] == "Create it"
        (exception,) = line["exception"]
        assert exception["exc_type"] == "PermanentError"
        assert exception["exc_value"] == "The view public.mv_x is not there. Create it."
        assert exception["frames"][-1]["name"] == "fail"
        assert "locals" not in exception["frames"][-1]
    assert SECRET not in stderr.text


@pytest.mark.parametrize("as_json", [True, False])
def test_no_secret_is_ever_printed(stderr: Printed, *, as_json: bool) -> None:
    class Options:
        def __str__(self) -> str:
            return f"host=h password={SECRET}"

        __repr__ = __str__

    logs.configure(json=as_json)
    url = f"postgresql://upkeep:{SECRET}@db.example/lending"
    structlog.contextvars.bind_contextvars(broker=f"redis://:{SECRET}@h/0")
    log = structlog.get_logger("a")
    log.info("started", url=url, dsn=SECRET, REDIS_URL=SECRET, password=SECRET, said=f"cannot reach {url}")
    log.info(url)
    log.info("positional %s", url)
    log.info(
        "nested",
        kwargs={"options": [{"db_password": SECRET}, (url,)]},
        options=Options(),
        error=ValueError(url),
    )
    log.info("typed", secret=SecretStr(SECRET), wrapped={"url": SecretStr(SECRET)}, raw=url.encode())
    log.info("deep", mapping={Options(): 1}, options=[Options()])
    logging.getLogger("b").warning("connecting to %s with %r", url, {"password": SECRET})
    logging.getLogger("b").warning("mapping %(url)s", {"url": url})
    try:
        try:
            fail(f"password={SECRET}")
        except PermanentError as exc:
            raise PermanentError(f"No connection to {url}", remedy=f"Look at {url}") from exc
    except PermanentError:
        log.exception("failed")
        logging.getLogger("b").exception("failed")
    log.info("stack", stack_info=True)
    printed = stderr.text
    assert (
        SECRET not in printed.replace(f'"{SECRET}"', "").replace(f"={SECRET}", "=") or SECRET not in printed
    )
    assert SECRET not in printed
    assert "db.example" in printed


def test_what_json_cannot_hold_is_written_as_text(stderr: Printed) -> None:
    logs.configure()
    structlog.get_logger("a").info(
        "odd",
        view=RelationName("public", "Größe"),
        after=timedelta(seconds=5),
        at=datetime(2026, 1, 1, tzinfo=UTC),
        path=Path("x"),
        several={RelationName("a", "b"): {1, 2}},
    )
    (line,) = stderr.lines
    assert line["view"] == 'public."Größe"'
    assert line["after"] == "0:00:05"
    assert line["at"] == "2026-01-01 00:00:00+00:00"
    assert line["several"] == {"a.b": [1, 2]}
    assert "Größe" in stderr.text  # readable, not \\u escapes


def test_one_event_is_one_line(stderr: Printed) -> None:
    logs.configure()
    structlog.get_logger("a").info("first\nsecond", text="third\r\nfourth")
    assert len(stderr.text.splitlines()) == 1


def test_people_get_text_and_machines_json(stderr: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as terminal:
        terminal.setattr(sys.stderr, "isatty", lambda: True)
        logs.configure()
        structlog.get_logger("a").info("view.refreshed", rows_changed=3)
    assert "view.refreshed" in stderr.text
    assert not stderr.text.startswith("{")
    logs.configure()
    structlog.get_logger("a").info("view.refreshed")
    assert json.loads(stderr.text.splitlines()[-1])["event"] == "view.refreshed"


def test_warnings_of_python_are_lines_too(stderr: Printed) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logs.configure()
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(capture=False)
    (line,) = stderr.lines
    assert line["logger"] == "py.warnings"
    assert "old" in line["event"]


def test_context_is_of_its_thread(stderr: Printed) -> None:
    logs.configure()
    structlog.contextvars.bind_contextvars(run_id=1)

    def other() -> None:
        structlog.get_logger("a").info("other")

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert "run_id" not in stderr.lines[0]
