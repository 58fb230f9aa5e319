"""A Celery schedule whose slots are Upkeep's own: cron expressions on aware datetimes, right at changes of the clocks.

Celery's crontab skips the repeated hour of `*/15` and fires a skipped 02:30 at 03:30.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from celery.schedules import BaseSchedule, schedstate

from schedules.slots import latest_slot, next_slot


class CronSchedule(BaseSchedule):  # type: ignore[misc]  # celery ships no types
    """Due when a slot of the expression has passed since the last run."""

    def __init__(self, cron: str, timezone: str, **options: Any) -> None:
        super().__init__(**options)
        self.cron = cron
        self.timezone = timezone

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Whether a slot has passed, and the seconds until the next one."""
        now = self.now()
        due = latest_slot(self.cron, self.timezone, now) > last_run_at
        return schedstate(due, max(0.0, (next_slot(self.cron, self.timezone, now) - now).total_seconds()))

    def remaining_estimate(self, last_run_at: datetime) -> Any:
        """The time until the next slot after the last run."""
        return next_slot(self.cron, self.timezone, last_run_at) - self.now()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CronSchedule) and (self.cron, self.timezone) == (other.cron, other.timezone)

    def __hash__(self) -> int:
        return hash((self.cron, self.timezone))

    def __repr__(self) -> str:
        return f"<cron: {self.cron} {self.timezone}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cron, self.timezone)
