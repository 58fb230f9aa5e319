-- A payments platform with seven years to keep: transactions and what belongs to them, one partition a month (UTC).
--
-- Only the tables; the partitions are made by install (their months depend on the date) and the keys and indexes by
-- indexes.sql, after the load. All of them are partitioned by the transaction's own date, so that a month leaves as
-- one, with its metadata and its audit log.

CREATE TABLE public.transactions (
    transaction_id         bigserial      NOT NULL,
    transaction_uuid       uuid           NOT NULL DEFAULT gen_random_uuid(),
    reference_number       varchar(64)    NOT NULL,
    transaction_type       varchar(32)    NOT NULL,
    status                 varchar(16)    NOT NULL DEFAULT 'pending'
                           CHECK (status IN ('pending', 'processing', 'completed', 'failed', 'reversed')),
    amount                 numeric(19, 4) NOT NULL,
    currency_code          char(3)        NOT NULL DEFAULT 'USD',
    source_account_id      bigint         NOT NULL,
    destination_account_id bigint,
    created_at             timestamptz    NOT NULL DEFAULT now(),
    updated_at             timestamptz    NOT NULL DEFAULT now(),
    completed_at           timestamptz,
    settlement_date        date           NOT NULL,
    risk_score             numeric(3, 2),
    compliance_flags       jsonb          DEFAULT '{}',
    regulatory_region      varchar(8)     NOT NULL,
    created_by             varchar(64)    NOT NULL,
    updated_by             varchar(64)    NOT NULL,
    version                integer        NOT NULL DEFAULT 1,
    -- The date in UTC and not CURRENT_DATE, which is the date of whoever inserts: sessions would disagree on the month.
    partition_date         date           NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')::date,
    CONSTRAINT chk_positive_amount CHECK (amount > 0),
    CONSTRAINT chk_currency_format CHECK (currency_code ~ '^[A-Z]{3}$')
) PARTITION BY RANGE (partition_date);

-- Append-only. partition_date is the transaction's, not that of the change.
CREATE TABLE public.transaction_audit_log (
    audit_id       bigserial   NOT NULL,
    transaction_id bigint      NOT NULL,
    partition_date date        NOT NULL,
    action         varchar(16) NOT NULL,
    old_values     jsonb,
    new_values     jsonb,
    changed_at     timestamptz NOT NULL DEFAULT now(),
    changed_by     varchar(64) NOT NULL,
    session_id     varchar(128),
    ip_address     inet
) PARTITION BY RANGE (partition_date);

CREATE TABLE public.transaction_metadata (
    transaction_id     bigint NOT NULL,
    partition_date     date   NOT NULL,
    merchant_data      jsonb,
    customer_data      jsonb,
    device_fingerprint jsonb,
    geolocation_data   jsonb,
    custom_fields      jsonb  DEFAULT '{}'
) PARTITION BY RANGE (partition_date);

CREATE TABLE public.account_balances (
    account_id          bigint         NOT NULL,
    available_balance   numeric(19, 4) NOT NULL DEFAULT 0,
    pending_balance     numeric(19, 4) NOT NULL DEFAULT 0,
    reserved_balance    numeric(19, 4) NOT NULL DEFAULT 0,
    currency_code       char(3)        NOT NULL,
    last_transaction_id bigint,
    last_transaction_at timestamptz,
    updated_at          timestamptz    NOT NULL DEFAULT now(),
    version             integer        NOT NULL DEFAULT 1
);

-- The one that is partitioned by a moment, and the one with a default partition: a session is logged whatever its date.
CREATE TABLE public.session_logs (
    session_id varchar(128) NOT NULL,
    account_id bigint       NOT NULL,
    started_at timestamptz  NOT NULL DEFAULT now(),
    ended_at   timestamptz,
    ip_address inet,
    user_agent varchar(256)
) PARTITION BY RANGE (started_at);
