-- The five materialized views of the lending platform's dashboards, upstream first.
--
-- Rules that all of them keep:
--   * no column tells when the view was refreshed: such a column makes every row new on every refresh, and CONCURRENTLY
--     then rewrites the whole view. The time of the last refresh is in upkeep.view_freshness;
--   * a unique index over plain NOT NULL columns, without which CONCURRENTLY is refused;
--   * ORDER BY that key: the comparison that CONCURRENTLY makes then reads both sides in order;
--   * no join multiplies rows: children are aggregated down to the key they are joined by;
--   * dates of timestamps are taken in UTC by name: the result must not depend on the refreshing session's TimeZone.

-- 1. Where does each active loan stand? -- every five minutes
--
-- current_dpd is the highest number of days past due that collections ever recorded for the loan: what the platform's
-- dashboards call current.
CREATE MATERIALIZED VIEW public.mv_current_loan_status_realtime AS
WITH worst AS (
    SELECT loan_id, max(dpd_snapshot) AS dpd
    FROM public.collections_event
    GROUP BY loan_id
)
SELECT
    l.id                                    AS loan_id,
    l.loan_number,
    l.currency_code,
    l.principal_amount,
    l.status                                AS loan_status,
    p.category                              AS product_category,
    p.business_unit,
    b.display_name                          AS borrower_name,
    coalesce(risk.status_value, 'normal')   AS current_risk_level,
    coalesce(stage.status_value, 'current') AS current_collections_stage,
    coalesce(w.dpd, 0)                      AS current_dpd,
    CASE
        WHEN coalesce(w.dpd, 0) = 0 THEN 'Current'
        WHEN w.dpd <= 7             THEN '1-7 DPD'
        WHEN w.dpd <= 30            THEN '8-30 DPD'
        WHEN w.dpd <= 60            THEN '31-60 DPD'
        WHEN w.dpd <= 90            THEN '61-90 DPD'
        WHEN w.dpd <= 180           THEN '91-180 DPD'
        ELSE '180+ DPD'
    END                                     AS dpd_bucket
FROM public.loan l
JOIN public.product p ON p.id = l.product_id
JOIN public.party b ON b.id = l.borrower_party_id
LEFT JOIN public.current_loan_status risk ON risk.loan_id = l.id AND risk.status_type = 'risk_level'
LEFT JOIN public.current_loan_status stage ON stage.loan_id = l.id AND stage.status_type = 'collections_stage'
LEFT JOIN worst w ON w.loan_id = l.id
WHERE l.status = 'active'
ORDER BY l.id
WITH NO DATA;

CREATE UNIQUE INDEX idx_mv_current_loan_status_loan_id ON public.mv_current_loan_status_realtime (loan_id);
CREATE INDEX idx_mv_current_loan_status_dpd ON public.mv_current_loan_status_realtime (current_dpd);
CREATE INDEX idx_mv_current_loan_status_category ON public.mv_current_loan_status_realtime (product_category);
CREATE INDEX idx_mv_current_loan_status_risk ON public.mv_current_loan_status_realtime (current_risk_level);
CREATE INDEX idx_mv_current_loan_status_dpd_bucket ON public.mv_current_loan_status_realtime (dpd_bucket);

-- 2. How large is the portfolio, by entity, product, currency and status? -- every five minutes
CREATE MATERIALIZED VIEW public.mv_portfolio_summary_realtime AS
SELECT
    le.name                 AS legal_entity_name,
    le.country_code,
    p.category              AS product_category,
    p.business_unit,
    l.currency_code,
    l.status                AS loan_status,
    count(*)                AS loan_count,
    sum(l.principal_amount) AS total_principal,
    avg(l.principal_amount) AS avg_loan_amount,
    avg(l.interest_rate)    AS avg_interest_rate,
    min(l.start_date)       AS earliest_start,
    max(l.end_date)         AS latest_end,
    count(*) FILTER (WHERE l.status = 'active')      AS active_loans,
    count(*) FILTER (WHERE l.status = 'closed')      AS closed_loans,
    count(*) FILTER (WHERE l.status = 'written_off') AS written_off_loans,
    coalesce(sum(l.principal_amount) FILTER (WHERE l.status = 'active'), 0)      AS active_principal,
    coalesce(sum(l.principal_amount) FILTER (WHERE l.status = 'written_off'), 0) AS written_off_principal
