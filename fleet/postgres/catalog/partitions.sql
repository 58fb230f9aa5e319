-- name: read_as_utc!
-- How does this transaction print the bounds of partitions, and does it compile what it asks? In UTC and ISO, and never: a thousand
-- tables make a query look expensive that only looks things up.
SELECT pg_catalog.set_config('TimeZone', 'UTC', true), pg_catalog.set_config('DateStyle', 'ISO, YMD', true), pg_catalog.set_config('jit', 'off', true);

-- name: read_tables
-- Which of these tables are there, how are they partitioned, and what may the current user do about them?
-- The times are microseconds since 1970. A domain counts as what it is made from.
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
       pg_catalog.pg_get_userbyid(c.relowner) AS owner,
       pg_catalog.pg_has_role(c.relowner, 'USAGE') AS may_alter,
       coalesce((SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.oid = c.relowner), false) AS owner_is_superuser,
       pg_catalog.has_schema_privilege(n.oid, 'CREATE') AS may_create_in_schema,
       c.relispartition AS is_partition, c.relrowsecurity AS row_security,
       p.partstrat::text AS strategy,
       ARRAY(SELECT coalesce(a.attname::text, '')
               FROM pg_catalog.unnest(p.partattrs::int2[]) WITH ORDINALITY AS part (number, position)
               LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = part.number AND part.number <> 0
              ORDER BY part.position) AS key,
       k.type AS control_type, k.modifier AS control_modifier, k.shown AS control_type_name,
       coalesce(k.nullable, true) AS control_nullable,
       ARRAY(SELECT a.attname::text
               FROM pg_catalog.pg_attribute AS a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
              ORDER BY a.attnum) AS columns,
       (extract(epoch FROM greatest(pg_catalog.pg_stat_get_last_analyze_time(c.oid),
                                    pg_catalog.pg_stat_get_last_autoanalyze_time(c.oid))) * 1000000)::bigint AS analyzed_us
  FROM ROWS FROM (pg_catalog.unnest(:schemas::text[]), pg_catalog.unnest(:names::text[])) AS asked (schema, name)
  JOIN pg_catalog.pg_namespace AS n ON n.nspname = asked.schema
  JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = asked.name
  LEFT JOIN pg_catalog.pg_partitioned_table AS p ON p.partrelid = c.oid
  LEFT JOIN LATERAL (
      SELECT CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END::bigint AS type,
             CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END AS modifier,
             pg_catalog.format_type(a.atttypid, a.atttypmod) AS shown, NOT a.attnotnull AS nullable
        FROM pg_catalog.pg_attribute AS a
        JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
       WHERE a.attrelid = c.oid AND a.attnum = p.partattrs[0] AND a.attnum <> 0
      OFFSET 0) AS k ON true;

-- name: read_partitions
-- Which partitions have these tables, with which bounds, and what is in and below each of them?
-- Sizes come from pg_class: pg_total_relation_size would wait behind whoever works on a partition, and so would pg_get_expr of 17 and
-- later with the name of one. `share` is the part of all hash values that finds a place in a partition that is divided by hash.
-- Every look is by an index, whatever the planner thinks of the size of the arrays (OFFSET 0).
WITH RECURSIVE child AS MATERIALIZED (
    SELECT asked.oid AS parent, h.inhrelid AS oid, h.inhdetachpending AS pending
      FROM pg_catalog.unnest((SELECT :oids::oid[])) AS asked (oid)
     CROSS JOIN LATERAL (
         SELECT i.inhrelid, i.inhdetachpending FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = asked.oid OFFSET 0) AS h
), below (top, oid, share) AS (
    SELECT k.oid, k.oid, 1::float8
      FROM child AS k
    UNION ALL
    SELECT b.top, h.oid, b.share * h.part
      FROM below AS b
     CROSS JOIN LATERAL (
         SELECT i.inhrelid AS oid,
                -- FOR VALUES WITH (modulus 8, remainder 3)
                CASE WHEN p.partstrat = 'h' THEN 1.0 / pg_catalog.split_part(pg_catalog.split_part(
                         pg_catalog.pg_get_expr(c.relpartbound, 0::oid), 'modulus ', 2), ',', 1)::float8 END AS part
           FROM pg_catalog.pg_partitioned_table AS p
           JOIN pg_catalog.pg_inherits AS i ON i.inhparent = p.partrelid
           JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
          WHERE p.partrelid = b.oid AND NOT i.inhdetachpending
         OFFSET 0) AS h
), leaf AS (
    SELECT b.top, pg_catalog.sum(s.rows)::bigint AS rows, pg_catalog.sum(s.pages)::bigint AS pages,
           pg_catalog.sum(b.share) AS share,
           pg_catalog.array_agg(n.nspname::text ORDER BY n.nspname, s.name) AS schemas,
           pg_catalog.array_agg(s.name ORDER BY n.nspname, s.name) AS names
      FROM below AS b
     CROSS JOIN LATERAL (
         SELECT c.relnamespace, c.relname::text AS name, greatest(c.reltuples, 0) AS rows,
                c.relpages
                + coalesce((SELECT t.relpages FROM pg_catalog.pg_class AS t WHERE t.oid = c.reltoastrelid), 0)
                + coalesce((SELECT pg_catalog.sum(t.relpages)
                              FROM pg_catalog.pg_index AS x
                              JOIN pg_catalog.pg_class AS t ON t.oid = x.indexrelid
                             WHERE x.indrelid = c.oid), 0) AS pages
           FROM pg_catalog.pg_class AS c
          WHERE c.oid = b.oid AND c.relkind <> 'p'
         OFFSET 0) AS s
      JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace
     GROUP BY b.top
)
SELECT k.parent, k.oid, k.pending, n.nspname::text AS schema, s.*,
       coalesce(l.rows, 0) AS rows,
       coalesce(l.pages, 0) * pg_catalog.current_setting('block_size')::bigint AS bytes,
       CASE WHEN s.kind = 'p' THEN l.schemas END AS leaf_schemas,
       CASE WHEN s.kind = 'p' THEN l.names END AS leaf_names,
       l.share
  FROM child AS k
 CROSS JOIN LATERAL (
     SELECT c.relnamespace, c.relname::text AS name, c.relkind::text AS kind,
            pg_catalog.pg_get_expr(c.relpartbound, 0::oid) AS bound,
            pg_catalog.pg_get_userbyid(c.relowner)::text AS owner,
            coalesce((SELECT t.spcname::text FROM pg_catalog.pg_tablespace AS t WHERE t.oid = c.reltablespace), '') AS tablespace,
            CASE WHEN c.relkind = 'p' THEN pg_catalog.pg_get_partkeydef(c.oid) END AS subpartition_key,
            (SELECT p.partstrat = 'h' FROM pg_catalog.pg_partitioned_table AS p WHERE p.partrelid = c.oid) AS hashed
       FROM pg_catalog.pg_class AS c
      WHERE c.oid = k.oid
     OFFSET 0) AS s
  JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace
  LEFT JOIN leaf AS l ON l.top = k.oid;

