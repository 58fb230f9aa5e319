"""The embedded PostgreSQL keeps what it promises: nothing left behind, nothing open to others, no data lost."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import psycopg
import pytest

from tests.integration.worker.embedded.conftest import alive, execute, listening, query
from tests.waiting import wait_until
from worker.embedded import server as embedded_server
from worker.embedded.errors import ServerError
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.processes import descendants

pytestmark = pytest.mark.usefixtures("run_version")


def test_a_clean_end_leaves_no_process_no_port_and_no_file(
    postgres: EmbeddedPostgres, temporary: Path
) -> None:
    pid, port = postgres.pid, postgres.port
    assert pid is not None
    children = descendants(pid)
    assert children
    assert query(postgres, "SHOW fsync") == "on"
    postgres.close()
    assert not [process for process in [pid, *children] if alive(process)]
    assert not listening(port)
    assert list(temporary.iterdir()) == []
    postgres.close()  # once more is nothing


def test_its_own_session_keeps_ctrl_c_away(postgres_server: EmbeddedPostgres) -> None:
    assert postgres_server.pid is not None
    assert os.getsid(postgres_server.pid) == postgres_server.pid != os.getsid(0)


def test_others_on_this_machine_need_the_password(postgres_server: EmbeddedPostgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres_server.url(password="guessed"))
    with pytest.raises(psycopg.OperationalError, match="no password"):
        psycopg.connect(f"postgresql://postgres@127.0.0.1:{postgres_server.port}/postgres")
    assert postgres_server.password not in Path(f"/proc/{postgres_server.pid}/cmdline").read_text()


def test_committed_data_survives_every_way_to_stop(postgres: EmbeddedPostgres) -> None:
    execute(postgres, "CREATE TABLE kept (n int)")
    url = postgres.url()
    for count, way in enumerate(["fast", "immediate", "kill"], start=1):
        execute(postgres, "INSERT INTO kept SELECT generate_series(1, 1000)")
        before = postgres.pid
        if way == "kill":
            postgres.kill()
            assert postgres.pid is None
            postgres.start()
        else:
            postgres.restart(way)  # type: ignore[arg-type]
        assert postgres.url() == url
        assert postgres.pid != before
        assert query(postgres, "SELECT count(*) FROM kept") == 1000 * count


def test_kill_takes_a_busy_backend_along(postgres: EmbeddedPostgres) -> None:
    # A backend that computes does not notice that its postmaster is gone, and would keep the data.
    with psycopg.connect(postgres.url()) as connection:
        backend = connection.info.backend_pid

        def compute() -> None:
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT sum(sqrt(a)) FROM generate_series(1, 1000000000) a")

        busy = threading.Thread(target=compute)
        busy.start()
        wait_until(
            lambda: query(postgres, f"SELECT state FROM pg_stat_activity WHERE pid = {backend}") == "active",
            message="the backend to be busy",
        )
        postgres.kill()
        assert not alive(backend)
        busy.join()
    postgres.start()
    assert query(postgres, "SELECT 1") == 1


def test_stop_waits_for_nobody(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url()) as connection:
        connection.execute("SELECT 1")
        postgres.stop()
        assert postgres.pid is None
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_given_data_directory_is_kept_and_found_again(
    postgres_server: EmbeddedPostgres, temporary: Path
) -> None:
    data_dir = temporary / "kept"
    with EmbeddedPostgres(postgres_server.bin_dir, data_dir=data_dir) as server:
        execute(server, "CREATE TABLE kept ()")
        password = server.password
    with EmbeddedPostgres(postgres_server.bin_dir, data_dir=data_dir) as server:
        assert server.password == password
        assert query(server, "SELECT to_regclass('kept')::text") == "kept"
    assert (data_dir / "upkeep.password").stat().st_mode & 0o077 == 0


def test_settings_reach_the_server_literally(postgres_server: EmbeddedPostgres, temporary: Path) -> None:
    odd = r"it's a \path"
    with EmbeddedPostgres(postgres_server.bin_dir, settings={"cluster_name": odd}) as server:
        assert query(server, "SHOW cluster_name") == odd


def test_a_start_that_fails_shows_the_log_and_leaves_nothing(
    postgres_server: EmbeddedPostgres, temporary: Path
) -> None:
    server = EmbeddedPostgres(postgres_server.bin_dir, settings={"shared_buffers": "many"})
    with pytest.raises(ServerError, match='invalid value for parameter "shared_buffers"'):
        server.start()
    assert server.pid is None
    assert list(temporary.iterdir()) == []


def test_a_taken_port_is_passed_by(
    postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = embedded_server.free_port()
    ports = iter([postgres_server.port, free])
    monkeypatch.setattr(embedded_server, "free_port", lambda: next(ports))
    with EmbeddedPostgres(postgres_server.bin_dir) as other:
        assert other.port == free
        assert query(other, "SELECT 1") == 1


def test_it_speaks_utf8_everywhere_the_same(postgres_server: EmbeddedPostgres) -> None:
    assert query(postgres_server, "SHOW server_encoding") == "UTF8"
    assert query(postgres_server, "SHOW timezone") == "UTC"
    assert (
        query(postgres_server, "SELECT string_agg(x, '' ORDER BY x) FROM unnest('{b,A,ä,a}'::text[]) x")
        == "Aabä"
    )


def test_the_version_is_known_before_the_start(postgres_server: EmbeddedPostgres) -> None:
    server = EmbeddedPostgres(postgres_server.bin_dir)
    assert server.server_version == int(str(query(postgres_server, "SHOW server_version_num")))
    with pytest.raises(ServerError, match="start"):
        _ = server.port


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ServerError, match="PostgreSQL 12"):
        EmbeddedPostgres(version=12)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root lends PostgreSQL another user")
def test_root_lends_it_another_user(postgres_server: EmbeddedPostgres) -> None:
    user = Path(f"/proc/{postgres_server.pid}").stat().st_uid
    assert user != 0
    assert postgres_server.data_dir.stat().st_uid == user
