-- name: read_columns
-- Which columns do the materialized views have, which of them can be in a key (a measure is none), and in which are all
-- values different, as far as ANALYZE could tell?
SELECT c.oid AS view, a.attname::text AS name,
       (t.typcategory IN ('N', 'S', 'D', 'B', 'E') OR t.typname = 'uuid')
       AND t.typname NOT IN ('float4', 'float8', 'numeric', 'money') AS comparable,
       coalesce(s.n_distinct = -1 AND s.null_frac = 0, false) AS distinct
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_stats AS s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname
 WHERE c.relkind = 'm'
 ORDER BY c.oid, a.attnum;
