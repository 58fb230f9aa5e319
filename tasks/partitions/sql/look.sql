-- name: read_surroundings^
-- Who are we, what may we make, and which schemas and tablespaces are there?
SELECT pg_catalog.current_setting('server_version_num')::int AS version_num, current_user::text AS role,
       pg_catalog.current_database()::text AS database,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS may_create_schemas,
       (SELECT pg_catalog.json_object_agg(n.nspname, pg_catalog.has_schema_privilege(n.oid, 'CREATE') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE'))
          FROM pg_catalog.pg_namespace AS n
         WHERE n.nspname = ANY (:schemas::text[])) AS schemas,
       -- The database's own needs no privilege.
       (SELECT pg_catalog.json_object_agg(t.spcname, t.oid = d.dattablespace OR pg_catalog.has_tablespace_privilege(t.oid, 'CREATE'))
          FROM pg_catalog.pg_tablespace AS t
          JOIN pg_catalog.pg_database AS d ON d.datname = pg_catalog.current_database()
         WHERE t.spcname <> 'pg_global') AS tablespaces;

-- name: read_taken
-- Which of these names do relations have?
SELECT n.nspname::text AS schema, c.relname::text AS name
  FROM ROWS FROM (pg_catalog.unnest(:schemas::text[]), pg_catalog.unnest(:names::text[])) AS asked (schema, name)
  JOIN pg_catalog.pg_namespace AS n ON n.nspname = asked.schema
  JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = asked.name;

-- name: read_gone
-- Which ranges of these tables have left the database?
SELECT b.parent, b.partition, b.lower_bound, b.upper_bound, b.cold_at IS NOT NULL AS cold, b.purged_at IS NOT NULL AS purged
  FROM upkeep.archive_batch AS b
 WHERE b.parent = ANY (:parents::text[]) AND b.kind = 'partition' AND (b.cold_at IS NOT NULL OR b.purged_at IS NOT NULL)
 ORDER BY b.parent, b.partition;

-- name: look_briefly!
-- Does nothing that we ask of rows take longer than this?
SELECT pg_catalog.set_config('statement_timeout', :milliseconds, true), pg_catalog.set_config('TimeZone', 'UTC', true),
       pg_catalog.set_config('DateStyle', 'ISO, YMD', true);
