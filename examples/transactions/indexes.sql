-- Keys and indexes, built once the rows are in, on the parents: every partition gets its own, later ones too.
--
-- A unique index has to contain the partition keys of all levels, and the months are split once more by hash of
-- transaction_id. With that in their keys, the two unique indexes on transaction_uuid and reference_number find rows but
-- promise nothing that the primary key does not: no index can keep one uuid, or one pending reference, from standing
-- under two ids. A platform that must be sure of it keeps them in a table of their own.

ALTER TABLE public.transactions          ADD PRIMARY KEY (transaction_id, partition_date);
ALTER TABLE public.transaction_audit_log ADD PRIMARY KEY (audit_id, partition_date);
ALTER TABLE public.transaction_metadata  ADD PRIMARY KEY (transaction_id, partition_date);
ALTER TABLE public.account_balances      ADD PRIMARY KEY (account_id);
ALTER TABLE public.session_logs          ADD PRIMARY KEY (session_id, started_at);

CREATE UNIQUE INDEX idx_unique_pending_reference
    ON public.transactions (reference_number, partition_date, transaction_id)
    WHERE status IN ('pending', 'processing');
CREATE UNIQUE INDEX idx_transactions_uuid
    ON public.transactions (transaction_uuid, partition_date, transaction_id);

-- Rows lie in the order of their time: a few pages of index for a month.
CREATE INDEX idx_transactions_partition_date_brin
    ON public.transactions USING brin (partition_date) WITH (pages_per_range = 128);
CREATE INDEX idx_transactions_created_brin
    ON public.transactions USING brin (created_at) WITH (pages_per_range = 64);

CREATE INDEX idx_transactions_source_account
    ON public.transactions (source_account_id, partition_date DESC, created_at DESC);
CREATE INDEX idx_transactions_destination_account
    ON public.transactions (destination_account_id, partition_date DESC, created_at DESC);
CREATE INDEX idx_transactions_reference ON public.transactions (reference_number);
CREATE INDEX idx_transactions_account_status_date
    ON public.transactions (source_account_id, status, created_at DESC);
CREATE INDEX idx_transactions_region_date
    ON public.transactions (regulatory_region, partition_date, created_at);
CREATE INDEX idx_transactions_risk_score ON public.transactions (risk_score, created_at) WHERE risk_score > 0.7;
-- Statements from the index alone. It can do all that idx_transactions_source_account can.
CREATE INDEX idx_transactions_account_covering
    ON public.transactions (source_account_id, partition_date DESC, created_at DESC)
    INCLUDE (transaction_uuid, amount, currency_code, status, transaction_type);

-- What must stay where it is for now, in any month, without reading the month: status IN ('pending', 'processing') by the
-- first of these two, completed_at IS NULL OR completed_at > now() - interval '30 days' by the second. One partial index
-- for all three is not to be had: its predicate may not name now().
CREATE INDEX idx_transactions_status_created ON public.transactions (status, created_at)
    WHERE status IN ('pending', 'processing');
CREATE INDEX idx_transactions_completed ON public.transactions (completed_at);

CREATE INDEX idx_transaction_metadata_custom_fields
    ON public.transaction_metadata USING gin (custom_fields jsonb_path_ops);
CREATE INDEX idx_transaction_metadata_merchant
    ON public.transaction_metadata USING gin (merchant_data jsonb_path_ops);
