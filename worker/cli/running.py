"""`upkeep run`: checks a request for the fleet, sends it through Redis, and with `--wait` follows it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from pydantic import ValidationError

from fleet import logs, redaction
from fleet.errors import TransientError, UpkeepError
from fleet.ledger import NewRun
from fleet.settings import Database, Settings
from fleet.settings.values import closest
from schedules.runs import Runs
from tasks.base import Arguments, LedgeredTask, Runtime
from upkeep_client.urls import parse
from worker.app import app, configuration
from worker.cli import following, options, output

# What the fleet itself puts into a message.
NOT_YOURS = ("run",)
_YES, _NO = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What will be sent, checked: `new` is the run that a worker will make of it; `entry` is the schedule's."""

    task: str
    task_id: str
    database: Database
    new: NewRun
    kwargs: Mapping[str, Any]
    entry: str | None = None


def run(
    config: Path | None,
    task: str,
    words: Sequence[str],
    *,
    wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Send, and wait where asked to; 1 if it cannot be sent, failed, was lost, or the time is over."""
    _check_timeout(timeout_s, wait=wait)
    logs.configure("WARNING")
    settings = options.load(config)
    with app.judging_by(settings) as runtime:
        found = _known(task)
        request = prepare(runtime, found, _values(task, found.arguments, words))
    return _carry_out(settings, request, wait=wait, timeout_s=timeout_s, as_json=as_json)


def run_entry(config: Path | None, name: str, *, wait: bool, timeout_s: float | None, as_json: bool) -> int:
    """Ask for what the slot of an entry would do; otherwise as `run`."""
    _check_timeout(timeout_s, wait=wait)
    logs.configure("WARNING")
    settings = options.load(config)
    entry = options.entry(settings, name)
    with app.judging_by(settings) as runtime:
        # What `upkeep check` says of it, in its words: the remedy is in the file, not on the command line.
        for problem in Runs(app.tasks, settings).problems([entry], datetime.now(UTC)):
            said = f"{problem.key} = {problem.value}: {problem.message}"
            raise options.UsageMistakeError(said, remedy=problem.remedy)
        request = prepare(runtime, _known(entry.task), {"database": entry.database, **entry.arguments})
    request = replace(request, entry=entry.name)
    return _carry_out(settings, request, wait=wait, timeout_s=timeout_s, as_json=as_json)


def prepare(runtime: Runtime, task: LedgeredTask[Any], values: Mapping[str, Any]) -> Request:
    """Check a request as the worker will, so that a mistake is told at once and by exit code 2.

    Raises:
        UsageMistakeError: no such database, view or tier, or a value that is none.

    """
    values = {**values}
    if "requested_by" in task.arguments.model_fields:
        values.setdefault("requested_by", f"cli:{options.user()}")
    try:
        arguments = task.arguments.model_validate(values)
    except ValidationError as exc:
        said = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or task.name}: {e['msg'].removeprefix('Value error, ')}"
            for e in exc.errors()
        )
        raise options.UsageMistakeError(said, remedy=usage(task.name, task.arguments)) from None
    with options.asking():
        database = task.place(arguments, runtime)
        new = task.request_run(arguments, database, datetime.now(UTC))
    task_id = str(uuid.uuid4())
    return Request(
        task=task.name,
        task_id=task_id,
        database=database,
        new=replace(new, request_id=task_id, requested_by=redaction.text(arguments.requested_by or "")),
        kwargs={**values, "database": database.name},
    )


def _check_timeout(timeout_s: float | None, *, wait: bool) -> None:
    if timeout_s is not None and not wait:
        raise options.UsageMistakeError(
            "--timeout is for --wait", remedy="Add --wait, or leave --timeout out"
        )


def _known(task: str) -> LedgeredTask[Any]:
    known = {name: found for name, found in app.tasks.items() if isinstance(found, LedgeredTask)}
    if task not in known:
        raise options.UsageMistakeError(f"There is no task named {task!r}", remedy=closest(task, known))
    return known[task]


def _carry_out(
    settings: Settings, request: Request, *, wait: bool, timeout_s: float | None, as_json: bool
) -> int:
    """Send, and follow it where that is asked for."""
    producer = _producer(settings)
    if not wait:
        _send(producer, settings, request)
        _show_sent(request, as_json=as_json, away=following.note(request.database, request.new))
        return 0
    # Before anything is sent: a ledger that cannot be read would leave us waiting for an answer that never
    # comes.
    with following.Watch(settings, request.database, request.task_id, producer) as watch:
        _send(producer, settings, request)
        following.note(request.database, request.new)
        if not as_json:
            _show_sent(request, as_json=False)
        outcome = following.follow(watch, request.new.queue, timeout_s=timeout_s)
    following.show(outcome, _document(request), as_json=as_json)
    return int(not outcome.fine)


def usage(task: str, arguments: type[Arguments]) -> str:
    """The line that would have been right."""
    words = [f"[{name}=…]" for name in arguments.model_fields if name not in NOT_YOURS]
    return f"upkeep run {task} {' '.join(words)}"


def _values(task: str, arguments: type[Arguments], words: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    fields = {name: field for name, field in arguments.model_fields.items() if name not in NOT_YOURS}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise options.UsageMistakeError(f"{word!r} is not KEY=VALUE", remedy=usage(task, arguments))
        if key not in fields:
            hint = closest(key, fields)
            raise options.UsageMistakeError(
                f"{task} takes no argument {key!r}",
                remedy=f"{hint if hint.endswith('?') else f'{hint}.'} Usage: {usage(task, arguments)}",
            )
        if key in values:
            raise options.UsageMistakeError(f"{key} is given twice", remedy=usage(task, arguments))
        values[key] = _value(key, value, fields[key].annotation)
    return values


def _value(key: str, text: str, annotation: Any) -> object:
    kinds = set(get_args(annotation)) or {annotation}
    if bool in kinds:
        if text.lower() in _YES | _NO:
            return text.lower() in _YES
        raise options.UsageMistakeError(f"{key} is true or false, not {text!r}", remedy=f"{key}=true")
    if int in kinds:
        try:
            return int(text)
        except ValueError:
            raise options.UsageMistakeError(
                f"{key} is a whole number, not {text!r}", remedy=f"{key}=1"
            ) from None
    return text


def _producer(settings: Settings) -> Celery:
    """A sender of its own: the worker's app reads its configuration from where the worker would."""
    producer = Celery("upkeep-cli", set_as_current=False)
    producer.conf.update(configuration(settings))
    return producer


def _send(producer: Celery, settings: Settings, request: Request) -> None:
    where = parse(settings.fleet.redis_url.get_secret_value()).place
    try:
        with producer.connection_for_write() as connection:
            connection.ensure_connection(
                max_retries=1, interval_start=0, interval_step=0, interval_max=0, timeout=5
            )
            producer.send_task(
                request.task,
                kwargs=dict(request.kwargs),
                task_id=request.task_id,
                queue=request.new.queue,
                connection=connection,
                retry=False,
                ignore_result=False,
            )
    except (OperationalError, redis.RedisError, OSError) as exc:
        raise TransientError(
            f"Redis at {where} took no message: {' '.join(str(exc).split())}",
            remedy="Start it, or set UPKEEP_REDIS_URL to where it is; nothing was sent",
        ) from exc


def _document(request: Request) -> dict[str, Any]:
    return {
        **({"entry": request.entry} if request.entry else {}),
        "task": request.task,
        "task_id": request.task_id,
        "database": request.database.name,
        "target": request.new.target,
        "queue": request.new.queue,
    }


def _show_sent(request: Request, *, as_json: bool, away: UpkeepError | None = None) -> None:
    if as_json:
        waits = {"waits_for": {"message": away.message, "remedy": away.remedy}} if away else {}
        output.emit(_document(request) | waits)
        return
    output.console().print(
        f"Sent {request.task} for {request.new.target} to the queue {request.new.queue}.", soft_wrap=True
    )
    output.console().print(f"Task {request.task_id}", soft_wrap=True)
    if away is not None:
        said = f"The request waits in Redis: {away.message}. {away.remedy}."
        output.console(stderr=True).print(said, soft_wrap=True)
