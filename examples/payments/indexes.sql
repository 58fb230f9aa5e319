-- Keys and indexes of the transactions, built once the rows are in. A primary key has to include the partition key.

ALTER TABLE public.transactions ADD PRIMARY KEY (transaction_id, partition_date);

-- The few that are open are found in every month's partition, oldest first, without reading it.
CREATE INDEX idx_transactions_status_created ON public.transactions (status, created_at)
    WHERE status IN ('pending', 'processing');
CREATE INDEX idx_transactions_source_account ON public.transactions (source_account_id, created_at DESC);
CREATE INDEX idx_transactions_reference ON public.transactions (reference_number);
