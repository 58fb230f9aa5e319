"""The lending system's rows, as lines of COPY's text format.

Everything is drawn from one seed, loan by loan, so that the same seed, volume and date give the same bytes. A
table that repeats what another one decided (allocations after payments) draws the same stream a second time
instead of keeping it: memory stays with the portfolio, below 1 kB a loan.

Amounts are whole cents and dates are ordinals until they are printed: exact, and faster than Decimal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import permutations
from random import Random
from typing import NamedTuple, Self

# The documented volumes, which are scale 1.
LOANS = 50_000
PAYMENTS = 500_000
ALLOCATIONS = 800_000
COLLECTIONS_EVENTS = 100_000

# Terms in months, dealt in full hands so that the mean is exactly 30: 50,000 loans have 1,500,000 lines.
TERMS = (12, 24, 36, 48)
# Allocations of a payment, dealt the same way: 8 for 5 payments, which is 800,000 for 500,000.
SPLITS = (1, 1, 1, 2, 3)

OLDEST_LOAN_MONTHS = 36

# Legal entities: name, country, currency of most of its loans.
ENTITIES = (
    ("Rently Lending Ltd", "GB", "GBP"),
    ("Rently Finance GmbH", "DE", "EUR"),
    ("Rently Crédit SAS", "FR", "EUR"),
    ("Rently Capital Inc", "US", "USD"),
)
PRODUCTS = (
    ("Deposit loan", "deposit", "tenant"),
    ("Deposit loan plus", "deposit", "tenant"),
    ("Rent advance", "rent_advance", "tenant"),
    ("Moving loan", "personal", "tenant"),
    ("Furniture loan", "personal", "tenant"),
    ("Landlord bridge", "bridge", "landlord"),
    ("Renovation loan", "renovation", "landlord"),
    ("Energy upgrade", "renovation", "landlord"),
    ("Portfolio credit", "portfolio", "landlord"),
    ("Agency working capital", "working_capital", "agency"),
    ("Agency receivables", "receivables", "agency"),
    ("Agency fit-out", "renovation", "agency"),
)
# fmt: off
FIRST_NAMES = (
    "Ada", "Bruno", "Chloé", "Dmitri", "Elif", "Femi", "Greta", "Hiro", "Inès", "Jonas", "Kavya",
    "Liam", "María", "Noor", "Oskar", "Priya", "Quentin", "Rosa", "Søren", "Tariq", "Uma", "Vera",
    "Wei", "Zoë",
)
LAST_NAMES = (
    "Almeida", "Bauer", "Cohen", "Dubois", "Evans", "Fischer", "García", "Hansen", "Ivanova", "Jensen",
    "Kaya", "Lefèvre", "Müller", "Nowak", "Okafor", "Patel", "Rossi", "Schmidt", "Tanaka", "Walsh",
    "Yilmaz", "Zhang",
)
# fmt: on
COMPANY_SUFFIXES = ("Estates", "Homes", "Lettings", "Property Group", "Residential", "Rentals")

RISK_LEVELS = ("normal", "watch", "elevated", "default_level_1", "default_level_2")
COLLECTIONS_STAGES = ("current", "early", "mid", "late", "legal")
# What a collector does, by how bad it is: reminders first, courts last.
EVENT_TYPES = (
    ("reminder_sent", "reminder_sent", "reminder_sent", "call_attempt"),
    ("reminder_sent", "call_attempt", "call_attempt", "call_successful"),
    ("call_attempt", "call_attempt", "call_successful", "legal_notice"),
    ("call_attempt", "legal_notice", "lawyer_letter", "court_filing"),
)
COMPONENTS = ("principal", "rc_fee", "other")
COMPONENTS_LATE = ("principal", "rc_fee", "penalty")


@dataclass(frozen=True, kw_only=True)
class Volume:
    """How many rows to draw. Schedules follow from the loans, allocations from the payments."""

    parties: int
    loans: int
    payments: int
    collections_events: int

    @classmethod
    def at(cls, scale: float) -> Self:
        """The documented volumes times `scale`, never so few that a view would be empty.

        Raises:
            ValueError: a scale that is not above zero.

        """
        if scale <= 0:
            raise ValueError(f"scale must be above 0, not {scale}: 1 is 50,000 loans")
        loans = max(20, round(LOANS * scale))
        return cls(
            parties=max(10, loans * 4 // 5),
            loans=loans,
            payments=max(200, round(PAYMENTS * scale)),
            collections_events=max(40, round(COLLECTIONS_EVENTS * scale)),
        )


class Loan(NamedTuple):
    """A loan with all that its other rows derive from."""

    id: int
    party: int
    entity: int
    product: int
    currency: str
    principal_cents: int
    interest_basis_points: int
    fee_basis_points: int
    start_month: int  # months since the year 0
    day: int  # of the month, 1 to 28: every month has it
    term_months: int
    status: str
    elapsed: int  # instalments that were due before as_of
    lateness: int  # 0 pays on the day … 3 hardly pays
    first_line: int
    instalment_cents: tuple[int, int, int]  # principal, recurring charge, interest
    payments: int
    events: int


class Payment(NamedTuple):
    """One payment and how it is split, printed as payment and again as allocations."""

    id: int
    loan: int
    line: int | None
    currency: str
    cents: tuple[int, ...]  # one per component
    components: tuple[str, ...]
    direction: str
    status: str
    received_at: str


def portfolio(volume: Volume, *, seed: int, as_of: date) -> list[Loan]:
    """Every loan, in the order of its id, with its share of the payments and events.

    The totals are exact: shares are cut from the running sum of the weights, so that no rounding is lost.
    """
    rng = Random(f"{seed} loans")
    drafts = [_draft(rng, number, term, volume, as_of) for number, term in _deal_terms(rng, volume.loans)]
    # One weight unit is one payment, or one event, that the loan would have by itself.
    payments = _shares([d.elapsed * (1.0, 1.0, 0.9, 0.6)[d.lateness] for d in drafts], volume.payments)
    events = _shares(
        [d.elapsed * (0.02, 0.3, 1.0, 1.6)[d.lateness] for d in drafts], volume.collections_events
    )
    loans = []
    first_line = 1
    for draft, paid, chased in zip(drafts, payments, events, strict=True):
        loans.append(draft._replace(first_line=first_line, payments=paid, events=chased))
        first_line += draft.term_months
    return loans


def legal_entities() -> Iterator[str]:
    """id, name, country_code."""
    for number, (name, country, _) in enumerate(ENTITIES, 1):
        yield f"{number}\t{name}\t{country}\n"


def products() -> Iterator[str]:
    """id, name, category, business_unit."""
    for number, (name, category, unit) in enumerate(PRODUCTS, 1):
        yield f"{number}\t{name}\t{category}\t{unit}\n"


def parties(volume: Volume, *, seed: int) -> Iterator[str]:
    """id, kind, display_name."""
    draw = Random(f"{seed} parties").random
    for number in range(1, volume.parties + 1):
        last = _pick(LAST_NAMES, draw())
        if draw() < 0.2:
            yield f"{number}\tcompany\t{last} {_pick(COMPANY_SUFFIXES, draw())}\n"
        else:
            yield f"{number}\tindividual\t{_pick(FIRST_NAMES, draw())} {last}\n"


def loans(book: Sequence[Loan]) -> Iterator[str]:
    """Rows of loan in the order of its columns."""
    for loan in book:
        yield (
            f"{loan.id}\tL{loan.id:08d}\t{loan.entity}\t{loan.product}\t{loan.party}\t{loan.currency}"
            f"\t{_money(loan.principal_cents)}"
            f"\t{_money(loan.interest_basis_points)}\t{_money(loan.fee_basis_points)}"
            f"\t{_month_day(loan.start_month, loan.day)}"
            f"\t{_month_day(loan.start_month + loan.term_months, loan.day)}"
            f"\t{loan.status}\n"
        )


def amortisation_plans(book: Sequence[Loan]) -> Iterator[str]:
    """id, loan_id, status; a loan's plan has the loan's id."""
    for loan in book:
        yield f"{loan.id}\t{loan.id}\t{'completed' if loan.status == 'closed' else 'active'}\n"


def amortisation_lines(book: Sequence[Loan]) -> Iterator[str]:
    """The schedule of each loan in one block; the last instalment takes what rounding left of the principal.

    id, plan_id, line_number, due_date, currency_code and the four amounts.
    """
    for loan in book:
        principal, fee, interest = loan.instalment_cents
        last = loan.principal_cents - principal * (loan.term_months - 1)
        rest = f"{_money(fee)}\t0.00\t{_money(interest)}\n"
        amounts = [f"{_money(principal)}\t{rest}"] * (loan.term_months - 1) + [f"{_money(last)}\t{rest}"]
        before = loan.first_line - 1
        yield "".join(
            [
                f"{before + number}\t{loan.id}\t{number}\t{_month_day(loan.start_month + number, loan.day)}"
                f"\t{loan.currency}\t{amount}"
                for number, amount in enumerate(amounts, 1)
            ]
        )


def status_history(book: Sequence[Loan], *, seed: int, as_of: date) -> Iterator[str]:
    """How each loan was classified over time: worse step by step, about once a quarter, up to its lateness.

    A loan that always paid on the day has no collections stage at all.
    """
    draw = Random(f"{seed} statuses").random
    number = 1
    last_day = as_of.toordinal() - 1
    for loan in book:
        start = _ordinal(loan.start_month, loan.day)
        worst = min(loan.lateness + (draw() < 0.3), loan.elapsed)
        for status_type, values, first in (
            ("risk_level", RISK_LEVELS, 0),
            ("collections_stage", COLLECTIONS_STAGES, 1),
        ):
            steps = values[first : worst + 1]
            # Oldest first: each step ends where the next one begins, the last one is open.
            since = min(start + first * 35, last_day)
            for position, value in enumerate(steps):
                until = min(since + 30 + int(draw() * 60), last_day)
                is_open = position == len(steps) - 1
                begin = f"{_iso(since)} 06:00:00+00"
                end = r"\N" if is_open else f"{_iso(until)} 06:00:00+00"
                yield f"{number}\t{loan.id}\t{status_type}\t{value}\t{begin}\t{end}\n"
                number += 1
                since = until


def payments(book: Sequence[Loan], *, seed: int, as_of: date) -> Iterator[Payment]:
    """What was paid before `as_of`, loan by loan, instalment by instalment."""
    rng = Random(f"{seed} payments")
    draw = rng.random
    splits = _deal(rng, SPLITS)
    last_day = as_of.toordinal() - 1
    number = 1
    for loan in book:
        due_lines = loan.elapsed
        of_instalment = sum(loan.instalment_cents)
        # With more payments than instalments, an instalment is paid in parts.
        parts = max(1, -(-loan.payments // max(due_lines, 1)))
        cents = of_instalment // parts
        fee = cents * loan.instalment_cents[1] // of_instalment
        extra = cents * loan.instalment_cents[2] // of_instalment
        amounts = ((cents,), (cents - fee, fee), (cents - fee - extra, fee, extra))
        slowest = (1, 8, 40, 120)[loan.lateness]
        for position in range(loan.payments):
            instalment = position * due_lines // loan.payments
            punctual = draw() < (0.95, 0.7, 0.35, 0.1)[loan.lateness]
            delay = -int(draw() * 4) if punctual else 1 + int(draw() * slowest)
            day = min(_ordinal(loan.start_month + instalment + 1, loan.day) + delay, last_day)
            second = int(draw() * 86_400)
            split = next(splits)
            fate = draw()
            yield Payment(
                number,
                loan.id,
                None if split == 1 and draw() < 0.03 else loan.first_line + instalment,
                loan.currency,
                amounts[split - 1],
                (COMPONENTS_LATE if delay > 5 else COMPONENTS)[:split],
                "outbound" if 0.96 < fate < 0.97 else "inbound",
                "completed" if fate < 0.97 else "failed" if fate < 0.99 else "reversed",
                f"{_iso(day)} {_clock(second)}+00",
            )
            number += 1


def payment_rows(drawn: Iterator[Payment]) -> Iterator[str]:
    """id, direction, status, currency_code, amount, received_at."""
    for p in drawn:
        yield f"{p.id}\t{p.direction}\t{p.status}\t{p.currency}\t{_money(sum(p.cents))}\t{p.received_at}\n"


def allocation_rows(drawn: Iterator[Payment]) -> Iterator[str]:
    """id, payment_id, loan_id, line_id, component, allocated_amount, created_at."""
    number = 1
    for p in drawn:
        line = r"\N" if p.line is None else p.line
        for cents, component in zip(p.cents, p.components, strict=True):
            yield f"{number}\t{p.id}\t{p.loan}\t{line}\t{component}\t{_money(cents)}\t{p.received_at}\n"
            number += 1


def collections_events(book: Sequence[Loan], *, seed: int, as_of: date) -> Iterator[str]:
    """id, loan_id, event_type, event_at, dpd_snapshot, resolution_status, oldest first for each loan."""
    draw = Random(f"{seed} collections").random
    last_day = as_of.toordinal() - 1
    number = 1
    for loan in book:
        first_due = _ordinal(loan.start_month + 1, loan.day)
        days = max(last_day - first_due, 1)
        worst_dpd = (5, 30, 90, 240)[loan.lateness]
        for position in range(loan.events):
            day = min(first_due + days * position // loan.events + int(draw() * days / loan.events), last_day)
            dpd = 1 + int(draw() * draw() * worst_dpd)
            severity = (dpd > 7) + (dpd > 30) + (dpd > 90)
            kind = _pick(EVENT_TYPES[severity], draw())
            fate = draw()
            outcome = "resolved" if fate < 0.35 else "promised" if fate < 0.5 else r"\N"
            second = 28_800 + int(draw() * 36_000)  # collectors work from 08:00 to 18:00
            yield f"{number}\t{loan.id}\t{kind}\t{_iso(day)} {_clock(second)}+00\t{dpd}\t{outcome}\n"
            number += 1


def _draft(rng: Random, number: int, term: int, volume: Volume, as_of: date) -> Loan:
    draw = rng.random
    age = int(OLDEST_LOAN_MONTHS * draw() ** 2)  # a growing platform: more young loans than old ones
    day = 1 + int(draw() * 28)
    # An instalment due on as_of itself is not yet overdue: only what was due before counts.
    now = as_of.year * 12 + as_of.month - 1
    elapsed = min(max(age - (day >= as_of.day), 0), term)
    roll = draw()
    lateness = 0 if roll < 0.6 else 1 if roll < 0.85 else 2 if roll < 0.95 else 3
    roll = draw()
    if age == 0 and roll < 0.25:
        status = "pending"
    elif lateness == 3 and elapsed > 6 and roll < 0.7:
        status = "written_off"
    elif elapsed == term or (elapsed > 3 and roll < 0.05):
        status = "closed"
    else:
        status = "active"
    entity = 1 + int(draw() * len(ENTITIES))
    currency = ENTITIES[entity - 1][2] if draw() < 0.95 else "EUR"
    principal = (500 + int(19_500 * draw() ** 3)) * 100
    interest = 300 + int(draw() * 1200)
    fee = 50 + int(draw() * 250)
    monthly = principal // term
    return Loan(
        id=number,
        party=1 + int(draw() * volume.parties),
        entity=entity,
        product=1 + int(draw() * len(PRODUCTS)),
        currency=currency,
        principal_cents=principal,
        interest_basis_points=interest,
        fee_basis_points=fee,
        start_month=now - age,
        day=day if age else min(day, as_of.day),
        term_months=term,
        status=status,
        elapsed=elapsed,
        lateness=lateness,
        first_line=0,
        instalment_cents=(monthly, monthly * fee // 10_000, principal * interest // 120_000),
        payments=0,
        events=0,
    )


def _deal_terms(rng: Random, loan_count: int) -> Iterator[tuple[int, int]]:
    return zip(range(1, loan_count + 1), _deal(rng, TERMS), strict=False)


def _deal(rng: Random, hand: tuple[int, ...]) -> Iterator[int]:
    """The hand over and over, shuffled each time: random in order, exact in sum."""
    orders = list(permutations(hand))
    while True:
        yield from orders[int(rng.random() * len(orders))]


def _shares(weights: list[float], total: int) -> list[int]:
    whole = sum(weights)
    shares = []
    running = 0.0
    given = 0
    for weight in weights:
        running += weight
        upto = round(total * running / whole)
        shares.append(upto - given)
        given = upto
    return shares


def _pick(choices: Sequence[str], drawn: float) -> str:
    return choices[int(drawn * len(choices))]


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def _clock(second: int) -> str:
    return f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"


_months: dict[int, tuple[str, int]] = {}
_days: dict[int, str] = {}


def _month(month: int) -> tuple[str, int]:
    """The printed month and the ordinal of the day before its first: a few dozen serve millions of rows."""
    found = _months.get(month)
    if found is None:
        first = date(month // 12, month % 12 + 1, 1)
        found = _months[month] = (f"{first:%Y-%m-}", first.toordinal() - 1)
    return found


def _month_day(month: int, day: int) -> str:
    return f"{_month(month)[0]}{day:02d}"


def _ordinal(month: int, day: int) -> int:
    return _month(month)[1] + day


def _iso(ordinal: int) -> str:
    found = _days.get(ordinal)
    if found is None:
        found = _days[ordinal] = date.fromordinal(ordinal).isoformat()
    return found
