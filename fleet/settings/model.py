"""The settings as the fleet uses them: frozen, validated, with units in types.

Every table of upkeep.toml is one model; what a value may be stands beside it. Models can be made directly, in
tests and by the demo; what needs a second table to be judged (does this tier exist?) is checked by
`fleet.settings.reading` and `fleet.settings.declared`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from fleet import cron as crons
from fleet import durations, redaction
from fleet.errors import PermanentError
from fleet.names import RelationName
from fleet.settings.partitions import PartitionSet, Retention
from fleet.settings.values import (
    Cron,
    Delay,
    LockTimeout,
    MaxWait,
    Memory,
    Relation,
    Retries,
    Scalar,
    Statement,
    StatementTimeout,
    TableModel,
    Tags,
    WireName,
    Zone,
    between,
    closest,
    refuse,
    whole,
)

T = TypeVar("T")

DEFAULT_RETRIES = (timedelta(seconds=5), timedelta(seconds=25), timedelta(seconds=125))
DEFAULT_STATEMENT_TIMEOUT = timedelta(minutes=15)

# What a task needs after its soft limit to cancel its statement and write its row, before it is killed.
_TIME_TO_CLEAN_UP = timedelta(minutes=5)
# A message must not be delivered again while its task can still be running; to recover is the reaper's work.
_VISIBILITY_MARGIN = timedelta(minutes=10)


class Fleet(TableModel):
    """`[fleet]`: what all databases share."""

    home: str
    """The database that holds the schedule's state and runs whose own database is unknown."""
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    cache_url: SecretStr | None = None
    """The Redis that holds applications' cached results; None is the broker's."""
    keep_skipped: Annotated[timedelta, between("1h", "3650d")] = timedelta(days=3)
    """How long the ledger keeps skipped runs, and refreshes after writes that succeeded."""
    keep_runs: Annotated[timedelta, between("1d", "3650d")] = timedelta(days=90)
    """How long it keeps the others."""


class Timing(TableModel):
    """When something is due: what tiers, jobs and scheduled entries have in common."""

    cron: Cron | None = None
    timezone: Zone = "UTC"
    jitter: Annotated[timedelta, between("0s", "1h")] = timedelta(0)
    """How much later than its slot it may be sent, at random: what shares a slot must not come all at once."""
    catch_up: Literal["latest", "none"] = "latest"
    """Of the slots that passed while no scheduler was there: run the latest one late, or none."""

    @field_validator("jitter")
    @classmethod
    def _before_the_next_slot(cls, value: timedelta, given: ValidationInfo) -> timedelta:
        cron = given.data.get("cron")
        gap = crons.parse(cron).shortest_gap if cron is not None else None
        if gap is not None and value >= gap:
            raise refuse(
                f"the cron expression {cron!r} fires every {durations.format(gap)} at its closest: a slot would "
                "be overtaken by the next one",
                f"Write less than {durations.format(gap)}, or let it fire less often",
            )
        return value


class Tier(Timing):
    """`[tiers.NAME]`: a promise of freshness that views share."""

    name: str
    cron: Cron

    @property
    def shortest_interval(self) -> timedelta:
        """The least time between two ticks."""
        return crons.parse(self.cron).shortest_gap


