"""What the starter file suggests, and that nothing in a name can break out of it."""

from __future__ import annotations

import shlex
import tomllib
from dataclasses import replace

import pytest
from psycopg.conninfo import conninfo_to_dict

from fleet.names import RelationName
from fleet.postgres.catalog.definition import Definition, DefinitionClass
from fleet.postgres.catalog.views import MaterializedView
from worker import starter
from worker.starter import Described, ViewFacts

VIEW = MaterializedView(
    oid=1,
    name=RelationName("public", "v"),
    owner="app",
    populated=True,
    definition_hash="x",
    filenode=1,
    size_bytes=8192,
    row_estimate=100,
    unique_index="v_key",
    unique_key=("id",),
    owner_has_temp=True,
    may_refresh=True,
)
DEFINITION = Definition(oid=1, kind=DefinitionClass.DATA, evidence=(), stored_timestamps=(), ordered_by=())
FACTS = ViewFacts(view=VIEW, definition=DEFINITION, reads=())
DESCRIBED = Described(
    name="lending",
    database_name="lending",
    role="upkeep",
    version_num=160_000,
    where="db:5432/lending",
    url_env="UPKEEP_LENDING_URL",
    export="'postgresql://upkeep@db/lending'",
    views=(FACTS,),
)


def named(name: str, **changes: object) -> ViewFacts:
    return replace(FACTS, view=replace(VIEW, name=RelationName("public", name), **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "tier", "why"),
    [
        (named("v"), "five_minutes", "small"),
        (named("v", row_estimate=100_000), "fifteen_minutes", "medium"),
        (named("v", row_estimate=2_000_000), "daily", "large"),
        (named("v", size_bytes=2 << 30), "daily", "large"),
        (named("mv_summary_realtime", row_estimate=100_000), "five_minutes", "realtime"),
        (named("symbol_24h_statistics", row_estimate=100_000), "five_minutes", "24h"),
        (named("mv_realtime", row_estimate=2_000_000), "daily", "large"),
        (named("monthly_report"), "daily", "monthly"),
        (named("v", populated=False), "fifteen_minutes", "nothing is known"),
        (named("v", row_estimate=None), "fifteen_minutes", "nothing is known"),
        (replace(FACTS, reads=(RelationName("public", "w"),)), "daily", "reads public.w"),
        (
            replace(
                named("v", row_estimate=100_000), definition=replace(DEFINITION, kind=DefinitionClass.TIME)
            ),
            "five_minutes",
            "clock",
        ),
    ],
)
def test_a_tier_is_suggested_with_its_reason(facts: ViewFacts, tier: str, why: str) -> None:
    suggestion = starter.suggest(facts)
    assert suggestion.tier == tier
    assert why in suggestion.why


def test_everything_in_the_way_is_in_a_comment_with_its_statement() -> None:
    bare = replace(
        VIEW, unique_index=None, owner_has_temp=False, may_refresh=False, populated=False, row_estimate=None
    )
    stamped = replace(
        DEFINITION, kind=DefinitionClass.TIME, evidence=("now()",), stored_timestamps=("last_updated",)
    )
    facts = ViewFacts(view=bare, definition=stamped, reads=(), candidates=("a", "b"))
    text = starter.write(replace(DESCRIBED, views=(facts,)), version="1")
    for said in (
        "no unique index",
        "perhaps a or b",
        "CREATE UNIQUE INDEX ON public.v (...);",
        'GRANT TEMPORARY ON DATABASE "lending" TO "app";',
        'GRANT "app" TO "upkeep";',
        "not populated",
        "last_updated is the time of the refresh",
        "depends on the time (now())",
    ):
        assert said in text
    assert tomllib.loads(text)["databases"]["lending"]["views"] == {"public.v": {"tier": "five_minutes"}}


def test_a_known_key_becomes_the_statement() -> None:
    facts = ViewFacts(
        view=replace(VIEW, unique_index=None),
        definition=None,
        reads=(),
        key=('a"b', "c"),
        key_known="so says X",
    )
    said = list(starter.hindrances(facts, DESCRIBED))
    assert said == [
        ("no unique index, so not concurrently; so says X:", 'CREATE UNIQUE INDEX ON public.v ("a""b", "c");')
    ]


@pytest.mark.parametrize(
    "name", ["x\ntier = 1", 'My "View" [v]', "tab\tdel\x7f", "naïve ✓", "back\\slash", "#"]
)
def test_no_name_breaks_out_of_its_comment_or_its_key(name: str) -> None:
    facts = named(name, unique_index=None)
    document = tomllib.loads(starter.write(replace(DESCRIBED, views=(facts,)), version="1"))
    (key,) = document["databases"]["lending"]["views"]
    assert RelationName.parse(key) == RelationName("public", name)


@pytest.mark.parametrize(
    ("dbname", "name", "variable"),
    [
        ("lending", "lending", "UPKEEP_LENDING_URL"),
        ("Lending-Prod 2", "lending_prod_2", "UPKEEP_LENDING_PROD_2_URL"),
        ("2024", "db_2024", "UPKEEP_DB_2024_URL"),
        ("ü", "db", "UPKEEP_DB_URL"),
        ("redis", "redis", "UPKEEP_REDIS_DATABASE_URL"),
        ("x" * 63, "x" * 31, f"UPKEEP_{'X' * 31}_URL"),
    ],
)
def test_a_database_gets_a_name_and_a_variable_that_the_settings_take(
    dbname: str, name: str, variable: str
) -> None:
    assert starter.names(dbname) == (name, variable)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:se%40cret@db.example.com:6432/lending?sslmode=require",
        "postgresql://me:secret@[::1]/lending",
        "host=/run/postgresql dbname=lending user=me password=secret",
        "postgresql://me:secret@a:1,b:2/lending?target_session_attrs=read-write",
        "host=db dbname='it\\'s' user=me sslpassword=secret",
        "dbname=lending",
    ],
)
def test_the_url_comes_back_without_its_password(url: str) -> None:
    given = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    (word,) = shlex.split(starter.without_secrets(given, mark=True))
    assert "secret" not in word
    assert "cret" not in word
    again = {key: str(value) for key, value in conninfo_to_dict(word).items() if value is not None}
    assert again.pop("password", "PASSWORD") == "PASSWORD"
    assert again == {k: v for k, v in given.items() if k not in ("password", "sslpassword")}


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0 bytes"), (8192, "8.0 kB"), (3 << 20, "3.0 MB"), (5 << 40, "5.0 TB")]
)
def test_sizes_are_for_people(size: int, shown: str) -> None:
    assert starter.size(size) == shown