FROM public.loan l
JOIN public.product p ON p.id = l.product_id
JOIN public.legal_entity le ON le.id = l.legal_entity_id
GROUP BY le.name, le.country_code, p.category, p.business_unit, l.currency_code, l.status
ORDER BY le.name, le.country_code, p.category, p.business_unit, l.currency_code, l.status
WITH NO DATA;

CREATE UNIQUE INDEX idx_mv_portfolio_summary_key ON public.mv_portfolio_summary_realtime
    (legal_entity_name, country_code, product_category, business_unit, currency_code, loan_status);
CREATE INDEX idx_mv_portfolio_summary_category ON public.mv_portfolio_summary_realtime (product_category);
CREATE INDEX idx_mv_portfolio_summary_status ON public.mv_portfolio_summary_realtime (loan_status);

-- 3. How does each loan pay? -- every fifteen minutes
--
-- Columns that speak of payments count payments. A payment is split over several allocations (principal, fee, penalty),
-- so counting those against count(DISTINCT payment) would put the share of payments on time above 100 %.
--   on_time_payments    payments that arrived no later than the earliest instalment they paid was due
--   avg_days_late       days after that date, 0 if not late or not for an instalment, averaged over payments
--   avg_payment_amount  what a payment brought to this loan, on average
CREATE MATERIALIZED VIEW public.mv_payment_summary_detailed AS
WITH received AS (
    -- One row per loan and payment. Filter, join and group in this order is one sort; aggregating the allocations
    -- before the join was measured at 1.5 times as long: it keeps four running sums for 500,000 groups.
    SELECT
        pa.loan_id,
        pa.payment_id,
        p.received_at,
        (p.received_at AT TIME ZONE 'UTC')::date - min(al.due_date)        AS days_late,
        sum(pa.allocated_amount)                                           AS allocated,
        sum(pa.allocated_amount) FILTER (WHERE pa.component = 'principal') AS principal,
        sum(pa.allocated_amount) FILTER (WHERE pa.component = 'rc_fee')    AS fee,
        sum(pa.allocated_amount) FILTER (WHERE pa.component = 'penalty')   AS penalty
    FROM public.payment_allocation pa
    JOIN public.payment p ON p.id = pa.payment_id
    LEFT JOIN public.amortisation_line al ON al.id = pa.line_id
    WHERE p.status = 'completed' AND p.direction = 'inbound'
    GROUP BY pa.loan_id, pa.payment_id, p.received_at
)
SELECT
    loan_id,
    count(*)                                        AS payment_count,
    sum(allocated)                                  AS total_allocated,
    max(received_at)                                AS last_payment_date,
    min(received_at)                                AS first_payment_date,
    avg(allocated)                                  AS avg_payment_amount,
    count(*) FILTER (WHERE days_late <= 0)          AS on_time_payments,
    avg(greatest(coalesce(days_late, 0), 0))        AS avg_days_late,
    coalesce(sum(principal), 0)                     AS principal_payments,
    coalesce(sum(fee), 0)                           AS fee_payments,
    coalesce(sum(penalty), 0)                       AS penalty_payments,
    round(100.0 * count(*) FILTER (WHERE days_late <= 0) / count(*), 2) AS on_time_payment_rate_pct
FROM received
GROUP BY loan_id
ORDER BY loan_id
WITH NO DATA;

CREATE UNIQUE INDEX idx_mv_payment_summary_loan_id ON public.mv_payment_summary_detailed (loan_id);
CREATE INDEX idx_mv_payment_summary_last_payment ON public.mv_payment_summary_detailed (last_payment_date);

-- 4. What has been done to collect each loan? -- every fifteen minutes
--
-- Two events of one moment: the one recorded later is the latest, so that the answer is the same on every refresh.
CREATE MATERIALIZED VIEW public.mv_collections_summary_detailed AS
WITH metrics AS (
    SELECT
        loan_id,
        count(*)          AS total_events,
        max(dpd_snapshot) AS max_dpd,
        min(event_at)     AS first_collections_event,
        max(event_at)     AS last_collections_event,
        count(*) FILTER (WHERE event_type = 'reminder_sent')                                AS reminder_count,
        count(*) FILTER (WHERE event_type IN ('call_attempt', 'call_successful'))           AS call_attempts,
        count(*) FILTER (WHERE event_type = 'call_successful')                              AS successful_calls,
        count(*) FILTER (WHERE event_type IN ('legal_notice', 'lawyer_letter', 'court_filing')) AS legal_actions,
        max(event_at) FILTER (WHERE resolution_status = 'resolved')                         AS resolution_date,
        count(*) FILTER (WHERE resolution_status = 'resolved')                              AS resolved_events,
        (array_agg(event_type ORDER BY event_at DESC, id DESC))[1]                          AS latest_event_type
    FROM public.collections_event
    GROUP BY loan_id
)
SELECT
    metrics.*,
    CASE WHEN call_attempts > 0 THEN round(100.0 * successful_calls / call_attempts, 2) ELSE 0 END
        AS call_success_rate_pct,
    extract(day FROM resolution_date - first_collections_event) AS resolution_days
