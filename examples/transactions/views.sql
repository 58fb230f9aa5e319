-- What happened on each day, in each region, by type of transaction? -- daily, or when an application asks for it
--
-- The last 90 days and today. The window moves at midnight and not with the clock, so that the result can change only
-- with the data or the date. Keyed by plain NOT NULL columns and ordered by them, which is what CONCURRENTLY needs and likes.
CREATE MATERIALIZED VIEW public.daily_transaction_summary AS
SELECT
    partition_date,
    regulatory_region,
    transaction_type,
    count(*)                          AS transaction_count,
    sum(amount)                       AS total_amount,
    avg(amount)                       AS avg_amount,
    count(DISTINCT source_account_id) AS unique_accounts
FROM public.transactions
WHERE partition_date >= CURRENT_DATE - 90
GROUP BY partition_date, regulatory_region, transaction_type
ORDER BY partition_date, regulatory_region, transaction_type
WITH NO DATA;

CREATE UNIQUE INDEX idx_daily_summary_unique
    ON public.daily_transaction_summary (partition_date, regulatory_region, transaction_type);
