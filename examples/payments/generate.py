"""The payments platform's rows, as lines of COPY's text format, one calendar month after the other.

The same seed, volume and `as_of` give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Self

# Scale 1: some hundred thousand transactions over three months, of which the backlog has been pending too long.
TRANSACTIONS = 200_000
BACKLOG = 12_500
# Pending for less than five minutes: nobody's yet.
FRESH = 250
ACCOUNTS = 20_000

HISTORY_MONTHS = 2  # whole months before the last one
BACKLOG_SPAN = timedelta(hours=6)
PENDING_FOR = timedelta(minutes=5)
# So far from the five minutes that a test has time to run before a fresh one gets old.
MARGIN = timedelta(minutes=1)

TYPES = ("payment", "payment", "payment", "transfer", "refund")
CURRENCIES = ("USD", "USD", "USD", "EUR", "GBP")
SETTLED = ("completed",) * 18 + ("failed", "reversed")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """How many rows to draw."""

    settled: int
    backlog: int
    fresh: int
    accounts: int

    @classmethod
    def at(cls, scale: float) -> Self:
        """Scale 1 times `scale`, never so few that there would be nothing to do.

        Raises:
            ValueError: a scale that is not above zero.

        """
        if scale <= 0:
            raise ValueError(f"scale must be above 0, not {scale}: 1 is {TRANSACTIONS:,} transactions")
        return cls(
            settled=max(100, round((TRANSACTIONS - BACKLOG - FRESH) * scale)),
            backlog=max(50, round(BACKLOG * scale)),
            fresh=max(5, round(FRESH * scale)),
            accounts=max(20, round(ACCOUNTS * scale)),
        )


@dataclass(frozen=True, kw_only=True)
class Month:
    """The rows of one partition."""

    first: date
    rows: tuple[str, ...]


def months(as_of: datetime) -> list[date]:
    """The first days of the months that have rows, oldest first; the last one is that of `as_of`."""
    first = as_of.astimezone(UTC).date().replace(day=1)
    found = [first]
    for _ in range(HISTORY_MONTHS):
        first = (first - timedelta(days=1)).replace(day=1)
        found.append(first)
    return found[::-1]


def following(first: date) -> date:
    """The first day of the next month."""
    return (first + timedelta(days=31)).replace(day=1)


def transactions(volume: Volume, *, seed: int, as_of: datetime) -> Iterator[Month]:
    """Every month's rows: settled ones, then those that are pending when the history ends."""
    rng = Random(f"{seed} payments")
    as_of = as_of.astimezone(UTC)
    began = datetime.combine(months(as_of)[0], datetime.min.time(), tzinfo=UTC)
    settled_until = as_of - BACKLOG_SPAN
    span = max(settled_until - began, timedelta(hours=1))
    moments = [(began + span * rng.random(), rng.choice(SETTLED)) for _ in range(volume.settled)]
    old = BACKLOG_SPAN - PENDING_FOR - MARGIN
    moments += [(as_of - PENDING_FOR - MARGIN - old * rng.random(), "pending") for _ in range(volume.backlog)]
    moments += [(as_of - (PENDING_FOR - MARGIN) * rng.random(), "pending") for _ in range(volume.fresh)]
    moments.sort()
    by_month: dict[date, list[str]] = {first: [] for first in months(as_of)}
    for number, (created, status) in enumerate(moments, start=1):
        by_month[created.date().replace(day=1)].append(_line(rng, number, created, status, volume.accounts))
    for first, rows in by_month.items():
        yield Month(first=first, rows=tuple(rows))


def _line(rng: Random, number: int, created: datetime, status: str, accounts: int) -> str:
    source, destination = rng.sample(range(1, accounts + 1), 2)
    amount = f"{0.5 + 5000 * rng.random() ** 3:.2f}"
    completed = created + timedelta(seconds=30 + 60 * rng.random())
    done = "\\N" if status == "pending" else f"{completed:%Y-%m-%d %H:%M:%S.%f}+00"
    changed = f"{created:%Y-%m-%d %H:%M:%S.%f}+00" if status == "pending" else done
    return (
        f"{number}\tP{number:010d}\t{rng.choice(TYPES)}\t{status}\t{amount}\t{rng.choice(CURRENCIES)}"
        f"\t{source}\t{destination}\t{created:%Y-%m-%d %H:%M:%S.%f}+00\t{changed}\t{done}"
        f"\t{1 if status == 'pending' else 3}\t{created:%Y-%m-%d}\n"
    )
