"""deploy/grants.sql is enough: a role with nothing else installs the schema and refreshes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from fleet.errors import PermanentError
from fleet.ledger import State
from fleet.postgres.connect import connect
from fleet.postgres.migrations import migrate
from tests.integration.tasks.refresh.conftest import System, view
from worker.embedded.postgres import EmbeddedPostgres

GRANTS = Path(__file__).parents[3] / "deploy" / "grants.sql"


def run_grants(url: str, *, role: str, owner: str) -> None:
    # psql comes with the wheel; the matrix's servers bring none.
    psql = EmbeddedPostgres(version=18).bin_dir / "psql"
    given = conninfo_to_dict(url)
    subprocess.run(
        [psql, "-q", "-v", f"role={role}", "-v", f"owner={owner}", "-f", GRANTS],
        check=True,
        capture_output=True,
        text=True,
        env={
            "PGHOST": str(given["host"]),
            "PGPORT": str(given["port"]),
            "PGUSER": str(given["user"]),
            "PGPASSWORD": str(given["password"]),
            "PGDATABASE": str(given["dbname"]),
        },
    )


def test_the_grants_are_enough_and_can_be_run_again(database, role):
    owner_url = role(database, "app owner")
    fleet_url = role(database, "up-keep")
    with database.connect() as admin:
        admin.execute('GRANT CREATE ON SCHEMA public TO "app owner"')
        admin.execute(
            sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database.name))
        )
    with psycopg.connect(owner_url) as owner:
        owner.execute(
            "CREATE TABLE public.t (id int); INSERT INTO public.t VALUES (1);"
            "CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t; CREATE UNIQUE INDEX ON public.v (id)"
        )
    with pytest.raises(PermanentError, match="may not create the schema"):
        migrate(fleet_url)
    for _ in range(2):
        run_grants(database.url, role="up-keep", owner="app owner")
    migrate(fleet_url)

    system = System(database, [view("public.v")])
    system.connection.close()
    with connect(fleet_url, application_name="upkeep/test") as system.connection:
        assert_enough(system)


def assert_enough(system: System) -> None:
    assert not system.scalar("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")
    run = system.refresh("public.v")
    assert (run.state, run.result["strategy"]) == (State.SUCCEEDED, "concurrently")