class View(TableModel):
    """`[databases.NAME.views."schema.view"]`: one materialized view that the fleet keeps fresh."""

    name: Relation
    tier: str
    statement_timeout: StatementTimeout = DEFAULT_STATEMENT_TIMEOUT
    retries: Retries = DEFAULT_RETRIES
    """The pause before each retry of a transient error; jitter is added."""
    allow_blocking: bool = False
    """Whether a plain refresh, which blocks readers, may take longer than 200 ms."""
    max_skip: Annotated[timedelta, between("0s", "30d")] = timedelta(hours=1)
    """How long unchanged counters may stand in for a real refresh."""
    work_mem: Memory | None = None
    """Memory for each sort and hash of the refresh; None is the database's own work_mem."""
    timezone: Zone | None = None
    """The session's TimeZone for the refresh; None is the database's own."""
    queue: Literal["refresh", "refresh.slow"] = "refresh"
    delay: Delay = timedelta(seconds=1)
    """How long after the last write's request it is refreshed: a burst of requests becomes one refresh."""
    max_wait: MaxWait = Field(
        default_factory=lambda given: max(timedelta(seconds=10), 10 * given.get("delay", timedelta()))
    )
    """How long requests that keep coming may put it off, from the first one; default: ten delays, at least 10 s."""
    on_write: bool = False
    """Whether triggers on the tables behind it request a refresh (`upkeep triggers`)."""
    cascade: bool = False
    """Whether a refresh of a managed view that it is built on, if that changed rows, requests one of this view."""
    invalidates: Tags = ()
    """The tags of cached results that are no longer right after a refresh; {name} stands for a request's parameter."""

    @field_validator("max_wait")
    @classmethod
    def _not_before_the_delay(cls, value: timedelta, given: ValidationInfo) -> timedelta:
        delay = given.data.get("delay")
        if delay is not None and value < delay:
            raise refuse(
                f"it is shorter than delay = {durations.format(delay)}",
                f"Write at least {durations.format(delay)}, or a shorter delay",
            )
        return value


class Database(TableModel):
    """`[databases.NAME]`: a database that the fleet keeps."""

    name: str
    url: SecretStr
    max_parallel_refreshes: Annotated[int, whole(1, 32)] = 2
    lock_timeout: LockTimeout = timedelta(seconds=5)
    tiers: Mapping[str, Tier] = Field(default_factory=lambda: dict(BUILT_IN_TIERS))
    """All tiers that its views may name: built in, the fleet's, its own; the later ones win."""
    views: Mapping[Relation, View] = Field(default_factory=dict)
    partitions: Mapping[Relation, PartitionSet] = Field(default_factory=dict)
    retention: Mapping[Relation, Retention] = Field(default_factory=dict)

    def tier(self, name: object) -> Tier:
        """The tier of this name; raises PermanentError for an unknown one."""
        return _known(self.tiers, name, f"tier of the database {self.name}")

    def view(self, name: object) -> View:
        """The managed view of this name, parsed or as written; raises PermanentError for any other."""
        parsed = name if isinstance(name, RelationName) else RelationName.parse(name)
        try:
            return self.views[parsed]
        except KeyError:
            near = get_close_matches(str(parsed), [str(each) for each in self.views], n=1)
            hint = f"Did you mean {near[0]}? Else declare" if near else "Declare"
            raise PermanentError(
                f"The view {parsed} is not managed in the database {self.name}",
                remedy=f"{hint} it in upkeep.toml under [databases.{self.name}.views]",
            ) from None

    def partition_set(self, name: object) -> PartitionSet:
        """The policy of a partitioned table, parsed or as written; raises PermanentError for any other."""
        parsed = name if isinstance(name, RelationName) else RelationName.parse(name)
        try:
            return self.partitions[parsed]
        except KeyError:
            near = get_close_matches(str(parsed), [str(each) for each in self.partitions], n=1)
            hint = f"Did you mean {near[0]}? Else declare" if near else "Declare"
            raise PermanentError(
                f"The table {parsed} has no policy for its partitions in the database {self.name}",
                remedy=f"{hint} it in upkeep.toml under [databases.{self.name}.partitions]",
            ) from None

    def views_in(self, tier: str) -> tuple[View, ...]:
        """The views of a tier, by name."""
        return tuple(view for _, view in sorted(self.views.items()) if view.tier == tier)


class Job(Timing):
    """`[jobs.NAME]`: one SQL statement that the fleet runs, on a schedule or when asked for by its name."""

    name: str
    database: str
    """The only one that it runs in."""
    sql: Statement
    statement_timeout: StatementTimeout = DEFAULT_STATEMENT_TIMEOUT
    """For each batch."""
    lock_timeout: LockTimeout | None = None
    """None is the database's."""
    retries: Retries = DEFAULT_RETRIES
    """The pause before each retry of a transient error; jitter is added."""
    repeat_until_zero: bool = False
    """Run it again and again, each time in a transaction of its own, until it says that nothing is left."""
    max_batches: Annotated[int, whole(1, 1_000_000)] = 10_000
    batch_pause: Annotated[timedelta, between("0s", "5m")] = timedelta(0)
    """Between two batches; the session and the worker's place are kept."""
    queue: Literal["maintenance", "refresh", "refresh.slow", "archive", "watch"] = "maintenance"


