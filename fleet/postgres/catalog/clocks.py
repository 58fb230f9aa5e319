"""What tells the time in PostgreSQL: functions, SQL's own words for them, and texts that become the time.

Named by the numbers that stand for them in a parse tree, which are the same in every database.
"""

from __future__ import annotations

import re

# SQLValueFunctionOp (primnodes.h), the same on 14 to 18.
VALUE_FUNCTIONS = (
    "CURRENT_DATE",
    "CURRENT_TIME",
    "CURRENT_TIME",
    "CURRENT_TIMESTAMP",
    "CURRENT_TIMESTAMP",
    "LOCALTIME",
    "LOCALTIME",
    "LOCALTIMESTAMP",
    "LOCALTIMESTAMP",
    "CURRENT_ROLE",
    "CURRENT_USER",
    "USER",
    "SESSION_USER",
    "CURRENT_CATALOG",
    "CURRENT_SCHEMA",
)
_CURRENT_DATE = 0
_FIRST_SESSION_FUNCTION = 9

# OIDs that initdb assigns from pg_proc.dat and pg_type.dat never change.
CLOCK_FUNCTIONS = frozenset(
    {1299, 2647, 2648, 2649, 274}
)  # now, transaction_, statement_, clock_timestamp, timeofday
AT_TIME_ZONE = frozenset({1159, 1026, 2038, 6334})  # timezone(zone, timestamptz or timetz), AT LOCAL
DATE = 1082
TIME_TYPES = frozenset({DATE, 1083, 1114, 1184, 1266})
# Words that a date's or timestamp's input function replaces by the clock. As a literal of the type they are
# replaced once and for all when the view is created; as a text that is cast, at every refresh. PostgreSQL
# before 10 wrote CURRENT_DATE this way, and views that were dumped from it still have it.
CLOCK_WORDS = re.compile(r"\b(now|today|tomorrow|yesterday)\b", re.IGNORECASE)


def gives_date(op: int) -> bool:
    """Whether a SQL value function is CURRENT_DATE."""
    return op == _CURRENT_DATE


def gives_time(op: int) -> bool:
    """Whether a SQL value function is the time of the refresh; the others say who we are, and where."""
    return op < _FIRST_SESSION_FUNCTION and op != _CURRENT_DATE
