"""Writes a first upkeep.toml from a database's catalogue: every view, a tier, and what is in the way.

Suggestions, each with its reason beside it: the person who knows what the views are for decides. Nothing
secret goes in; the URL stays in the environment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

from fleet.names import RelationName
from fleet.postgres.catalog.definition import Definition, DefinitionClass, read_definitions
from fleet.postgres.catalog.sources import read_sources, upstream
from fleet.postgres.catalog.views import MaterializedView, read_views
from fleet.postgres.queries import load
from fleet.settings.reading import RESERVED_VARIABLES
from worker.doctor import quoted
from worker.doctor_views import may_refresh_remedy

_sql = load("worker", "starter.sql")

# Refreshing so much in five minutes is nothing; a view of this size takes tens of milliseconds
# (docs/benchmarks.md).
SMALL_ROWS = 20_000
# From here on a refresh takes so long that doing it four times an hour should be somebody's decision.
LARGE_ROWS = 1_000_000
LARGE_BYTES = 1 << 30
# --probe reads a whole view; nobody should wait longer for a hint.
PROBE_TIMEOUT_MS = 10_000
PROBE_COLUMNS = 4

# Names that say how fresh the reader believes the view to be.
_LIVE = re.compile(
    r"real_?time|live|current|now|today|intraday|(?<![0-9])(1|6|12|24|48)_?h(ours?)?(?![a-z0-9])|last_?hour",
    re.IGNORECASE,
)
_SLOW = re.compile(
    r"daily|weekly|monthly|quarterly|yearly|annual|history|archive|(?<![a-z])eod(?![a-z])", re.IGNORECASE
)
# What people call a column that identifies a row.
_KEY = re.compile(r"(^|_)(id|uuid|key|code|number|no|symbol|name)$", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A tier and why."""

    tier: str
    why: str


@dataclass(frozen=True, kw_only=True)
class ViewFacts:
    """A view with what a suggestion needs.

    `key`: columns that would make a unique index, `key_known` how we know; `candidates`: columns that may.
    """

    view: MaterializedView
    definition: Definition | None
    reads: tuple[RelationName, ...]
    key: tuple[str, ...] = ()
    key_known: str = ""
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Described:
    """One database, ready to be written down."""

    name: str
    database_name: str
    role: str
    version_num: int
    where: str
    url_env: str
    export: str
    views: tuple[ViewFacts, ...]


def gather(connection: psycopg.Connection[Any], *, probe: bool) -> tuple[ViewFacts, ...]:
    """Ask the catalogue; with `probe` also read populated views that have no unique index."""
    views = read_views(connection)
    reads = upstream(read_sources(connection), views)
    definitions = read_definitions(connection)
    columns: dict[int, list[Mapping[str, Any]]] = {}
    for row in _sql.read_columns(connection):
        columns.setdefault(row["view"], []).append(row)
    found = []
    for view in sorted(views.values(), key=lambda each: each.name):
        key: tuple[str, ...] = ()
        known = ""
        candidates: tuple[str, ...] = ()
        if view.unique_index is None and view.populated:
            key, known, candidates = _key(connection, view, columns.get(view.oid, ()), probe=probe)
        above = sorted(views[oid].name for oid in reads.get(view.oid, ()))
        found.append(
            ViewFacts(
                view=view,
                definition=definitions.get(view.oid),
                reads=tuple(above),
                key=key,
                key_known=known,
                candidates=candidates,
            )
        )
    return tuple(found)


def suggest(facts: ViewFacts) -> Suggestion:
    """A tier for a view, by what it reads, how large it is, what it is called, and what it depends on."""
    view = facts.view
    rows = view.row_estimate if view.populated else None
    if facts.reads:
        return Suggestion(
            tier="daily",
            why=f"it reads {_names(facts.reads)}; what it reads is refreshed first",
        )
    if rows is not None and (rows >= LARGE_ROWS or view.size_bytes >= LARGE_BYTES):
        return Suggestion(tier="daily", why="it is large")
    live, slow = _LIVE.search(view.name.name), _SLOW.search(view.name.name)
    if slow:
        return Suggestion(tier="daily", why=f'its name says "{slow[0]}"')
    if live:
        return Suggestion(tier="five_minutes", why=f'its name says "{live[0]}"')
    if facts.definition is not None and facts.definition.kind is DefinitionClass.TIME:
        return Suggestion(tier="five_minutes", why="its result moves with the clock")
    if rows is None:
        return Suggestion(tier="fifteen_minutes", why="nothing is known of its size yet")
    if rows <= SMALL_ROWS:
        return Suggestion(tier="five_minutes", why="it is small")
    return Suggestion(tier="fifteen_minutes", why="it is of medium size")


