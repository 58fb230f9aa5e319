-- name: as_dumped!
-- How does this transaction deparse expressions? With every name qualified and every literal the same in all sessions, as pg_dump does.
SELECT pg_catalog.set_config('search_path', '', true), pg_catalog.set_config('TimeZone', 'UTC', true),
       pg_catalog.set_config('DateStyle', 'ISO, YMD', true), pg_catalog.set_config('IntervalStyle', 'postgres', true),
       pg_catalog.set_config('quote_all_identifiers', 'off', true);

-- name: read_relations
-- What is this table, and (with deep) every table that it is divided into?
WITH RECURSIVE tree (oid, parent) AS (
    SELECT :oid::oid, NULL::oid
    UNION ALL
    SELECT i.inhrelid, t.oid
      FROM tree AS t
      JOIN pg_catalog.pg_inherits AS i ON i.inhparent = t.oid AND :deep::boolean
)
SELECT c.oid, t.parent, pg_catalog.pg_get_expr(c.relpartbound, 0::oid) AS bound, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS quoted, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, c.relpersistence::text AS persistence,
       coalesce(a.amname, '') AS access_method, coalesce(s.spcname, '') AS tablespace,
       coalesce(c.reloptions, '{}') AS options, coalesce(o.reloptions, '{}') AS toast_options,
       pg_catalog.pg_get_userbyid(c.relowner) AS owner, pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
       c.relrowsecurity AS row_security, c.relforcerowsecurity AS forced_row_security, c.relreplident::text AS replica_identity,
       coalesce(pg_catalog.pg_get_partkeydef(c.oid), '') AS partition_key,
       ARRAY(SELECT 'rule ' || r.rulename FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class = c.oid ORDER BY 1)
       || ARRAY(SELECT 'security label of ' || l.provider FROM pg_catalog.pg_seclabel AS l
                 WHERE l.classoid = 'pg_catalog.pg_class'::regclass AND l.objoid = c.oid ORDER BY 1) AS beyond
  FROM tree AS t
  JOIN pg_catalog.pg_class AS c ON c.oid = t.oid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_am AS a ON a.oid = c.relam
  LEFT JOIN pg_catalog.pg_tablespace AS s ON s.oid = c.reltablespace
  LEFT JOIN pg_catalog.pg_class AS o ON o.oid = c.reltoastrelid
 ORDER BY c.relname;

-- name: read_grants
-- Who may do what with these tables (column empty) and their columns? Without a grant of anybody's: what their owners may.
SELECT c.oid, '' AS column, coalesce(r.rolname, '') AS grantee, g.privilege_type AS privilege, g.is_grantable AS grantable
  FROM pg_catalog.pg_class AS c
 CROSS JOIN LATERAL pg_catalog.aclexplode(coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))) AS g
  LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = g.grantee
 WHERE c.oid = ANY(:oids::oid[])
 UNION
SELECT a.attrelid, a.attname, coalesce(r.rolname, ''), g.privilege_type, g.is_grantable
  FROM pg_catalog.pg_attribute AS a
 CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) AS g
  LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = g.grantee
 WHERE a.attrelid = ANY(:oids::oid[]) AND a.attnum > 0 AND NOT a.attisdropped AND a.attacl IS NOT NULL;

-- name: read_columns
-- Which columns have these tables?
SELECT a.attrelid AS oid, a.attname AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
       pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS expression, a.attgenerated::text AS generated, a.attidentity::text AS identity,
       a.attstorage::text AS storage, a.attcompression::text AS compression, coalesce(a.attstattarget, -1)::int AS statistics,
       coalesce(a.attoptions, '{}') AS options, pg_catalog.col_description(a.attrelid, a.attnum) AS comment
  FROM pg_catalog.pg_attribute AS a
  LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
 WHERE a.attrelid = ANY(:oids::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum;

-- name: read_constraints
-- Which checks and foreign keys have these tables? Of a foreign key that came with the parent's ATTACH makes another one.
SELECT con.conrelid AS oid, con.conname AS name, con.contype::text AS kind, pg_catalog.pg_get_constraintdef(con.oid) AS definition,
       con.coninhcount > 0 OR con.conparentid <> 0 AS inherited,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = con.conrelid AND a.attnum = ANY(con.conkey) ORDER BY a.attnum) AS columns,
       con.confrelid AS referenced, pg_catalog.quote_ident(rn.nspname) || '.' || pg_catalog.quote_ident(r.relname) AS referenced_quoted,
       rn.nspname AS referenced_schema, r.relname AS referenced_name,
       pn.nspname AS set_schema, p.relname AS set_name,
       pg_catalog.obj_description(con.oid, 'pg_constraint') AS comment
  FROM pg_catalog.pg_constraint AS con
  LEFT JOIN pg_catalog.pg_class AS r ON r.oid = con.confrelid
  LEFT JOIN pg_catalog.pg_namespace AS rn ON rn.oid = r.relnamespace
  LEFT JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = con.confrelid AND r.relispartition
  LEFT JOIN pg_catalog.pg_class AS p ON p.oid = i.inhparent
  LEFT JOIN pg_catalog.pg_namespace AS pn ON pn.oid = p.relnamespace
 WHERE con.conrelid = ANY(:oids::oid[]) AND con.contype IN ('c', 'f')
 ORDER BY con.conrelid, con.conname;

