-- name: print_plainly!
-- How does this transaction print bounds and constraints? In UTC and ISO, every name with its schema, so that it can be said again anywhere.
SELECT pg_catalog.set_config('TimeZone', 'UTC', true), pg_catalog.set_config('DateStyle', 'ISO, YMD', true),
       pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

-- name: read_partition^
-- What is this partition, as it must be said again in the archive? NULL for the parent: it is a partition of nothing.
SELECT c.oid, i.inhparent::bigint AS parent, c.relkind::text AS kind, pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS bound,
       pg_catalog.pg_get_partition_constraintdef(c.oid) AS condition,
       coalesce((SELECT k.convalidated FROM pg_catalog.pg_constraint AS k WHERE k.conrelid = c.oid AND k.conname = :constraint), false) AS checked,
       EXISTS (SELECT FROM pg_catalog.pg_constraint AS k WHERE k.conrelid = c.oid AND k.conname = :constraint) AS has_check
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = c.oid AND c.relispartition
 WHERE n.nspname = :schema AND c.relname = :name;

-- name: read_members
-- Which tables is this partition made of, itself first? With what must not change (its file) and what must not come along (triggers of ours).
SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
       CASE WHEN c.relkind = 'r' THEN pg_catalog.pg_relation_filenode(c.oid)::bigint END AS file,
       coalesce(s.spcname::text, '') AS tablespace,
       ARRAY(SELECT t.tgname::text FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
              WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND p.proname = 'note_write'
                AND p.pronamespace = pg_catalog.to_regnamespace('upkeep') ORDER BY 1) AS triggers
  FROM pg_catalog.pg_partition_tree(:oid::oid::regclass) AS m
  JOIN pg_catalog.pg_class AS c ON c.oid = m.relid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_tablespace AS s ON s.oid = c.reltablespace
 ORDER BY m.level, c.relname;

-- name: taken
-- Which of these names has somebody in this schema already?
SELECT c.relname::text AS name
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relname = ANY(:names::text[])
 ORDER BY 1;

-- name: read_changes^
-- How often have these tables been written, as far as the server has counted? A session counts up to a second after its commit.
SELECT coalesce(pg_catalog.sum(pg_catalog.pg_stat_get_tuples_inserted(o.oid) + pg_catalog.pg_stat_get_tuples_updated(o.oid)
                               + pg_catalog.pg_stat_get_tuples_deleted(o.oid)), 0)::bigint AS changes
  FROM pg_catalog.unnest(:oids::oid[]) AS o (oid);

-- name: forget_statistics!
-- Are counters read anew, and not from the snapshot that this transaction may have?
SELECT pg_catalog.pg_stat_clear_snapshot();

-- name: begin_batch$
-- Which batch does this move belong to: the one that a killed run has begun, or a new one?
WITH known AS (
    SELECT b.id FROM upkeep.archive_batch AS b
     WHERE b.parent = :parent AND b.partition = :partition AND b.kind = 'partition' AND b.archived_at IS NULL
), made AS (
    INSERT INTO upkeep.archive_batch (id, kind, parent, archive, partition, control_type, lower_bound, upper_bound, run_id)
    SELECT pg_catalog.gen_random_uuid(), 'partition', :parent, :archive, :partition, :control_type, :lower, :upper, :run_id
     WHERE NOT EXISTS (SELECT FROM known)
    RETURNING id
)
SELECT id FROM known UNION ALL SELECT id FROM made;

-- name: end_batch!
-- The partition is in the archive now, under this name.
UPDATE upkeep.archive_batch
   SET archived_at = :archived_at, partition = :archived, archive = :archive, rows = :rows, run_id = coalesce(:run_id, run_id)
 WHERE id = :id AND parent = :parent;

-- name: note_batch!
-- These rows of this table belong to the batch as well.
INSERT INTO upkeep.archive_batch AS b (id, kind, parent, archive, partition, control_type, lower_bound, upper_bound, rows, run_id, archived_at)
VALUES (:id, :kind, :parent, :archive, :archived, :control_type, :lower, :upper, :rows, :run_id, :archived_at)
    ON CONFLICT (id, parent) DO UPDATE SET rows = coalesce(b.rows, 0) + coalesce(excluded.rows, 0), archived_at = excluded.archived_at;

-- name: archived_as^
-- Has this partition been moved already, and where is it?
SELECT b.id, b.archived_at, b.rows
  FROM upkeep.archive_batch AS b
 WHERE b.parent = :parent AND b.partition = :archived AND b.kind = 'partition' AND b.archived_at IS NOT NULL
 ORDER BY b.archived_at DESC
 LIMIT 1;

-- name: clock$
-- What time is it there?
SELECT pg_catalog.clock_timestamp();

-- name: without_row_security!
-- Do we see every row here, or an error? Never some of them.
SELECT pg_catalog.set_config('row_security', 'off', true);

-- name: unhurried!
-- May what follows read for long? It waits for nobody and nobody waits for it.
SELECT pg_catalog.set_config('statement_timeout', :longest, true);

-- name: read_indexes
-- Which indexes has this table?
SELECT c.relname::text AS name FROM pg_catalog.pg_index AS x JOIN pg_catalog.pg_class AS c ON c.oid = x.indexrelid WHERE x.indrelid = :oid ORDER BY 1;
