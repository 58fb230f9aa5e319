"""Direct connections to the primary, which the server gives up on quickly when their worker dies.

Without these settings the backend of a SIGKILLed client still held its advisory locks 8 s later; with them
1.2 s.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from fleet.errors import PermanentError, TransientError
from fleet.postgres.addresses import Address, addresses
from fleet.postgres.failures import explain, is_transient

# PostgreSQL cuts application_name at 63 bytes; the task's name comes first, so the view's is what gets cut.
MAX_APPLICATION_NAME_BYTES = 63
CONNECT_TIMEOUT_S = 5
CANCEL_TIMEOUT_S = 2.0
# A session of ours that says nothing for this long belongs to a worker that is gone.
IDLE_SESSION_TIMEOUT = timedelta(minutes=15)
POOL_IDLE_S = 300.0
# The pool's own retries get slower and slower, to minutes; ours go on for as long as somebody wants a connection.
POOL_RETRY_S = 5.0
# Longer than connecting takes; then we ask why. So long a request for a database that is away keeps a worker's place.
FIRST_PATIENCE_S = 1.0

_SESSION_SETTINGS = {
    "client_connection_check_interval": "1s",
    "idle_session_timeout": f"{int(IDLE_SESSION_TIMEOUT.total_seconds())}s",
    "idle_in_transaction_session_timeout": "10min",
}
_KEEPALIVES = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


def parameters(
    conninfo: str,
    *,
    application_name: str,
    lock_timeout: timedelta = timedelta(seconds=5),
    statement_timeout: timedelta = timedelta(minutes=1),
) -> str:
    """The caller's connection string, completed with the timeouts that every session of ours carries.

    The timeouts go as start-up options, so that RESET ALL returns to them; a transaction pooler refuses them,
    which is right: session locks break behind one. Of several servers only one that takes writes will do.
    """
    given = conninfo_to_dict(conninfo)
    if len(addresses(given)) > 1:
        given.setdefault("target_session_attrs", "read-write")
    settings = _SESSION_SETTINGS | {
        "lock_timeout": f"{int(lock_timeout.total_seconds() * 1000)}ms",
        "statement_timeout": f"{int(statement_timeout.total_seconds() * 1000)}ms",
    }
    options = " ".join(
        [str(given.pop("options", "") or ""), *(f"-c {name}={value}" for name, value in settings.items())]
    )
    defaults: dict[str, Any] = {k: v for k, v in _KEEPALIVES.items() if k not in given}
    return make_conninfo(
        **(given | defaults),
        options=options.strip(),
        # Without it a SQL_ASCII database hands out bytes for names.
        client_encoding="UTF8",
        application_name=_cut(application_name),
    )


def connect(
    conninfo: str,
    *,
    application_name: str,
    autocommit: bool = True,
    lock_timeout: timedelta = timedelta(seconds=5),
    statement_timeout: timedelta = timedelta(minutes=1),
    to_read: bool = False,
) -> psycopg.Connection[Any]:
    """Open one connection, to a primary.

    `to_read`: where there is no primary a standby will do.

    Raises:
        TransientError: the server cannot be reached, is starting up, is a standby, or has no free connection.
        PermanentError: it refuses us: password, database, pg_hba.conf, a transaction pooler in between.

    """
    completed = conninfo_to_dict(
        parameters(
            conninfo,
            application_name=application_name,
            lock_timeout=lock_timeout,
            statement_timeout=statement_timeout,
        )
    )
    try:
        connection = _reach(completed, autocommit=autocommit)
    except TransientError:
        if not to_read or len(addresses(completed)) == 1:
            raise
        connection = _reach(completed | {"target_session_attrs": "any"}, autocommit=autocommit)
    try:
        _configure(connection)
        if not to_read:
            refuse_standby(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def is_standby(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server was in recovery when it last spoke to us: it tells so by itself (from 14 on)."""
    return connection.pgconn.parameter_status(b"in_hot_standby") == b"on"


