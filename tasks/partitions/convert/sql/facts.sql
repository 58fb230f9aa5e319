-- name: deparse!
-- How does this transaction print definitions? With every name qualified, so that they mean the same wherever they are sent.
SELECT pg_catalog.set_config('search_path', '', true), pg_catalog.set_config('TimeZone', 'UTC', true),
       pg_catalog.set_config('DateStyle', 'ISO, YMD', true);

-- name: table^
-- What is this relation, and who may change it?
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, c.relpersistence::text AS persistence,
       pg_catalog.pg_get_userbyid(c.relowner) AS owner, current_user AS role,
       pg_catalog.pg_has_role(c.relowner, :as_role) AND pg_catalog.pg_has_role(c.relowner, 'USAGE') AS may_alter,
       coalesce((SELECT r.rolsuper FROM pg_catalog.pg_roles AS r WHERE r.oid = c.relowner), false) AS owner_is_superuser,
       pg_catalog.has_schema_privilege(c.relowner, n.oid, 'CREATE') AS owner_may_create,
       c.relispartition AS is_partition,
       EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhparent = c.oid) AS has_children,
       EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE i.inhrelid = c.oid) AS has_parent,
       c.reloftype <> 0 AS typed, c.relrowsecurity AS row_security, c.relforcerowsecurity AS forced_row_security,
       c.relreplident::text AS replica_identity, c.reltuples::bigint AS rows, pg_catalog.pg_total_relation_size(c.oid) AS bytes,
       coalesce(c.reloptions, '{}') AS options, coalesce(s.spcname, '') AS tablespace,
       pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
       ARRAY(SELECT l.provider FROM pg_catalog.pg_seclabel AS l WHERE l.classoid = 'pg_catalog.pg_class'::regclass AND l.objoid = c.oid) AS labels
  FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_tablespace AS s ON s.oid = c.reltablespace
 WHERE n.nspname = :schema AND c.relname = :name;

-- name: name_of^
-- What is this relation called now?
SELECT n.nspname AS schema, c.relname AS name, c.relkind::text AS kind
  FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE c.oid = :oid;

-- name: columns
-- Which columns has it, and which sequence gives their values?
SELECT a.attname AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type, t.typname AS base_type, a.attnotnull AS not_null,
       a.attidentity::text AS identity, a.attgenerated::text AS generated, coalesce(a.attstattarget, -1)::int AS statistics,
       coalesce(a.attoptions, '{}') AS options,
       EXISTS (SELECT FROM pg_catalog.pg_amproc AS p JOIN pg_catalog.pg_opfamily AS f ON f.oid = p.amprocfamily
                 JOIN pg_catalog.pg_am AS m ON m.oid = f.opfmethod AND m.amname = 'hash'
                WHERE p.amproclefttype = t.oid AND p.amprocnum = 2) AS hashable,
       s.oid AS sequence, sn.nspname AS sequence_schema, s.relname AS sequence_name, d.deptype::text AS sequence_tie
  FROM pg_catalog.pg_attribute AS a
  JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
  LEFT JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum
        AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')
        AND EXISTS (SELECT FROM pg_catalog.pg_class AS q WHERE q.oid = d.objid AND q.relkind = 'S')
  LEFT JOIN pg_catalog.pg_class AS s ON s.oid = d.objid
  LEFT JOIN pg_catalog.pg_namespace AS sn ON sn.oid = s.relnamespace
 WHERE a.attrelid = :oid AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum;