FROM metrics
ORDER BY loan_id
WITH NO DATA;

CREATE UNIQUE INDEX idx_mv_collections_summary_loan_id ON public.mv_collections_summary_detailed (loan_id);
CREATE INDEX idx_mv_collections_summary_max_dpd ON public.mv_collections_summary_detailed (max_dpd);
CREATE INDEX idx_mv_collections_summary_latest_event ON public.mv_collections_summary_detailed (latest_event_type);

-- 5. What does the default model learn from? -- daily, 06:00 UTC
--
-- Reads three of the views above, so it is as old as the oldest of them. CURRENT_DATE is its only function of time: the
-- result changes with the data and at midnight, and may be left alone in between. loan_age_days makes every row new
-- every day; the loans younger than 30 days are left out, they have nothing to learn from.
CREATE MATERIALIZED VIEW public.mv_ml_features_cache AS
SELECT
    l.id                                       AS loan_id,
    l.principal_amount,
    l.interest_rate,
    l.rc_fee_rate,
    l.end_date - l.start_date                  AS loan_duration_days,
    CURRENT_DATE - l.start_date                AS loan_age_days,
    p.category                                 AS product_category,
    p.business_unit,
    b.kind                                     AS borrower_type,
    l.currency_code,
    le.country_code,
    coalesce(ps.payment_count, 0)              AS total_payments_made,
    coalesce(ps.on_time_payment_rate_pct, 0)   AS on_time_payment_rate_pct,
    coalesce(ps.avg_days_late, 0)              AS avg_days_late,
    coalesce(ps.total_allocated, 0)            AS total_amount_paid,
    coalesce(cs.total_events, 0)               AS collections_events_count,
    coalesce(cs.max_dpd, 0)                    AS max_dpd_reached,
    coalesce(cs.call_success_rate_pct, 0)      AS call_success_rate_pct,
    coalesce(cs.legal_actions, 0)              AS legal_actions_count,
    coalesce(cls.current_risk_level, 'normal') AS current_risk_level,
    coalesce(cls.current_dpd, 0)               AS current_dpd,
    coalesce(cls.dpd_bucket, 'Current')        AS dpd_bucket,
    CASE WHEN l.status = 'written_off' THEN 1 ELSE 0 END AS is_written_off,
    CASE WHEN cls.current_risk_level IN ('default_level_1', 'default_level_2') THEN 1 ELSE 0 END
        AS is_currently_default,
    round(100.0 * coalesce(ps.total_allocated, 0) / l.principal_amount, 2) AS repayment_progress_pct,
    extract(month FROM l.start_date)           AS origination_month,
    extract(dow FROM l.start_date)             AS origination_day_of_week
FROM public.loan l
JOIN public.product p ON p.id = l.product_id
JOIN public.party b ON b.id = l.borrower_party_id
JOIN public.legal_entity le ON le.id = l.legal_entity_id
LEFT JOIN public.mv_payment_summary_detailed ps ON ps.loan_id = l.id
LEFT JOIN public.mv_collections_summary_detailed cs ON cs.loan_id = l.id
LEFT JOIN public.mv_current_loan_status_realtime cls ON cls.loan_id = l.id
WHERE l.start_date <= CURRENT_DATE - 30
ORDER BY l.id
WITH NO DATA;

CREATE UNIQUE INDEX idx_mv_ml_features_loan_id ON public.mv_ml_features_cache (loan_id);
CREATE INDEX idx_mv_ml_features_category ON public.mv_ml_features_cache (product_category);
CREATE INDEX idx_mv_ml_features_risk ON public.mv_ml_features_cache (current_risk_level);
CREATE INDEX idx_mv_ml_features_dpd ON public.mv_ml_features_cache (current_dpd);
