-- What the trade engine checks and reports about itself: baselines, alerts, reports.
--
-- The figures that need pg_stat_statements (latency, slow queries) are left out: not every server has it.

CREATE TABLE monitoring.performance_baselines (
    metric     text PRIMARY KEY,
    warning    numeric NOT NULL,
    critical   numeric NOT NULL,
    -- Which side of the thresholds is the bad one.
    bad_when   text    NOT NULL CHECK (bad_when IN ('above', 'below')),
    what       text    NOT NULL
);

INSERT INTO monitoring.performance_baselines (metric, warning, critical, bad_when, what) VALUES
    ('cache_hit_pct',        95, 90, 'below', 'blocks found in shared buffers since the statistics began'),
    ('connections_pct',      80, 95, 'above', 'connections of max_connections'),
    ('orders_dead_pct',      10, 20, 'above', 'dead rows of all rows in orders'),
    ('trades_dead_pct',      10, 20, 'above', 'dead rows of all rows in trades'),
    ('partitions_days_left',  3,  1, 'below', 'days until orders or trades run out of partitions');

CREATE TABLE monitoring.performance_reports (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reported_at timestamptz NOT NULL DEFAULT now(),
    metrics     jsonb       NOT NULL,
    alerts      jsonb       NOT NULL
);

-- The figures now. One that cannot be had yet (no block read so far, an empty table) is NULL, and no alert.
CREATE FUNCTION monitoring.performance_metrics() RETURNS TABLE (metric text, value numeric)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT 'cache_hit_pct', round(100.0 * d.blks_hit / nullif(d.blks_hit + d.blks_read, 0), 2)
      FROM pg_catalog.pg_stat_database d
     WHERE d.datname = current_database()
    UNION ALL
    SELECT 'connections_pct', round(100.0 * sum(d.numbackends) / current_setting('max_connections')::integer, 2)
      FROM pg_catalog.pg_stat_database d
    UNION ALL
    SELECT t.parent || '_dead_pct',
           round(100.0 * sum(s.n_dead_tup) / nullif(sum(s.n_live_tup + s.n_dead_tup), 0), 2)
      FROM (VALUES ('orders', 'public.orders'::regclass), ('trades', 'public.trades'::regclass)) AS t (parent, relation)
      JOIN pg_catalog.pg_inherits i ON i.inhparent = t.relation
      JOIN pg_catalog.pg_stat_all_tables s ON s.relid = i.inhrelid
     GROUP BY t.parent
    UNION ALL
    -- The table that runs out first; the bound is read as the session prints it.
    SELECT 'partitions_days_left', round((extract(epoch FROM min(p.ends) - now()) / 86400)::numeric, 2)
      FROM (SELECT max(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([^'']+)''\)')::timestamptz) AS ends
              FROM pg_catalog.pg_inherits i
              JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
             WHERE i.inhparent IN ('public.orders'::regclass, 'public.trades'::regclass)
             GROUP BY i.inhparent) AS p;
END;

-- The figures that are past a threshold, the worst first.
CREATE FUNCTION monitoring.check_performance_alerts()
RETURNS TABLE (metric text, value numeric, threshold numeric, severity text)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT b.metric, m.value,
           CASE WHEN past.critical THEN b.critical ELSE b.warning END,
           CASE WHEN past.critical THEN 'CRITICAL' ELSE 'WARNING' END
      FROM monitoring.performance_baselines b
      JOIN monitoring.performance_metrics() m ON m.metric = b.metric
     CROSS JOIN LATERAL (
           SELECT CASE b.bad_when WHEN 'above' THEN m.value > b.warning ELSE m.value < b.warning END AS warning,
                  CASE b.bad_when WHEN 'above' THEN m.value > b.critical ELSE m.value < b.critical END AS critical
           ) AS past
     WHERE past.warning OR past.critical
     ORDER BY past.critical DESC, b.metric;
END;

-- Keeps the figures and what was wrong with them; returns the report's number.
CREATE FUNCTION monitoring.generate_daily_performance_report() RETURNS bigint
LANGUAGE sql VOLATILE
BEGIN ATOMIC
    INSERT INTO monitoring.performance_reports (metrics, alerts)
    SELECT (SELECT coalesce(jsonb_object_agg(m.metric, m.value), '{}') FROM monitoring.performance_metrics() m),
           (SELECT coalesce(jsonb_agg(a), '[]') FROM monitoring.check_performance_alerts() a)
    RETURNING id;
END;
