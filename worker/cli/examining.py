"""`upkeep doctor`: asks every server in turn and prints what `worker.doctor` thinks of the answers.

A question that fails is a finding of its own and stops no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import redis
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rich.text import Text

from fleet import redaction
from fleet.errors import UpkeepError
from fleet.postgres import migrations
from fleet.postgres.addresses import Address, addresses
from fleet.postgres.catalog.definition import Definition, read_definitions
from fleet.postgres.catalog.server import Server, read_server
from fleet.postgres.catalog.views import read_views
from fleet.postgres.connect import connect
from fleet.postgres.failures import explain
from fleet.postgres.queries import load
from fleet.settings import Database, Settings
from schedules import state
from schedules.entries import entries
from tasks.partitions.watch import stand
from tasks.refresh.trigger_ddl import look
from tasks.refresh.view import missing
from upkeep_client import connections
from upkeep_client.urls import parse
from worker import doctor as judging
from worker.cli import options, output
from worker.doctor import About, Facts, Finding, Level, Skew
from worker.doctor_partitions import judge_partitions
from worker.doctor_triggers import judge_triggers
from worker.doctor_views import judge_view

_sql = load("worker", "doctor.sql")

# The best of a few: one slow round trip says nothing about a clock.
CLOCK_READINGS = 3
POOLER_ROUNDS = 5
REDIS_TIMEOUT_S = 5.0


def doctor(config: Path | None, *, database: str | None, everything: bool, as_json: bool) -> int:
    """Examine and print; 1 if something is an error."""
    settings = options.load(config)
    databases = options.chosen(settings, database)
    findings = [*examine_redis(settings.fleet.redis_url.get_secret_value())]
    for each in databases:
        findings += examine(each, settings)
    if as_json:
        counts = {level.value: sum(f.level is level for f in findings) for level in Level}
        output.emit({"counts": counts, "findings": [asdict(f) for f in findings]})
    else:
        _show(findings, [each.name for each in databases], everything=everything)
    return int(any(f.level is Level.ERROR for f in findings))


def examine(database: Database, settings: Settings) -> list[Finding]:
    """Everything about one database."""
    name = database.name
    conninfo = database.url.get_secret_value()
    try:
        connection = connect(conninfo, application_name="upkeep/doctor", to_read=True)
    except UpkeepError as exc:
        if "unsupported startup parameter" in exc.message:
            return [judging.judge_pooler(name, "it refuses start-up options")]
        return [
            Finding(
                level=Level.ERROR, database=name, object="connection", message=exc.message, remedy=exc.remedy
            )
        ]
    with connection:
        findings = list(
            _asked(name, "connection", lambda: [judging.judge_pooler(name, _pooler(connection, conninfo))])
        )
        if any(f.level is Level.ERROR for f in findings):
            return findings  # what a pooler answers about the server is not worth reading
        connection.execute("SET default_transaction_read_only = on")
        findings += _asked(name, "clock", lambda: _clocks(name, connection, settings))
        findings += _asked(name, "server", lambda: _server(name, read_server(connection)))
        findings += judging.judge_members(name, _members(conninfo))
        findings += _asked(name, "server", lambda: _standing(name, connection, settings))
        if name == settings.fleet.home:
            findings += _asked(name, "scheduler", lambda: _scheduler(name, connection, settings))
        findings += _asked(name, "views", lambda: _views(database, connection))
        findings += _asked(name, "triggers", lambda: _triggers(database, connection))
        findings += _asked(name, "partitions", lambda: _partitions(database, connection))
    return findings


def examine_redis(url: str) -> Iterator[Finding]:
    """Everything about Redis."""
    where = parse(url).place
    client = connections.connect(url, timeout=REDIS_TIMEOUT_S)
    with client:
        try:
            client.ping()
            info: dict[str, Any] = client.info()
            skew = _skew(lambda: _redis_clock(client))
        except redis.RedisError as exc:
            said = redaction.text(str(exc).rstrip("."))
            yield Finding(
                level=Level.ERROR,
                database=None,
                object="redis",
                message=f"Redis at {where} does not answer: {said}",
                remedy="Start it, or set UPKEEP_REDIS_URL to where it is",
            )
            return
    yield from judging.judge_redis(info)
    yield judging.judge_clock(None, skew)


def _asked(database: str, object_: str, ask: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(ask())
    except psycopg.Error as exc:
        error: UpkeepError = explain(exc, doing=f"Asking about the {object_}")
    except UpkeepError as exc:
        error = exc
    return [
        Finding(
            level=Level.ERROR, database=database, object=object_, message=error.message, remedy=error.remedy
        )
    ]


def _server(database: str, server: Server) -> Iterator[Finding]:
    yield judging.judge_version(database, server.version_num)
    yield judging.judge_recovery(database, server.in_recovery)


def _members(conninfo: str) -> dict[Address, Server | UpkeepError]:
    """Each of the servers that the URL names, where it names several."""
    given: dict[str, Any] = conninfo_to_dict(conninfo)
    found: dict[Address, Server | UpkeepError] = {}
    several = addresses(given)
    for each in several if len(several) > 1 else ():
        alone = make_conninfo(**{**given, **each.parameters, "target_session_attrs": "any"})
        try:
            with connect(alone, application_name="upkeep/doctor", to_read=True) as connection:
                found[each] = read_server(connection)
        except UpkeepError as exc:
            found[each] = exc
        except psycopg.Error as exc:
            found[each] = explain(exc, doing=f"Asking {each}")
    return found


def _facts(connection: psycopg.Connection[Any]) -> Facts:
    return Facts(**_sql.read_facts(connection))


def _standing(database: str, connection: psycopg.Connection[Any], settings: Settings) -> Iterator[Finding]:
    facts = _facts(connection)
    yield from judging.judge_facts(database, facts, concurrency=settings.queues.concurrency)
    outdated: UpkeepError | None = None
    grants: list[tuple[str, list[str]]] = []
    if facts.installed and facts.may_use:
        try:
            migrations.refuse_unless_current(connection, database)
        except UpkeepError as exc:
            outdated = exc
        grants = [(row["name"], row["privileges"]) for row in _sql.read_missing_grants(connection)]
    yield from judging.judge_schema(database, facts, outdated=outdated, grants=grants)


def _clocks(database: str, connection: psycopg.Connection[Any], settings: Settings) -> Iterator[Finding]:
    mine = _skew(lambda: _clock(connection))
    yield judging.judge_clock(database, mine)
    if database == settings.fleet.home:
        return
    try:
        with connect(settings.home.url.get_secret_value(), application_name="upkeep/doctor") as home:
            yield judging.judge_home_clock(database, mine - _skew(lambda: _clock(home)))
    except UpkeepError as exc:
        message = f"It cannot be compared with the home database's clock: {exc.message}"
        yield About(database, "clock").says(Level.INFO, message, exc.remedy)


def _scheduler(database: str, connection: psycopg.Connection[Any], settings: Settings) -> Iterator[Finding]:
    if read_server(connection).in_recovery:
        return  # told with the server; whoever leads has its lock on the primary
    yield judging.judge_leader(database, state.leader(connection), entries=len(entries(settings)))
    try:
        migrations.refuse_unless_current(connection, database)
    except UpkeepError:
        return  # told with the schema; there may be no state to look at
    try:
        state.refuse_newer(connection)
    except UpkeepError as exc:
        yield About(database, "upkeep.schedule_state").error(exc.message, exc.remedy)


def _views(database: Database, connection: psycopg.Connection[Any]) -> Iterator[Finding]:
    facts, version_num = _facts(connection), connection.info.server_version
    found = {view.name: view for view in read_views(connection).values()}
    present = sorted(name for name in database.views if name in found)
    schemas = sorted({name.schema for name in present})
    unusable = {row["name"] for row in _sql.read_unusable_schemas(connection, schemas=schemas)}
    definitions: dict[int, Definition] = {}
    failures = _asked(
        database.name,
        "definitions",
        lambda: definitions.update(read_definitions(connection, [found[n].oid for n in present])) or (),
    )
    for name, declared in sorted(database.views.items()):
        if name not in found:
            error = missing(connection, name)
            yield About(database.name, str(name)).error(error.message, error.remedy)
            continue
        view = found[name]
        yield from judge_view(
            database.name,
            view,
            definitions.get(view.oid),
            facts=facts,
            version_num=version_num,
            allow_blocking=declared.allow_blocking,
            usable=name.schema not in unusable,
        )
    yield from failures


def _triggers(database: Database, connection: psycopg.Connection[Any]) -> Iterator[Finding]:
    try:
        migrations.refuse_unless_current(connection, database.name)
    except UpkeepError:
        return  # told with the schema
    yield from judge_triggers(database.name, look(connection, database).plan())


def _partitions(database: Database, connection: psycopg.Connection[Any]) -> Iterator[Finding]:
    try:
        migrations.refuse_unless_current(connection, database.name)
    except UpkeepError:
        return  # told with the schema
    yield from judge_partitions(database.name, stand(connection, database))


def _show(findings: list[Finding], databases: list[str], *, everything: bool) -> None:
    out = output.console()
    for name in (None, *databases):
        mine = [f for f in findings if f.database == name]
        shown = sorted(
            (f for f in mine if everything or f.level is not Level.OK), key=lambda f: -f.level.rank
        )
        fine = sum(f.level is Level.OK for f in mine)
        out.print(Text(name or "redis", style="bold"), f"({output.count(len(mine), 'check')}, {fine} fine)")
        if shown:
            out.print(output.listing((f.level.value, f"{f.object}: {f.message}", f.remedy) for f in shown))
        out.print()
    levels = [f.level for f in findings]
    said = [
        output.count(levels.count(level), level.value)
        for level in (Level.ERROR, Level.WARNING)
        if level in levels
    ]
    infos = levels.count(Level.INFO)
    out.print(", ".join([*said, *([f"{infos} info"] if infos else [])]) or "Nothing is missing.")


def _pooler(connection: psycopg.Connection[Any], conninfo: str) -> str | None:
    """Why there must be a pooler; a second session inside a transaction keeps its backend to itself."""
    mine = [_pid(connection)]
    with connect(conninfo, application_name="upkeep/doctor", autocommit=False, to_read=True) as another:
        other = _pid(another)
        if other not in mine:
            mine += [_pid(connection) for _ in range(POOLER_ROUNDS)]
    shared = judging.pooled(mine, other)
    if shared is not None:
        return shared
    row = connection.execute(
        "SELECT pg_catalog.current_setting('client_connection_check_interval')"
    ).fetchone()
    kept = row is not None and row[0] == "1s"  # what fleet.postgres.connect asks for
    return None if kept else "it drops the start-up options that carry the fleet's timeouts"


def _pid(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def _clock(connection: psycopg.Connection[Any]) -> datetime:
    row = connection.execute("SELECT extract(epoch FROM pg_catalog.clock_timestamp())::float8").fetchone()
    assert row is not None
    return datetime.fromtimestamp(row[0], UTC)


def _redis_clock(client: redis.Redis) -> datetime:
    seconds, microseconds = client.time()
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)


def _skew(read: Callable[[], datetime]) -> Skew:
    """Read another clock between two readings of ours; the shortest round trip knows best."""
    readings = []
    for _ in range(CLOCK_READINGS):
        before, began = datetime.now(UTC), time.monotonic()
        theirs = read()
        half = timedelta(seconds=(time.monotonic() - began) / 2)
        readings.append(Skew(offset=theirs - (before + half), uncertainty=half))
    return min(readings, key=lambda skew: skew.uncertainty)
