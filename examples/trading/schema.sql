-- A trade engine: orders and the trades that match them, one partition a day (UTC).
--
-- Only the tables; the partitions are made by install (their days depend on the date) and the keys and indexes by
-- indexes.sql, after the load.

CREATE SCHEMA monitoring;

CREATE TABLE public.symbols (
    symbol      text PRIMARY KEY,
    base_asset  text NOT NULL,
    quote_asset text NOT NULL
);

CREATE TABLE public.users (
    id           bigint PRIMARY KEY,
    display_name text NOT NULL
);

-- Sequences, not identity columns: from PostgreSQL 17 on, a table that has an identity column cannot be attached as
-- a partition. No foreign keys to users and symbols either: with them every detach of an old day locks those tables.
CREATE SEQUENCE public.orders_id_seq;
CREATE SEQUENCE public.trades_id_seq;

CREATE TABLE public.orders (
    id              bigint         NOT NULL DEFAULT nextval('public.orders_id_seq'),
    user_id         bigint         NOT NULL,
    symbol          text           NOT NULL,
    side            text           NOT NULL CHECK (side IN ('buy', 'sell')),
    order_type      text           NOT NULL CHECK (order_type IN ('limit', 'market')),
    price           numeric(20, 8) CHECK (price > 0 OR order_type = 'market'),
    quantity        numeric(20, 8) NOT NULL CHECK (quantity > 0),
    filled_quantity numeric(20, 8) NOT NULL DEFAULT 0 CHECK (filled_quantity BETWEEN 0 AND quantity),
    status          text           NOT NULL CHECK (status IN ('open', 'partially_filled', 'filled', 'cancelled')),
    client_order_id text           NOT NULL,
    created_at      timestamptz    NOT NULL DEFAULT now()
) PARTITION BY RANGE (created_at);

-- Trades name their orders by id alone; the orders may be of an earlier day.
CREATE TABLE public.trades (
    id             bigint         NOT NULL DEFAULT nextval('public.trades_id_seq'),
    symbol         text           NOT NULL,
    price          numeric(20, 8) NOT NULL CHECK (price > 0),
    quantity       numeric(20, 8) NOT NULL CHECK (quantity > 0),
    buy_order_id   bigint         NOT NULL,
    sell_order_id  bigint         NOT NULL,
    buyer_user_id  bigint         NOT NULL,
    seller_user_id bigint         NOT NULL,
    taker_side     text           NOT NULL CHECK (taker_side IN ('buy', 'sell')),     -- who crossed the spread
    buyer_fee      numeric(20, 8) NOT NULL,                                           -- in the quote asset
    seller_fee     numeric(20, 8) NOT NULL,
    executed_at    timestamptz    NOT NULL DEFAULT now()
) PARTITION BY RANGE (executed_at);
