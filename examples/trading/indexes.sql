-- Keys and indexes of the trading tables, built once the rows are in. A primary key has to include the partition key.

ALTER TABLE public.orders ADD PRIMARY KEY (created_at, id);
ALTER TABLE public.trades ADD PRIMARY KEY (executed_at, id);

-- A user's orders; the check that a client's order has not been sent twice.
CREATE INDEX idx_orders_user_status_created ON public.orders (user_id, status, created_at DESC);
CREATE INDEX idx_orders_client_order_id_user ON public.orders (client_order_id, user_id);
-- The book: the few orders that rest are found in every day's partition without reading it.
CREATE INDEX idx_orders_depth_covering ON public.orders (symbol, side, price) INCLUDE (quantity, filled_quantity)
    WHERE status IN ('open', 'partially_filled');

CREATE INDEX idx_trades_symbol_executed ON public.trades (symbol, executed_at DESC);
CREATE INDEX idx_trades_buyer_symbol ON public.trades (buyer_user_id, symbol);
CREATE INDEX idx_trades_seller_symbol ON public.trades (seller_user_id, symbol);
