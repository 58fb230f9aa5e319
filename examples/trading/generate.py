"""The trade engine's rows, as lines of COPY's text format, one calendar day after the other.

A day's trades and the orders that they match are drawn together and loaded into the day's own partitions:
memory stays with one day. The same seed, volume and `as_of` give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from random import Random
from typing import Self

# Scale 1. A trade matches two orders, so a day brings 10,000 trades and 24,000 orders: some 360,000 trades
# and 870,000 orders in all. The 30 days that the users' statistics read have 300,000 of the trades.
USERS = 10_000
TRADES_PER_DAY = 10_000
CANCELLED_PER_DAY = 4_000
RESTING_ORDERS = 4_000

HISTORY_DAYS = (
    36  # whole days before the last one: the 30 days of the statistics have something to leave behind
)
RESTING_DAYS = 3  # what rests in the book was placed at most this long ago

MAKER_FEE = 0.0010
TAKER_FEE = 0.0020
MARKET_MAKERS = 10  # users who trade every symbol

# Symbol, base asset, and the price it moves around, in USDT.
SYMBOLS = (
    ("BTC/USDT", "BTC", 64_000.0), ("ETH/USDT", "ETH", 3_200.0), ("SOL/USDT", "SOL", 150.0),
    ("BNB/USDT", "BNB", 580.0), ("XRP/USDT", "XRP", 0.62), ("ADA/USDT", "ADA", 0.45),
    ("AVAX/USDT", "AVAX", 28.0), ("DOGE/USDT", "DOGE", 0.12), ("DOT/USDT", "DOT", 6.2),
    ("LINK/USDT", "LINK", 14.0), ("LTC/USDT", "LTC", 82.0), ("BCH/USDT", "BCH", 390.0),
    ("UNI/USDT", "UNI", 8.1), ("ATOM/USDT", "ATOM", 7.4), ("XLM/USDT", "XLM", 0.11),
    ("NEAR/USDT", "NEAR", 5.3), ("FIL/USDT", "FIL", 4.4), ("APT/USDT", "APT", 8.8),
    ("ARB/USDT", "ARB", 0.79), ("TRX/USDT", "TRX", 0.13),
)  # fmt: skip
QUOTE_ASSET = "USDT"

SECOND_MS = 1000
DAY_MS = 86_400 * SECOND_MS


@dataclass(frozen=True, kw_only=True)
class Volume:
    """How many rows to draw."""

    users: int
    trades_per_day: int
    cancelled_per_day: int
    resting_orders: int

    @classmethod
    def at(cls, scale: float) -> Self:
        """Scale 1 times `scale`, never so few that a view would be empty.

        Raises:
            ValueError: a scale that is not above zero.

        """
        if scale <= 0:
            raise ValueError(f"scale must be above 0, not {scale}: 1 is 10,000 users")
        return cls(
            users=max(4 * MARKET_MAKERS, round(USERS * scale)),
            trades_per_day=max(40, round(TRADES_PER_DAY * scale)),
            cancelled_per_day=max(8, round(CANCELLED_PER_DAY * scale)),
            resting_orders=max(4 * len(SYMBOLS), round(RESTING_ORDERS * scale)),
        )


@dataclass(kw_only=True)
class Day:
    """The rows of one partition of each table."""

    day: date
    orders: list[str] = field(default_factory=list)
    trades: list[str] = field(default_factory=list)


def symbols() -> Iterator[str]:
    """symbol, base_asset, quote_asset."""
    for symbol, base, _ in SYMBOLS:
        yield f"{symbol}\t{base}\t{QUOTE_ASSET}\n"


def users(volume: Volume) -> Iterator[str]:
    """id, display_name."""
    for number in range(1, volume.users + 1):
        yield f"{number}\ttrader {number:05d}\n"


def history_days(as_of: datetime) -> list[date]:
    """The days that have rows, oldest first; the last one is that of `as_of` and reaches up to it."""
    last = as_of.astimezone(UTC).date()
    return [last - timedelta(days=back) for back in range(HISTORY_DAYS, -1, -1)]


class Market:
    """Draws the history day by day, then the book that is left; prices, ids and habits go on between days."""

    def __init__(self, volume: Volume, *, seed: int, as_of: datetime) -> None:
        self.volume = volume
        self.as_of = as_of.astimezone(UTC)
        self.orders = 0
        self.trades = 0
        self._rng = Random(f"{seed} market")
        self._prices = [price for _, _, price in SYMBOLS]
        # A few decimals more than the price has leading zeros: six significant digits.
        self._decimals = [max(2, 5 - len(str(int(price))) + (price < 1)) for price in self._prices]
        self._traders = self._habits()
        weights = [1 / (position + 2) for position in range(len(SYMBOLS))]
        self._popularity = [
            position
            for position, weight in enumerate(weights)
            for _ in range(round(1000 * weight / sum(weights)))
        ]

    def days(self) -> Iterator[Day]:
        """Every day of the history: trades, the orders they filled, and orders cancelled before they were."""
        for day in history_days(self.as_of):
            until = min(DAY_MS, _ms_of_day(self.as_of, day))
            drawn = Day(day=day)
            share = until / DAY_MS
            trades = round(self.volume.trades_per_day * share)
            for position in range(trades):
                at = int(until * (position + self._rng.random()) / trades)
                self._trade(drawn, at)
            for _ in range(round(self.volume.cancelled_per_day * share)):
                self._place(drawn, int(until * self._rng.random()), "cancelled")
            yield drawn

    def book(self) -> Iterator[Day]:
        """The orders that rest when the history ends, around the last prices: bids below, asks above."""
        days: dict[date, Day] = {}
        span = RESTING_DAYS * DAY_MS
        for position in range(self.volume.resting_orders):
            placed = self.as_of - timedelta(milliseconds=1 + int(self._rng.random() * span))
            day = days.setdefault(placed.date(), Day(day=placed.date()))
            self._place(
                day,
                _ms_of_day(placed, day.day),
                "open" if self._rng.random() < 0.8 else "partially_filled",
                # Both sides of every symbol in turn, so that no book is empty.
                market=position // 2 % len(SYMBOLS),
                is_buy=position % 2 == 0,
            )
        yield from days.values()

    def _habits(self) -> list[list[int]]:
        """Who trades each symbol: the market makers all of them, the others one to five."""
        traders: list[list[int]] = [list(range(1, MARKET_MAKERS + 1)) for _ in SYMBOLS]
        for user in range(MARKET_MAKERS + 1, self.volume.users + 1):
            for market in self._rng.sample(range(len(SYMBOLS)), 1 + int(self._rng.random() * 5)):
                traders[market].append(user)
        return traders

    def _trade(self, day: Day, at: int) -> None:
        draw = self._rng.random
        market = self._popularity[int(draw() * len(self._popularity))]
        symbol, _, anchor = SYMBOLS[market]
        # A random walk on a long lead: it wanders, and comes back.
        price = self._prices[market]
        price *= 1 + (draw() - 0.5) * 0.004 + 0.005 * (anchor - price) / anchor
        self._prices[market] = price
        traders = self._traders[market]
        # The square makes the first of the list, market makers among them, trade the most.
        taker = int(draw() ** 2 * len(traders))
        maker = int(draw() ** 2 * len(traders))
        if maker == taker:
            maker = (maker + 1) % len(traders)
        printed = f"{price:.{self._decimals[market]}f}"
        quantity = self._quantity(price)
        amount = float(printed) * float(quantity)
        taker_buys = draw() < 0.5
        taker_side, maker_side = ("buy", "sell") if taker_buys else ("sell", "buy")
        when = f"{day.day} {_clock(at)}+00"
        earlier = f"{day.day} {_clock(at - min(at, int(draw() * 600 * SECOND_MS)))}+00"
        maker_order, taker_order = self.orders + 1, self.orders + 2
        self.orders += 2
        self.trades += 1
        rest = f"{quantity}\t{quantity}\tfilled"
        kind = f"market\t\\N\t{rest}" if draw() < 0.3 else f"limit\t{printed}\t{rest}"
        day.orders.append(
            f"{maker_order}\t{traders[maker]}\t{symbol}\t{maker_side}\tlimit\t{printed}\t{rest}"
            f"\tc{maker_order}\t{earlier}\n"
            f"{taker_order}\t{traders[taker]}\t{symbol}\t{taker_side}\t{kind}\tc{taker_order}\t{when}\n"
        )
        fees = f"{amount * MAKER_FEE:.8f}", f"{amount * TAKER_FEE:.8f}"
        parties = (
            (taker_order, maker_order, traders[taker], traders[maker], fees[1], fees[0])
            if taker_buys
            else (maker_order, taker_order, traders[maker], traders[taker], fees[0], fees[1])
        )
        buy, sell, buyer, seller, buyer_fee, seller_fee = parties
        day.trades.append(
            f"{self.trades}\t{symbol}\t{printed}\t{quantity}\t{buy}\t{sell}\t{buyer}\t{seller}\t{taker_side}"
            f"\t{buyer_fee}\t{seller_fee}\t{when}\n"
        )

    def _place(
        self, day: Day, at: int, status: str, *, market: int | None = None, is_buy: bool | None = None
    ) -> None:
        """A limit order that is not, or not wholly, filled: 0.05 to 2 % away from the price."""
        draw = self._rng.random
        if market is None:
            market = self._popularity[int(draw() * len(self._popularity))]
        if is_buy is None:
            is_buy = draw() < 0.5
        price = self._prices[market]
        away = 0.0005 + 0.0195 * draw() ** 2
        limit = f"{price * (1 - away if is_buy else 1 + away):.{self._decimals[market]}f}"
        quantity = self._quantity(price)
        filled = f"{float(quantity) * 0.9 * draw():.4f}" if status == "partially_filled" else "0"
        traders = self._traders[market]
        self.orders += 1
        day.orders.append(
            f"{self.orders}\t{traders[int(draw() * len(traders))]}\t{SYMBOLS[market][0]}"
            f"\t{'buy' if is_buy else 'sell'}\tlimit\t{limit}\t{quantity}\t{filled}\t{status}\tc{self.orders}"
            f"\t{day.day} {_clock(at)}+00\n"
        )

    def _quantity(self, price: float) -> str:
        """Worth 20 to 5,000 USDT, most of them little; never 0 after rounding."""
        return f"{(20 + 4980 * self._rng.random() ** 3) / price:.6f}"


def _ms_of_day(moment: datetime, day: date) -> int:
    """Since the day's midnight, which may be more than a day ago."""
    return (moment - datetime.combine(day, time(), tzinfo=UTC)) // timedelta(milliseconds=1)


def _clock(ms: int) -> str:
    second = ms // 1000
    return f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}.{ms % 1000:03d}"