-- name: read_unique_keys
-- Which columns are unique together in these tables? An expression is an empty string.
SELECT x.indrelid AS "table",
       ARRAY(SELECT coalesce(a.attname::text, '')
               FROM pg_catalog.unnest(x.indkey::int2[]) WITH ORDINALITY AS part (number, position)
               LEFT JOIN pg_catalog.pg_attribute AS a
                      ON a.attrelid = x.indrelid AND a.attnum = part.number AND part.number <> 0
              WHERE part.position <= x.indnkeyatts
              ORDER BY part.position) AS columns
  FROM pg_catalog.unnest((SELECT :oids::oid[])) AS asked (oid)
  JOIN pg_catalog.pg_index AS x ON x.indrelid = asked.oid
  JOIN pg_catalog.pg_class AS i ON i.oid = x.indexrelid
 WHERE x.indisunique AND x.indpred IS NULL
 ORDER BY x.indrelid, NOT x.indisprimary, i.relname;

-- name: read_foreign_keys
-- Which foreign keys lead from these tables, and which to them? Those that a partition has from its parent are left out (conparentid).
SELECT k.oid, k.conname AS name, k.conrelid AS referencing, k.confrelid AS referenced, k.convalidated AS validated,
       k.condeferrable AS deferrable,
       rn.nspname AS referencing_schema, r.relname AS referencing_name, fn.nspname AS referenced_schema, f.relname AS referenced_name,
       ARRAY(SELECT a.attname::text
               FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS part (number, position)
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = part.number
              ORDER BY part.position) AS columns,
       ARRAY(SELECT a.attname::text
               FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS part (number, position)
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = part.number
              ORDER BY part.position) AS referenced_columns
  FROM (SELECT s.oid
          FROM pg_catalog.unnest((SELECT :oids::oid[])) AS asked (oid)
          JOIN pg_catalog.pg_constraint AS s ON s.conrelid = asked.oid
         WHERE s.contype = 'f' AND s.conparentid = 0
        UNION
        SELECT s.oid
          FROM pg_catalog.unnest((SELECT :oids::oid[])) AS asked (oid)
          JOIN pg_catalog.pg_constraint AS s ON s.confrelid = asked.oid
         WHERE s.contype = 'f' AND s.conparentid = 0) AS found
  JOIN pg_catalog.pg_constraint AS k ON k.oid = found.oid
  JOIN pg_catalog.pg_class AS r ON r.oid = k.conrelid
  JOIN pg_catalog.pg_namespace AS rn ON rn.oid = r.relnamespace
  JOIN pg_catalog.pg_class AS f ON f.oid = k.confrelid
  JOIN pg_catalog.pg_namespace AS fn ON fn.oid = f.relnamespace
 ORDER BY rn.nspname, r.relname, k.conname, k.oid;
