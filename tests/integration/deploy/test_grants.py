"""deploy/grants.sql is enough: a role with nothing else installs the schema and refreshes."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from fleet import settings
from fleet.errors import PermanentError
from fleet.ledger import State
from fleet.names import RelationName
from fleet.postgres.connect import connect
from fleet.postgres.migrations import migrate
from fleet.settings import PartitionSet
from tasks.partitions.keep import keep
from tasks.refresh.trigger_ddl import carry_out, look
from tasks.refresh.triggers import State as Stands
from tests.integration.tasks.refresh.conftest import System, view
from worker.embedded.postgres import EmbeddedPostgres

GRANTS = Path(__file__).parents[3] / "deploy" / "grants.sql"


def run_grants(url: str, *, role: str, owner: str, on_write: bool = False, partitions: bool = False) -> None:
    # psql comes with the wheel; the matrix's servers bring none.
    psql = EmbeddedPostgres(version=18).bin_dir / "psql"
    given = conninfo_to_dict(url)
    subprocess.run(
        [
            psql,
            "-q",
            "-v",
            f"role={role}",
            "-v",
            f"owner={owner}",
            *(["-v", "on_write=1"] if on_write else []),
            *(["-v", "partitions=1"] if partitions else []),
            "-f",
            GRANTS,
        ],
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


def test_the_grants_for_triggers_are_enough_and_asked_for(database, role):
    owner_url, fleet_url, writer_url = (role(database, name) for name in ("app owner", "up-keep", "writer"))
    with database.connect() as admin:
        admin.execute('GRANT CREATE ON SCHEMA public TO "app owner"')
    with psycopg.connect(owner_url) as owner:
        owner.execute(
            "CREATE TABLE public.t (id int) PARTITION BY LIST (id);"
            "CREATE TABLE public.t1 PARTITION OF public.t FOR VALUES IN (1);"
            "CREATE MATERIALIZED VIEW public.v AS SELECT id FROM public.t;"
            "GRANT INSERT ON public.t TO writer"
        )
    run_grants(database.url, role="up-keep", owner="app owner")
    migrate(fleet_url)
    system = System(database, [view("public.v", on_write=True)])
    system.connection.close()
    with connect(fleet_url, application_name="upkeep/test") as system.connection:
        if system.connection.info.server_version >= 170000:
            assert {line.state for line in look(system.connection, system.settings).plan()} == {
                Stands.FORBIDDEN
            }
        run_grants(database.url, role="up-keep", owner="app owner", on_write=True)
        lines = look(system.connection, system.settings).plan()
        done = list(carry_out(system.connection, lines, lock_timeout=timedelta(seconds=1)))
        assert [(deed.line.object, deed.error) for deed in done] == [("public.t", None), ("public.t1", None)]
        with psycopg.connect(writer_url, autocommit=True) as writer:
            writer.execute("INSERT INTO public.t VALUES (1)")
            with database.connect() as admin:
                admin.execute(
                    "GRANT USAGE ON SCHEMA upkeep TO writer;"
                    "GRANT EXECUTE ON FUNCTION upkeep.request_refresh TO writer"
                )
            writer.execute("SELECT upkeep.request_refresh('public.v')")
        assert system.scalar("SELECT count(*) FROM upkeep.refresh_request") == 2


def test_the_grants_for_partitions_are_enough(database, role):
    owner_url, fleet_url = (role(database, name) for name in ("app owner", "up-keep"))
    with database.connect() as admin:
        admin.execute('CREATE SCHEMA app; GRANT USAGE, CREATE ON SCHEMA app TO "app owner"')
    with psycopg.connect(owner_url) as owner:
        owner.execute("CREATE TABLE app.t (at date NOT NULL) PARTITION BY RANGE (at)")
    with database.connect() as admin:
        admin.execute('REVOKE CREATE ON SCHEMA app FROM "app owner"')
    run_grants(database.url, role="up-keep", owner="app owner", partitions=True)
    migrate(fleet_url)
    one = PartitionSet(name=RelationName("app", "t"), archive="none", default="drain")
    declared = settings.Database(name="kept", url=SecretStr(fleet_url), partitions={one.name: one})
    with connect(fleet_url, application_name="upkeep/test") as connection:
        assert not connection.execute(
            "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
        ).fetchone()[0]
        found = keep(connection, declared, one)
        assert (len(found.created), found.failures, found.analyzed) == (5, [], True)
        owners = connection.execute(
            "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'app'::regnamespace"
        ).fetchall()
        assert owners == [('"app owner"',)]
