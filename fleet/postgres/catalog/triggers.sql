-- name: read_tables
-- Which tables take part in a write to each of these: itself, and every one that it is a partition or a child of?
-- A statement fires the statement-level triggers of the table that it names, and of no other: a write through a partitioned parent
-- changes rows of the partition, whose own triggers stay silent. OFFSET 0 as in sources.sql.
WITH RECURSIVE above (written, relation) AS (
    SELECT asked, asked
      FROM pg_catalog.unnest(:oids::oid[]) AS asked
    UNION
    SELECT a.written, h.inhparent
      FROM above AS a
      JOIN pg_catalog.pg_inherits AS h ON h.inhrelid = a.relation
)
SELECT a.written, s.*
  FROM above AS a
 CROSS JOIN LATERAL (
     SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relpersistence::text AS persistence,
            CASE WHEN c.oid < 16384 THEN 'system' ELSE c.relkind::text END AS kind,
            pg_catalog.pg_get_userbyid(c.relowner) AS owner,
            pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS may_use_schema,
            pg_catalog.has_table_privilege(c.oid, 'TRIGGER') AS may_install,
            pg_catalog.pg_has_role(c.relowner, 'USAGE') AS may_remove
       FROM pg_catalog.pg_class AS c
       JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
      WHERE c.oid = a.relation AND c.relkind IN ('r', 'p', 'f')
     OFFSET 0) AS s
 ORDER BY a.written, s.schema, s.name;

-- name: read_write_triggers
-- Which triggers request refreshes, on which tables and of which views, and who else has the name that ours have?
-- The arguments stand one after the other, each with a zero byte at its end, in the database's encoding. tgtype 60 is a
-- statement-level AFTER INSERT OR DELETE OR UPDATE OR TRUNCATE (pg_trigger.h).
SELECT t.tgrelid AS oid, n.nspname AS schema, c.relname AS name, t.tgname AS trigger, f.note AS ours,
       t.tgenabled IN ('O', 'A') AS enabled,
       t.tgtype = 60 AND t.tgqual IS NULL AND t.tgattr::text = '' AS whole,
       ARRAY(SELECT pg_catalog.convert_from(
                        pg_catalog.substring(t.tgargs, ends.before + 2, ends.position - ends.before - 1),
                        pg_catalog.getdatabaseencoding())
               FROM (SELECT z.position, pg_catalog.lag(z.position, 1, -1) OVER (ORDER BY z.position) AS before
                       FROM pg_catalog.generate_series(0, pg_catalog.length(t.tgargs) - 1) AS z (position)
                      WHERE pg_catalog.get_byte(t.tgargs, z.position) = 0) AS ends
              ORDER BY ends.position) AS views
  FROM pg_catalog.pg_trigger AS t
  JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 CROSS JOIN LATERAL (
     SELECT EXISTS (SELECT
                      FROM pg_catalog.pg_proc AS p
                      JOIN pg_catalog.pg_namespace AS s ON s.oid = p.pronamespace
                     WHERE p.oid = t.tgfoid AND s.nspname = 'upkeep' AND p.proname = 'note_write') AS note) AS f
 WHERE NOT t.tgisinternal AND (f.note OR t.tgname = 'upkeep_on_write')
 ORDER BY n.nspname, c.relname, t.tgname;
