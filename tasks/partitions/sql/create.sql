-- name: bound_waits!
-- How long may a statement wait for its lock, before the application can feel that anything is locked?
SELECT pg_catalog.set_config('lock_timeout', :milliseconds, true);

-- name: standing
-- Which relation has this name already, and of which table is it a partition?
SELECT c.oid, c.relkind::text AS kind, i.inhparent AS parent
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = c.oid
 WHERE n.nspname = :schema AND c.relname = :name;

-- name: read_oids
-- Which OIDs have these tables?
SELECT c.oid
  FROM ROWS FROM (pg_catalog.unnest(:schemas::text[]), pg_catalog.unnest(:names::text[])) AS asked (schema, name)
  JOIN pg_catalog.pg_namespace AS n ON n.nspname = asked.schema
  JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = asked.name;

-- name: current_role$
-- As who does this session act?
SELECT current_user::text;
