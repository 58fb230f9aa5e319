-- name: clock$
-- What time is it on this server?
SELECT pg_catalog.clock_timestamp();

-- name: read_failed
-- How many runs of these tasks have failed for these tables since one last ended well, and what did the newest say?
WITH final AS (
    SELECT r.task, r.target, r.id, r.state, r.error, r.reason,
           max(r.id) FILTER (WHERE r.state IN ('succeeded', 'skipped')) OVER (PARTITION BY r.task, r.target) AS well
      FROM upkeep.run AS r
     WHERE r.task = ANY (:tasks::text[]) AND r.target = ANY (:targets::text[]) AND r.finished_at IS NOT NULL
)
SELECT DISTINCT ON (f.task, f.target)
       f.task, f.target, f.id, count(*) OVER (PARTITION BY f.task, f.target) AS failed,
       coalesce(f.error ->> 'message', f.reason, f.state) AS message, coalesce(f.error ->> 'remedy', '') AS remedy
  FROM final AS f
 WHERE f.state IN ('failed', 'lost') AND f.id > coalesce(f.well, 0)
 ORDER BY f.task, f.target, f.id DESC;
