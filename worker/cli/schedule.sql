-- name: read_last_runs
-- What became of the newest slot that each of these entries has in this ledger?
SELECT r.*
  FROM ROWS FROM (pg_catalog.unnest(:labels::text[]), pg_catalog.unnest(:tasks::text[]), pg_catalog.unnest(:targets::text[])) AS n (label, task, target)
 CROSS JOIN LATERAL (
       SELECT r.*
         FROM upkeep.run r
        WHERE r.task = n.task AND r.target = n.target AND r.entry = n.label AND r.slot IS NOT NULL
        ORDER BY r.slot DESC
        LIMIT 1) AS r;
