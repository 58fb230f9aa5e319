-- name: read_views
-- Which materialized views are there, what is in the way of refreshing them, and has a definition changed?
-- The size comes from pg_class: pg_relation_size would wait behind a refresh that is running. The hash is over the
-- stored parse trees of the view, of the plain views it inlines and the sources of the functions they call: unlike
-- pg_get_viewdef these depend on no search_path and take no lock on the tables. NULL asks for all of them.
WITH RECURSIVE inlined (view, relation) AS (
    SELECT c.oid, c.oid
      FROM pg_catalog.pg_class AS c
     WHERE c.relkind = 'm'
       AND c.oid = ANY ((SELECT coalesce(:oids::oid[], ARRAY(
               SELECT k.oid FROM pg_catalog.pg_class AS k WHERE k.relkind = 'm')))::oid[])
    UNION
    SELECT i.view, v.oid
      FROM inlined AS i
     CROSS JOIN LATERAL (
         SELECT k.oid
           FROM pg_catalog.pg_rewrite AS r
           JOIN pg_catalog.pg_depend AS d
                ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
           JOIN pg_catalog.pg_class AS k ON k.oid = d.refobjid
          WHERE r.ev_class = i.relation AND r.ev_type = '1'
            AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass
            AND k.relkind = 'v' AND k.oid >= 16384
         OFFSET 0) AS v
), definition (view, hash) AS (
    SELECT i.view,
           pg_catalog.md5(pg_catalog.string_agg(
               pg_catalog.md5(r.ev_action::text) || coalesce(f.hash, ''), ',' ORDER BY i.relation))
      FROM inlined AS i
      JOIN pg_catalog.pg_rewrite AS r ON r.ev_class = i.relation AND r.ev_type = '1'
     CROSS JOIN LATERAL (
         SELECT pg_catalog.md5(pg_catalog.string_agg(
                    p.provolatile::text || coalesce(p.prosqlbody::text, p.prosrc), ',' ORDER BY p.oid)) AS hash
           FROM pg_catalog.pg_depend AS d
           JOIN pg_catalog.pg_proc AS p ON p.oid = d.refobjid
          WHERE d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
            AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass) AS f
     GROUP BY i.view
)
SELECT c.oid, n.nspname AS schema, c.relname AS name, pg_catalog.pg_get_userbyid(c.relowner) AS owner,
       c.relispopulated AS populated, d.hash AS definition_hash, pg_catalog.pg_relation_filenode(c.oid) AS filenode,
       c.relpages::bigint * pg_catalog.current_setting('block_size')::bigint AS size_bytes,
       CASE WHEN c.reltuples >= 0 THEN c.reltuples::bigint END AS row_estimate,
       k.name AS unique_index, k.columns AS unique_key,
       pg_catalog.has_database_privilege(c.relowner, b.oid, 'TEMP') AS owner_has_temp,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE')
       AND CASE WHEN pg_catalog.pg_has_role(c.relowner, 'USAGE') THEN true
                WHEN pg_catalog.current_setting('server_version_num')::int >= 170000
                THEN pg_catalog.has_table_privilege(c.oid, 'MAINTAIN')
                ELSE false END AS may_refresh
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_database AS b ON b.datname = pg_catalog.current_database()
  JOIN definition AS d ON d.view = c.oid
  LEFT JOIN LATERAL (
      SELECT i.relname AS name,
             ARRAY(SELECT a.attname::text
                     FROM pg_catalog.unnest(x.indkey::int2[]) WITH ORDINALITY AS part (number, position)
                     JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = part.number
                    WHERE part.position <= x.indnkeyatts
                    ORDER BY part.position) AS columns
        FROM pg_catalog.pg_index AS x
        JOIN pg_catalog.pg_class AS i ON i.oid = x.indexrelid
       WHERE x.indrelid = c.oid AND x.indisunique AND x.indisvalid AND x.indimmediate AND x.indpred IS NULL
         AND x.indexprs IS NULL
       ORDER BY x.indnkeyatts, i.relname
       LIMIT 1) AS k ON true
 WHERE c.relkind = 'm';
