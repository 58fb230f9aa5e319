"""Which server is this, and how do its clock and settings stand? A record of another one is worthless."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg

from fleet.postgres.queries import load

_sql = load("fleet.postgres.catalog", "server.sql")

# What the stable built-in functions and conversions read when they print, parse and add (pg_proc,
# provolatile 's'). With other values a definition that is not "data only" can give another result from the
# same rows.
FORMAT_SETTINGS = (
    "TimeZone",
    "timezone_abbreviations",
    "DateStyle",
    "IntervalStyle",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "extra_float_digits",
    "bytea_output",
    "xmlbinary",
    "xmloption",
    "default_text_search_config",
    "quote_all_identifiers",
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A database server as a session sees it.

    `system_identifier` and `timeline` change when a backup is restored or a standby promoted: counters and
    OIDs recorded before then say nothing.
    `settings_hash` covers FORMAT_SETTINGS as they are in this session; `today` is the date in its TimeZone.
    `clock` is the server's clock, aware, in UTC.
    """

    version_num: int
    system_identifier: str
    timeline: int
    in_recovery: bool
    timezone: str
    settings_hash: str
    today: date
    clock: datetime


def read_server(conn: psycopg.Connection[Any]) -> Server:
    """Ask the server who it is; needs no privilege."""
    row = _sql.read_server(conn, settings=list(FORMAT_SETTINGS))
    return Server(
        version_num=row["version_num"],
        system_identifier=row["system_identifier"],
        timeline=row["timeline"],
        in_recovery=row["in_recovery"],
        timezone=row["timezone"],
        settings_hash=row["settings_hash"],
        today=date.fromisoformat(row["today"]),
        clock=EPOCH + timedelta(microseconds=row["clock_us"]),
    )
