-- The three materialized views of the trade engine's dashboards. None of them reads another.
--
-- Each has a unique index over plain NOT NULL columns and is ordered by it, which is what CONCURRENTLY needs and likes;
-- none stores the time of its refresh (that is in upkeep.view_freshness). Windows are bounds on the partition key
-- alone, so that only the days inside them are read.

-- 1. What happened to each symbol in the last 24 hours? -- every five minutes
--
-- One row per listed symbol, also one without trades: its prices are NULL, its counts 0. The window ends at now(), so
-- the result changes by itself as trades leave the window: this view is never skipped.
CREATE MATERIALIZED VIEW monitoring.mv_trading_summary_24h AS
WITH recent AS (
    SELECT
        symbol,
        count(*)                                                  AS trade_count,
        (array_agg(price ORDER BY executed_at, id))[1]            AS open_price,
        max(price)                                                AS high_price,
        min(price)                                                AS low_price,
        (array_agg(price ORDER BY executed_at DESC, id DESC))[1]  AS close_price,
        sum(quantity)                                             AS volume,
        sum(price * quantity)                                     AS quote_volume,
        sum(quantity) FILTER (WHERE taker_side = 'buy')           AS taker_buy_volume,
        sum(quantity) FILTER (WHERE taker_side = 'sell')          AS taker_sell_volume,
        max(executed_at)                                          AS last_trade_at
    FROM public.trades
    WHERE executed_at >= now() - interval '24 hours'
    GROUP BY symbol
)
SELECT
    s.symbol,
    s.base_asset,
    s.quote_asset,
    coalesce(r.trade_count, 0)       AS trade_count,
    r.open_price,
    r.high_price,
    r.low_price,
    r.close_price,
    r.close_price - r.open_price     AS price_change,
    round(100 * (r.close_price - r.open_price) / r.open_price, 4) AS price_change_pct,
    coalesce(r.volume, 0)            AS volume,
    coalesce(r.quote_volume, 0)      AS quote_volume,
    round(r.quote_volume / r.volume, 8) AS vwap,
    coalesce(r.taker_buy_volume, 0)  AS taker_buy_volume,
    coalesce(r.taker_sell_volume, 0) AS taker_sell_volume,
    r.last_trade_at
FROM public.symbols s
LEFT JOIN recent r ON r.symbol = s.symbol
ORDER BY s.symbol
WITH NO DATA;

CREATE UNIQUE INDEX idx_mv_trading_summary_symbol ON monitoring.mv_trading_summary_24h (symbol);

