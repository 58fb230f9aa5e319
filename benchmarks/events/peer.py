"""What a burst is measured against: a plain Celery task per write, and celery-singleton, as its manual says.

`celery -A benchmarks.events.peer worker`. The broker and the database come in the environment.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import psycopg
from celery import Celery

BROKER, DATABASE = (f"PEER_{name}" for name in ("BROKER", "DATABASE"))
QUEUE = "peer"
INSTALLED = find_spec("celery_singleton") is not None


def configuration() -> dict[str, Any]:
    """Read when a process first needs it."""
    return {
        "broker_url": os.environ[BROKER],
        "task_default_queue": QUEUE,
        "task_ignore_result": True,
        "worker_prefetch_multiplier": 1,
        "broker_connection_retry_on_startup": True,
    }


app = Celery("peer", set_as_current=True)
app.add_defaults(configuration)


def _refresh() -> None:
    with psycopg.connect(os.environ[DATABASE], autocommit=True) as connection:
        connection.execute("REFRESH MATERIALIZED VIEW CONCURRENTLY public.counted")
        connection.execute("INSERT INTO public.refreshed DEFAULT VALUES")


@app.task(name="peer.refresh")  # type: ignore[untyped-decorator]  # celery ships no types
def refresh() -> None:
    """Refresh the view."""
    _refresh()


def singleton() -> Any:
    """The same as a task of celery-singleton's, by which a request is dropped while one is queued or running."""
    from celery_singleton import Singleton  # noqa: PLC0415 - not everybody has it

    return app.task(name="peer.singleton", base=Singleton)(_refresh)


if INSTALLED:
    singleton()
