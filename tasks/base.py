"""The task class: a message is a bell, the run that it names is the work.

Every delivery ends in the ledger: claimed and worked on, found taken or final, or recorded as failed because what
it asked for makes no sense. Nothing here is specific to an area; an area's task says how a request becomes a run,
and what to call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import psycopg
import structlog
from celery import Task
from celery.exceptions import Ignore, Reject
from psycopg import errors
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from redis import Redis

import fleet.redis
from fleet import ledger, redaction
from fleet.errors import PermanentError, TransientError, UpkeepError
from fleet.ledger import NewRun, Run, State
from fleet.postgres import locks
from fleet.postgres.connect import Pools, rename
from fleet.postgres.failures import explain
from fleet.settings import Database, Settings
from tasks import interruption
from tasks.interruption import Interrupted
from tasks.performing import (
    CancelledByOperator,
    Conclusion,
    Outcome,
    describe,
    perform,
    record_failure,
    record_interruption,
    tell_lost,
)
from upkeep_client.cache import Cache

log = structlog.get_logger(__name__)

# While a database is away the requests for it go round; this keeps them from spinning.
UNREACHABLE_PAUSE_S = 2.0
# Of a task whose work declares none of its own: those of a view.
RETRIES = (timedelta(seconds=5), timedelta(seconds=25), timedelta(seconds=125))
# A lost session holds its run's lock until the server notices, about a second later.
TAKE_BACK_S = 5.0
# What a stranger sends as an argument is shown to operators, but not at any length.
SHOWN_LENGTH = 200
# The arguments that name what a run works on.
TARGETS = ("view", "tier", "job", "table")
# A bigint's range: beyond it the ledger's query would fail, not find nothing.
MAX_RUN_ID = 2**63 - 1


class Arguments(BaseModel):
    """What a message may carry, as JSON keywords.

    `run` names the row that the bell was rung for; `requested_by` is for whoever reads the ledger.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    database: str | None = None
    requested_by: str | None = None
    run: Annotated[int, Field(ge=1, le=MAX_RUN_ID)] | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _storable(cls, value: object) -> object:
        if isinstance(value, str) and "\x00" in value:
            raise ValueError("has a NUL character, which PostgreSQL cannot store")
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("has half a character (a lone surrogate), which nothing can store")
        return value


A = TypeVar("A", bound=Arguments)


@dataclass(frozen=True)
class Runtime:
    """What a process of the fleet has: the configuration, and its connections, opened after the fork."""

    settings: Settings
    pools: Pools
    # Of which requests this process has said that they wait, by database, until that has answered again.
    said_to_wait: dict[str, set[str]] = field(default_factory=dict)

    @cached_property
    def redis(self) -> Redis:
        """The broker's Redis, for marks and messages of our own; shared by threads and safe after a fork."""
        return fleet.redis.connect(self.settings.fleet.redis_url.get_secret_value())

    @cached_property
    def cache(self) -> Cache:
        """Where applications keep cached results that a refresh makes wrong."""
        url = self.settings.fleet.cache_url or self.settings.fleet.redis_url
        return Cache(url.get_secret_value(), timeout=fleet.redis.TIMEOUT_S)

    @contextmanager
    def connection(self, database: Database, *, name: str | None) -> Iterator[psycopg.Connection[Any]]:
        """A working connection to a kept database, in autocommit mode."""
        with self.pools.connection(
            database.name,
            database.url.get_secret_value(),
            application_name=name,
            lock_timeout=database.lock_timeout,
        ) as connection:
            yield connection

    def database(self, name: str | None) -> Database:
        """A kept database by name; the only one may go unnamed.

        Raises:
            PermanentError: unknown, or not named although there are several.

        """
        known = self.settings.databases
        if name is None and len(known) == 1:
            return next(iter(known.values()))
        if name is None:
            raise PermanentError(
                "No database was named", remedy=f"Use database= one of: {', '.join(sorted(known))}"
            )
        return self.settings.database(name)


