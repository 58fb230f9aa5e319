-- name: read_references
-- Which foreign keys lead to this partitioned table, and what would it take to check or to replace them?
-- `column` is the one that holds the control column of what it refers to.
SELECT k.oid, k.conname::text AS name, n.nspname::text AS schema, c.relname::text AS table_name, c.oid AS referencing, c.relkind::text AS kind,
       pg_catalog.pg_has_role(c.relowner, 'USAGE') AS may_alter,
       k.convalidated AS validated, k.confdeltype::text AS on_delete,
       ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS p (number, position)
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = p.number ORDER BY p.position) AS columns,
       (SELECT a.attname::text FROM ROWS FROM (pg_catalog.unnest(k.conkey), pg_catalog.unnest(k.confkey)) AS p (own, other)
          JOIN pg_catalog.pg_attribute AS f ON f.attrelid = k.confrelid AND f.attnum = p.other AND f.attname = :control
          JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = p.own) AS column,
       pg_catalog.pg_get_constraintdef(k.oid) AS definition, pg_catalog.obj_description(k.oid, 'pg_constraint') AS comment,
       (SELECT coalesce(pg_catalog.sum(greatest(l.reltuples, pg_catalog.pg_stat_get_live_tuples(l.oid))), 0)::bigint
          FROM pg_catalog.pg_partition_tree(c.oid::regclass) AS t JOIN pg_catalog.pg_class AS l ON l.oid = t.relid
         WHERE c.relkind = 'p' AND l.relkind = 'r')
       + CASE WHEN c.relkind = 'r' THEN greatest(c.reltuples, pg_catalog.pg_stat_get_live_tuples(c.oid))::bigint ELSE 0 END AS rows,
       EXISTS (SELECT FROM ROWS FROM (pg_catalog.unnest(k.conkey), pg_catalog.unnest(k.confkey)) AS p (own, other)
                 JOIN pg_catalog.pg_attribute AS f ON f.attrelid = k.confrelid AND f.attnum = p.other AND f.attname = :control
                 JOIN pg_catalog.pg_index AS x ON x.indrelid = c.oid AND x.indkey[0] = p.own AND x.indisvalid AND x.indpred IS NULL) AS indexed
  FROM pg_catalog.pg_constraint AS k
  JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE k.contype = 'f' AND k.confrelid = :oid AND k.conparentid = 0
 ORDER BY n.nspname, c.relname, k.conname;

-- name: index_alone!
-- Is an index taken wherever there is one? Estimates are out of date after rows have left.
SELECT pg_catalog.set_config('enable_seqscan', 'off', true);

-- name: remember!
-- This foreign key was valid, and is NOT VALID from this transaction on.
INSERT INTO upkeep.unvalidated_constraint (table_name, constraint_name) VALUES (:table_name, :name)
    ON CONFLICT ON CONSTRAINT unvalidated_constraint_pkey DO NOTHING;

-- name: read_unvalidated
-- Which foreign keys has a move left NOT VALID, and are they still so? NULL: they are gone.
SELECT u.table_name, u.constraint_name AS name, n.nspname::text AS schema, c.relname::text AS relation, k.convalidated AS validated
  FROM upkeep.unvalidated_constraint AS u
  LEFT JOIN pg_catalog.pg_constraint AS k ON k.conrelid = pg_catalog.to_regclass(u.table_name) AND k.conname = u.constraint_name
  LEFT JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
  LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 ORDER BY u.table_name, u.constraint_name;

-- name: forget!
-- It is valid again, or gone.
DELETE FROM upkeep.unvalidated_constraint AS u WHERE u.table_name = :table_name AND u.constraint_name = :name;

-- name: own_references
-- Which foreign keys has this table itself to one of these?
SELECT k.conname::text AS name FROM pg_catalog.pg_constraint AS k
 WHERE k.conrelid = :oid AND k.contype = 'f' AND k.confrelid = :referenced ORDER BY 1;

-- name: destructive
-- Which foreign keys to this table change or delete rows elsewhere when its rows are deleted here?
SELECT k.conname::text AS name, n.nspname::text AS schema, c.relname::text AS table_name
  FROM pg_catalog.pg_constraint AS k
  JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE k.contype = 'f' AND k.confrelid = :oid AND k.confdeltype IN ('c', 'n', 'd') AND k.conparentid = 0
 ORDER BY 2, 3, 1;
