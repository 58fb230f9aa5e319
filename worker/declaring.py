"""Writes what upkeep.toml says of a database down in it, where others look: the one place for all that is declared."""

from __future__ import annotations

from typing import Any

import psycopg

from fleet import settings
from tasks.partitions import retention
from tasks.refresh.view import manage


def declare(connection: psycopg.Connection[Any], database: settings.Database) -> None:
    """Which views are kept, and how long rows must be; at every start, and whenever a database is back.

    Without any rule as well: the last one may have been withdrawn together with the last policy.
    """
    manage(connection, database)
    retention.declare(connection, database)
