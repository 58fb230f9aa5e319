-- name: find_definitions
-- Which plain views does each of these materialized views inline, and which stored parse trees are that in all?
-- One row per view and inlined relation (itself included); the digest says whether the tree is known already.
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
)
SELECT i.view, i.relation, c.relowner AS owner, pg_catalog.md5(r.ev_action::text) AS digest,
       CASE WHEN i.view = i.relation THEN
           ARRAY(SELECT a.attname::text
                   FROM pg_catalog.pg_attribute AS a
                  WHERE a.attrelid = i.view AND a.attnum > 0
                  ORDER BY a.attnum)
       END AS columns
  FROM inlined AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.relation
  JOIN pg_catalog.pg_rewrite AS r ON r.ev_class = i.relation AND r.ev_type = '1'
 ORDER BY i.view, i.relation;

-- name: read_trees
-- What are the stored parse trees of these relations?
SELECT r.ev_class AS relation, r.ev_action::text AS tree
  FROM pg_catalog.pg_rewrite AS r
 WHERE r.ev_class = ANY (:relations::oid[]) AND r.ev_type = '1';

-- name: read_functions
-- Which functions stand behind what the trees call, and how volatile are they?
-- A user-defined aggregate is marked immutable whatever it is made of, so its parts are asked as well.
WITH called (how, what, function) AS (
    SELECT 'function', f, f FROM pg_catalog.unnest(:functions::oid[]) AS f
    UNION ALL
    SELECT 'operator', o.oid, o.oprcode
      FROM pg_catalog.pg_operator AS o WHERE o.oid = ANY (:operators::oid[])
    UNION ALL
    SELECT 'function', a.aggfnoid, part
      FROM pg_catalog.pg_aggregate AS a
     CROSS JOIN LATERAL pg_catalog.unnest(ARRAY[
         a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[]) AS part
     WHERE a.aggfnoid = ANY (:functions::oid[]) AND a.aggfnoid >= 16384 AND part <> 0
    UNION ALL
    SELECT 'input', t.oid, t.typinput FROM pg_catalog.pg_type AS t WHERE t.oid = ANY (:inputs::oid[])
    UNION ALL
    SELECT 'output', t.oid, t.typoutput FROM pg_catalog.pg_type AS t WHERE t.oid = ANY (:outputs::oid[])
)
SELECT c.how, c.what, p.oid, n.nspname AS schema, p.proname AS name, p.provolatile::text AS volatility,
       p.pronargs AS arguments
  FROM called AS c
  JOIN pg_catalog.pg_proc AS p ON p.oid = c.function
  JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace;

-- name: find_row_security
-- Of these pairs of a role and a relation that it reads: where does row security choose the rows for that role?
SELECT asked.role, asked.relation, n.nspname AS schema, c.relname AS name
  FROM ROWS FROM (pg_catalog.unnest(:roles::oid[]), pg_catalog.unnest(:relations::oid[])) AS asked (role, relation)
  JOIN pg_catalog.pg_class AS c ON c.oid = asked.relation
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_roles AS r ON r.oid = asked.role
 WHERE c.relrowsecurity AND NOT r.rolsuper AND NOT r.rolbypassrls
   AND (c.relforcerowsecurity OR NOT pg_catalog.pg_has_role(asked.role, c.relowner, 'USAGE'));