-- 2. How does each user trade? -- daily, 02:00 UTC
--
-- One row per user and symbol: the API that reads this view filters by both. With 10,000 users of whom most trade a few
-- of the 20 symbols that is some 30,000 rows, not the 10,000 of one row per user, and in return a user's total over the
-- symbols can be had from it (amounts are in each symbol's quote asset).
--
-- The window is the last 30 days and today. Its start moves at midnight and not with the clock, so that the result can
-- change only with the data or the date.
--   realized_pnl  what buying and selling the same quantity brought, at average prices, fees deducted; NULL as long as
--                 the user has only bought or only sold
CREATE MATERIALIZED VIEW monitoring.mv_user_trading_stats AS
WITH fills AS (
    SELECT buyer_user_id AS user_id, symbol, executed_at, price * quantity AS amount, buyer_fee AS fee,
           quantity AS bought, NULL::numeric AS sold, taker_side = 'buy' AS is_taker
    FROM public.trades
    WHERE executed_at >= (CURRENT_DATE - 30)::timestamp AT TIME ZONE 'UTC'
    UNION ALL
    SELECT seller_user_id, symbol, executed_at, price * quantity, seller_fee,
           NULL, quantity, taker_side = 'sell'
    FROM public.trades
    WHERE executed_at >= (CURRENT_DATE - 30)::timestamp AT TIME ZONE 'UTC'
),
totals AS (
    SELECT
        user_id,
        symbol,
        count(*)      AS trade_count,
        count(bought) AS buy_count,
        count(sold)   AS sell_count,
        coalesce(sum(bought), 0) AS bought_volume,
        coalesce(sum(sold), 0)   AS sold_volume,
        sum(amount)   AS quote_volume,
        sum(amount) FILTER (WHERE bought IS NOT NULL) AS paid,
        sum(amount) FILTER (WHERE sold IS NOT NULL)   AS earned,
        sum(fee)      AS fees_paid,
        count(*) FILTER (WHERE is_taker) AS taker_count,
        count(DISTINCT (executed_at AT TIME ZONE 'UTC')::date) AS active_days,
        min(executed_at) AS first_trade_at,
        max(executed_at) AS last_trade_at
    FROM fills
    GROUP BY user_id, symbol
)
SELECT
    user_id,
    symbol,
    trade_count,
    buy_count,
    sell_count,
    bought_volume,
    sold_volume,
    bought_volume - sold_volume                  AS net_volume,
    quote_volume,
    round(paid / nullif(bought_volume, 0), 8)    AS avg_buy_price,
    round(earned / nullif(sold_volume, 0), 8)    AS avg_sell_price,
    fees_paid,
    round(
        least(bought_volume, sold_volume) * (earned / nullif(sold_volume, 0) - paid / nullif(bought_volume, 0))
        - fees_paid, 8
    )                                            AS realized_pnl,
    round(100.0 * taker_count / trade_count, 2)  AS taker_share_pct,
    active_days,
    first_trade_at,
    last_trade_at
FROM totals
ORDER BY user_id, symbol
WITH NO DATA;

CREATE UNIQUE INDEX idx_mv_user_trading_stats_user_symbol ON monitoring.mv_user_trading_stats (user_id, symbol);
CREATE INDEX idx_mv_user_trading_stats_symbol_volume ON monitoring.mv_user_trading_stats (symbol, quote_volume DESC);

-- 3. Which way does each symbol's order flow press, and how does its book stand? -- every five minutes
--
-- Flow counts the orders placed in the last 24 hours; the book is all that rests now, however old. Pressure runs from
-- 0 (only sellers) to 100 (only buyers), 50 being balance; the spread is in basis points of the middle price.
CREATE MATERIALIZED VIEW monitoring.mv_order_flow_metrics AS
WITH flow AS (
    SELECT
        symbol,
        count(*) FILTER (WHERE side = 'buy')            AS buy_orders,
        count(*) FILTER (WHERE side = 'sell')           AS sell_orders,
        coalesce(sum(quantity) FILTER (WHERE side = 'buy'), 0)  AS buy_volume,
        coalesce(sum(quantity) FILTER (WHERE side = 'sell'), 0) AS sell_volume,
        sum(quantity)                                   AS volume,
        count(*) FILTER (WHERE status = 'cancelled')    AS cancelled_orders,
        count(*)                                        AS placed_orders
    FROM public.orders
    WHERE created_at >= now() - interval '24 hours'
    GROUP BY symbol
),
book AS (
    SELECT
        symbol,
        max(price) FILTER (WHERE side = 'buy')  AS best_bid,
        min(price) FILTER (WHERE side = 'sell') AS best_ask,
        sum(quantity - filled_quantity) FILTER (WHERE side = 'buy')  AS bid_depth,
        sum(quantity - filled_quantity) FILTER (WHERE side = 'sell') AS ask_depth,
        count(*) FILTER (WHERE side = 'buy')    AS resting_bids,
        count(*) FILTER (WHERE side = 'sell')   AS resting_asks
    FROM public.orders
    WHERE status IN ('open', 'partially_filled')
    GROUP BY symbol
)
SELECT
    s.symbol,
    coalesce(f.buy_orders, 0)               AS buy_orders,
    coalesce(f.sell_orders, 0)              AS sell_orders,
    coalesce(f.buy_volume, 0)               AS buy_volume,
    coalesce(f.sell_volume, 0)              AS sell_volume,
    round(100 * f.buy_volume / f.volume, 2) AS buy_pressure_pct,
    round(100.0 * f.cancelled_orders / f.placed_orders, 2) AS cancelled_pct,
    b.best_bid,
    b.best_ask,
    (b.best_bid + b.best_ask) / 2           AS mid_price,
    b.best_ask - b.best_bid                 AS spread,
    round(20000 * (b.best_ask - b.best_bid) / (b.best_ask + b.best_bid), 2) AS spread_bps,
    coalesce(b.bid_depth, 0)                AS bid_depth,
    coalesce(b.ask_depth, 0)                AS ask_depth,
    coalesce(b.resting_bids, 0)             AS resting_bids,
    coalesce(b.resting_asks, 0)             AS resting_asks
FROM public.symbols s
LEFT JOIN flow f ON f.symbol = s.symbol
LEFT JOIN book b ON b.symbol = s.symbol
ORDER BY s.symbol
WITH NO DATA;

CREATE UNIQUE INDEX idx_mv_order_flow_symbol ON monitoring.mv_order_flow_metrics (symbol);
