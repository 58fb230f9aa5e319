-- name: read_cold
-- Which ranges of this table are neither in it nor in its archive any more?
SELECT b.lower_bound AS lower, b.upper_bound AS upper
  FROM upkeep.archive_batch AS b
 WHERE b.parent = :parent AND b.kind = 'partition' AND b.archived_at IS NOT NULL AND (b.cold_at IS NOT NULL OR b.purged_at IS NOT NULL)
 ORDER BY b.archived_at;
