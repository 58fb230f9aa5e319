"""The Celery app and composition root: what the processes of the fleet share, and how messages are delivered.

`celery -A worker.app worker`, `celery -A worker.app beat`, `celery -A worker.app flower`. Nothing is read at
import: configuration and connections come when a process first needs them, connections after the fork.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, cached_property
from typing import Any

import click
import psycopg
import structlog
from billiard import current_process
from celery import Celery, signals
from click.core import ParameterSource
from kombu.entity import Exchange, Queue

from fleet import logs, settings
from fleet.errors import ConfigurationError, UpkeepError
from fleet.postgres.connect import Pools, connect
from fleet.postgres.migrations import refuse_unless_current
from fleet.settings import ConfigurationErrors
from schedules.bell import ring
from schedules.runs import Runs
from tasks import interruption
from tasks.base import Runtime
from tasks.jobs import tasks as job_tasks
from tasks.ledger import tasks as ledger_tasks
from tasks.partitions import archive_tasks
from tasks.partitions import tasks as partition_tasks
from tasks.refresh import request_tasks, trigger_tasks
from tasks.refresh import tasks as refresh_tasks
from worker.broker import celery_settings, outlive_a_lost_connection
from worker.declaring import declare
from worker.dispatch import Dispatch
from worker.reaper import Reaper
from worker.stopping import Request, Stopping

log = structlog.get_logger(__name__)

_TRANSPORT_OPTIONS = {
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
}
QUEUES = ("refresh", "refresh.slow", "maintenance", "archive", "watch")


class Upkeep(Celery):  # type: ignore[misc]  # celery ships no types
    """Celery with the fleet's runtime on it."""

    @cached_property
    def runtime(self) -> Runtime:
        """Loaded once per process tree; the pools inside open per process."""
        try:
            loaded = settings.load()
        except ConfigurationError as exc:
            # A hundred lines of Celery's frames would hide the list of what is wrong.
            raise SystemExit(f"upkeep: {exc}") from None
        return Runtime(settings=loaded, pools=Pools())

    @contextmanager
    def judging_by(self, loaded: settings.Settings) -> Iterator[Runtime]:
        """Inside the block the tasks judge requests by these settings: a command may be given another file."""
        before = vars(self).get("runtime")
        runtime = self.runtime = Runtime(settings=loaded, pools=Pools())
        try:
            yield runtime
        finally:
            del self.runtime
            if before is not None:
                self.runtime = before


def configuration(fleet: settings.Settings) -> dict[str, Any]:
    """Celery's settings for this fleet; facts/celery.md of the design has what each of them prevents."""
    queues = fleet.queues
    redis = fleet.fleet.redis_url.get_secret_value()
    return {
        **celery_settings(
            redis, _TRANSPORT_OPTIONS | {"visibility_timeout": queues.visibility_timeout.total_seconds()}
        ),
        "result_expires": queues.result_expires,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_default_queue": "refresh",
        "task_create_missing_queues": False,
        # As objects: with names only, Flower answers 500 about queues while no worker is up.
        "task_queues": [_queue(name) for name in QUEUES],
        "task_routes": {
            # It may wait for locks, and no view for it; a name goes before a pattern.
            trigger_tasks.INSTALL_TRIGGERS: {"queue": trigger_tasks.QUEUE},
            "upkeep.refresh.*": {"queue": "refresh"},
            "upkeep.job.*": {"queue": "maintenance"},
            "upkeep.ledger.*": {"queue": "maintenance"},
            # Moving rows may take long, and nothing that has to be there in time waits for it.
            archive_tasks.ARCHIVE: {"queue": archive_tasks.QUEUE},
            "upkeep.partitions.*": {"queue": partition_tasks.QUEUE},
        },
        # A message is acknowledged when its work is over: killing a child or a worker loses nothing.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_track_started": True,
        "task_send_sent_event": True,
        "worker_send_task_events": True,
        "task_soft_time_limit": queues.soft_time_limit.total_seconds(),
        "task_time_limit": queues.time_limit.total_seconds(),
        "worker_concurrency": queues.concurrency,
        "worker_prefetch_multiplier": 1,
        "worker_max_tasks_per_child": queues.max_tasks_per_child,
        "worker_max_memory_per_child": queues.max_memory_per_child_kib,
        # With True a running task was lost when Redis was killed (3 of 3).
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A Redis that answers with an error (demoted to a replica, its disk full) is one that is away for a while.
        "broker_channel_error_retry": True,
        "redis_socket_timeout": 30.0,
        "redis_socket_keepalive": True,
        # Many may run: one of them leads. Celery's own schedule stays empty.
        "beat_scheduler": "schedules.scheduler:LeaderScheduler",
        "enable_utc": True,
        "timezone": "UTC",
    }