-- name: indexes
-- Which indexes has it? `tail` is what comes after the table's name in the statement that makes one.
SELECT c.oid, c.relname AS name, x.indisunique AS is_unique, x.indisprimary AS is_primary, x.indisvalid AS valid,
       con.oid AS constraint_oid, con.contype::text AS constraint_kind, coalesce(con.condeferrable, false) AS deferrable,
       pg_catalog.substr(pg_catalog.pg_get_indexdef(c.oid),
           pg_catalog.strpos(pg_catalog.pg_get_indexdef(c.oid), pg_catalog.format(' ON %%s%%I.%%I USING ', made.word, n.nspname, t.relname))
           + pg_catalog.length(pg_catalog.format(' ON %%s%%I.%%I ', made.word, n.nspname, t.relname))) AS tail,
       ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(x.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = k.attnum
              WHERE k.place <= x.indnkeyatts ORDER BY k.place) AS columns,
       ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(x.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = k.attnum
              WHERE k.place > x.indnkeyatts ORDER BY k.place) AS included,
       x.indexprs IS NOT NULL OR x.indpred IS NOT NULL OR EXISTS (
           SELECT FROM pg_catalog.unnest(x.indclass::oid[]) AS o (oid) JOIN pg_catalog.pg_opclass AS p ON p.oid = o.oid WHERE NOT p.opcdefault)
         OR coalesce((pg_catalog.to_jsonb(x) ->> 'indnullsnotdistinct')::boolean, false) AS special,
       x.indisreplident AS replica_identity, x.indisclustered AS clustered, pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
       pg_catalog.pg_relation_size(c.oid) AS bytes
  FROM pg_catalog.pg_index AS x
  JOIN pg_catalog.pg_class AS c ON c.oid = x.indexrelid
  JOIN pg_catalog.pg_class AS t ON t.oid = x.indrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = t.relnamespace
 CROSS JOIN LATERAL (SELECT CASE WHEN pg_catalog.strpos(pg_catalog.pg_get_indexdef(c.oid), pg_catalog.format(' ON ONLY %%I.%%I USING ', n.nspname, t.relname)) > 0
                                 THEN 'ONLY ' ELSE '' END AS word) AS made
  LEFT JOIN pg_catalog.pg_constraint AS con ON con.conindid = c.oid AND con.conrelid = t.oid AND con.contype IN ('p', 'u', 'x')
 WHERE x.indrelid = :oid
 ORDER BY c.relname;

-- name: constraints
-- Which checks and foreign keys has it, and which foreign keys point to it?
SELECT con.oid, con.conname AS name, con.contype::text AS kind, con.convalidated AS validated, con.connoinherit AS no_inherit,
       pg_catalog.pg_get_constraintdef(con.oid) AS definition,
       con.conrelid = :oid AS ours, con.confrelid = :oid AS to_us,
       con.conrelid AS relation, n.nspname AS schema, c.relname AS relation_name, c.relkind::text AS relation_kind,
       con.confrelid AS referenced,
       pg_catalog.pg_has_role(c.relowner, :as_role) AS may_alter, pg_catalog.pg_get_userbyid(c.relowner) AS owner,
       ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(con.confkey) WITH ORDINALITY AS k (attnum, place)
               JOIN pg_catalog.pg_attribute AS a ON a.attrelid = con.confrelid AND a.attnum = k.attnum ORDER BY k.place) AS referenced_columns,
       pg_catalog.obj_description(con.oid, 'pg_constraint') AS comment
  FROM pg_catalog.pg_constraint AS con
  JOIN pg_catalog.pg_class AS c ON c.oid = con.conrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE con.contype IN ('c', 'f') AND (con.conrelid = :oid OR con.confrelid = :oid) AND con.conparentid = 0
 ORDER BY con.conname;

-- name: triggers
-- Which triggers of users has it?
SELECT t.tgname AS name, pg_catalog.pg_get_triggerdef(t.oid) AS definition, t.tgtype & 1 = 1 AS for_each_row, t.tgenabled::text AS enabled,
       t.tgoldtable IS NOT NULL OR t.tgnewtable IS NOT NULL AS transition, pg_catalog.obj_description(t.oid, 'pg_trigger') AS comment
  FROM pg_catalog.pg_trigger AS t
 WHERE t.tgrelid = :oid AND NOT t.tgisinternal AND t.tgname <> ALL (:not_these::text[])
 ORDER BY t.tgname;