@dataclass(frozen=True, kw_only=True)
class Delivery(Generic[A]):
    """One delivery of a message whose run is ours."""

    run: Run
    arguments: A
    database: Database
    connection: psycopg.Connection[Any]
    worker: str


class LedgeredTask(Task, Generic[A]):  # type: ignore[misc]  # celery ships no types
    """A task whose every delivery is a run in the ledger.

    Subclasses set `name` and `arguments`, and say how a request becomes a run (`request_run`) and what its
    work is (`work`).
    """

    abstract = True
    # Wrong arguments must reach the worker to be recorded, instead of failing in Flower with a 500.
    typing = False
    throws = (UpkeepError,)
    arguments: ClassVar[type[Arguments]] = Arguments
    # The dotted name of its log events: view.refresh.succeeded.
    event: ClassVar[str] = "task"

    def request_run(self, arguments: A, database: Database, now: datetime) -> NewRun:
        """The run that a message without one asks for.

        Raises:
            PermanentError: it asks for something that makes no sense here; no statement has been sent.

        """
        raise NotImplementedError

    def place(self, arguments: A, runtime: Runtime) -> Database:
        """The database that a request is about.

        Raises:
            PermanentError: unknown, or it cannot be told.
        """
        return runtime.database(arguments.database)

    def run_for(self, arguments: Mapping[str, Any], database: Database, now: datetime) -> NewRun:
        """The run that some arguments ask for, without a message: what the scheduler puts into the ledger.

        Raises:
            PermanentError: as a message with these arguments would be refused.
        """
        return self.request_run(self._read((), {"database": database.name, **arguments}), database, now)

    def work(self, delivery: Delivery[A]) -> Outcome:
        """Do it. Errors are told apart by type: TransientError is tried again, PermanentError is not."""
        raise NotImplementedError

    def retries(self, delivery: Delivery[A]) -> Sequence[timedelta]:
        """The pauses between attempts; the last one repeats."""
        return RETRIES

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Celery's entry: read, claim, work, conclude."""
        with (
            interruption.heard(),
            structlog.contextvars.bound_contextvars(task=self.name, task_id=self.request.id),
        ):
            try:
                arguments = self._read(args, kwargs)
                database = self.place(arguments, self.runtime)
            except PermanentError as exc:
                self._record_rejection(exc, kwargs)
                raise
            with structlog.contextvars.bound_contextvars(database=database.name):
                return self._deliver(arguments, database)

    @property
    def runtime(self) -> Runtime:
        """The process's runtime, which worker.app puts there."""
        runtime: Runtime = self.app.runtime
        return runtime

    def _read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> A:
        if args:
            raise PermanentError(
                f"{self.name} takes keywords, not positional arguments: {_shown(list(args))}",
                remedy=f"Use {_usage(self.arguments)}",
            )
        try:
            return self.arguments.model_validate(kwargs)  # type: ignore[return-value]
        except ValidationError as exc:
            problems = "; ".join(
                f"{'.'.join(map(_name, e['loc'])) or 'arguments'}: {e['msg']} (got {_shown(e['input'])})"
                for e in exc.errors(include_url=False)
            )
            raise PermanentError(
                f"Wrong arguments for {self.name}: {problems}", remedy=f"Use {_usage(self.arguments)}"
            ) from None

    def _deliver(self, arguments: A, database: Database) -> dict[str, Any]:
        named = (getattr(arguments, kind, None) for kind in TARGETS)
        target = next(filter(None, named), arguments.run or "")
        try:
            try:
                # A bell only knows a number: its session gets its name with the run.
                name = None if arguments.run is not None else self._session_name(target)
                with self.runtime.connection(database, name=name) as connection:
                    summary, failure = self._claim(connection, arguments, database)
                self.runtime.said_to_wait.pop(database.name, None)
            except (errors.UndefinedTable, errors.InvalidSchemaName) as exc:
                raise PermanentError(
                    f"The database {database.name!r} has no ledger", remedy="Run `upkeep migrate` once"
                ) from exc
            except psycopg.Error as exc:
                raise explain(exc, doing=f"Keeping the ledger of {database.name}") from exc
        except TransientError as exc:
            if arguments.run is not None:
                # Its row is safe; the reaper rings again when the database is back.
                log.warning("run.database_unreachable", run_id=arguments.run, error=exc.message)
                return {"run": arguments.run, "state": "unknown", "reason": exc.message}
            told = self.runtime.said_to_wait.setdefault(database.name, set())
            if self.request.id not in told:
                log.warning(
                    "request.database_unreachable",
                    error=exc.message,
                    remedy=exc.remedy,
                    next_try_s=UNREACHABLE_PAUSE_S,
                )
            told.add(self.request.id)
            time.sleep(UNREACHABLE_PAUSE_S)
            raise Reject(exc.message, requeue=True) from exc
        except PermanentError as exc:
            if arguments.run is None:
                self._record_rejection(exc, arguments.model_dump(exclude_none=True))
            raise
        if isinstance(failure, CancelledByOperator):
            # Celery has written down that the task was revoked; a failure would take the place of that.
            raise Ignore(failure.message)
        # Only now: a run that has failed for good is no database that is away.
        if failure is not None:
            raise failure
        return summary

    def _claim(
        self, connection: psycopg.Connection[Any], arguments: A, database: Database
    ) -> tuple[dict[str, Any], UpkeepError | None]:
        """What became of the delivery, and the error of a request or a run that has failed for good."""
        run_id = arguments.run
        if run_id is None:
            try:
                now = connection.execute("SELECT pg_catalog.clock_timestamp()").fetchone()
                assert now is not None  # SELECT without FROM
                new = self.request_run(arguments, database, now[0])
                by = arguments.requested_by
                new = replace(new, requested_by=redaction.text(by)[:SHOWN_LENGTH] if by else None)
            except PermanentError as exc:
                self._record_rejection(exc, arguments.model_dump(exclude_none=True), connection)
                return {}, exc
            run_id, _ = ledger.insert(connection, new)
        with ledger.claim(
            connection, run_id, task=self.name, worker=f"{self.request.hostname}/{os.getpid()}"
        ) as run:
            if run is not None and run.final:
                # Just now, by this claim: somebody has to look at what kills its workers.
                tell_lost(run)
                return {"run": run_id, "state": run.state}, None
            if run is None:
                log.info("run.left_alone", run_id=run_id, state="taken")
                return {"run": run_id, "state": "taken"}, None
            if arguments.run is not None:
                rename(connection, self._session_name(run.target))
            with structlog.contextvars.bound_contextvars(run_id=run.id, **self._context(run)):
                conclusion = self._perform(connection, run, arguments, database)
        failure = conclusion.error if conclusion.state is State.FAILED else None
        return {"run": run_id, "state": conclusion.state.value, **conclusion.summary}, failure

    def _session_name(self, target: object) -> str:
        return f"{self.name.replace('.', '/', 1)}/{target}"

    def _perform(
        self, connection: psycopg.Connection[Any], run: Run, arguments: A, database: Database
    ) -> Conclusion:
        delivery = Delivery(
            run=run, arguments=arguments, database=database, connection=connection, worker=run.worker or ""
        )
        retries = self.retries(delivery)
        doing = f"{self.name} of {run.target}"
        try:
            return perform(
                connection, run, lambda: self.work(delivery), retries=retries, event=self.event, doing=doing
            )
        except Interrupted as exc:
            return [
                self._conclude_elsewhere(
                    database,
                    each,
                    partial(
                        record_interruption,
                        interrupted=exc,
                        retries=retries,
                        event=self.event,
                        doing=f"{self.name} of {each.target}",
                        within=None if each.id == run.id else run,
                    ),
                )
                for each in exc.unwritten
            ][-1]
        except UpkeepError as exc:
            cause = exc.__cause__ or exc
            return self._conclude_elsewhere(
                database,
                run,
                partial(record_failure, error=exc, cause=cause, retries=retries, event=self.event),
            )

    def _conclude_elsewhere(
        self, database: Database, run: Run, write: Callable[[psycopg.Connection[Any], Run], Conclusion]
    ) -> Conclusion:
        """The working connection is gone, and its locks with it: write on another one.

        If that fails too, the row still says running, nobody holds its lock, and the reaper finds it.
        """
        with self.runtime.connection(database, name="upkeep/record") as fresh:
            if locks.acquire_within(fresh, locks.run_key(run.id), timeout_s=TAKE_BACK_S):
                known = ledger.get(fresh, run.id)
                if known is None or known.created_at != run.created_at:
                    # Another server answers, which had not got it; by its number it has another one, or none yet.
                    raise TransientError(
                        f"Run {run.id} of {run.target} is gone with the server that had it",
                        remedy="A request is made again, whatever else was lost is refreshed after the promotion",
                    )
                # Fewer attempts than ours: a crash of the server has forgotten our claim, nobody has taken over.
                if known is not None and known.attempt <= run.attempt:
                    if not known.final:
                        return write(fresh, run)
                    # The last that the connection carried was its commit.
                    return Conclusion(
                        state=State(known.state), summary=known.result or {"reason": known.reason}
                    )
        # Another worker was faster: what it makes of the run counts.
        log.warning("run.taken_over")
        return Conclusion(state=State.RUNNING, summary={"reason": "another worker took it over"})

    def _context(self, run: Run) -> dict[str, Any]:
        return {"target": run.target}

    def _record_rejection(
        self,
        error: PermanentError,
        arguments: Mapping[str, Any],
        connection: psycopg.Connection[Any] | None = None,
    ) -> None:
        """Write down a request that makes no sense; in the home database where its own is unknown."""
        log.error("request.rejected", error=describe(error, error), arguments=_shown(dict(arguments)))
        home = self.runtime.settings.home
        try:
            if connection is not None:
                self._insert_rejection(connection, error, arguments)
            else:
                with self.runtime.connection(home, name="upkeep/record") as other:
                    self._insert_rejection(other, error, arguments)
        except (psycopg.Error, UpkeepError):
            log.exception("request.not_recorded")

    def _insert_rejection(
        self, connection: psycopg.Connection[Any], error: PermanentError, arguments: Mapping[str, Any]
    ) -> None:
        # The target of a rejected request is whatever a stranger sent: shown, not stored as it came.
        given = next((arguments[k] for k in (*TARGETS, "database") if arguments.get(k)), "")
        target = (
            _shown(given) if not isinstance(given, str) or not given.isprintable() else redaction.text(given)
        )
        with connection.transaction():
            run_id, _ = ledger.insert(
                connection,
                NewRun(
                    task=self.name,
                    target=target[:SHOWN_LENGTH],
                    entry=ledger.OPERATOR,
                    queue="refresh",
                    arguments={"given": _shown(dict(arguments))},
                    request_id=self.request.id,
                ),
            )
            # Also where `upkeep run` has noted the request already.
            ledger.finish(
                connection, run_id, State.FAILED, reason=error.message, error=describe(error, error)
            )


def _shown(value: object) -> str:
    text = redaction.text(repr(value))
    return text if len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - 1]}…"


def _name(part: object) -> str:
    # The name of a keyword is a stranger's too.
    return (
        part if isinstance(part, str) and part.isidentifier() and len(part) <= SHOWN_LENGTH else _shown(part)
    )


def _usage(arguments: type[Arguments]) -> str:
    return ", ".join(
        f"{name}=…" if field.is_required() else f"[{name}=…]"
        for name, field in arguments.model_fields.items()
        if name not in {"run", "requested_by"}
    )
