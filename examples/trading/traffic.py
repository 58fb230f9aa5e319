"""What the trade engine writes while its views are kept: matched orders, resting orders, cancellations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any

import psycopg

from examples import cursor
from examples.trading.generate import MAKER_FEE, SYMBOLS, TAKER_FEE

PRICE_STEP = Decimal("0.00000001")

# A side of a book that has fewer orders than this is left alone by cancellations.
THINNEST_SIDE = 3


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one burst committed, in rows; a trade comes with the two orders that it filled."""

    trades: int = 0
    orders: int = 0
    cancelled_orders: int = 0


def write(conn: psycopg.Connection[Any], rng: Random, *, trades: int = 20, orders: int = 10) -> Written:
    """One committed burst of the application: trades, and resting orders half of which replace older ones.

    What is written depends on `rng` and on the book there is; the time is the server's.
    """
    with conn.transaction():
        written = _write(conn, rng, rng.choices(SYMBOLS, k=trades), rng.choices(SYMBOLS, k=orders))
    conn.commit()
    return written


def touch_all(conn: psycopg.Connection[Any], rng: Random) -> Written:
    """Change every row of the two small views, some of the third, and commit.

    Each symbol gets a trade and two resting orders.
    """
    with conn.transaction():
        written = _write(conn, rng, SYMBOLS, [*SYMBOLS, *SYMBOLS])
    conn.commit()
    return written


def _write(
    conn: psycopg.Connection[Any],
    rng: Random,
    traded: Sequence[tuple[str, str, float]],
    placed: Sequence[tuple[str, str, float]],
) -> Written:
    cur = cursor(conn)
    cur.execute("SELECT max(id) FROM public.users")
    row = cur.fetchone()
    users = int(row[0]) if row and row[0] else 0
    books = _best_prices(conn)
    filled: list[tuple[object, ...]] = []
    trades: list[tuple[object, ...]] = []
    ids = iter(_order_ids(conn, 2 * len(traded) + len(placed)))
    for symbol, _, anchor in traded:
        bid, ask = books.get(symbol) or _around(anchor)
        # Inside the spread: the book stays as it is, and never crosses.
        price = (bid + (ask - bid) * Decimal(str(round(0.1 + 0.8 * rng.random(), 3)))).quantize(PRICE_STEP)
        quantity = _quantity(rng, price)
        buyer, seller = rng.sample(range(1, users + 1), 2)
        buy, sell = next(ids), next(ids)
        taker = rng.choice(("buy", "sell"))
        amount = price * quantity
        taken, made = (amount * Decimal(str(fee)) for fee in (TAKER_FEE, MAKER_FEE))
        fees = (taken, made) if taker == "buy" else (made, taken)
        filled += [
            (number, user, symbol, side, price, quantity, quantity, "filled", f"c{number}")
            for number, user, side in ((buy, buyer, "buy"), (sell, seller, "sell"))
        ]
        trades.append((symbol, price, quantity, buy, sell, buyer, seller, taker, *fees))
    resting = [
        _resting(rng, next(ids), users, books.get(symbol) or _around(anchor), symbol)
        for symbol, _, anchor in placed
    ]
    cur.executemany(
        "INSERT INTO public.orders (id, user_id, symbol, side, order_type, price, quantity, filled_quantity,"
        " status, client_order_id) VALUES (%s, %s, %s, %s, 'limit', %s, %s, %s, %s, %s)",
        filled + resting,
    )
    cur.executemany(
        "INSERT INTO public.trades (symbol, price, quantity, buy_order_id, sell_order_id, buyer_user_id,"
        " seller_user_id, taker_side, buyer_fee, seller_fee) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        trades,
    )
    return Written(
        trades=len(trades),
        orders=len(filled) + len(resting),
        cancelled_orders=_cancel(conn, len(placed) // 2),
    )


def _resting(
    rng: Random, number: int, users: int, book: tuple[Decimal, Decimal], symbol: str
) -> tuple[object, ...]:
    """An order that joins its side of the book, at the best price or up to 1 % behind it."""
    side = rng.choice(("buy", "sell"))
    behind = Decimal(str(round(0.01 * rng.random(), 5)))
    bid, ask = book
    price = (bid * (1 - behind) if side == "buy" else ask * (1 + behind)).quantize(PRICE_STEP)
    user = 1 + int(rng.random() * users)
    return number, user, symbol, side, price, _quantity(rng, price), Decimal(0), "open", f"c{number}"


def _cancel(conn: psycopg.Connection[Any], count: int) -> int:
    """Withdraw the oldest resting orders, so that the book does not grow for ever."""
    cur = cursor(conn)
    cur.execute(
        """
        UPDATE public.orders SET status = 'cancelled'
        WHERE (created_at, id) IN (
            SELECT created_at, id
            FROM (
                SELECT created_at, id, row_number() OVER newest_first AS position
                FROM public.orders
                WHERE status IN ('open', 'partially_filled')
                WINDOW newest_first AS (PARTITION BY symbol, side ORDER BY created_at DESC, id DESC)
            ) resting
            WHERE position > %s
            ORDER BY created_at, id
            LIMIT %s
        )
        """,
        [THINNEST_SIDE, count],
    )
    return cur.rowcount


def _best_prices(conn: psycopg.Connection[Any]) -> dict[str, tuple[Decimal, Decimal]]:
    """Best bid and ask of each symbol that has both."""
    cur = cursor(conn)
    cur.execute(
        """
        SELECT symbol, max(price) FILTER (WHERE side = 'buy'), min(price) FILTER (WHERE side = 'sell')
        FROM public.orders
        WHERE status IN ('open', 'partially_filled')
        GROUP BY symbol
        """
    )
    return {symbol: (bid, ask) for symbol, bid, ask in cur if bid is not None and ask is not None}


def _around(anchor: float) -> tuple[Decimal, Decimal]:
    middle = Decimal(str(anchor))
    return middle * Decimal("0.999"), middle * Decimal("1.001")


def _quantity(rng: Random, price: Decimal) -> Decimal:
    return (Decimal(20 + int(4980 * rng.random() ** 3)) / price).quantize(Decimal("0.000001"))


def _order_ids(conn: psycopg.Connection[Any], count: int) -> list[int]:
    cur = cursor(conn)
    cur.execute("SELECT nextval('public.orders_id_seq') FROM generate_series(1, %s)", [count])
    return [number for (number,) in cur]