def hindrances(facts: ViewFacts, described: Described) -> Iterator[tuple[str, str]]:
    """What to know before the view is handed over: a sentence, and a statement that mends it or nothing."""
    view, name = facts.view, facts.view.name
    if view.unique_index is None:
        if facts.key:
            columns = ", ".join(quoted(column) for column in facts.key)
            yield (
                f"no unique index, so not concurrently; {facts.key_known}:",
                f"CREATE UNIQUE INDEX ON {name} ({columns});",
            )
        else:
            hint = f"; perhaps {' or '.join(facts.candidates)}" if facts.candidates else ""
            yield (
                f"no unique index, so not concurrently; its key columns are yours to say{hint}:",
                f"CREATE UNIQUE INDEX ON {name} (...);",
            )
    if not view.owner_has_temp:
        yield (
            f"its owner {view.owner} lacks TEMP, so not concurrently:",
            f"GRANT TEMPORARY ON DATABASE {quoted(described.database_name)} TO {quoted(view.owner)};",
        )
    if not view.may_refresh:
        yield (
            f"the role {described.role} may not refresh it:",
            may_refresh_remedy(view, described.role, version_num=described.version_num, usable=True),
        )
    if not view.populated:
        yield "not populated: its first refresh is a plain one, which blocks nobody", ""
    definition = facts.definition
    if definition is None:
        return
    if definition.stored_timestamps:
        columns = ", ".join(definition.stored_timestamps)
        yield (
            f"{columns} is the time of the refresh: every refresh rewrites every row; "
            "upkeep.view_freshness tells it for free",
            "",
        )
    if not definition.kind.skippable:
        evidence = f" ({', '.join(definition.evidence[:3])})" if definition.evidence else ""
        yield f"{_NEVER_SKIPPED[definition.kind]}{evidence}: refreshed at every tick, never skipped", ""


_NEVER_SKIPPED: Mapping[DefinitionClass, str] = {
    DefinitionClass.VOLATILE: "it calls what may give another result each time",
    DefinitionClass.OPAQUE: "it calls functions that may read anything",
    DefinitionClass.TIME: "it depends on the time",
    DefinitionClass.SESSION: "it depends on the session",
}


def write(described: Described, *, version: str) -> str:
    """The whole file."""
    lines = [
        *_comment(
            f"Written by upkeep {version} (upkeep init) from the catalogue of {described.where}, as "
            f"{described.role}."
        ),
        *_comment("Every tier below is a suggestion, with its reason. Change what you know better, then:"),
        "#",
        *_comment(f"  export {described.url_env}={described.export}"),
        *_comment("  upkeep check && upkeep migrate && upkeep doctor"),
        "",
        "[fleet]",
        f"home = {_toml(described.name)}",
        "",
        f"[databases.{described.name}]",
        f"url_env = {_toml(described.url_env)}   # the URL, with its password, is in this variable",
        "max_parallel_refreshes = 2",
        "",
        *_comment(
            "Built in: five_minutes (*/5 * * * *), fifteen_minutes (*/15 * * * *), daily (0 6 * * *), "
            "all in UTC. Your own:"
        ),
        "# [tiers.hourly]",
        '# cron = "0 * * * *"',
        '# timezone = "Europe/Berlin"',
    ]
    if not described.views:
        lines += ["", *_comment("There is no materialized view in this database yet.")]
    for facts in described.views:
        lines += ["", *_view(facts, described)]
    return "\n".join(lines) + "\n"


def _view(facts: ViewFacts, described: Described) -> Iterator[str]:
    suggestion = suggest(facts)
    yield from _comment(f"{volume(facts.view)}. {suggestion.tier}: {suggestion.why}.")
    if facts.view.unique_index is not None and facts.view.owner_has_temp:
        yield from _comment(f"Can be refreshed concurrently by {facts.view.unique_index}.")
    for sentence, statement in hindrances(facts, described):
        yield from _comment(f"- {sentence}")
        if statement:
            yield from _comment(f"    {statement}")
    yield f"[databases.{described.name}.views.{_toml(str(facts.view.name))}]"
    yield f"tier = {_toml(suggestion.tier)}"


