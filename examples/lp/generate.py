"""The LP reporting system's partners and funds: what everything else follows from, as lines of COPY's text format.

A fund calls, pays out and is valued for all its partners at once, each by its share. So only funds have a
history here, in millionths of a commitment; load.sql multiplies it by the commitments, which are whole
multiples of a million cents: nothing is rounded, and a fund's sums are those of its partners to the cent.

The same seed, volume and date give the same bytes.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from math import exp
from random import Random
from typing import NamedTuple, Self

# The documented volumes at their lower ends, which are scale 1. Per fund and month, commitment and quarter, they make
# 50,000 NAV snapshots, 5,000,000 activities, 500,000 accounts, 500,000 performance snapshots and 1,000,000 reports.
PARTNERS = 10_000
FUNDS = 500

# A partner is in at most one fund of each stratum, so never twice in one; how many it is in is dealt in full hands,
# of mean 10: 10,000 partners have 100,000 commitments.
STRATA = 20
FUND_COUNTS = (2, 4, 6, 8, 10, 10, 12, 14, 16, 18)
# Ages of funds in months, dealt in full hands of mean 100; those of 130 and more are wound up: three in ten.
AGES = (40, 60, 70, 90, 100, 100, 110, 130, 140, 160)
WOUND_UP_AT = 130
EVENT_MONTHS = 2  # a fund calls, charges or pays out every other month
ACCOUNT_QUARTERS = 5  # accounts and performance of the last five quarters

INVESTING_MONTHS = 60
FIRST_PAYOUT_MONTH = 36
FEE = 10_000  # millionths of a commitment, every third event while it invests, a quarter of that afterwards
SHARE = 1_000_000

ENTITIES = (
    ("pension", ("Teachers' Pension", "Municipal Pension", "Railway Pension", "Public Employees' Pension")),
    ("endowment", ("University Endowment", "College Endowment", "Museum Foundation")),
    ("insurance", ("Life Assurance", "Mutual Insurance", "Reinsurance")),
    ("sovereign", ("Reserve Fund", "Future Fund")),
    ("family_office", ("Family Office", "Family Holdings", "Family Trust")),
    ("fund_of_funds", ("Private Markets Fund", "Secondaries Fund")),
)
# fmt: off
PLACES = (
    "Aarhus", "Bergen", "Calgary", "Dundee", "Espoo", "Fribourg", "Ghent", "Halifax", "Innsbruck", "Jena", "Kobe",
    "Leiden", "Malmö", "Nagoya", "Odense", "Porto", "Québec", "Rouen", "Sapporo", "Turku", "Uppsala", "Vaduz",
    "Würzburg", "Yokohama", "Zürich",
)
# fmt: on
REGIONS = {"DK": "EMEA", "NO": "EMEA", "CA": "Americas", "US": "Americas", "JP": "APAC", "SG": "APAC"}


@dataclass(frozen=True, kw_only=True)
class Volume:
    """How many partners and funds to draw; the other tables follow from them."""

    partners: int
    funds: int

    @classmethod
    def at(cls, scale: float) -> Self:
        """The documented volumes times `scale`, in full hands, never so few that a view would be empty.

        Raises:
            ValueError: a scale that is not above zero.

        """
        if scale <= 0:
            raise ValueError(f"scale must be above 0, not {scale}: 1 is {PARTNERS:,} partners")
        partner_hands = max(2, round(PARTNERS * scale / len(FUND_COUNTS)))
        per_stratum = max(1, round(FUNDS * scale / STRATA))
        return cls(partners=partner_hands * len(FUND_COUNTS), funds=per_stratum * STRATA)


class Event(NamedTuple):
    """What a fund asked of its partners, or paid them, in a month of its life."""

    month: int
    day: int
    kind: str
    share: int  # millionths of a commitment


class Standing(NamedTuple):
    """What a month had come to by its end, in millionths of a commitment."""

    contributed: int
    called: int
    distributed: int
    nav: int


class Commitment(NamedTuple):
    """What a partner promised to a fund."""

    id: int
    partner: int
    fund: int
    units: int  # of a million cents
    kind: str


@dataclass(frozen=True, kw_only=True)
class Fund:
    """A fund's life so far; month 1 is its first, `age` the last before the history ends."""

    id: int
    age: int
    first_month: int  # months since the year 0
    events: Sequence[Event]
    months: Sequence[Standing]

    @property
    def status(self) -> str:
        """Of all its commitments."""
        return "closed" if self.age >= WOUND_UP_AT else "active"

    def month_end(self, month: int) -> date:
        """The last day of a month of its life."""
        return month_end(self.first_month + month - 1)