-- name: policies
-- Which policies of row security has it?
SELECT p.polname AS name, p.polpermissive AS permissive, p.polcmd::text AS command,
       ARRAY(SELECT coalesce(r.rolname::text, '') FROM pg_catalog.unnest(p.polroles) AS l (oid) LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = l.oid) AS roles,
       pg_catalog.pg_get_expr(p.polqual, p.polrelid) AS qualifier, pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) AS with_check
  FROM pg_catalog.pg_policy AS p
 WHERE p.polrelid = :oid
 ORDER BY p.polname;

-- name: grants
-- Who but the owner may do what with a relation, and with which of its columns (empty: with all of it)?
SELECT '' AS column, coalesce(r.rolname, '') AS grantee, g.privilege_type AS privilege, g.is_grantable AS grantable
  FROM pg_catalog.pg_class AS c
 CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS g
  LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = g.grantee
 WHERE c.oid = :oid AND g.grantee <> c.relowner
 UNION ALL
SELECT a.attname, coalesce(r.rolname, ''), g.privilege_type, g.is_grantable
  FROM pg_catalog.pg_attribute AS a
 CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) AS g
  LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = g.grantee
 WHERE a.attrelid = :oid AND a.attnum > 0 AND NOT a.attisdropped;

-- name: publications
-- Which publications name it, and may we change them?
SELECT p.pubname AS name, pg_catalog.pg_has_role(p.pubowner, :as_role) AS may_alter, pg_catalog.pg_get_userbyid(p.pubowner) AS owner,
       (pg_catalog.to_jsonb(r) ->> 'prqual') IS NOT NULL OR (pg_catalog.to_jsonb(r) ->> 'prattrs') IS NOT NULL AS in_part
  FROM pg_catalog.pg_publication_rel AS r JOIN pg_catalog.pg_publication AS p ON p.oid = r.prpubid
 WHERE r.prrelid = :oid
 ORDER BY p.pubname;

-- name: readers
-- Which materialized views must be built anew because they read it (or another such), and which views read one of these?
WITH RECURSIVE remade (oid, depth) AS (
    SELECT :oid::oid, 0
     UNION
    SELECT r.ev_class, m.depth + 1
      FROM remade AS m
      JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = m.oid AND d.classid = 'pg_catalog.pg_rewrite'::regclass
      JOIN pg_catalog.pg_rewrite AS r ON r.oid = d.objid AND r.ev_class <> m.oid
      JOIN pg_catalog.pg_class AS c ON c.oid = r.ev_class AND c.relkind = 'm'
), anew AS (
    SELECT oid, max(depth) AS depth FROM remade GROUP BY oid
), reading AS (
    SELECT a.oid, a.depth FROM anew AS a WHERE a.depth > 0
     UNION ALL
    SELECT DISTINCT r.ev_class, 1000
      FROM anew AS a
      JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = a.oid AND d.classid = 'pg_catalog.pg_rewrite'::regclass
      JOIN pg_catalog.pg_rewrite AS r ON r.oid = d.objid AND r.ev_class <> a.oid AND r.rulename = '_RETURN'
      JOIN pg_catalog.pg_class AS c ON c.oid = r.ev_class AND c.relkind = 'v'
)
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind, g.depth, c.relispopulated AS populated,
       pg_catalog.pg_get_viewdef(c.oid) AS definition, coalesce(c.reloptions, '{}') AS options,
       pg_catalog.pg_get_userbyid(c.relowner) AS owner, pg_catalog.pg_has_role(c.relowner, :as_role) AS may_alter,
       coalesce(s.spcname, '') AS tablespace, a.amname AS access_method, pg_catalog.obj_description(c.oid, 'pg_class') AS comment,
       pg_catalog.pg_total_relation_size(c.oid) AS bytes,
       ARRAY(SELECT t.attname::text FROM pg_catalog.pg_attribute AS t WHERE t.attrelid = c.oid AND t.attnum > 0 ORDER BY t.attnum) AS columns,
       ARRAY(SELECT pg_catalog.col_description(c.oid, t.attnum) FROM pg_catalog.pg_attribute AS t WHERE t.attrelid = c.oid AND t.attnum > 0 ORDER BY t.attnum) AS comments
  FROM reading AS g
  JOIN pg_catalog.pg_class AS c ON c.oid = g.oid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_tablespace AS s ON s.oid = c.reltablespace
  LEFT JOIN pg_catalog.pg_am AS a ON a.oid = c.relam
 ORDER BY g.depth, n.nspname, c.relname;

