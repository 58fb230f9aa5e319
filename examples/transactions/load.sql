-- All rows, made on the server from the plan of the months. Needs the tables of schema.sql with their partitions, and the
-- temporary table transactions_month.
--
-- Everything that looks random is bits of a hash of the row's id with the seed: rows do not depend on the plan, and dates
-- and moments are counted from the month's start, so neither on the session's settings. Shares and curves are integers of
-- 20 bits: 1048576 is all. OFFSET 0 keeps a hash from being computed again by every column that takes some of its bits.

INSERT INTO public.transactions (
    transaction_id, transaction_uuid, reference_number, transaction_type, status, amount, currency_code,
    source_account_id, destination_account_id, created_at, updated_at, completed_at, settlement_date, risk_score,
    compliance_flags, regulatory_region, created_by, updated_by, version, partition_date
)
SELECT
    id,
    encode(int8send(h) || int8send(g), 'hex')::uuid,
    'TX' || id,
    kind,
    CASE
        WHEN is_open AND k % 400 = 399 THEN 'processing'
        WHEN is_open THEN 'pending'
        WHEN (h >> 40) & 1023 < 41 THEN 'failed'
        WHEN (h >> 40) & 1023 < 62 THEN 'reversed'
        ELSE 'completed'
    END,
    -- 0.50 to 5,000.50, most of them small: the cube of an even share.
    (50 + (((cubed * 500000) >> 20))) * 0.01,
    CASE region WHEN 'US' THEN 'USD' WHEN 'EU' THEN 'EUR' WHEN 'UK' THEN 'GBP' ELSE 'SGD' END,
    source,
    CASE WHEN kind IN ('payment', 'transfer', 'refund') THEN 1 + ((((g >> 20) & 1048575) * accounts) >> 20) END,
    starts_at + created_us * interval '1 microsecond',
    starts_at + CASE WHEN is_open THEN created_us ELSE completed_us END * interval '1 microsecond',
    CASE WHEN NOT is_open THEN starts_at + completed_us * interval '1 microsecond' END,
    day + 2,
    -- One in six is above 0.7.
    ((((h # g) & 1023) * ((h # g) & 1023) * 101) >> 20) * 0.01,
    CASE
        WHEN (h # (g >> 17)) & 1023 < 20 THEN jsonb '{"aml_review": true}'
        WHEN (h # (g >> 17)) & 1023 < 30 THEN jsonb '{"manual_review": true, "sanctions_list": "EU"}'
        ELSE jsonb '{}'
    END,
    region,
    CASE WHEN k % 7 = 0 THEN 'batch' ELSE 'api' END,
    CASE WHEN is_open THEN 'api' ELSE 'settlement' END,
    CASE WHEN is_open THEN 1 ELSE 3 END,
    day
FROM (
    SELECT
        id, k, h, g, accounts, starts_at, created_us, completed_us, cubed, source,
        (ARRAY['US', 'US', 'US', 'US', 'US', 'EU', 'EU', 'EU', 'UK', 'APAC'])[1 + source % 10] AS region,
        (ARRAY['payment', 'payment', 'payment', 'payment', 'transfer', 'transfer', 'deposit', 'withdrawal', 'refund', 'fee'])
            [1 + ((h >> 50) & 1023) % 10] AS kind,
        starts_on + (created_us / 86400000000)::integer AS day,
        k >= held_from OR completed_us > age_us OR has_open AND k % 200 = 199 AS is_open
    FROM (
        SELECT
            id, k, h, g, accounts, starts_on, starts_at, age_us, held_from, has_open, created_us,
            -- A second to six hours later, most of them soon: the fourth power of an even share.
            created_us + 1000000 + ((((squared * squared) >> 20) * 21600000000) >> 20) AS completed_us,
            (((((g >> 40) & 1048575) * ((g >> 40) & 1048575)) >> 20) * ((g >> 40) & 1048575)) >> 20 AS cubed,
            -- Few accounts do the most.
            1 + ((((((g & 1048575) * (g & 1048575)) >> 20)) * accounts) >> 20) AS source
        FROM (
            SELECT
                *,
                k * step_us + (((h & 1048575) * step_us) >> 20) AS created_us,
                (((h >> 20) & 1048575) * ((h >> 20) & 1048575)) >> 20 AS squared
            FROM (
                SELECT
                    *,
                    hashint8extended(first_id + k, seed) AS h,
                    hashint8extended(first_id + k, seed + 1) AS g,
                    first_id + k AS id
                FROM (
                    SELECT *, generate_series(0, rows - 1) AS k
                    FROM pg_temp.transactions_month
                    ORDER BY first_id
                ) numbered
                OFFSET 0
            ) drawn
            OFFSET 0
        ) timed
        OFFSET 0
    ) shaped
    OFFSET 0
) made;

-- Every fifth transaction came through a shop.
INSERT INTO public.transaction_metadata (
    transaction_id, partition_date, merchant_data, customer_data, device_fingerprint, geolocation_data, custom_fields
)
SELECT
    transaction_id,
    partition_date,
    jsonb_build_object('merchant_id', h & 1023, 'category', (ARRAY['grocery', 'travel', 'fuel', 'online'])[1 + (h & 3)]),
    jsonb_build_object('customer_id', source_account_id),
    jsonb_build_object('device', to_hex(h)),
    jsonb_build_object('country', regulatory_region),
    jsonb_build_object('channel', (ARRAY['web', 'app', 'pos', 'pos'])[1 + ((h >> 10) & 3)], 'campaign', (h >> 12) & 63)
FROM (
    SELECT t.transaction_id, t.partition_date, t.source_account_id, t.regulatory_region,
           hashint8extended(t.transaction_id, s.seed + 2) AS h
    FROM public.transactions t
    CROSS JOIN (SELECT min(seed) AS seed FROM pg_temp.transactions_month) s
    WHERE t.transaction_id % 5 = 0
    OFFSET 0
) bought;

-- Every tenth transaction's latest change.
INSERT INTO public.transaction_audit_log (
    audit_id, transaction_id, partition_date, action, old_values, new_values, changed_at, changed_by, session_id,
    ip_address
)
SELECT
    transaction_id / 10,
    transaction_id,
    partition_date,
    CASE WHEN completed_at IS NULL THEN 'INSERT' ELSE 'UPDATE' END,
    CASE WHEN completed_at IS NOT NULL THEN jsonb_build_object('status', 'processing', 'version', version - 1) END,
    jsonb_build_object('status', status, 'version', version),
    updated_at,
    updated_by,
    'S' || transaction_id / 10,
    inet '10.0.0.0' + (transaction_id / 10) % 16777216
FROM public.transactions
WHERE transaction_id % 10 = 0;

-- A session for every tenth transaction, some minutes long.
INSERT INTO public.session_logs (session_id, account_id, started_at, ended_at, ip_address, user_agent)
SELECT
    'S' || id / 10,
    1 + (h & 1048575) * accounts / 1048576,
    starts_at + k * step_us * interval '1 microsecond',
    CASE WHEN k * step_us + 600000000 <= age_us THEN
        starts_at + (k * step_us + (h & 1023) * 585937) * interval '1 microsecond'
    END,
    inet '10.0.0.0' + (id / 10) % 16777216,
    (ARRAY['Mozilla/5.0', 'bank-app/4.2', 'bank-app/4.1', 'partner-api/1.0'])[1 + ((h >> 20) & 3)]
FROM (
    SELECT *, first_id + k AS id, hashint8extended(first_id + k, seed + 3) AS h
    FROM (
        -- From the month's first id that is a multiple of ten: those of the audit log.
        SELECT *, generate_series((10 - first_id % 10) % 10, rows - 1, 10) AS k
        FROM pg_temp.transactions_month
        ORDER BY first_id
    ) numbered
    OFFSET 0
) opened;

INSERT INTO public.account_balances (
    account_id, available_balance, pending_balance, reserved_balance, currency_code, last_transaction_id,
    last_transaction_at, updated_at, version
)
SELECT
    a.account_id,
    (h & 1048575) * 0.05,
    ((h >> 20) & 1023) * 0.01,
    0,
    (ARRAY['USD', 'USD', 'USD', 'USD', 'USD', 'EUR', 'EUR', 'EUR', 'GBP', 'SGD'])[1 + a.account_id % 10],
    l.transaction_id,
    l.created_at,
    coalesce(l.created_at, a.opened_at),
    1 + coalesce(l.transactions, 0)
FROM (
    SELECT account_id, opened_at, hashint8extended(account_id, seed + 4) AS h
    FROM (
        SELECT generate_series(1, accounts) AS account_id, starts_at AS opened_at, seed
        FROM pg_temp.transactions_month
        WHERE first_id = 1
    ) numbered
) a
-- The two newest months say enough of an account's latest; time and id grow together.
LEFT JOIN (
    SELECT source_account_id, max(transaction_id) AS transaction_id, max(created_at) AS created_at,
           count(*)::integer AS transactions
    FROM public.transactions
    WHERE partition_date >= (SELECT min(starts_on) FROM pg_temp.transactions_month WHERE has_open)
    GROUP BY source_account_id
) l ON l.source_account_id = a.account_id;

SELECT setval('public.transactions_transaction_id_seq', max(first_id + rows) - 1) FROM pg_temp.transactions_month;
SELECT setval('public.transaction_audit_log_audit_id_seq', (max(first_id + rows) - 1) / 10)
  FROM pg_temp.transactions_month;
