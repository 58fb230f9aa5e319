"""Logs: one JSON object per line on stderr, the same for Upkeep's own events and those of the libraries.

    log = structlog.get_logger(__name__)
    log.info("view.refreshed", view="public.mv_x", duration_s=1.2)

What is bound with `structlog.contextvars` (the task class binds run_id, task_id, database, view) is on every
line, also on those of Celery, Alembic and psycopg. Passwords are taken out last of all, after exceptions and
messages have become text, so that nothing is rendered behind the redaction's back.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from fleet import redaction
from fleet.errors import UpkeepError

# Libraries whose INFO is of no use to an operator: Alembic announces its implementation at every run. The pool tells
# each attempt to reach a database that is away; we say it once, with the remedy.
_QUIET = {
    "alembic.runtime.plugins": logging.WARNING,
    "alembic.runtime.migration": logging.WARNING,
    "psycopg.pool": logging.ERROR,
}
# Frames of a traceback that are kept, first and last ones; Celery's own fill dozens.
_FRAMES = 30


def configure(level: int | str = "INFO", json: bool | None = None) -> None:
    """Send everything that is logged in this process to stderr; safe to call again.

    `json=None` chooses: lines for people when stderr is a terminal, JSON otherwise. The stream is that of the
    moment: a worker that replaces `sys.stderr` later does not get its own lines back.

    Raises:
        ValueError: `level` is not a level of `logging`.

    """
    stream = sys.stderr
    as_json = not stream.isatty() if json is None else json
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Module-level loggers must follow a later call, and `structlog.testing.capture_logs` must reach them.
        cache_logger_on_first_use=False,
    )
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.StackInfoRenderer(),
                *(_as_json() if as_json else _for_people(colors=stream.isatty())),
            ],
        )
    )
    root = logging.getLogger()
    root.setLevel(level)
    for earlier in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, root.level))
    # Warnings of Python would be bare text between the lines.
    logging.captureWarnings(capture=True)


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, to be known again at the next `configure`."""


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A processor that masks passwords in the whole event: text, nested data, keys that name a secret.

    It belongs after the rendering of exceptions. What is no data is printed by its `str`; it becomes text
    here, where it can still be looked at.
    """
    shown = redaction.data(_plain(event))
    assert isinstance(shown, dict)
    return shown


def _plain(value: object) -> object:
    if isinstance(value, MutableMapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, str | bytes | bool | int | float):
        return value
    return str(value)


def _as_json() -> list[Processor]:
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=_FRAMES)
    return [
        _explain,
        structlog.processors.ExceptionRenderer(frames),
        redact,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]


def _for_people(*, colors: bool) -> list[Processor]:
    return [
        _explain,
        structlog.processors.format_exc_info,
        redact,
        structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
    ]


def _explain(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put the remedy of one of our own errors where an operator can filter by it."""
    info = event.get("exc_info")
    error: Any = info
    if info is True:
        error = sys.exc_info()[1]
    elif isinstance(info, tuple):
        error = info[1]
    if isinstance(error, UpkeepError) and error.remedy:
        event.setdefault("remedy", error.remedy)
    return event
