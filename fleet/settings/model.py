"""The settings as the fleet uses them: frozen, validated, with units in types.

Every table of upkeep.toml is one model; what a value may be stands beside it. Models can be made directly, in
tests and by the demo; what needs a second table to be judged (does this tier exist?) is checked by
`fleet.settings.reading` and `fleet.settings.declared`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from zoneinfo import ZoneInfo, available_timezones

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from fleet import cron as crons
from fleet import durations, redaction
from fleet.errors import ConfigurationError, PermanentError, UpkeepError
from fleet.names import RelationName

T = TypeVar("T")

DEFAULT_RETRIES = (timedelta(seconds=5), timedelta(seconds=25), timedelta(seconds=125))
DEFAULT_STATEMENT_TIMEOUT = timedelta(minutes=15)

# Names of zones that differ from machine to machine, or mean "not set".
_NO_ZONES = frozenset({"localtime", "posixrules", "Factory"})
# As upkeep_client.cache files keys under: lp:{id}.
MAX_TAG_LENGTH = 200
_TAG = re.compile(r"(?:[^\s{}\x00-\x1f]|\{[A-Za-z_][A-Za-z0-9_]*\})+")
# What a task needs after its soft limit to cancel its statement and write its row, before it is killed.
_TIME_TO_CLEAN_UP = timedelta(minutes=5)
# A message must not be delivered again while its task can still be running; to recover is the reaper's work.
_VISIBILITY_MARGIN = timedelta(minutes=10)


def closest(name: str, known: Iterable[str]) -> str:
    """What a mistyped name probably meant, as a remedy, or all that there are."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f'Did you mean "{near[0]}"?'
    return f"Known: {', '.join(names)}" if names else "There are none"


def _refuse(message: str, remedy: str) -> PydanticCustomError:
    return PydanticCustomError("upkeep", "{said}", {"said": message, "remedy": remedy})


def _refuse_as(error: UpkeepError) -> PydanticCustomError:
    return _refuse(error.message, error.remedy)


def _whole(least: int, most: int) -> BeforeValidator:
    def check(value: object) -> object:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _refuse(f"it must be a whole number from {least} to {most}", f"Write one, as in {least}")
        return value

    return BeforeValidator(check)


def _between(least: str, most: str) -> BeforeValidator:
    low, high = durations.parse(least), durations.parse(most)

    def check(value: object) -> object:
        try:
            duration = value if isinstance(value, timedelta) else durations.parse(value)
        except ConfigurationError as exc:
            raise _refuse_as(exc) from None
        if not low <= duration <= high:
            raise _refuse(f"it must be from {least} to {most}", "Write a duration in these bounds")
        return duration

    return BeforeValidator(check)


def _cron(value: object) -> object:
    if not isinstance(value, str):
        raise _refuse("a cron expression is text", 'Put it in quotes, as in "*/5 * * * *"')
    try:
        crons.parse(value)
    except ConfigurationError as exc:
        raise _refuse_as(exc) from None
    return value


def _zone(value: object) -> object:
    if not isinstance(value, str):
        raise _refuse("a time zone is text", 'Put it in quotes, as in "Europe/Berlin"')
    if not _is_zone(value):
        names = available_timezones()
        same = [name for name in names if name.lower() == value.lower()]
        near = same or get_close_matches(value, names, n=1)
        remedy = f'Did you mean "{near[0]}"?' if near else 'Use an IANA name, as in "Europe/Berlin"'
        raise _refuse(f'there is no time zone "{value}"', remedy)
    return value


def _is_zone(name: str) -> bool:
    try:
        return name not in _NO_ZONES and ZoneInfo(name) is not None
    except (ValueError, KeyError, OSError):  # a path, an unknown name, a directory such as "America"
        return False


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _statement(value: object) -> object:
    if not isinstance(value, str):
        raise _refuse("a statement is text", 'Put it in quotes, as in "SELECT public.settle()"')
    if not value.strip():
        raise _refuse("it is empty", 'Write one SQL statement, as in "SELECT public.settle()"')
    return _storable(value)


def _wire_name(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][\w.]*", value):
        raise _refuse("it is not the name of a task", 'Write it as "upkeep.refresh.all"')
    return value


