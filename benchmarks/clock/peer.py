"""What the clock is measured against: a plain Celery app, with stock beat or RedBeat, as their manuals say.

`celery -A benchmarks.clock.peer beat`. What is to be measured comes in the environment: BROKER, and CELERY
with more settings of Celery as JSON. ENTRIES and MINUTES declare crontab entries of one task, all alike.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import redis
from celery import Celery
from celery.schedules import crontab

BROKER, CELERY, ENTRIES, MINUTES = (f"PEER_{name}" for name in ("BROKER", "CELERY", "ENTRIES", "MINUTES"))
QUEUE = "peer"
WORK = "peer.work"
# A list in the broker: who began to work, and when.
BEGUN = "peer.begun"


def configuration() -> dict[str, Any]:
    """Read when a process first needs it."""
    broker = os.environ[BROKER]
    minutes = os.environ.get(MINUTES, "*")
    return {
        "broker_url": broker,
        "redbeat_redis_url": broker,
        "task_default_queue": QUEUE,
        "broker_connection_retry_on_startup": True,
        "timezone": "UTC",
        "beat_schedule": {
            f"e{number:04d}": {"task": WORK, "schedule": _crontab(minutes), "kwargs": {"number": number}}
            for number in range(int(os.environ.get(ENTRIES, "0")))
        },
        **json.loads(os.environ.get(CELERY, "{}")),
    }


def _crontab(minutes: str) -> crontab:
    """At these minutes, or `never`: a year from now, which is as good."""
    return crontab("0", "0", "*", "1", "1") if minutes == "never" else crontab(minutes)


app = Celery("peer", set_as_current=True)
app.add_defaults(configuration)


@app.task(name=WORK, bind=True)  # type: ignore[untyped-decorator]  # celery ships no types
def work(self: Any, *, number: int, seconds: float = 0.0) -> None:
    """Say who begins, and take a while."""
    with redis.Redis.from_url(app.conf.broker_url) as client:
        begun = {"number": number, "worker": self.request.hostname, "at": time.time()}
        client.rpush(BEGUN, json.dumps(begun))
    time.sleep(seconds)
