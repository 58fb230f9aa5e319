-- What follows from the funds' histories and the commitments: every event is one activity of each of its fund's partners,
-- every quarter one account and one set of figures. A million rows in a second or two, without leaving the server.
--
-- Needs the tables of schema.sql with the commitments loaded, and the temporary tables lp_event and lp_quarter. Every id is
-- computed, none is counted: rows do not depend on the plan. Moments are built from dates in UTC by name, so neither do they
-- depend on the session's settings.

-- The commitments are hashed in memory, and the stream of activities keeps the order of their dates.
SET LOCAL work_mem = '64MB';

ANALYZE public.lp_fund_commitments, pg_temp.lp_event, pg_temp.lp_quarter;

INSERT INTO public.capital_activities
    (id, commitment_id, fund_id, activity_type, activity_date, amount_cents, metadata, created_at)
SELECT
    e.first_id + c.id - e.first_commitment,
    c.id,
    e.fund_id,
    e.kind,
    e.happened_on,
    e.share * (c.commitment_amount_cents / 1000000),
    CASE WHEN (e.first_id + c.id) % 50 = 0 THEN jsonb '{"wire": "late"}' END,
    (e.happened_on + time '17:00') AT TIME ZONE 'UTC'
FROM (SELECT * FROM pg_temp.lp_event ORDER BY first_id) e
CROSS JOIN LATERAL generate_series(e.first_commitment, e.last_commitment) AS pledged (id)
JOIN public.lp_fund_commitments c ON c.id = pledged.id;

-- Numbered quarter by quarter, as they were made.
INSERT INTO public.lp_capital_accounts
    (id, commitment_id, as_of_date, beginning_nav_cents, contributions_cents, distributions_cents, net_gain_cents,
     ending_nav_cents, contributed_to_date_cents, distributed_to_date_cents, created_at, updated_at)
SELECT
    q.number * total.commitments + c.id,
    c.id,
    q.ends_on,
    q.beginning_nav * unit,
    q.contributions * unit,
    q.distributions * unit,
    (q.ending_nav - q.beginning_nav - q.contributions + q.distributions) * unit,
    q.ending_nav * unit,
    q.contributed * unit,
    q.distributed * unit,
    made_at,
    made_at
FROM (SELECT count(*) AS commitments FROM public.lp_fund_commitments) total
CROSS JOIN pg_temp.lp_quarter q
JOIN public.lp_fund_commitments c ON c.fund_id = q.fund_id
CROSS JOIN LATERAL (VALUES (c.commitment_amount_cents / 1000000, (q.ends_on + time '22:00') AT TIME ZONE 'UTC')) AS v (unit, made_at)
ORDER BY 1;

INSERT INTO public.lp_performance_snapshots
    (id, commitment_id, snapshot_date, net_irr_percent, gross_irr_percent, moic, dpi, rvpi, tvpi, created_at, updated_at)
SELECT
    q.number * total.commitments + c.id,
    c.id,
    q.ends_on,
    q.net_irr_percent,
    q.gross_irr_percent,
    q.moic,
    q.dpi,
    q.rvpi,
    q.dpi + q.rvpi,
    made_at,
    made_at
FROM (SELECT count(*) AS commitments FROM public.lp_fund_commitments) total
CROSS JOIN pg_temp.lp_quarter q
JOIN public.lp_fund_commitments c ON c.fund_id = q.fund_id
CROSS JOIN LATERAL (VALUES ((q.ends_on + time '22:30') AT TIME ZONE 'UTC')) AS v (made_at)
ORDER BY 1;

-- Two reports a quarter on each commitment: its account, and what the fund reports, which at the year's end is audited.
INSERT INTO public.lp_reports
    (id, lp_id, commitment_id, report_type, period_start, period_end, status, metadata, created_at, updated_at)
SELECT
    (q.number * 2 + report.number) * total.commitments + c.id,
    c.lp_id,
    c.id,
    CASE WHEN report.number = 0 THEN 'capital_account' WHEN extract(month FROM q.ends_on) = 12 THEN 'annual' ELSE 'quarterly' END,
    (date_trunc('month', q.ends_on::timestamp) - interval '2 months')::date,
    q.ends_on,
    CASE WHEN c.id % 100 = q.number THEN 'failed' WHEN q.number < newest.number OR c.id % 10 > 2 THEN 'delivered'
         WHEN c.id % 10 > 0 THEN 'ready' ELSE 'pending' END,
    CASE WHEN c.id % 4 = 0 THEN jsonb '{"format": "xlsx"}' ELSE jsonb '{"format": "pdf"}' END,
    made_at,
    made_at
FROM (SELECT count(*) AS commitments FROM public.lp_fund_commitments) total
CROSS JOIN (SELECT max(number) AS number FROM pg_temp.lp_quarter) newest
CROSS JOIN pg_temp.lp_quarter q
JOIN public.lp_fund_commitments c ON c.fund_id = q.fund_id
CROSS JOIN (VALUES (0), (1)) AS report (number)
CROSS JOIN LATERAL (VALUES ((q.ends_on + time '23:00') AT TIME ZONE 'UTC')) AS v (made_at);