def volume(view: MaterializedView) -> str:
    """How large it is, as far as the statistics know."""
    if not view.populated:
        return "Empty so far"
    if view.row_estimate is None:
        return f"Never analyzed, {size(view.size_bytes)}" if view.size_bytes else "Never analyzed"
    return (
        f"About {view.row_estimate:,} {'row' if view.row_estimate == 1 else 'rows'}, {size(view.size_bytes)}"
    )


def size(value: int) -> str:
    """Bytes for people."""
    amount = float(value)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"


def names(dbname: str) -> tuple[str, str]:
    """What the fleet calls a database, and the variable that holds its URL."""
    name = re.sub(r"[^a-z0-9_]+", "_", dbname.lower()).strip("_")
    name = name if re.match(r"[a-z]", name) else f"db_{name}".rstrip("_")
    name = name[:31]
    variable = f"UPKEEP_{name.upper()}_URL"
    return name, variable if variable not in RESERVED_VARIABLES else f"UPKEEP_{name.upper()}_DATABASE_URL"


def without_secrets(parameters: Mapping[str, str], *, mark: bool) -> str:
    """The connection string again, for a shell, with a placeholder where there was a password."""
    kept = {key: value for key, value in parameters.items() if key not in _SECRETS}
    had_password = mark and bool(parameters.get("password"))
    simple = all("," not in kept.get(key, "") for key in ("host", "port")) and "hostaddr" not in kept
    if not simple:
        text = make_conninfo(**kept) + (" password=PASSWORD" if had_password else "")
    else:
        user, host = kept.pop("user", ""), kept.pop("host", "")
        port, dbname = kept.pop("port", ""), kept.pop("dbname", "")
        login = quote(user, safe="") + (":PASSWORD" if had_password else "")
        login += "@" if login else ""
        server = _host(host) + (f":{port}" if port else "")
        text = f"postgresql://{login}{server}/{quote(dbname, safe='')}"
        if kept:
            text += "?" + "&".join(f"{key}={quote(value, safe='')}" for key, value in kept.items())
    return "'" + text.replace("'", "'\\''") + "'"


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host, safe="")


def _key(
    connection: psycopg.Connection[Any],
    view: MaterializedView,
    columns: Sequence[Mapping[str, Any]],
    *,
    probe: bool,
) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """The key of a view without a unique index, how it is known, and columns that may be one."""
    comparable = [row["name"] for row in columns if row["comparable"]]
    distinct = [row["name"] for row in columns if row["comparable"] and row["distinct"]]
    if probe and comparable:
        found = _probe(connection, view.name, comparable, distinct)
        if found:
            return found, f"every row has another {' and '.join(found)} today", ()
    named = [name for name in distinct if _KEY.search(name)]
    if named:
        return (named[0],), f"the statistics say that every row has another {named[0]}", tuple(distinct[1:])
    return (), "", tuple(distinct[:3])


def _probe(
    connection: psycopg.Connection[Any], view: RelationName, columns: Sequence[str], distinct: Sequence[str]
) -> tuple[str, ...]:
    """Read the view once, for a column or a few first columns together that differ in every row."""
    first = columns[:PROBE_COLUMNS]
    keys = [(name,) for name in dict.fromkeys([*distinct, *first])] + [
        tuple(first[:n]) for n in range(2, len(first) + 1)
    ]
    counts = sql.SQL(", ").join(
        sql.SQL("count(DISTINCT ROW({})), bool_or({})").format(
            sql.SQL(", ").join(map(sql.Identifier, key)),
            sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(sql.Identifier(name)) for name in key),
        )
        for key in keys
    )
    try:
        with connection.transaction():
            connection.execute(
                sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(PROBE_TIMEOUT_MS))
            )
            row = connection.execute(
                sql.SQL("SELECT count(*), {} FROM {}").format(counts, view.identifier())
            ).fetchone()
    except (errors.QueryCanceled, errors.InsufficientPrivilege, errors.LockNotAvailable):
        return ()
    if row is None or not row[0]:
        return ()
    unique = [
        key
        for key, rows, nulls in zip(keys, row[1::2], row[2::2], strict=True)
        if rows == row[0] and not nulls
    ]
    named = [key for key in unique if len(key) == 1 and _KEY.search(key[0])]
    return next(iter([*named, *sorted(unique, key=len)]), ())


def _names(views: Iterable[RelationName]) -> str:
    shown = list(map(str, views))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _comment(text: str) -> list[str]:
    """One line of comment: a line break in a name must not end it and start a line of TOML."""
    return ["# " + _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)]


def _toml(text: str) -> str:
    """A basic string: JSON's escapes are TOML's, but for DEL, which JSON does not escape."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
