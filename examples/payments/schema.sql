-- A payments platform: transactions, one partition a month, and the function that takes pending ones on in batches.
--
-- Only the table and its function; the partitions are made by install (their months depend on the date) and the keys and
-- indexes by indexes.sql, after the load.

-- A sequence, not an identity column: from PostgreSQL 17 on, a table that has one cannot be attached as a partition.
CREATE SEQUENCE public.transactions_id_seq;

CREATE TABLE public.transactions (
    transaction_id         bigint         NOT NULL DEFAULT nextval('public.transactions_id_seq'),
    reference_number       text           NOT NULL,
    transaction_type       text           NOT NULL CHECK (transaction_type IN ('payment', 'transfer', 'refund')),
    status                 text           NOT NULL DEFAULT 'pending'
                           CHECK (status IN ('pending', 'processing', 'completed', 'failed', 'reversed')),
    amount                 numeric(19, 4) NOT NULL CHECK (amount > 0),
    currency_code          char(3)        NOT NULL DEFAULT 'USD' CHECK (currency_code ~ '^[A-Z]{3}$'),
    source_account_id      bigint         NOT NULL,
    destination_account_id bigint,
    created_at             timestamptz    NOT NULL DEFAULT now(),
    updated_at             timestamptz    NOT NULL DEFAULT now(),
    completed_at           timestamptz,
    version                integer        NOT NULL DEFAULT 1,
    partition_date         date           NOT NULL DEFAULT (now() AT TIME ZONE 'UTC')::date
) PARTITION BY RANGE (partition_date);

-- Takes on up to 1,000 transactions that have been pending for five minutes, oldest first; returns how many.
--
-- The document's function does it row by row in a loop; this is the same in one statement. What somebody else has locked
-- is left for the next time. 0 means that nothing is left: a job calls it until then, each time in a transaction.
CREATE FUNCTION public.process_pending_transactions_batch() RETURNS integer
LANGUAGE plpgsql
AS $$
DECLARE
    processed integer;
BEGIN
    WITH batch AS MATERIALIZED (
        SELECT transaction_id, partition_date
          FROM public.transactions
         WHERE status = 'pending' AND created_at < now() - interval '5 minutes'
         ORDER BY created_at, transaction_id
         LIMIT 1000
           FOR UPDATE SKIP LOCKED
    )
    UPDATE public.transactions AS t
       SET status = 'processing', updated_at = now(), version = t.version + 1
      FROM batch b
     WHERE t.transaction_id = b.transaction_id AND t.partition_date = b.partition_date;
    GET DIAGNOSTICS processed = ROW_COUNT;
    RETURN processed;
END
$$;
