-- name: read_sources
-- From which relations does each of these materialized views take its rows, directly, through plain views and as partitions?
-- Every relation that a stored parse tree reads stands there as ":relid N"; pg_depend would leave the system catalogues
-- out, because nothing records a dependency on a pinned object. Another materialized view is a leaf, and so is a view of
-- the system's own (OIDs below 16384 are of initdb). Each view is in the answer itself, so that one without sources is.
WITH RECURSIVE dependency (view, relation) AS (
    SELECT c.oid, c.oid
      FROM pg_catalog.pg_class AS c
     WHERE c.relkind = 'm' AND (:oids::oid[] IS NULL OR c.oid = ANY (:oids::oid[]))
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
         SELECT h.inhrelid FROM pg_catalog.pg_inherits AS h WHERE h.inhparent = d.relation) AS e
)
SELECT d.view, c.oid, n.nspname AS schema, c.relname AS name, c.relpersistence::text AS persistence,
       CASE WHEN c.oid < 16384 THEN 'system' ELSE c.relkind::text END AS kind
  FROM dependency AS d
  JOIN pg_catalog.pg_class AS c ON c.oid = d.relation
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 ORDER BY d.view, n.nspname, c.relname;
