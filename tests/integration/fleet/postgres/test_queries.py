"""Named queries: every one that is shipped can be prepared, and the loader does what its docstring says."""

from __future__ import annotations

import inspect
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.pq import ExecStatus
from psycopg.rows import tuple_row

from fleet.postgres.queries import load
from tests.servers import Database

ROOT = Path(__file__).parents[4]
# A migration is a script of its own form; everything else is a file of named queries.
FILES = sorted(
    path.relative_to(ROOT)
    for top in ("fleet", "schedules", "tasks", "worker")
    for path in (ROOT / top).rglob("*.sql")
    if "migrations" not in path.parts
)


# Parameters whose type the query leaves to what the caller sends: psycopg sends a timedelta as an interval.
SENT_AS = {"patience": "interval", "long_patience": "interval", "grace": "interval", "wait": "interval"}


def package_of(path: Path) -> tuple[str, str]:
    """The package that ships a file, and the file's path in it."""
    folder = path.parent
    while not (ROOT / folder / "__init__.py").exists():
        folder = folder.parent
    return ".".join(folder.parts), path.relative_to(folder).as_posix()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_query_says_what_it_answers_and_can_be_prepared(path: Path, upkeep_database: Database) -> None:
    conn = upkeep_database.connect()
    queries = load(*package_of(path))
    names = [name for name in queries.available_queries if not name.endswith("_cursor")]
    assert names
    for name in names:
        query = getattr(queries, name)
        assert query.__doc__, f"{name} does not say which question it answers"
        newer = re.search(r"From PostgreSQL (\d+) on", query.__doc__)
        if newer and conn.info.server_version < int(newer[1]) * 10_000:
            continue
        numbers: dict[str, str] = {}
        text = re.sub(
            r"%\((\w+)\)s|%(%)",
            lambda m, numbers=numbers: m[2] or numbers.setdefault(m[1], f"${len(numbers) + 1}"),  # type: ignore[misc]
            query.sql,
        )
        types = [conn.adapters.types[SENT_AS[n]].oid if n in SENT_AS else 0 for n in numbers]
        result = conn.pgconn.prepare(b"", text.encode(), types)
        assert result.status == ExecStatus.COMMAND_OK, f"{path}: {name}: {result.error_message.decode()}"
        assert conn.pgconn.describe_prepared(b"").nparams == len(numbers)


def test_the_catalogues_queries_are_among_them() -> None:
    found = {path.name for path in FILES if path.parent.name == "catalog"}
    assert found == {
        "definition.sql",
        "partitions.sql",
        "reading.sql",
        "server.sql",
        "sources.sql",
        "triggers.sql",
        "views.sql",
    }


THINGS = """
-- Before the first name anything may stand.

-- name: both
-- Which casts and parameters are told apart?
SELECT :n::int AS n, (:ns::int[])[1] AS first, ':no::parameter %%' AS quoted, 'a'::text AS ":neither",
       7 %% :n AS rest;

-- name: one^
SELECT :n::int AS n WHERE :n::int > 0;

-- name: value$
SELECT :n::int;

-- name: write!
CREATE TABLE written AS SELECT generate_series(1, :n::int) AS id;

-- name: percent
SELECT 'Größe' LIKE 'Gr%%e' AS matches;
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a package with one .sql file into a zip on the path, as a wheel may be used."""
    made = []

    def make(name: str, text: str = THINGS) -> str:
        archive = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr(f"{name}/__init__.py", "")
            zipped.writestr(f"{name}/sql/things.sql", text)
        monkeypatch.syspath_prepend(str(archive))
        made.append(name)
        return name

    yield make
    load.cache_clear()
    for name in made:
        sys.modules.pop(name, None)


def test_parameters_casts_and_percent_signs(package: Any, database: Database) -> None:
    queries = load(package("shipped_things"), "sql/things.sql")
    with database.connect(row_factory=tuple_row) as conn:
        assert list(queries.both(conn, n=5, ns=[8, 9])) == [
            {"n": 5, "first": 8, "quoted": ":no::parameter %", ":neither": "a", "rest": 2}
        ]
        assert queries.one(conn, n=1) == {"n": 1}
        assert queries.one(conn, n=0) is None
        assert queries.value(conn, n=3) == 3
        assert queries.write(conn, n=4) == 4
        assert list(queries.percent(conn)) == [{"matches": True}]
        assert conn.execute(queries.one.sql, {"n": 2}).fetchone() == (2,)


def test_a_query_without_a_suffix_is_sent_when_its_rows_are_asked_for(
    package: Any, database: Database
) -> None:
    queries = load(package("lazy_things"), "sql/things.sql")
    with database.connect() as conn:
        assert inspect.isgenerator(queries.percent(conn))
        with pytest.raises(psycopg.ProgrammingError):
            list(queries.both(conn, n=1))


def test_each_file_is_read_once() -> None:
    assert load("fleet.postgres.catalog", "views.sql") is load("fleet.postgres.catalog", "views.sql")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        load("fleet.postgres.catalog", "nothing.sql")
