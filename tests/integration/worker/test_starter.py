"""The starter file against a real catalogue: odd names, foreign owners, and no trace left."""

from __future__ import annotations

import tomllib

import psycopg

from fleet.names import RelationName
from tests.conftest import NewRole
from tests.servers import Database
from worker import starter
from worker.starter import Described

ODD = 'My "View" [v]\ntier = 1 é'


def described(database: Database, views: tuple[starter.ViewFacts, ...]) -> Described:
    return Described(
        name="kept",
        database_name=database.name,
        role="postgres",
        version_num=180_000,
        where="here",
        url_env="UPKEEP_KEPT_URL",
        export="''",
        views=views,
    )


def test_names_that_want_to_break_out_are_declared_as_they_are(database: Database) -> None:
    connection = database.connect()
    quoted = RelationName("Odd", ODD).identifier().as_string()
    connection.execute(
        f'CREATE SCHEMA "Odd"; CREATE MATERIALIZED VIEW {quoted} AS SELECT 1 AS "a b"; ANALYZE {quoted};'
    )
    views = starter.gather(connection, probe=True)
    document = tomllib.loads(starter.write(described(database, views), version="1"))
    (name,) = document["databases"]["kept"]["views"]
    assert RelationName.parse(name) == RelationName("Odd", ODD)


def test_a_view_that_may_not_be_read_is_described_without_a_key(database: Database, role: NewRole) -> None:
    database.connect().execute("""
        CREATE TABLE public.t AS SELECT i AS id FROM generate_series(1, 10) AS i;
        CREATE MATERIALIZED VIEW public.secret AS SELECT id FROM public.t; ANALYZE;
    """)
    with psycopg.connect(role(database), autocommit=True) as stranger:
        (facts,) = starter.gather(stranger, probe=True)
    assert (facts.key, facts.candidates) == ((), ())
    text = starter.write(described(database, (facts,)), version="1")
    assert "may not refresh it" in text
