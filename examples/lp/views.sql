-- The three materialized views of the LP portal, upstream first.
--
-- No column tells when a view was refreshed (upkeep.view_freshness does), each has a unique index over plain NOT NULL
-- columns and is ordered by it, no join multiplies rows, and no function of time is in any of them: they change with the
-- data alone. capital_activities, the one large table, is read once by each of the two views that need it.

-- 1. How did each commitment perform when it was last measured?
--
-- One probe of the index per commitment: what it costs does not grow with the history.
CREATE MATERIALIZED VIEW public.lp_performance_latest AS
SELECT
    c.id      AS commitment_id,
    c.lp_id,
    c.fund_id,
    p.snapshot_date,
    p.net_irr_percent,
    p.gross_irr_percent,
    p.moic,
    p.dpi,
    p.rvpi,
    p.tvpi
FROM public.lp_fund_commitments c
CROSS JOIN LATERAL (
    SELECT s.snapshot_date, s.net_irr_percent, s.gross_irr_percent, s.moic, s.dpi, s.rvpi, s.tvpi
    FROM public.lp_performance_snapshots s
    WHERE s.commitment_id = c.id
    ORDER BY s.snapshot_date DESC
    LIMIT 1
) p
ORDER BY c.id
WITH NO DATA;

CREATE UNIQUE INDEX lp_performance_latest_commitment_idx ON public.lp_performance_latest (commitment_id);
CREATE INDEX lp_performance_latest_lp_idx ON public.lp_performance_latest (lp_id, fund_id);
CREATE INDEX lp_performance_latest_fund_idx ON public.lp_performance_latest (fund_id);

-- 2. What does each partner see first?
--
-- nav_cents is the last valuation, rolled forward: what was paid in since is added, what was paid out is taken off, until
-- the next valuation. A fund that pays out more than it was valued at is worth nothing until then, not less.
CREATE MATERIALIZED VIEW public.lp_dashboard_summary AS
WITH moved AS (
    SELECT
        commitment_id,
        coalesce(sum(amount_cents) FILTER (WHERE activity_type <> 'distribution'), 0) AS contributed,
        coalesce(sum(amount_cents) FILTER (WHERE activity_type = 'distribution'), 0)  AS distributed,
        max(activity_date)                                                            AS last_activity_date
    FROM public.capital_activities
    GROUP BY commitment_id
), standing AS (
    SELECT
        c.lp_id,
        c.commitment_status,
        c.commitment_amount_cents    AS committed,
        coalesce(m.contributed, 0)   AS contributed,
        coalesce(m.distributed, 0)   AS distributed,
        m.last_activity_date,
        a.as_of_date,
        greatest(0, coalesce(a.ending_nav_cents, 0)
            + coalesce(m.contributed, 0) - coalesce(a.contributed_to_date_cents, 0)
            - coalesce(m.distributed, 0) + coalesce(a.distributed_to_date_cents, 0)) AS nav
    FROM public.lp_fund_commitments c
    LEFT JOIN moved m ON m.commitment_id = c.id
    LEFT JOIN LATERAL (
        SELECT e.as_of_date, e.ending_nav_cents, e.contributed_to_date_cents, e.distributed_to_date_cents
        FROM public.lp_capital_accounts e
        WHERE e.commitment_id = c.id
        ORDER BY e.as_of_date DESC
        LIMIT 1
    ) a ON true
), totals AS (
    SELECT
        lp_id,
        count(*)                                                AS fund_count,
        count(*) FILTER (WHERE commitment_status = 'active')    AS active_fund_count,
        sum(committed)::bigint                                  AS committed,
        sum(contributed)::bigint                                AS contributed,
        sum(distributed)::bigint                                AS distributed,
        coalesce(sum(committed - contributed) FILTER (WHERE commitment_status = 'active'), 0)::bigint AS unfunded,
        sum(nav)::bigint                                        AS nav,
        max(as_of_date)                                         AS latest_valuation_date,
        max(last_activity_date)                                 AS last_activity_date
    FROM standing
    GROUP BY lp_id
)
SELECT
    lp.id                               AS lp_id,
    lp.legal_name,
    lp.entity_type,
    lp.status,
    coalesce(t.fund_count, 0)           AS fund_count,
    coalesce(t.active_fund_count, 0)    AS active_fund_count,
    coalesce(t.committed, 0)            AS total_commitment_cents,
    coalesce(t.contributed, 0)          AS total_contributed_cents,
    coalesce(t.distributed, 0)          AS total_distributed_cents,
    coalesce(t.unfunded, 0)             AS total_unfunded_cents,
    coalesce(t.nav, 0)                  AS total_nav_cents,
    round(t.distributed::numeric / nullif(t.contributed, 0), 4)     AS dpi,
    round(t.nav::numeric / nullif(t.contributed, 0), 4)             AS rvpi,
    round(t.distributed::numeric / nullif(t.contributed, 0), 4)
        + round(t.nav::numeric / nullif(t.contributed, 0), 4)       AS tvpi,
    t.latest_valuation_date,
    t.last_activity_date
