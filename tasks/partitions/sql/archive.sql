-- name: read_as_utc!
-- How does this transaction print bounds and expressions? As everybody would read them, whatever the database has for its sessions.
SELECT pg_catalog.set_config('TimeZone', 'UTC', true), pg_catalog.set_config('DateStyle', 'ISO, YMD', true);

-- name: read_relation^
-- What is this relation, whose is it, and what may we do about it? PostgreSQL 14 knows no views that ask for their reader's rights.
SELECT c.oid, c.relkind::text AS kind, pg_catalog.pg_get_userbyid(c.relowner)::text AS owner,
       pg_catalog.pg_has_role(c.relowner, 'USAGE') AS may_alter,
       c.relrowsecurity AS row_security, c.relforcerowsecurity AS forced_row_security,
       pg_catalog.pg_get_partkeydef(c.oid) AS partition_key,
       coalesce('security_invoker=true' = ANY (c.reloptions) OR 'security_invoker=on' = ANY (c.reloptions), false) AS as_reader
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relname = :name;

-- name: read_columns
-- Which columns has this relation, in their order?
SELECT a.attname::text AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
       CASE WHEN a.attcollation <> t.typcollation
            THEN (SELECT pg_catalog.format('%%I.%%I', n.nspname, l.collname)
                    FROM pg_catalog.pg_collation AS l JOIN pg_catalog.pg_namespace AS n ON n.oid = l.collnamespace
                   WHERE l.oid = a.attcollation) ELSE '' END AS collation,
       CASE WHEN a.attgenerated <> '' THEN coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '') ELSE '' END AS generated
  FROM pg_catalog.pg_attribute AS a
  JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = :oid AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum;

-- name: read_readers
-- Who may read this table, or which of its columns? Without its owner, who may anyway.
SELECT CASE WHEN g.grantee = 0 THEN '' ELSE pg_catalog.pg_get_userbyid(g.grantee)::text END AS role, g.is_grantable AS grantable, '' AS column
  FROM pg_catalog.pg_class AS c CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS g
 WHERE c.oid = :oid AND g.privilege_type = 'SELECT' AND g.grantee <> c.relowner
UNION ALL
SELECT CASE WHEN g.grantee = 0 THEN '' ELSE pg_catalog.pg_get_userbyid(g.grantee)::text END, g.is_grantable, a.attname::text
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) AS g
 WHERE c.oid = :oid AND g.privilege_type = 'SELECT' AND g.grantee <> c.relowner
 ORDER BY 1, 3;

-- name: read_policies
-- Which policies of row security has this table?
SELECT p.polname::text AS name, p.polpermissive AS permissive, p.polcmd::text AS command,
       ARRAY(SELECT CASE WHEN r.oid = 0 THEN '' ELSE pg_catalog.pg_get_userbyid(r.oid)::text END FROM pg_catalog.unnest(p.polroles) AS r (oid) ORDER BY 1) AS roles,
       coalesce(pg_catalog.pg_get_expr(p.polqual, p.polrelid), '') AS visible,
       coalesce(pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid), '') AS allowed
  FROM pg_catalog.pg_policy AS p
 WHERE p.polrelid = :oid
 ORDER BY p.polname;

-- name: read_schema^
-- Is this schema there, and may its future tables be made and owned there?
SELECT s.nspname IS NOT NULL AS found, CASE WHEN s.nspname IS NOT NULL THEN pg_catalog.pg_has_role(s.nspowner, 'USAGE') END AS may_grant,
       CASE WHEN s.nspname IS NOT NULL THEN pg_catalog.has_schema_privilege(s.oid, 'CREATE') END AS we_may,
       CASE WHEN s.nspname IS NOT NULL THEN pg_catalog.has_schema_privilege(:owner::name, s.oid, 'CREATE') END AS owner_may,
       pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS may_create,
       current_user::text AS role, pg_catalog.current_database()::text AS database
  FROM (SELECT 1) AS one
  LEFT JOIN pg_catalog.pg_namespace AS s ON s.nspname = :schema;

-- name: key_by$
-- How does PostgreSQL print the key of a table that is partitioned by ranges of this column?
SELECT pg_catalog.format('RANGE (%%I)', :column::text);
