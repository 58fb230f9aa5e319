"""From a parsed TOML document and the environment to settings, collecting every error on the way.

pydantic judges one table at a time, so that a mistake in one does not hide those in the next; what two tables
say about each other is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import SecretStr

from fleet.errors import ConfigurationError
from fleet.names import RelationName
from fleet.settings import policies, urls
from fleet.settings.declared import Declared, check_timeout
from fleet.settings.findings import Findings, Key, Rendered, Table
from fleet.settings.model import (
    BUILT_IN_TIERS,
    Database,
    Fleet,
    Queues,
    Settings,
    Tier,
    Timing,
    View,
)
from fleet.settings.problems import Report
from fleet.settings.values import closest

REDIS_URL = "UPKEEP_REDIS_URL"
CACHE_URL = "UPKEEP_CACHE_URL"
RESERVED_VARIABLES = frozenset({REDIS_URL, CACHE_URL, "UPKEEP_CONFIG"})

_PLACEHOLDER = SecretStr("")  # stands in for a URL that is an error already
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_URL_EXAMPLE = "postgresql://user:password@host:5432/dbname"


class Reader:
    """One pass over a document."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._found = Findings()
        self._places: dict[tuple[str, str, str], str] = {}

    def read(self, document: Table, source: Path | None) -> Report:
        """Read everything, whatever is wrong with parts of it."""
        known = ("fleet", "databases", "tiers", "queues", "jobs", "schedule")
        self._found.unknown(document, known, ())
        declared = self._found.table(document.get("databases", {}), ("databases",))
        if not declared:
            self._found.error(("databases",), None, "no database is declared", "Add a table [databases.NAME]")
        fleet = self._fleet(self._found.table(document.get("fleet", {}), ("fleet",)), tuple(declared))
        queues = self._found.model(Queues, document.get("queues", {}), ("queues",))
        own_tiers = self._found.table(document.get("tiers", {}), ("tiers",))
        tiers = self._tiers(own_tiers, ("tiers",), BUILT_IN_TIERS)
        names = own_tiers.keys() | BUILT_IN_TIERS.keys()
        databases = [
            self._database(name, value, tiers=tiers, tier_names=names, queues=queues)
            for name, value in declared.items()
        ]
        work = Declared(self._found, databases=tuple(declared), queues=queues)
        jobs = work.jobs(self._found.table(document.get("jobs", {}), ("jobs",)))
        schedule = work.schedule(self._found.table(document.get("schedule", {}), ("schedule",)))
        self._warn_unused(own_tiers, declared)
        self._warn_idle(declared, work.databases_with_work)
        settings = None
        if not self._found.errors and fleet is not None and queues is not None:
            kept = {database.name: database for database in databases if database is not None}
            settings = Settings(
                fleet=fleet, databases=kept, queues=queues, jobs=jobs, schedule=schedule, path=source
            )
        return Report(
            errors=tuple(self._found.errors), warnings=tuple(self._found.warnings), settings=settings
        )

    # One method per table

    def _fleet(self, table: Table, databases: tuple[str, ...]) -> Fleet | None:
        key = ("fleet", "home")
        home = table.get("home", databases[0] if len(databases) == 1 else None)
        if home is None and databases:
            message = "with several databases, one must be the home"
            self._found.error(key, None, message, closest("", databases))
        elif databases and home not in databases:
            self._found.error(key, home, "it is not a database of this file", closest(str(home), databases))
        given: dict[str, object] = {"home": home if isinstance(home, str) else ""}
        for name, variable in (("redis_url", REDIS_URL), ("cache_url", CACHE_URL)):
            url = self._redis_url(table, name, variable)
            if url is not None:
                given[name] = url
        return self._found.model(
            Fleet, table, ("fleet",), given=given, handled=("home", "redis_url", "cache_url")
        )

    def _redis_url(self, table: Table, name: str, variable: str) -> SecretStr | None:
        from_environment = self._environ.get(variable)
        key: Key = (variable,) if from_environment else ("fleet", name)
        url = from_environment or table.get(name)
        if url is None:
            return None
        if not isinstance(url, str):
            self._found.error(key, url, "a URL is text", "Put it in quotes")
            return None
        try:
            secret, shown = urls.redis(url, cluster=name == "cache_url")
        except ConfigurationError as exc:
            self._found.error(key, url, exc.message, exc.remedy)
            return None
        if secret and not from_environment:
            remedy = f"Set the variable {variable} to this URL instead"
            self._found.error(key, Rendered(shown), "a password does not belong in the file", remedy)
        return SecretStr(url)

    def _tiers(self, tables: Table, key: Key, inherited: Mapping[str, Tier]) -> dict[str, Tier]:
        tiers = dict(inherited)
        for name, value in tables.items():
            self._found.name(name, (*key, name), "tier")
            table = self._found.table(value, (*key, name))
            if name in inherited:
                # A tier that is there already may be changed in part.
                table = {**{part: getattr(inherited[name], part) for part in Timing.model_fields}, **table}
            tier = self._found.model(Tier, table, (*key, name), given={"name": name})
            if tier is not None:
                tiers[name] = tier
        return tiers

    def _database(
        self,
        name: str,
        value: object,
        *,
        tiers: Mapping[str, Tier],
        tier_names: Iterable[str],
        queues: Queues | None,
    ) -> Database | None:
        key: Key = ("databases", name)
        self._found.name(name, key, "database")
        table = self._found.table(value, key)
        own_tiers = self._found.table(table.get("tiers", {}), (*key, "tiers"))
        known_tiers = self._tiers(own_tiers, (*key, "tiers"), tiers)
        views = self._views(
            self._found.table(table.get("views", {}), (*key, "views")),
            (*key, "views"),
            tiers=known_tiers,
            tier_names=own_tiers.keys() | set(tier_names),
            queues=queues,
        )
        url = self._database_url(name, table, key)
        given = {"name": name, "url": url or _PLACEHOLDER, "tiers": known_tiers, "views": views}
        given |= policies.read(self._found, table, key)
        handled = ("url", "url_env", "tiers", "views", *policies.TABLES)
        return self._found.model(Database, table, key, given=given, handled=handled)

    def _views(
        self,
        tables: Table,
        key: Key,
        *,
        tiers: Mapping[str, Tier],
        tier_names: Iterable[str],
        queues: Queues | None,
    ) -> dict[RelationName, View]:
        views: dict[RelationName, View] = {}
        for name, value, here in policies.relations(self._found, tables, key, kind="view"):
            table = self._found.table(value, here)
            named = table.get("tier")
            if isinstance(named, str) and named not in tier_names:
                self._found.error(
                    (*here, "tier"), named, "there is no such tier", _tier_remedy(named, tier_names)
                )
            view = self._found.model(View, table, here, given={"name": name})
            if view is not None:
                views[name] = view
                tier = tiers.get(view.tier)
                check_timeout(
                    self._found,
                    view.statement_timeout,
                    here,
                    queues=queues,
                    declared="statement_timeout" in table,
                    due=None if tier is None else (f"the tier {tier.name}", tier.shortest_interval),
                )
        return views

    def _database_url(self, name: str, table: Table, key: Key) -> SecretStr | None:
        default = f"UPKEEP_{re.sub(r'[^A-Z0-9]', '_', name.upper())}_URL"
        in_file = table.get("url")
        if "url_env" in table and "url" in table:
            message = "url and url_env exclude each other"
            self._found.error((*key, "url_env"), None, message, "Keep one of them")
            return None
        variable = self._variable(table.get("url_env", default), default, key)
        if variable is None:
            return None
        from_environment = self._environ.get(variable)
        if from_environment:
            return self._checked_url(name, from_environment, (variable,), from_environment=True)
        if isinstance(in_file, str):
            return self._checked_url(name, in_file, (*key, "url"), from_environment=False, variable=default)
        if in_file is not None:
            self._found.error((*key, "url"), in_file, "a URL is text", "Put it in quotes")
        else:
            state = "empty" if from_environment == "" else "not set"
            remedy = f"Set it: export {variable}='{_URL_EXAMPLE}'"
            self._found.error((*key, "url_env"), variable, f"the variable {variable} is {state}", remedy)
        return None

    def _variable(self, name: object, default: str, key: Key) -> str | None:
        here = (*key, "url_env")
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            # Most likely somebody wrote the URL itself here, password and all.
            remedy = f'Write url_env = "{default}" and set that variable to the URL'
            self._found.error(here, Rendered("***"), "it must be the name of a variable", remedy)
            return None
        if name in RESERVED_VARIABLES:
            remedy = "Choose another with url_env"
            self._found.error(here, name, "this variable has a meaning of its own", remedy)
            return None
        return name

    def _checked_url(
        self, name: str, url: str, key: Key, *, from_environment: bool, variable: str = ""
    ) -> SecretStr | None:
        try:
            parameters = urls.postgres(url)
        except ConfigurationError as exc:
            self._found.error(key, url, exc.message, exc.remedy)
            return None
        if urls.has_secret(parameters) and not from_environment:
            self._found.error(
                key,
                Rendered(urls.shown(parameters)),
                "a password does not belong in the file",
                f"Set the variable {variable} to the whole URL, or keep the password in ~/.pgpass",
            )
        others = {self._places.setdefault(place, name) for place in urls.places(parameters)} - {name}
        for other in sorted(others):
            self._found.warn(
                key,
                Rendered(urls.shown(parameters)),
                f"it is the database {other} once more: each view would be refreshed twice",
                "Keep one of the two",
            )
        return SecretStr(url)

    def _warn_idle(self, databases: Table, with_work: set[str]) -> None:
        for name, value in databases.items():
            if name not in with_work and not (
                isinstance(value, Mapping) and (value.get("views") or value.get("partitions"))
            ):
                self._found.warn(
                    ("databases", name, "views"),
                    None,
                    "no view is declared, so nothing is refreshed",
                    "upkeep init suggests some",
                )

    def _warn_unused(self, fleet_tiers: Table, databases: Table) -> None:
        used: set[Key] = set()
        for database, value in databases.items():
            table = value if isinstance(value, Mapping) else {}
            own, views = table.get("tiers"), table.get("views")
            own_names = set(own) if isinstance(own, Mapping) else set()
            named = {
                view["tier"]
                for view in (views.values() if isinstance(views, Mapping) else [])
                if isinstance(view, Mapping) and isinstance(view.get("tier"), str)
            }
            used |= {
                ("databases", database, "tiers", tier) if tier in own_names else ("tiers", tier)
                for tier in named
            }
            for tier in sorted(own_names - named):
                self._found.warn(
                    ("databases", database, "tiers", tier),
                    None,
                    "no view is in this tier",
                    "Use it or remove it",
                )
        for tier in fleet_tiers:
            if ("tiers", tier) not in used:
                self._found.warn(("tiers", tier), None, "no view is in this tier", "Use it or remove it")


def _tier_remedy(tier: str, known: Iterable[str]) -> str:
    near, all_of_them = closest(tier, known), closest("", known)
    return near if near == all_of_them else f"{near} {all_of_them}"