@dataclass(frozen=True, kw_only=True)
class Book:
    """Who committed what to which fund, and how the funds fared."""

    as_of: date
    seed: int
    volume: Volume
    funds: Sequence[Fund]
    commitments: Sequence[Commitment]  # fund by fund, in the order of their ids
    first_commitment: Sequence[int] = field(repr=False)  # by fund, and one more

    def units(self, fund: Fund) -> int:
        """What all partners promised to a fund, in millions of cents."""
        pledged = self.commitments[
            self.first_commitment[fund.id - 1] - 1 : self.first_commitment[fund.id] - 1
        ]
        return sum(each.units for each in pledged)


def month_end(month: int) -> date:
    """The last day of a month since the year 0."""
    year, index = divmod(month, 12)
    return date(year, index + 1, monthrange(year, index + 1)[1])


def book(volume: Volume, *, seed: int, as_of: date) -> Book:
    """Every fund and commitment; the history ends with the last whole month before `as_of`."""
    rng = Random(f"{seed} funds")
    last_month = as_of.year * 12 + as_of.month - 2
    ages = _deal(rng, AGES, volume.funds)
    # Funds are numbered as they were founded, the oldest first, and dealt to the strata at random.
    ages.sort(reverse=True)
    funds = [_fund(rng, number, age, last_month - age + 1) for number, age in enumerate(ages, 1)]
    members = _members(volume, Random(f"{seed} members"))
    draw = Random(f"{seed} commitments").random
    commitments: list[Commitment] = []
    first = [1]
    for fund in funds:
        for partner in members[fund.id - 1]:
            # $ 250,000 to $ 50 million, most of them small.
            units = 25 + int(4975 * draw() ** 5)
            kind = "co_investment" if draw() < 0.08 else "primary"
            commitments.append(Commitment(len(commitments) + 1, partner, fund.id, units, kind))
        first.append(len(commitments) + 1)
    return Book(
        as_of=as_of, seed=seed, volume=volume, funds=funds, commitments=commitments, first_commitment=first
    )


def partners(found: Book) -> Iterator[str]:
    """id, legal_name, entity_type, country_code, contact_email, metadata, created_at, updated_at."""
    draw = Random(f"{found.seed} partners").random
    countries = list(REGIONS)
    # Before its first fund.
    since = f"{month_end(found.funds[0].first_month - 1)} 09:00:00+00" if found.funds else ""
    for number in range(1, found.volume.partners + 1):
        entity, names = ENTITIES[int(draw() * len(ENTITIES))]
        name = f"{PLACES[int(draw() * len(PLACES))]} {names[int(draw() * len(names))]} {number}"
        country = countries[int(draw() * len(countries))]
        language = "en" if draw() < 0.7 else "de"
        yield (
            f"{number}\t{name}\t{entity}\t{country}\treporting{number}@lp.example"
            f'\t{{"region": "{REGIONS[country]}", "language": "{language}"}}\t{since}\t{since}\n'
        )


def commitments(found: Book) -> Iterator[str]:
    """id, lp_id, fund_id, amount, date, status, metadata, created_at, updated_at: signed as the fund begins."""
    for fund in found.funds:
        signed = month_end(fund.first_month - 1)
        rest = f"{signed}\t{fund.status}"
        stamp = f"{signed} 12:00:00+00"
        for each in found.commitments[
            found.first_commitment[fund.id - 1] - 1 : found.first_commitment[fund.id] - 1
        ]:
            yield (
                f"{each.id}\t{each.partner}\t{each.fund}\t{each.units * SHARE}\t{rest}"
                f'\t{{"kind": "{each.kind}"}}\t{stamp}\t{stamp}\n'
            )


