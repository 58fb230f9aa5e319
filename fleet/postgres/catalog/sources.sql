-- name: read_sources
-- From which relations does each of these materialized views take its rows, directly, through plain views and as partitions?
-- Every relation that a stored parse tree reads stands there as ":relid N"; pg_depend would leave the system catalogues
-- out, because nothing records a dependency on a pinned object. Another materialized view is a leaf, and so is a view of
-- the system's own (OIDs below 16384 are of initdb). Each view is in the answer itself, so that one without sources is.
-- OFFSET 0 keeps the planner, which expects many rows of a recursion, from reading all of pg_class for a few; the
-- parameter stands in a sub-select so that it makes one plan for all calls, which takes longer than running it.
WITH RECURSIVE dependency (view, relation) AS (
    SELECT c.oid, c.oid
      FROM pg_catalog.pg_class AS c
     WHERE c.relkind = 'm'
       AND c.oid = ANY ((SELECT coalesce(:oids::oid[], ARRAY(
               SELECT k.oid FROM pg_catalog.pg_class AS k WHERE k.relkind = 'm')))::oid[])
    UNION
    SELECT d.view, e.relation
      FROM dependency AS d
     CROSS JOIN LATERAL (
         SELECT pg_catalog.split_part(pg_catalog.left(piece, 11), ' ', 1)::oid AS relation
           FROM pg_catalog.pg_class AS k
           JOIN pg_catalog.pg_rewrite AS r ON r.ev_class = k.oid AND r.ev_type = '1'
          CROSS JOIN LATERAL pg_catalog.unnest((pg_catalog.string_to_array(r.ev_action::text, ':relid '))[2:]) AS piece
          WHERE k.oid = d.relation AND (k.oid = d.view OR (k.relkind = 'v' AND k.oid >= 16384))
         UNION ALL
         SELECT h.inhrelid
           FROM pg_catalog.pg_class AS k
           JOIN pg_catalog.pg_inherits AS h ON h.inhparent = k.oid
          WHERE k.oid = d.relation AND k.relhassubclass
         OFFSET 0) AS e
)
SELECT d.view, s.oid, s.schema, s.name, s.kind, s.persistence
  FROM dependency AS d
 CROSS JOIN LATERAL (
     SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relpersistence::text AS persistence,
            CASE WHEN c.oid < 16384 THEN 'system' ELSE c.relkind::text END AS kind
       FROM pg_catalog.pg_class AS c
       JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
      WHERE c.oid = d.relation
     OFFSET 0) AS s
 ORDER BY d.view, s.schema, s.name;