-- name: bodies
-- Which functions in SQL's own form read one of these? Their text is parsed already, and names the table by its OID.
SELECT DISTINCT p.oid, pg_catalog.pg_describe_object('pg_catalog.pg_proc'::regclass, p.oid, 0) AS name,
       pg_catalog.pg_get_functiondef(p.oid) AS definition, pg_catalog.pg_has_role(p.proowner, :as_role) AS may_alter,
       pg_catalog.pg_get_userbyid(p.proowner) AS owner
  FROM pg_catalog.pg_depend AS d
  JOIN pg_catalog.pg_proc AS p ON p.oid = d.objid AND p.prosqlbody IS NOT NULL AND p.prokind IN ('f', 'p')
 WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = ANY(:oids::oid[])
 ORDER BY 2;

-- name: others
-- What else depends on one of these, or on the type of its rows, or on one of their keys, that cannot be made anew for another table?
SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) AS what,
       pg_catalog.pg_describe_object(d.refclassid, d.refobjid, 0) AS on_what
  FROM pg_catalog.pg_class AS c
  LEFT JOIN pg_catalog.pg_type AS t ON t.oid = c.reltype
  JOIN pg_catalog.pg_depend AS d
    ON (d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = c.oid)
    OR (d.refclassid = 'pg_catalog.pg_type'::regclass AND d.refobjid IN (t.oid, t.typarray))
    OR (d.refclassid = 'pg_catalog.pg_constraint'::regclass AND d.deptype = 'n' AND d.classid = 'pg_catalog.pg_rewrite'::regclass
        AND d.refobjid = ANY(:weakened::oid[]))
 WHERE c.oid = ANY(:oids::oid[])
   AND d.deptype NOT IN ('i', 'P', 'S')
   AND NOT (d.refclassid = 'pg_catalog.pg_class'::regclass AND (
         (d.deptype = 'a' AND d.classid <> 'pg_catalog.pg_rewrite'::regclass AND d.classid <> 'pg_catalog.pg_policy'::regclass AND d.classid <> 'pg_catalog.pg_proc'::regclass)
      OR d.classid = 'pg_catalog.pg_constraint'::regclass
      OR (d.classid = 'pg_catalog.pg_attrdef'::regclass AND EXISTS (SELECT FROM pg_catalog.pg_attrdef AS e WHERE e.oid = d.objid AND e.adrelid = c.oid))
      OR (d.classid = 'pg_catalog.pg_trigger'::regclass AND EXISTS (SELECT FROM pg_catalog.pg_trigger AS g WHERE g.oid = d.objid AND g.tgrelid = c.oid))
      OR (d.classid = 'pg_catalog.pg_policy'::regclass AND EXISTS (SELECT FROM pg_catalog.pg_policy AS p WHERE p.oid = d.objid AND p.polrelid = c.oid))
      OR (d.classid = 'pg_catalog.pg_proc'::regclass AND EXISTS (SELECT FROM pg_catalog.pg_proc AS p WHERE p.oid = d.objid AND p.prosqlbody IS NOT NULL AND p.prokind IN ('f', 'p')))
      OR (d.classid = 'pg_catalog.pg_rewrite'::regclass AND EXISTS (
             SELECT FROM pg_catalog.pg_rewrite AS r JOIN pg_catalog.pg_class AS v ON v.oid = r.ev_class
              WHERE r.oid = d.objid AND r.rulename = '_RETURN' AND v.relkind IN ('v', 'm')))
      OR (d.classid = 'pg_catalog.pg_class'::regclass AND EXISTS (
             SELECT FROM pg_catalog.pg_class AS s WHERE s.oid = d.objid AND s.relkind IN ('i', 'S', 't', 'I')))))
 ORDER BY 1;