def events(found: Book) -> Iterator[str]:
    """fund_id, first_commitment, last_commitment, kind, date, share, first_id: in the order of their dates.

    Each event is one activity of every partner of its fund, numbered from first_id on.
    """
    dated = sorted(
        (fund.first_month + event.month - 1, event.day, fund.id, event)
        for fund in found.funds
        for event in fund.events
    )
    number = 1
    for month, day, fund_id, event in dated:
        first, after = found.first_commitment[fund_id - 1], found.first_commitment[fund_id]
        yield (
            f"{fund_id}\t{first}\t{after - 1}\t{event.kind}"
            f"\t{month // 12}-{month % 12 + 1:02d}-{day:02d}\t{event.share}\t{number}\n"
        )
        number += after - first


def quarters(found: Book) -> Iterator[str]:
    """Every fund at the ends of the last quarters, oldest first, as load.sql's `quarter` has it."""
    for fund in found.funds:
        net = gross = 0.01
        ends = [m for m in range(1, fund.age + 1) if (fund.first_month + m) % 3 == 0][-ACCOUNT_QUARTERS:]
        for number, month in enumerate(ends):
            now, before = fund.months[month - 1], fund.months[month - 4]
            net = monthly_rate(_flows(fund, month, fees=True), net)
            gross = monthly_rate(_flows(fund, month, fees=False), gross)
            dpi = round(10_000 * now.distributed / now.contributed)
            rvpi = round(10_000 * now.nav / now.contributed)
            moic = round(10_000 * (now.distributed + now.nav) / now.called)
            moved = (now.contributed - before.contributed, now.distributed - before.distributed)
            columns = (
                *(fund.id, number, fund.month_end(month), before.nav, *moved, now.nav),
                *(now.contributed, now.distributed, _percent(net), _percent(gross)),
                *map(_fraction, (moic, dpi, rvpi)),
            )
            yield "\t".join(map(str, columns)) + "\n"


def nav_snapshots(found: Book) -> Iterator[str]:
    """id, fund_id, snapshot_date, nav, contributed, distributed, created_at, updated_at."""
    number = 1
    for fund in found.funds:
        units = found.units(fund)
        for month, standing in enumerate(fund.months, 1):
            end = fund.month_end(month)
            # Valued at the end of the day, all of it before the history's last one ends.
            stamp = f"{end} 23:00:00+00"
            yield (
                f"{number}\t{fund.id}\t{end}\t{standing.nav * units}\t{standing.contributed * units}"
                f"\t{standing.distributed * units}\t{stamp}\t{stamp}\n"
            )
            number += 1


def monthly_rate(flows: Sequence[int], guess: float = 0.01) -> float:
    """The internal rate of return of monthly flows, by Newton's method from a nearby guess.

    Out-flows come before in-flows, so there is one change of sign and one rate; above -1.
    """
    rate = guess
    for _ in range(50):
        factor = 1.0 / (1.0 + rate)
        value = slope = 0.0
        # Horner's scheme, latest flow first: the value and its derivative by the factor.
        for flow in reversed(flows):
            slope = slope * factor + value
            value = value * factor + flow
        step = value / (slope * -factor * factor) if slope else 0.0
        rate = max(rate - step, (rate - 1) / 2)  # a step too far ends half-way to -1
        if abs(step) < 1e-10:
            break
    return rate


def _flows(fund: Fund, month: int, *, fees: bool) -> list[int]:
    flows = [0] * month
    for event in fund.events:
        if event.month <= month and (fees or event.kind != "management_fee"):
            flows[event.month - 1] += event.share if event.kind == "distribution" else -event.share
    flows[month - 1] += fund.months[month - 1].nav
    return flows


