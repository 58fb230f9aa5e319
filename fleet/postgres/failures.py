"""Tells errors that may go away by themselves from errors that somebody has to mend, and says how to mend them.

By SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html), never by message: messages are
translated.
"""

from __future__ import annotations

import psycopg
from psycopg import errors

from fleet.errors import PermanentError, TransientError

# Classes: connection, insufficient resources, operator intervention, system error; and single codes.
_TRANSIENT_CLASSES = ("08", "53", "57", "58")
_TRANSIENT_CODES = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available
    "55006",  # object_in_use
    "25006",  # read_only_sql_transaction: a standby, or a primary about to be one
    "25P03",  # idle_in_transaction_session_timeout
}
# A server that is starting up or shutting down says 57P0x, which passes; this one of class 57 does not.
_PERMANENT_CODES = {"57P04"}  # database_dropped

_REMEDIES = {
    "23505": "The new data breaks the view's unique index: mend the data or the definition; the row is in the detail",
    "21000": "The new data has a duplicate row or more than one row for a subquery: mend the data or the definition",
    "42703": "The definition names a column that is gone: recreate the view",
    "42P01": "The definition names a relation that is gone: recreate the view",
    "42883": "From PostgreSQL 17 on a refresh runs with a safe search_path: qualify what the definition's functions "
    "call with its schema",
    "42501": "Grant it; `upkeep doctor` prints the statement",
    "22012": "A row of the source data divides by zero: mend the data or use NULLIF in the definition",
    "28P01": "Check the password in the environment variable of this database",
    "28000": "Check the role and pg_hba.conf",
    "3D000": "Check the database's name in its connection URL",
    "55P03": "Somebody holds a lock on it; `SELECT * FROM pg_stat_activity WHERE wait_event_type = 'Lock'` shows who",
    "57014": "It ran into its statement_timeout or was cancelled: raise statement_timeout in upkeep.toml, "
    "or make the definition cheaper",
    "53100": "The disk is full: make room; Upkeep tries again by itself",
    "53300": "The server has no free connection: raise max_connections or lower the fleet's concurrency",
    "25006": "The server is read-only: point the URL at the primary, or name all hosts "
    "with target_session_attrs=read-write; Upkeep tries again by itself",
    "08P01": "If a transaction pooler is in between, point the URL at PostgreSQL itself: "
    "session locks break behind one",
}


def is_transient(exc: psycopg.Error) -> bool:
    """Whether the same statement may succeed later.

    An error without a SQLSTATE comes from the client library: the connection failed or was lost.
    """
    code = exc.sqlstate
    if code is None:
        text = str(exc).lower()
        # libpq reports a refused start-up (authentication, unknown database) without its code.
        return isinstance(exc, psycopg.OperationalError) and not any(sign in text for sign in _REFUSALS)
    if code in _PERMANENT_CODES:
        return False
    return code in _TRANSIENT_CODES or code.startswith(_TRANSIENT_CLASSES)


# What libpq passes on of a refusal at start-up, in the server's untranslated wording (lc_messages = C) and
# libpq's own.
_REFUSALS = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    'role "',
    "does not exist",
    "unsupported startup parameter",
    "invalid connection option",
    "invalid uri",
)


def explain(exc: psycopg.Error, *, doing: str) -> PermanentError | TransientError:
    """Wrap a driver's error: what was being done, what the server said, what to do about it."""
    code = exc.sqlstate or ""
    said = " ".join(str(exc).split()).removeprefix("connection failed: ")
    primary = exc.diag.message_primary or said or type(exc).__name__
    detail = exc.diag.message_detail
    message = f"{doing} failed: {primary.removesuffix('?')}" + (f" ({detail})" if detail else "")
    remedy = _REMEDIES.get(code, "")
    if not remedy and isinstance(exc, errors.OperationalError):
        if "unsupported startup parameter" in str(exc):
            remedy = _REMEDIES["08P01"]
        elif is_transient(exc):
            remedy = "Is the server up and reachable? Upkeep tries again by itself"
        else:
            remedy = "Check the database's connection URL and pg_hba.conf"
    kind = TransientError if is_transient(exc) else PermanentError
    return kind(message, remedy=remedy)
