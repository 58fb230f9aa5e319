-- name: read_cold
-- Which ranges of this table are neither in it nor in its archive any more?
SELECT b.lower_bound AS lower, b.upper_bound AS upper
  FROM upkeep.archive_batch AS b
 WHERE b.parent = :parent AND b.kind = 'partition' AND b.archived_at IS NOT NULL AND (b.cold_at IS NOT NULL OR b.purged_at IS NOT NULL)
 ORDER BY b.archived_at;

-- name: read_oid$
-- Which relation is it?
SELECT c.oid
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relname = :name;