def _members(volume: Volume, rng: Random) -> list[list[int]]:
    """The partners of each fund, in the order of their ids; every stratum's members are dealt to its funds evenly."""
    chosen: list[list[int]] = [[] for _ in range(STRATA)]
    for partner, count in enumerate(_deal(rng, FUND_COUNTS, volume.partners), 1):
        for stratum in rng.sample(range(STRATA), count):
            chosen[stratum].append(partner)
    # A stratum is no range of founding dates: partners join funds old and new.
    funds = list(range(volume.funds))
    rng.shuffle(funds)
    per_stratum = volume.funds // STRATA
    members: list[list[int]] = [[] for _ in range(volume.funds)]
    for stratum, joined in enumerate(chosen):
        rng.shuffle(joined)
        for position, fund in enumerate(funds[stratum * per_stratum : (stratum + 1) * per_stratum]):
            members[fund] = sorted(joined[position::per_stratum])
    return members


def _fund(rng: Random, number: int, age: int, first_month: int) -> Fund:
    """Draw a fund's calls, fees and payouts, and its value month by month."""
    draw = rng.random
    wound_up = age >= WOUND_UP_AT
    life = age - 1 if wound_up else 150 + int(20 * draw())
    multiple = 0.8 + 1.9 * draw()
    called_in_the_end = 0.70 + 0.14 * draw()
    slots = list(range(1, life + 1, EVENT_MONTHS))
    kinds = {month: _kind(position, month, draw()) for position, month in enumerate(slots, 1)}
    if wound_up:
        kinds[slots[-1]] = "distribution"  # its last deed
    weights = {month: 0.5 + draw() for month in slots if kinds[month] == "capital_call"}
    per_weight = SHARE * called_in_the_end / sum(weights.values())
    events: list[Event] = []
    months: list[Standing] = []
    contributed = called = distributed = 0
    for month in range(1, age + 1):
        kind = kinds.get(month)
        if kind:
            share = 0
            if kind == "distribution":
                worth = round(contributed * _worth(month, life, multiple))
                share = max(1, round(worth * _realised(month, life)) - distributed)
                distributed += share
            elif kind == "capital_call":
                share = int(weights[month] * per_weight)
                called += share
                contributed += share
            else:
                share = FEE if month <= INVESTING_MONTHS else FEE // 4
                contributed += share
            events.append(Event(month, 1 + int(28 * draw()), kind, share))
        worth = round(contributed * _worth(month, life, multiple))
        months.append(Standing(contributed, called, distributed, max(0, worth - distributed)))
    return Fund(id=number, age=age, first_month=first_month, events=events, months=months)


def _kind(position: int, month: int, drawn: float) -> str:
    if position % 3 == 0:
        return "management_fee"
    if month <= FIRST_PAYOUT_MONTH or (month <= INVESTING_MONTHS and drawn < 0.5):
        return "capital_call"
    return "distribution"


def _worth(month: int, life: int, multiple: float) -> float:
    """What one unit paid in has become: down at first, when fees weigh more than gains, then up to the multiple."""
    part = min(month / life, 1.0)
    grown = part * part * (3 - 2 * part)
    return 1 + (multiple - 1) * grown - 0.1 * (month / 12) * exp(1 - month / 12) * (1 - grown)


def _realised(month: int, life: int) -> float:
    """Which part of it has been paid out: all at the end of its life."""
    part = max(0.0, (month - FIRST_PAYOUT_MONTH) / (life - FIRST_PAYOUT_MONTH))
    return min(1.0, float(part**1.3))


def _deal(rng: Random, hand: Sequence[int], count: int) -> list[int]:
    """`count` cards from full hands, each shuffled: random in order, exact in sum."""
    dealt: list[int] = []
    while len(dealt) < count:
        dealt += rng.sample(hand, len(hand))
    return dealt[:count]


def _percent(monthly: float) -> str:
    return f"{100 * ((1 + monthly) ** 12 - 1):.4f}"


def _fraction(ten_thousandths: int) -> str:
    return f"{ten_thousandths // 10_000}.{ten_thousandths % 10_000:04d}"
