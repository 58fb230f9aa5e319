"""The plan of the transactions' history: how many rows each month has, from when, and what is special about it.

load.sql makes the rows of it on the server. The same seed, volume and `as_of` give the same plan, and so the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Self

# Scale 1: 26 months, of which the last reaches up to `as_of`: some 51 million transactions.
TRANSACTIONS_PER_MONTH = 2_000_000
ACCOUNTS = 100_000
MONTHS = 26

# The oldest month but one keeps some that were never taken on: it is old enough to be archived, and may not be.
HELD_MONTH = 1
HELD = 5
# The newest months have some that wait for long.
OPEN_MONTHS = 2
# The oldest, the one that is held, and those.
LEAST_MONTHS = HELD_MONTH + 1 + OPEN_MONTHS

TYPES = ("payment", "transfer", "deposit", "withdrawal", "refund", "fee")
# Where an account is, by the last digit of its number; load.sql has the same.
REGIONS = ("US", "US", "US", "US", "US", "EU", "EU", "EU", "UK", "APAC")
CURRENCIES = {"US": "USD", "EU": "EUR", "UK": "GBP", "APAC": "SGD"}

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """How many rows to make."""

    transactions_per_month: int
    accounts: int

    @classmethod
    def at(cls, scale: float) -> Self:
        """Scale 1 times `scale`, never so few that a month would have none that waits.

        Raises:
            ValueError: a scale that is not above zero.

        """
        if scale <= 0:
            raise ValueError(
                f"scale must be above 0, not {scale}: 1 is {TRANSACTIONS_PER_MONTH:,} transactions a month"
            )
        return cls(
            transactions_per_month=max(500, round(TRANSACTIONS_PER_MONTH * scale)),
            accounts=max(100, round(ACCOUNTS * scale)),
        )


@dataclass(frozen=True, kw_only=True)
class Month:
    """What load.sql needs to know of a month, the columns of its temporary table."""

    first_id: int
    rows: int
    starts_on: date
    step_us: int
    age_us: int
    held_from: int
    has_open: bool

    def line(self, *, accounts: int, seed: int) -> str:
        """As COPY's text format has it."""
        return (
            f"{self.first_id}\t{self.rows}\t{self.starts_on}\t{self.starts_on} 00:00:00+00\t{self.step_us}"
            f"\t{self.age_us}\t{self.held_from}\t{'t' if self.has_open else 'f'}\t{accounts}\t{seed}\n"
        )


def months(as_of: datetime, count: int = MONTHS) -> list[date]:
    """The first days of the months that have rows, oldest first; the last one is that of `as_of`, in UTC."""
    first = as_of.astimezone(UTC).date().replace(day=1)
    found = [first]
    while len(found) < count:
        first = (first - timedelta(days=1)).replace(day=1)
        found.append(first)
    return found[::-1]


def following(first: date) -> date:
    """The first day of the next month."""
    return (first + timedelta(days=31)).replace(day=1)


def history(volume: Volume, *, as_of: datetime, count: int = MONTHS) -> Sequence[Month]:
    """Every month at the same pace; the last one has what it can have until `as_of`, at its very start nothing."""
    planned: list[Month] = []
    first_id = 1
    for number, first in enumerate(months(as_of, count)):
        age = as_of - datetime.combine(first, datetime.min.time(), tzinfo=UTC)
        step_us = (following(first) - first) // _MICROSECOND // volume.transactions_per_month
        rows = min(volume.transactions_per_month, age // _MICROSECOND // step_us)
        planned.append(
            Month(
                first_id=first_id,
                rows=rows,
                starts_on=first,
                step_us=step_us,
                age_us=age // _MICROSECOND,
                held_from=rows - HELD if number == HELD_MONTH else rows,
                has_open=number >= count - OPEN_MONTHS,
            )
        )
        first_id += rows
    return planned


def hash_seed(seed: int) -> int:
    """What the server's hashes start from: 62 bits, whatever the seed is."""
    return Random(f"{seed} transactions").getrandbits(62)