def refuse_standby(connection: psycopg.Connection[Any]) -> None:
    """Stop before any effect where nothing can be written.

    Raises:
        TransientError: the server is in recovery; one day it may be promoted.

    """
    if is_standby(connection):
        info = connection.info
        raise TransientError(
            f"{info.host}:{info.port}/{info.dbname} is a standby (in recovery): nothing can be written there",
            remedy="Upkeep waits until it is promoted. Or point the URL at the primary, "
            "or list all servers with target_session_attrs=read-write",
        )


class Pools:
    """One small pool per database and process, opened after the fork.

    A pool child works on one task at a time; the second connection is for the moment when the first has just
    broken.
    """

    def __init__(self) -> None:
        self._pools: dict[tuple[int, str], ConnectionPool[psycopg.Connection[Any]]] = {}

    @contextmanager
    def connection(
        self, database: str, conninfo: str, *, application_name: str | None, lock_timeout: timedelta
    ) -> Iterator[psycopg.Connection[Any]]:
        """Borrow a connection in autocommit mode, with the caller's name on it and no lock left over from before."""
        pool = self._pool(database, conninfo, lock_timeout)
        connection = self._borrow(pool, database, conninfo, application_name)
        try:
            yield connection
        except errors.ReadOnlySqlTransaction:
            # It was a primary when we connected. The next connection goes to the one that is.
            connection.close()
            raise
        finally:
            pool.putconn(connection)

    def close(self) -> None:
        """Close what this process opened."""
        for key in [k for k in self._pools if k[0] == os.getpid()]:
            self._pools.pop(key).close()

    def _borrow(
        self,
        pool: ConnectionPool[psycopg.Connection[Any]],
        database: str,
        conninfo: str,
        application_name: str | None,
    ) -> psycopg.Connection[Any]:
        """A session that answers: its new name is the question, which saves the pool's own check a round trip."""
        asked = False
        while True:
            try:
                connection = pool.getconn(timeout=pool.timeout if asked else FIRST_PATIENCE_S)
            except PoolTimeout as exc:
                if asked:
                    raise TransientError(
                        f"The database {database!r} gave no connection in {pool.timeout:.0f} s"
                    ) from exc
                # The pool keeps the reason to its log: ask for one ourselves to be able to say it.
                with connect(conninfo, application_name=application_name or "upkeep"):
                    asked = True
                continue
            try:
                rename(connection, application_name or "upkeep")
            except BaseException as exc:
                pool.putconn(connection)
                # It broke while it lay there: the pool has dropped it, and gives another one next, or a new one.
                if isinstance(exc, psycopg.Error) and connection.closed:
                    continue
                raise
            return connection

    def _pool(
        self, database: str, conninfo: str, lock_timeout: timedelta
    ) -> ConnectionPool[psycopg.Connection[Any]]:
        # Keyed by process: a pool inherited through a fork has no threads in the child.
        key = (os.getpid(), database)
        if key not in self._pools:
            completed = parameters(conninfo, application_name="upkeep", lock_timeout=lock_timeout)
            self._pools[key] = ConnectionPool(
                completed,
                name=f"upkeep-{database}",
                min_size=0,
                max_size=2,
                max_idle=POOL_IDLE_S,
                # Each server of several may take its time to say nothing.
                timeout=CONNECT_TIMEOUT_S * len(addresses(conninfo_to_dict(completed))),
                reconnect_timeout=POOL_RETRY_S,
                kwargs={"autocommit": True},
                configure=_prepare,
                reset=_reset,
                open=True,
            )
        return self._pools[key]


def rename(connection: psycopg.Connection[Any], application_name: str) -> None:
    """Show in pg_stat_activity what a session does now."""
    connection.execute(
        "SELECT pg_catalog.set_config('application_name', %s, false)", (_cut(application_name),)
    )


