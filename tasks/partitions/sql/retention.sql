-- name: declare!
-- Which rules are there now? One that is no longer declared stays with what it was: when it was last purged is worth knowing.
WITH declared AS (
    SELECT d.*
      FROM ROWS FROM (pg_catalog.unnest(:tables::text[]), pg_catalog.unnest(:years::integer[]),
                      pg_catalog.unnest(:months::integer[]), pg_catalog.unnest(:frameworks::text[]))
           AS d (table_name, retention_years, archive_after_months, compliance_framework)
), gone AS (
    UPDATE upkeep.retention AS r
       SET declared = false, updated_at = pg_catalog.clock_timestamp()
     WHERE r.declared AND NOT EXISTS (SELECT FROM declared AS d WHERE d.table_name = r.table_name)
)
INSERT INTO upkeep.retention AS r (table_name, retention_years, archive_after_months, compliance_framework)
SELECT d.* FROM declared AS d
    ON CONFLICT (table_name) DO UPDATE
   SET retention_years = excluded.retention_years, archive_after_months = excluded.archive_after_months,
       compliance_framework = excluded.compliance_framework, declared = true, updated_at = pg_catalog.clock_timestamp()
 WHERE (r.retention_years, r.archive_after_months, r.compliance_framework, r.declared)
       IS DISTINCT FROM (excluded.retention_years, excluded.archive_after_months, excluded.compliance_framework, true);

-- name: read_rules
-- How long must rows be kept, and when was a table last purged?
SELECT r.table_name, r.retention_years, r.archive_after_months, r.compliance_framework, r.declared, r.last_purged_at, r.updated_at
  FROM upkeep.retention AS r
 ORDER BY r.table_name;

-- name: existing
-- Which of these tables are there?
SELECT n.nspname AS schema, c.relname AS name
  FROM ROWS FROM (pg_catalog.unnest(:schemas::text[]), pg_catalog.unnest(:names::text[])) AS asked (schema, name)
  JOIN pg_catalog.pg_namespace AS n ON n.nspname = asked.schema
  JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = asked.name AND c.relkind IN ('r', 'p', 'f');
