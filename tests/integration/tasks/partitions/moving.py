"""A table of transactions with what belongs to it, under a role like production's, and ways to look at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import sql
from psycopg.rows import dict_row

from fleet.names import RelationName
from fleet.postgres.connect import connect
from fleet.postgres.migrations import migrate
from fleet.settings.partitions import PartitionSet
from tasks.partitions.move import Moved, move
from tests.integration.deploy.test_grants import run_grants
from tests.servers import Database

TABLE = RelationName("public", "transactions")
META = RelationName("public", "transaction_metadata")
JANUARY = RelationName("public", "transactions_y2024m01")
FEBRUARY = RelationName("public", "transactions_y2024m02")
OWNER, ROLE = "app_owner", "up-keep"
MONTHS = ("2024-01", "2024-02", "2024-03", "2024-04")
ROWS = 240
# Months of two hash parts each, a companion with a foreign key, a table that the transactions refer to.
SCHEMA = """
CREATE TABLE public.accounts (account_id bigint PRIMARY KEY);
INSERT INTO public.accounts SELECT generate_series(1, 10);
CREATE TABLE public.transactions (
    id bigint NOT NULL, partition_date date NOT NULL, status text NOT NULL DEFAULT 'completed',
    account_id bigint REFERENCES public.accounts, amount numeric(19, 4) NOT NULL CHECK (amount > 0),
    cents bigint GENERATED ALWAYS AS ((amount * 100)::bigint) STORED,
    PRIMARY KEY (id, partition_date)
) PARTITION BY RANGE (partition_date);
COMMENT ON COLUMN public.transactions.amount IS 'in full';
CREATE TABLE public.transaction_metadata (
    transaction_id bigint PRIMARY KEY, partition_date date NOT NULL, note text,
    CONSTRAINT of_transaction FOREIGN KEY (transaction_id, partition_date) REFERENCES public.transactions
        ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED
);
COMMENT ON CONSTRAINT of_transaction ON public.transaction_metadata IS 'whose it is';
CREATE INDEX metadata_date ON public.transaction_metadata (partition_date);
CREATE INDEX transactions_pending ON public.transactions (partition_date) WHERE status = 'pending';
"""
FILL = """
INSERT INTO public.transactions (id, partition_date, account_id, amount)
SELECT g, date '2024-01-01' + mod(g, 4) * interval '1 month' + mod(g, 28) * interval '1 day', 1 + mod(g, 10), g
  FROM generate_series(1, %s) AS g
