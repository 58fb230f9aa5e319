"""The tables of transactions once, as a template: each test has a copy, which takes a fraction of the time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fleet.names import RelationName
from tasks.partitions import archive as archives
from tests import servers
from tests.integration.tasks.partitions.moving import META, OWNER, ROLE, TABLE, System, install, policy
from tests.servers import Database
from worker.embedded.postgres import EmbeddedPostgres

_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Template:
    """A database with the tables, in which nobody is connected when it is copied; the fleet's password for all."""

    database: Database
    password: str

    @contextmanager
    def system(self) -> Iterator[System]:
        """The template itself, to be filled."""
        made = System(self.database, self.database.url_for(ROLE, self.password))
        try:
            yield made
        finally:
            made.close()

    @contextmanager
    def cloned(self) -> Iterator[System]:
        made = servers.create_database(
            self.database.server, template=self.database.name, name=f"{self.database.name}_{next(_numbers)}"
        )
        system = System(made, made.url_for(ROLE, self.password))
        try:
            yield system
        finally:
            system.close()
            servers.drop_database(made)


@contextmanager
def templates(server: EmbeddedPostgres, *names: str) -> Iterator[list[Template]]:
    """Several with the same tables; there is a view over each table and its archive from the first moment."""
    servers.create_role(server, OWNER)
    password = servers.create_role(server, ROLE)
    made: list[Template] = []
    for name in names:
        pattern = {"template": made[0].database.name} if made else {}
        one = Template(database=servers.create_database(server, name=name, **pattern), password=password)
        if not made:
            install(one.database, one.database.url_for(ROLE, password))
            with one.system() as system:
                view_over_both(system, TABLE)
                view_over_both(system, META, partition_by="partition_date")
        made.append(one)
    yield made
    for one in made:
        servers.drop_database(one.database)
    for role in (ROLE, OWNER):
        servers.drop_role(server, role)


def view_over_both(system: System, table: RelationName, *, partition_by: str = "") -> None:
    """The archive of a table before anything of it is moved."""
    archives.ensure(
        system.connection, table, "archive", budget=policy().lock_budget, partition_by=partition_by
    )


__all__ = ["Template", "templates", "view_over_both"]
