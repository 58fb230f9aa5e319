"""A partitioned table that has everything a table can have, a role that keeps it, and what pg_dump says of both."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from fleet.names import RelationName
from fleet.postgres.catalog.partitions import Range
from fleet.postgres.connect import connect
from fleet.postgres.patience import Patience
from fleet.settings import PartitionSet
from tasks.partitions.create import Made, Maker
from tests.servers import Database
from worker.embedded.postgres import EmbeddedPostgres

OWNER, KEEPER, READER = "app owner", "up-keep", "reader"
TABLE = RelationName("app", "transactions")
SOON = Patience(tries=3, total=timedelta(seconds=3))


def month(year: int, number: int) -> Range:
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return Range(lower=datetime(year, number, 1, tzinfo=UTC), upper=following)


def partition(year: int, number: int) -> RelationName:
    return RelationName(TABLE.schema, f"transactions_y{year}m{number:02}")


def policy(**changes: Any) -> PartitionSet:
    return PartitionSet.model_validate({"name": TABLE} | changes)


PLAIN = """
CREATE TABLE app.transactions (
    id bigint NOT NULL, created_at timestamptz NOT NULL, amount numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);
CREATE TABLE app.transactions_y2026m01 PARTITION OF app.transactions FOR VALUES FROM ('2026-01-01Z') TO ('2026-02-01Z');
"""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A database with a role like a deployment's: a member of the tables' owner, no superuser."""

    database: Database
    owner_url: str
    keeper_url: str
    reader_url: str

    def owner(self, **kwargs: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.owner_url, autocommit=True, **kwargs)

    def keeper(self) -> psycopg.Connection[Any]:
        return connect(self.keeper_url, application_name="upkeep/test")

    def set_up(self, statements: str) -> None:
        with self.owner() as owner:
            owner.execute(statements)

    def make(self, name: RelationName, range_: Range | None, *, drain: bool = False, **changes: Any) -> Made:
        with self.keeper() as connection:
            return Maker(connection=connection, policy=policy(**changes), patience=SOON).make(
                name, range_, drain=drain
            )

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            return connection.execute(query, values).fetchall()

    def scalar(self, query: str, *values: Any) -> Any:
        return self.rows(query, *values)[0][0]

    def partitions(self) -> list[str]:
        return [
            row[0]
            for row in self.rows(
                "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
                " WHERE i.inhparent = 'app.transactions'::regclass ORDER BY 1"
            )
        ]

    def dumped(self, name: RelationName, bounds: Range) -> list[str]:
        """What pg_dump -s writes of a partition, without its name and its bounds."""
        found = []
        for entry in re.split(r"\n--\n-- Name: .*\n--\n", dump(self.database.url)):
            if name.name in entry:
                text = entry.partition("\n--\n-- PostgreSQL database dump complete")[0].strip("- \n")
                # What pg_dump says of its own session depends on what came before.
                text = re.sub(r"(?m)^SET .*;\n*", "", text).replace(name.name, "PARTITION")
                for word, value in (("LOWER", bounds.lower), ("UPPER", bounds.upper)):
                    text = re.sub(rf"'{value:%Y-%m-%d} [^']*'", word, text)
                if text.lstrip().startswith(("GRANT", "REVOKE")):
                    # In the order in which they were given, which means nothing.
                    text = "\n".join(sorted(text.splitlines()))
                found.append(text.strip())
        return sorted(found)


def dump(url: str) -> str:
    """The schema of a database, by the newest pg_dump, which reads every version before."""
    given = conninfo_to_dict(url)
    return subprocess.run(
        [EmbeddedPostgres(version=18).bin_dir / "pg_dump", "-s", "--restrict-key=test"],
        check=True,
        capture_output=True,
        text=True,
        env={
            "PGHOST": str(given["host"]),
            "PGPORT": str(given["port"]),
            "PGUSER": str(given["user"]),
            "PGPASSWORD": str(given["password"]),
            "PGDATABASE": str(given["dbname"]),
            "PGTZ": "UTC",
        },
    ).stdout


def keep(database: Database, role: Any) -> Kept:
    """Make the roles, and a schema that the owner may create in."""
    kept = Kept(
        database=database,
        owner_url=role(database, OWNER),
        keeper_url=role(database, KEEPER),
        reader_url=role(database, READER),
    )
    with database.connect() as admin:
        admin.execute(
            sql.SQL("CREATE SCHEMA app AUTHORIZATION {0}; GRANT {0} TO {1}").format(
                sql.Identifier(OWNER), sql.Identifier(KEEPER)
            )
        )
    return kept