class Scheduled(Timing):
    """`[schedule.NAME]`: a task that is sent at its own times, beside the tiers' and the jobs'."""

    name: str
    cron: Cron
    task: WireName
    database: str
    arguments: Mapping[str, Scalar] = Field(default_factory=dict)


class Queues(TableModel):
    """`[queues]`: limits of the worker processes."""

    concurrency: Annotated[int, whole(1, 256)] = 4
    max_tasks_per_child: Annotated[int, whole(1, 1_000_000)] = 1000
    max_memory_per_child_mb: Annotated[int, whole(32, 1_048_576)] = 256
    soft_time_limit: Annotated[timedelta, between("10s", "7d")] = timedelta(hours=1)
    """When a task is asked to cancel its statement and end."""
    time_limit: Annotated[timedelta, between("11s", "8d")] = Field(
        default_factory=lambda given: given.get("soft_time_limit", timedelta(hours=1)) + _TIME_TO_CLEAN_UP
    )
    """When its process is killed; default: five minutes after the soft limit."""
    soft_shutdown: Annotated[timedelta, between("0s", "1d")] = timedelta(seconds=30)
    """How long a worker that is told to stop lets run what runs, before it hands it back."""
    result_expires: Annotated[timedelta, between("1m", "365d")] = timedelta(days=1)

    @field_validator("time_limit")
    @classmethod
    def _after_the_soft_limit(cls, value: timedelta, given: ValidationInfo) -> timedelta:
        soft = given.data.get("soft_time_limit")
        if soft is not None and value <= soft:
            raise refuse(
                f"a task would be killed before soft_time_limit = {durations.format(soft)} asks it to end",
                "Make it longer than soft_time_limit, or remove it",
            )
        return value

    @property
    def visibility_timeout(self) -> timedelta:
        """When Redis delivers an unacknowledged message again: later than any task can still run."""
        return self.time_limit + _VISIBILITY_MARGIN

    @property
    def max_memory_per_child_kib(self) -> int:
        """The limit in Celery's unit."""
        return self.max_memory_per_child_mb * 1024


class Settings(TableModel):
    """Everything that upkeep.toml and the environment say."""

    fleet: Fleet
    databases: Mapping[str, Database]
    queues: Queues = Field(default_factory=Queues)
    jobs: Mapping[str, Job] = Field(default_factory=dict)
    schedule: Mapping[str, Scheduled] = Field(default_factory=dict)
    path: Path | None = None
    """The file that was read."""

    @property
    def home(self) -> Database:
        """The database that holds the fleet's own state."""
        return self.databases[self.fleet.home]

    def database(self, name: object) -> Database:
        """The database of this name; raises PermanentError for an unknown one."""
        return _known(self.databases, name, "database")

    def job(self, name: object) -> Job:
        """The declared job of this name; raises PermanentError for an unknown one."""
        return _known(self.jobs, name, "job", otherwise="declare it in upkeep.toml under [jobs.NAME]")

    def jobs_in(self, database: str) -> tuple[Job, ...]:
        """The jobs of a database, by name."""
        return tuple(job for _, job in sorted(self.jobs.items()) if job.database == database)


def _known(items: Mapping[str, T], name: object, kind: str, *, otherwise: str = "") -> T:
    if isinstance(name, str) and name in items:
        return items[name]
    shown = redaction.text(repr(name))
    shown = shown if len(shown) <= 80 else shown[:79] + "…"
    remedy = closest(str(name), items) if items or not otherwise else ""
    if otherwise:
        known = remedy if remedy.endswith("?") else f"{remedy}."
        remedy = f"{known} Else {otherwise}" if remedy else f"{otherwise[0].upper()}{otherwise[1:]}"
    raise PermanentError(f"There is no {kind} named {shown}", remedy=remedy)


def _built_in(**tiers: str) -> dict[str, Tier]:
    return {name: Tier(name=name, cron=cron) for name, cron in tiers.items()}


BUILT_IN_TIERS: Mapping[str, Tier] = _built_in(
    five_minutes="*/5 * * * *", fifteen_minutes="*/15 * * * *", daily="0 6 * * *"
)