def _queue(name: str) -> Queue:
    return Queue(name, Exchange(name), routing_key=name)  # type: ignore[no-untyped-call]  # kombu's are partial


outlive_a_lost_connection()
app = Upkeep("upkeep", set_as_current=True)
app.add_defaults(lambda: configuration(app.runtime.settings))
app.steps["worker"].update({Dispatch, Reaper, Stopping})


@app.on_after_finalize.connect  # registering binds a task to the configuration: an import must not need one
def _register(**_: Any) -> None:
    tasks = (
        refresh_tasks,
        request_tasks,
        trigger_tasks,
        job_tasks,
        ledger_tasks,
        partition_tasks,
        archive_tasks,
    )
    for task in (each for module in tasks for each in module.TASKS):
        task.Request = Request
        app.register_task(task())


@signals.setup_logging.connect
def _logs(loglevel: int | str | None = None, **_: Any) -> None:
    if loglevel is not None and _level_was_typed():
        logs.configure(loglevel)
        return
    logs.configure("INFO")
    # Celery's own lines about a task carry neither the run nor the view, and say nothing that ours do not.
    # A request that goes round while its database is away would be a warning with its frames every two seconds.
    for name, least in (("celery.worker.strategy", logging.WARNING), ("celery.app.trace", logging.ERROR)):
        logging.getLogger(name).setLevel(least)


@cache  # a pool child, which has no command line any more, asks its parent's answer
def _level_was_typed() -> bool:
    """Celery's default is WARNING, which would hide every outcome; a `--loglevel` that somebody gave counts."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source("loglevel") is ParameterSource.COMMANDLINE


@signals.celeryd_after_setup.connect  # worker_init comes before the logs are set up
def _introduce(**_: Any) -> None:
    """Say what this worker keeps; a database that is away now is no reason not to start, a schedule with errors is."""
    try:
        # Only the scheduler would need it; but who starts both must not learn of it from one of them alone.
        Runs(app.tasks, app.runtime.settings).refuse_senseless(datetime.now(UTC))
    except ConfigurationErrors as exc:
        raise SystemExit(f"upkeep: {exc}") from None
    for database in app.runtime.settings.databases.values():
        try:
            with connect(database.url.get_secret_value(), application_name="upkeep/start") as connection:
                refuse_unless_current(connection, database.name)
                declare(connection, database)
                _keep_partitions(connection, database)
            log.info("database.kept", database=database.name, views=len(database.views))
        except psycopg.Error as exc:
            log.warning("database.not_ready", database=database.name, error=str(exc).strip())
        except UpkeepError as exc:
            log.warning("database.not_ready", database=database.name, error=exc.message, remedy=exc.remedy)


def _keep_partitions(connection: psycopg.Connection[Any], database: settings.Database) -> None:
    """A fleet that was away for long looks at its partitions at once, and not when it is 01:00 again."""
    run_id = partition_tasks.at_start(connection, database, datetime.now(UTC))
    if run_id is not None:
        ring(app, database.name, [(run_id, partition_tasks.MAINTAIN, partition_tasks.QUEUE)])


@signals.worker_process_init.connect
def _listen(**_: Any) -> None:
    """In a pool child; the solo pool sends this too, from the main process, whose signals are Celery's."""
    if current_process().name != "MainProcess":
        interruption.listen()


@signals.worker_process_shutdown.connect
def _close(**_: Any) -> None:
    app.runtime.pools.close()