-- name: still_on
-- What reads one of these all the same? Nothing may, after the switch.
SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) AS what
  FROM pg_catalog.pg_depend AS d
 WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = ANY(:oids::oid[])
   AND (d.classid = 'pg_catalog.pg_rewrite'::regclass AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_rewrite AS r WHERE r.oid = d.objid AND r.ev_class = d.refobjid)
     OR d.classid = 'pg_catalog.pg_proc'::regclass
     OR d.classid = 'pg_catalog.pg_policy'::regclass AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_policy AS p WHERE p.oid = d.objid AND p.polrelid = d.refobjid)
     OR d.classid = 'pg_catalog.pg_constraint'::regclass AND EXISTS (
            SELECT FROM pg_catalog.pg_constraint AS c WHERE c.oid = d.objid AND c.contype = 'f' AND c.confrelid = d.refobjid AND c.conparentid = 0))
 ORDER BY 1;

-- name: sequence^
-- What are a sequence's parameters?
SELECT s.seqstart AS start, s.seqincrement AS increment, s.seqmin AS min, s.seqmax AS max, s.seqcache AS cache, s.seqcycle AS cycle
  FROM pg_catalog.pg_sequence AS s WHERE s.seqrelid = :oid;

-- name: taken
-- Which of these names are in use in a schema?
SELECT c.relname AS name FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relname = ANY(:names::text[]);

-- name: partitions
-- Which partitions has a parent, and which of them is the default one?
SELECT i.inhrelid AS oid, n.nspname AS schema, c.relname AS name, pg_catalog.pg_get_expr(c.relpartbound, c.oid) = 'DEFAULT' AS is_default
  FROM pg_catalog.pg_inherits AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE i.inhparent = :oid
 ORDER BY c.relname;

-- name: primary_key$
-- What is the primary key of this table called?
SELECT con.conname FROM pg_catalog.pg_constraint AS con WHERE con.conrelid = :oid AND con.contype = 'p';

-- name: has_constraint$
-- Is there such a constraint: NULL if not, else whether it is validated?
SELECT con.convalidated FROM pg_catalog.pg_constraint AS con WHERE con.conrelid = :oid AND con.conname = :name;

-- name: index_valid$
-- Is there such an index on it: NULL if not, else whether it was finished?
SELECT x.indisvalid FROM pg_catalog.pg_index AS x JOIN pg_catalog.pg_class AS c ON c.oid = x.indexrelid
 WHERE x.indrelid = :oid AND c.relname = :name;

-- name: is_attached$
-- Is it a partition?
SELECT c.relispartition FROM pg_catalog.pg_class AS c WHERE c.oid = :oid;

-- name: oid_of$
-- Which relation has this name?
SELECT c.oid FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = :schema AND c.relname = :name;

-- name: has_trigger$
-- Is there such a trigger on it?
SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = :oid AND t.tgname = :name);

-- name: restart!
-- Where does the sequence go on?
SELECT pg_catalog.setval(:oid::oid::regclass, :last_value, :is_called);

-- name: owned_sequence^
-- Which sequence gives the values of an identity column?
SELECT s.oid, n.nspname AS schema, s.relname AS name
  FROM pg_catalog.pg_depend AS d
  JOIN pg_catalog.pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
  JOIN pg_catalog.pg_namespace AS n ON n.oid = s.relnamespace
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = :oid
   AND a.attname = :column AND d.deptype IN ('a', 'i');
