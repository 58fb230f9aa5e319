-- name: read_facts^
-- How does this session stand: its role, its limits, what is counted, and may it use the schema upkeep?
-- Connections are counted in pg_stat_database, because pg_stat_activity hides those of others from a plain role.
SELECT current_user::text AS role, pg_catalog.current_database()::text AS database,
       pg_catalog.current_setting('track_counts') = 'on' AS track_counts,
       pg_catalog.current_setting('max_connections')::int AS max_connections,
       pg_catalog.current_setting('superuser_reserved_connections')::int
       + coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int AS reserved,
       (SELECT pg_catalog.sum(numbackends)::int FROM pg_catalog.pg_stat_database) AS connected,
       r.rolconnlimit AS role_limit,
       (SELECT pg_catalog.count(*)::int FROM pg_catalog.pg_stat_activity WHERE usename = current_user) AS role_connected,
       b.datconnlimit AS database_limit,
       (SELECT numbackends FROM pg_catalog.pg_stat_database WHERE datid = b.oid) AS database_connected,
       pg_catalog.has_database_privilege(b.oid, 'CREATE') AS may_create,
       n.oid IS NOT NULL AS installed,
       coalesce(pg_catalog.has_schema_privilege(n.oid, 'USAGE'), false) AS may_use
  FROM pg_catalog.pg_database AS b
  JOIN pg_catalog.pg_roles AS r ON r.rolname = current_user
  LEFT JOIN pg_catalog.pg_namespace AS n ON n.nspname = 'upkeep'
 WHERE b.datname = pg_catalog.current_database();

-- name: read_missing_grants
-- Which privileges on the tables of the schema upkeep does this role lack?
SELECT c.relname::text AS name, pg_catalog.array_agg(p.privilege ORDER BY p.position)::text[] AS privileges
  FROM pg_catalog.pg_class AS c
 CROSS JOIN (VALUES (1, 'SELECT'), (2, 'INSERT'), (3, 'UPDATE'), (4, 'DELETE')) AS p (position, privilege)
 WHERE c.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'upkeep')
   AND c.relkind IN ('r', 'p') AND c.relname <> 'schema_version'
   AND NOT pg_catalog.has_table_privilege(c.oid, p.privilege)
 GROUP BY c.relname
 ORDER BY c.relname;

-- name: read_unusable_schemas
-- Which of these schemas may this role not even look into?
SELECT n.nspname::text AS name
  FROM pg_catalog.pg_namespace AS n
 WHERE n.nspname = ANY(:schemas::text[]) AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
 ORDER BY n.nspname;