FROM public.limited_partners lp
LEFT JOIN totals t ON t.lp_id = lp.id
ORDER BY lp.id
WITH NO DATA;

CREATE UNIQUE INDEX lp_dashboard_summary_lp_idx ON public.lp_dashboard_summary (lp_id);
CREATE INDEX lp_dashboard_summary_status_idx ON public.lp_dashboard_summary (status);

-- 3. How does each fund stand with its partners?
--
-- Rates and multiples are what the partners were last told, so it reads the first view.
CREATE MATERIALIZED VIEW public.fund_lp_summary AS
WITH pledged AS (
    SELECT
        fund_id,
        count(*)                                                AS lp_count,
        count(*) FILTER (WHERE commitment_status = 'active')    AS active_lp_count,
        sum(commitment_amount_cents)::bigint                    AS committed,
        max(commitment_amount_cents)                            AS largest_commitment
    FROM public.lp_fund_commitments
    GROUP BY fund_id
), moved AS (
    SELECT
        fund_id,
        coalesce(sum(amount_cents) FILTER (WHERE activity_type = 'capital_call'), 0)::bigint   AS called,
        coalesce(sum(amount_cents) FILTER (WHERE activity_type = 'management_fee'), 0)::bigint AS fees,
        coalesce(sum(amount_cents) FILTER (WHERE activity_type = 'distribution'), 0)::bigint   AS distributed,
        max(activity_date)                                                                     AS last_activity_date
    FROM public.capital_activities
    GROUP BY fund_id
), measured AS (
    SELECT
        fund_id,
        round(avg(net_irr_percent), 4)  AS average_net_irr_percent,
        round(avg(tvpi), 4)             AS average_tvpi,
        max(snapshot_date)              AS measured_on
    FROM public.lp_performance_latest
    GROUP BY fund_id
)
SELECT
    p.fund_id,
    p.lp_count,
    p.active_lp_count,
    p.committed                         AS total_commitment_cents,
    p.largest_commitment                AS largest_commitment_cents,
    coalesce(m.called, 0)               AS total_called_cents,
    coalesce(m.fees, 0)                 AS total_fees_cents,
    coalesce(m.distributed, 0)          AS total_distributed_cents,
    round(100.0 * (coalesce(m.called, 0) + coalesce(m.fees, 0)) / p.committed, 2) AS contributed_percent,
    coalesce(n.nav_cents, 0)            AS latest_nav_cents,
    n.snapshot_date                     AS latest_valuation_date,
    q.average_net_irr_percent,
    q.average_tvpi,
    q.measured_on,
    m.last_activity_date
FROM pledged p
LEFT JOIN moved m ON m.fund_id = p.fund_id
LEFT JOIN measured q ON q.fund_id = p.fund_id
LEFT JOIN LATERAL (
    SELECT f.snapshot_date, f.nav_cents
    FROM public.fund_nav_snapshots f
    WHERE f.fund_id = p.fund_id
    ORDER BY f.snapshot_date DESC
    LIMIT 1
) n ON true
ORDER BY p.fund_id
WITH NO DATA;

CREATE UNIQUE INDEX fund_lp_summary_fund_idx ON public.fund_lp_summary (fund_id);
