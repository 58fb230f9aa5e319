-- name: read_table^
-- What is this table, and has it an index that begins with this column?
SELECT c.oid, c.relkind::text AS kind, pg_catalog.pg_get_userbyid(c.relowner)::text AS owner,
       greatest(c.reltuples, pg_catalog.pg_stat_get_live_tuples(c.oid))::bigint AS rows, a.attnum IS NOT NULL AS has_column,
       pg_catalog.format_type(a.atttypid, NULL) AS type,
       EXISTS (SELECT FROM pg_catalog.pg_index AS x
                WHERE x.indrelid = c.oid AND x.indkey[0] = a.attnum AND x.indisvalid AND x.indpred IS NULL) AS indexed
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = :column AND NOT a.attisdropped
 WHERE n.nspname = :schema AND c.relname = :name;

-- name: read_child^
-- Which partition of an archive has exactly these bounds?
SELECT n.nspname::text AS schema, c.relname::text AS name
  FROM pg_catalog.pg_inherits AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE i.inhparent = :oid AND pg_catalog.pg_get_expr(c.relpartbound, c.oid) = :bound;

-- name: bounds!
-- How long may a batch wait for a lock, and take?
SELECT pg_catalog.set_config('lock_timeout', :waits, true), pg_catalog.set_config('statement_timeout', :works, true),
       pg_catalog.set_config('row_security', 'off', true);
