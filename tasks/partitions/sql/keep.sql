-- name: rows_analyzed$
-- How many rows had the table in all its partitions when it was last analysed itself? -1: it never was.
SELECT c.reltuples::bigint FROM pg_catalog.pg_class AS c WHERE c.oid = :oid::oid;

-- name: bound_session!
-- How long may the next statement wait and work, outside of any transaction?
SELECT pg_catalog.set_config('lock_timeout', :lock_timeout, false), pg_catalog.set_config('statement_timeout', :statement_timeout, false);

-- name: clock$
-- What time is it here?
SELECT pg_catalog.clock_timestamp();

-- name: bound_count!
-- How long may counting take?
SELECT pg_catalog.set_config('statement_timeout', :statement_timeout, true);

-- name: read_references_between
-- Which of these tables have a partition that refers to one of another? Such a key is on the partitions alone.
SELECT DISTINCT a.inhparent AS referencing, b.inhparent AS referenced
  FROM pg_catalog.pg_constraint AS k
  JOIN pg_catalog.pg_inherits AS a ON a.inhrelid = k.conrelid
  JOIN pg_catalog.pg_inherits AS b ON b.inhrelid = k.confrelid
 WHERE k.contype = 'f' AND a.inhparent <> b.inhparent
   AND a.inhparent = ANY(:oids::oid[]) AND b.inhparent = ANY(:oids::oid[]);