def _scalar(value: object) -> object:
    if isinstance(value, str):
        return _storable(value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise _refuse("an argument is text, a number, true or false", "A message carries nothing else")
    return value


def _storable(text: str) -> str:
    if "\x00" in text:
        raise _refuse("it has a NUL character, which PostgreSQL cannot take", "Take it out")
    return text


def _tag(value: object) -> object:
    if not isinstance(value, str) or len(value) > MAX_TAG_LENGTH or not _TAG.fullmatch(value):
        raise _refuse(
            f"a tag is text of up to {MAX_TAG_LENGTH} printable characters, with names in its braces",
            'Write it as "dashboard" or "lp:{id}"',
        )
    return value


def _memory(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[1-9][0-9]{0,9}(kB|MB|GB)", value):
        raise _refuse(
            "memory is a whole number with a unit PostgreSQL knows", 'Write kB, MB or GB, as in "64MB"'
        )
    return value


Cron = Annotated[str, BeforeValidator(_cron)]
Zone = Annotated[str, BeforeValidator(_zone)]
Memory = Annotated[str, BeforeValidator(_memory)]
Statement = Annotated[str, BeforeValidator(_statement)]
WireName = Annotated[str, BeforeValidator(_wire_name)]
Scalar = Annotated[str | int | bool | float, BeforeValidator(_scalar)]
StatementTimeout = Annotated[timedelta, _between("1s", "7d")]
LockTimeout = Annotated[timedelta, _between("1ms", "10m")]
Delay = Annotated[timedelta, _between("1ms", "1h")]
MaxWait = Annotated[timedelta, _between("1ms", "1d")]
Tags = Annotated[
    tuple[Annotated[str, BeforeValidator(_tag)], ...], BeforeValidator(_tuple), Field(max_length=100)
]
Retries = Annotated[
    tuple[Annotated[timedelta, _between("1ms", "1d")], ...],
    BeforeValidator(_tuple),
    Field(max_length=10),
]
# Dumped as people write it: a dataclass would become a dict, which is no key.
Relation = Annotated[RelationName, PlainSerializer(str, return_type=str)]


class _Table(BaseModel):
    # Inputs may hold secrets: no error of pydantic's own may quote them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=False, hide_input_in_errors=True
    )


class Fleet(_Table):
    """`[fleet]`: what all databases share."""

    home: str
    """The database that holds the schedule's state and runs whose own database is unknown."""
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    cache_url: SecretStr | None = None
    """The Redis that holds applications' cached results; None is the broker's."""
    keep_skipped: Annotated[timedelta, _between("1h", "3650d")] = timedelta(days=3)
    """How long the ledger keeps skipped runs, and refreshes after writes that succeeded."""
    keep_runs: Annotated[timedelta, _between("1d", "3650d")] = timedelta(days=90)
    """How long it keeps the others."""


class Timing(_Table):
    """When something is due: what tiers, jobs and scheduled entries have in common."""

    cron: Cron | None = None
    timezone: Zone = "UTC"
    jitter: Annotated[timedelta, _between("0s", "1h")] = timedelta(0)
    """How much later than its slot it may be sent, at random: what shares a slot must not come all at once."""
    catch_up: Literal["latest", "none"] = "latest"
    """Of the slots that passed while no scheduler was there: run the latest one late, or none."""

    @field_validator("jitter")
    @classmethod
    def _before_the_next_slot(cls, value: timedelta, given: ValidationInfo) -> timedelta:
        cron = given.data.get("cron")
        gap = crons.parse(cron).shortest_gap if cron is not None else None
        if gap is not None and value >= gap:
            raise _refuse(
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


class View(_Table):
    """`[databases.NAME.views."schema.view"]`: one materialized view that the fleet keeps fresh."""

    name: Relation
    tier: str
    statement_timeout: StatementTimeout = DEFAULT_STATEMENT_TIMEOUT
    retries: Retries = DEFAULT_RETRIES
    """The pause before each retry of a transient error; jitter is added."""
    allow_blocking: bool = False
    """Whether a plain refresh, which blocks readers, may take longer than 200 ms."""
    max_skip: Annotated[timedelta, _between("0s", "30d")] = timedelta(hours=1)
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
            raise _refuse(
                f"it is shorter than delay = {durations.format(delay)}",
                f"Write at least {durations.format(delay)}, or a shorter delay",
            )
        return value


class Database(_Table):
    """`[databases.NAME]`: a database that the fleet keeps."""

    name: str
    url: SecretStr
    max_parallel_refreshes: Annotated[int, _whole(1, 32)] = 2
    lock_timeout: LockTimeout = timedelta(seconds=5)
    tiers: Mapping[str, Tier] = Field(default_factory=lambda: dict(BUILT_IN_TIERS))
    """All tiers that its views may name: built in, the fleet's, its own; the later ones win."""
    views: Mapping[Relation, View] = Field(default_factory=dict)

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
    max_batches: Annotated[int, _whole(1, 1_000_000)] = 10_000
    batch_pause: Annotated[timedelta, _between("0s", "5m")] = timedelta(0)
    """Between two batches; the session and the worker's place are kept."""
    queue: Literal["maintenance", "refresh", "refresh.slow", "archive", "watch"] = "maintenance"


class Scheduled(Timing):
    """`[schedule.NAME]`: a task that is sent at its own times, beside the tiers' and the jobs'."""

    name: str
    cron: Cron
    task: WireName
    database: str
    arguments: Mapping[str, Scalar] = Field(default_factory=dict)


class Queues(_Table):
    """`[queues]`: limits of the worker processes."""

    concurrency: Annotated[int, _whole(1, 256)] = 4
    max_tasks_per_child: Annotated[int, _whole(1, 1_000_000)] = 1000
    max_memory_per_child_mb: Annotated[int, _whole(32, 1_048_576)] = 256
    soft_time_limit: Annotated[timedelta, _between("10s", "7d")] = timedelta(hours=1)
    """When a task is asked to cancel its statement and end."""
    time_limit: Annotated[timedelta, _between("11s", "8d")] = Field(
        default_factory=lambda given: given.get("soft_time_limit", timedelta(hours=1)) + _TIME_TO_CLEAN_UP
    )
    """When its process is killed; default: five minutes after the soft limit."""
    soft_shutdown: Annotated[timedelta, _between("0s", "1d")] = timedelta(seconds=30)
    """How long a worker that is told to stop lets run what runs, before it hands it back."""
    result_expires: Annotated[timedelta, _between("1m", "365d")] = timedelta(days=1)

    @field_validator("time_limit")
    @classmethod
    def _after_the_soft_limit(cls, value: timedelta, given: ValidationInfo) -> timedelta:
        soft = given.data.get("soft_time_limit")
        if soft is not None and value <= soft:
            raise _refuse(
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


class Settings(_Table):
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