-- name: read_indexes
-- Which indexes have these tables, those of their keys included? One that is not valid was never finished.
SELECT x.indrelid AS oid, c.relname AS name, x.indisunique AS is_unique, pg_catalog.pg_get_indexdef(c.oid) AS definition,
       coalesce(con.contype::text, '') AS constraint_kind, pg_catalog.pg_get_constraintdef(con.oid) AS constraint_definition,
       coalesce(c.reloptions, '{}') AS options, coalesce(s.spcname, '') AS tablespace,
       x.indisclustered AS clustered, x.indisreplident AS replica_identity,
       pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
       pg_catalog.obj_description(con.oid, 'pg_constraint') AS constraint_comment,
       ARRAY(SELECT a.attnum::int FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND coalesce(a.attstattarget, -1) >= 0 ORDER BY a.attnum) AS statistics_of,
       ARRAY(SELECT a.attstattarget::int FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND coalesce(a.attstattarget, -1) >= 0 ORDER BY a.attnum) AS statistics
  FROM pg_catalog.pg_index AS x
  JOIN pg_catalog.pg_class AS c ON c.oid = x.indexrelid
  LEFT JOIN pg_catalog.pg_tablespace AS s ON s.oid = c.reltablespace
  LEFT JOIN pg_catalog.pg_constraint AS con
         ON con.conindid = c.oid AND con.conrelid = x.indrelid AND con.contype IN ('p', 'u', 'x')
 WHERE x.indrelid = ANY(:oids::oid[]) AND (x.indisvalid OR c.relkind = 'I')
 ORDER BY x.indrelid, c.relname;

-- name: read_triggers
-- Which triggers of users have these tables? One that came from the parent (inherited) comes with ATTACH; until 14 that is an internal one.
SELECT t.tgrelid AS oid, t.tgname AS name, pg_catalog.pg_get_triggerdef(t.oid) AS definition, t.tgenabled::text AS enabled,
       t.tgparentid <> 0 AS inherited, t.tgtype & 1 = 1 AS for_each_row,
       n.nspname = 'upkeep' AND p.proname = 'note_write' AS ours,
       pg_catalog.obj_description(t.oid, 'pg_trigger') AS comment
  FROM pg_catalog.pg_trigger AS t
  JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
 WHERE t.tgrelid = ANY(:oids::oid[]) AND t.tgconstraint = 0 AND (NOT t.tgisinternal OR t.tgparentid <> 0)
    OR t.tgrelid = ANY(:oids::oid[]) AND NOT t.tgisinternal
 ORDER BY t.tgrelid, t.tgname;

-- name: read_policies
-- Which policies have these tables?
SELECT l.polrelid AS oid, l.polname AS name, l.polpermissive AS permissive, l.polcmd::text AS command,
       ARRAY(SELECT coalesce(r.rolname::text, '') FROM pg_catalog.unnest(l.polroles) AS role (oid)
               LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = role.oid ORDER BY 1) AS roles,
       pg_catalog.pg_get_expr(l.polqual, l.polrelid) AS qualifier, pg_catalog.pg_get_expr(l.polwithcheck, l.polrelid) AS with_check,
       pg_catalog.obj_description(l.oid, 'pg_policy') AS comment
  FROM pg_catalog.pg_policy AS l
 WHERE l.polrelid = ANY(:oids::oid[])
 ORDER BY l.polrelid, l.polname;

-- name: read_statistics
-- Which extended statistics have these tables?
SELECT s.stxrelid AS oid, n.nspname AS schema, s.stxname AS name,
       pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(s.stxname) AS quoted, pg_catalog.pg_get_statisticsobjdef(s.oid) AS definition,
       coalesce(s.stxstattarget, -1)::int AS target, pg_catalog.obj_description(s.oid, 'pg_statistic_ext') AS comment
  FROM pg_catalog.pg_statistic_ext AS s
  JOIN pg_catalog.pg_namespace AS n ON n.oid = s.stxnamespace
 WHERE s.stxrelid = ANY(:oids::oid[])
 ORDER BY s.stxrelid, s.stxname;

-- name: read_publications
-- Which publications name these tables themselves? Before 15 always whole.
SELECT r.prrelid AS oid, p.pubname AS name, '{}'::text[] AS columns, NULL::text AS filter
  FROM pg_catalog.pg_publication_rel AS r
  JOIN pg_catalog.pg_publication AS p ON p.oid = r.prpubid
 WHERE r.prrelid = ANY(:oids::oid[])
 ORDER BY r.prrelid, p.pubname;

-- name: read_publications_in_part
-- Which publications name these tables themselves, and which columns and rows of them? From PostgreSQL 15 on.
SELECT r.prrelid AS oid, p.pubname AS name,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = r.prrelid AND a.attnum = ANY(r.prattrs::int2[]) ORDER BY a.attnum) AS columns,
       pg_catalog.pg_get_expr(r.prqual, r.prrelid) AS filter
  FROM pg_catalog.pg_publication_rel AS r
  JOIN pg_catalog.pg_publication AS p ON p.oid = r.prpubid
 WHERE r.prrelid = ANY(:oids::oid[])
 ORDER BY r.prrelid, p.pubname;
