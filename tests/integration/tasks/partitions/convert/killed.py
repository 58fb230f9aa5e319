"""Converts a table and dies by SIGKILL before its nth statement."""

from __future__ import annotations

import os
import signal
from typing import Any

import psycopg

from tests.integration.tasks.partitions.convert.conftest import Conversions, asked


def main(url: str, table: str, how: str, column: str, number: int, back: bool) -> None:
    left = number
    original = psycopg.Connection.execute

    def counted(self: psycopg.Connection[Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    psycopg.Connection.execute = counted  # type: ignore[method-assign]
    operator = Conversions(url)
    wanted = asked(table, how, column)
    if back:
        operator.back(wanted)
    else:
        operator.switch(wanted)