def abandon(connection: psycopg.Connection[Any]) -> None:
    """Close a connection that may be in the middle of a statement, which the server is told to cancel first.

    Left alone it would notice after a second that nobody waits, and hold its locks until then.
    """
    with suppress(psycopg.Error):
        connection.cancel_safe(timeout=CANCEL_TIMEOUT_S)
    connection.close()


def unreachable(
    database: str, failures: Sequence[tuple[Address, psycopg.Error]]
) -> PermanentError | TransientError:
    """Say which servers refused us and what to do about it, without a password.

    Of several, one whose refusal may pass is enough to try again.
    """
    (first, exc), *others = failures
    if not others:
        return explain(exc, doing=f"Connecting to {first}/{database}")
    said = [_short(exc) for _, exc in failures]
    message = f"Connecting to {database} failed on each of its servers: " + "; ".join(
        f"{address}: {what}" for (address, _), what in zip(failures, said, strict=True)
    )
    passing = [exc for _, exc in failures if is_transient(exc)]
    if not passing:
        return PermanentError(message, remedy=explain(exc, doing="").remedy)
    if NO_WRITES in said:
        remedy = "None of them is a primary that can be reached: promote one, or bring the primary back"
    else:
        remedy = "Is one of them up and reachable?"
    return TransientError(message, remedy=f"{remedy}; Upkeep tries again by itself")


NO_WRITES = "it takes no writes (a standby, or read-only)"


def _short(exc: psycopg.Error) -> str:
    """What libpq says of one server of several, whose name is known already."""
    said = exc.diag.message_primary or " ".join(str(exc).split()).removeprefix("connection failed: ")
    said = re.sub(r"^connection to server (at|on) .*? failed: ", "", said)
    if "read-only" in said or "hot standby" in said:
        return NO_WRITES
    return said.partition(" Is the server running")[0].removeprefix("FATAL: ").strip() or type(exc).__name__


def _reach(completed: Mapping[str, Any], *, autocommit: bool) -> psycopg.Connection[Any]:
    """Connect to the first server that will do, one after the other, so that each failure is known as its own."""
    several = list(addresses(completed))
    if completed.get("load_balance_hosts") == "random":
        random.shuffle(several)
    failures: list[tuple[Address, psycopg.Error]] = []
    for each in several:
        one = each.parameters if len(several) > 1 else {}
        try:
            return psycopg.connect(make_conninfo(**{**completed, **one}), autocommit=autocommit)
        except psycopg.Error as exc:
            failures.append((each, exc))
    raise unreachable(str(completed.get("dbname") or ""), failures) from failures[-1][1]


def _prepare(connection: psycopg.Connection[Any]) -> None:
    # A pool only forgets a connection that its configuration refuses.
    try:
        _configure(connection)
        refuse_standby(connection)
    except BaseException:
        connection.close()
        raise


def _configure(connection: psycopg.Connection[Any]) -> None:
    # A pooler that is told to ignore start-up options hands out sessions without any of our timeouts.
    row = connection.execute(
        "SELECT pg_catalog.current_setting('client_connection_check_interval')"
    ).fetchone()
    if connection.info.transaction_status is TransactionStatus.INTRANS:
        connection.rollback()
    if row is None or row[0] != _SESSION_SETTINGS["client_connection_check_interval"]:
        raise PermanentError(
            "The server did not take our start-up options: a pooler between us drops them",
            remedy="Point the URL at PostgreSQL itself: session locks and timeouts break behind a pooler",
        )
    # A database may default to REPEATABLE READ or read-only; in an old snapshot a refresh moves a view back in time.
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    connection.read_only = is_standby(connection)


def _reset(connection: psycopg.Connection[Any]) -> None:
    # RESET ALL does not touch locks, and the next task must not inherit one. Both go in one round trip.
    connection.execute("SELECT pg_catalog.pg_advisory_unlock_all(); RESET ALL")


def _cut(name: str) -> str:
    return name.encode()[:MAX_APPLICATION_NAME_BYTES].decode(errors="ignore")