"""


def policy(**changes: Any) -> PartitionSet:
    return PartitionSet.model_validate({"name": TABLE, "companions": (META,), **changes})


class System:
    """A kept database with the tables of an application's role, and the fleet's with what deploy/grants.sql gives."""

    def __init__(self, database: Database, fleet_url: str, *, owner: str = OWNER) -> None:
        self.database, self.url, self.owner = database, fleet_url, owner
        self.admin = database.connect(row_factory=dict_row)
        self.connection = connect(fleet_url, application_name="upkeep/test")

    def as_owner(self, statement: str, *values: Any) -> None:
        with self.database.connect() as connection:
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(self.owner)))
            connection.execute(statement, values or None)

    def add_month(self, month: str) -> None:
        name = f"transactions_y{month.replace('-', 'm')}"
        with self.database.connect() as connection:
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(self.owner)))
            (after,) = connection.execute(
                "SELECT (%s::date + interval '1 month')::date::text", [f"{month}-01"]
            ).fetchone()
            connection.execute(
                sql.SQL(
                    "CREATE TABLE {} PARTITION OF public.transactions FOR VALUES FROM ({}) TO ({})"
                    " PARTITION BY HASH (id)"
                ).format(sql.Identifier("public", name), sql.Literal(f"{month}-01"), sql.Literal(after))
            )
            for part in range(2):
                connection.execute(
                    sql.SQL(
                        "CREATE TABLE {} PARTITION OF {} FOR VALUES WITH (modulus 2, remainder {})"
                    ).format(
                        sql.Identifier("public", f"{name}_p{part}"),
                        sql.Identifier("public", name),
                        sql.Literal(part),
                    )
                )

    def move(
        self,
        partition: RelationName = JANUARY,
        *,
        others: Mapping[RelationName, PartitionSet] | None = None,
        told: Any = None,
        **changes: Any,
    ) -> Moved:
        own = policy(**changes)
        return move(
            self.connection,
            {TABLE: own, **(others or {})},
            own,
            partition,
            told=told or (lambda step: None),
        )

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        return self.admin.execute(query, values or None).fetchall()

    def scalar(self, query: str, *values: Any) -> Any:
        (row,) = self.rows(query, *values)
        (value,) = row.values()
        return value

    def partitions(self, parent: str) -> list[str]:
        return [
            row["name"]
            for row in self.rows(
                "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = to_regclass(%s) ORDER BY 1",
                parent,
            )
        ]

    def catalogue(self) -> dict[str, Any]:
        """What two databases that went through the same must have in common; batches and moments differ."""
        return {
            "partitions": self.rows(
                "SELECT c.oid::regclass::text AS name, c.relkind, c.relowner::regrole::text AS owner, c.relacl::text,"
                " pg_get_expr(c.relpartbound, c.oid) AS bound,"
                " (SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = c.oid) AS parent"
                " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE n.nspname IN ('public', 'archive') AND c.relkind IN ('r', 'p', 'v', 'i', 'I') ORDER BY 1"
            ),
            "constraints": self.rows(
                "SELECT k.conrelid::regclass::text AS name, k.conname, pg_get_constraintdef(k.oid) AS definition,"
                " k.convalidated, obj_description(k.oid, 'pg_constraint') AS comment"
                " FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace"
                " WHERE n.nspname IN ('public', 'archive') AND k.conparentid = 0 ORDER BY 1, 2, 3"
            ),
            "columns": self.rows(
                "SELECT a.attrelid::regclass::text AS name, a.attname, format_type(a.atttypid, a.atttypmod) AS type,"
                " a.attnotnull, a.attnum, pg_get_expr(d.adbin, d.adrelid) AS expression"
                " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
                " JOIN pg_namespace n ON n.oid = c.relnamespace"
                " LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)"
                " WHERE n.nspname IN ('public', 'archive') AND c.relkind IN ('r', 'p', 'v') AND a.attnum > 0"
                " AND NOT a.attisdropped ORDER BY 1, a.attnum"
            ),
            "rows": self.rows(
                "SELECT id, partition_date, status, amount, cents, archived_at IS NOT NULL AS archived"
                " FROM archive.transactions_all ORDER BY id"
            ),
            "metadata": self.rows(
                "SELECT transaction_id, partition_date, note, archived_at IS NOT NULL AS archived"
                " FROM archive.transaction_metadata_all ORDER BY 1"
            ),
            "batches": self.rows(
                "SELECT kind, parent, archive, partition, control_type, lower_bound, upper_bound, rows,"
                " archived_at IS NOT NULL AS over FROM upkeep.archive_batch ORDER BY parent, partition"
            ),
            "unvalidated": self.rows("SELECT * FROM upkeep.unvalidated_constraint"),
        }

    def close(self) -> None:
        self.connection.close()
        self.database.close_connections()


def install(database: Database, fleet_url: str, *, owner: str = OWNER, role: str = ROLE) -> None:
    """The application's tables, and the grants that a DBA gives the fleet."""
    with database.connect() as admin:
        admin.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(owner)))
    system = System(database, fleet_url, owner=owner)
    system.as_owner(SCHEMA)
    for month in MONTHS:
        system.add_month(month)
    system.as_owner(FILL, ROWS)
    system.as_owner(
        "INSERT INTO public.transaction_metadata SELECT id, partition_date, 'n' || id FROM public.transactions"
        " WHERE partition_date < '2024-03-01'"
    )
    run_grants(database.url, role=role, owner=owner)
    system.admin.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(owner), sql.Identifier(role)))
    system.admin.execute(sql.SQL("CREATE SCHEMA archive AUTHORIZATION {}").format(sql.Identifier(owner)))
    migrate(fleet_url)
    system.close()


def new_system(database: Database, role: Any) -> System:
    role(database, OWNER)
    url = role(database, ROLE)
    install(database, url)
    return System(database, url)


__all__ = [
    "FEBRUARY",
    "JANUARY",
    "META",
    "MONTHS",
    "OWNER",
    "ROLE",
    "ROWS",
    "TABLE",
    "System",
    "install",
    "new_system",
    "policy",
]
