-- name: read_reading^
-- What do the counters of these relations say now, and which marks tell that the counters themselves began anew?
-- One row: the marks, and an array of relations for each column. Times are microseconds since 1970, which no DateStyle
-- or TimeZone can bend. A relation that does not exist has a null kind. The parameter stands in a sub-select so that the
-- planner cannot count its elements and makes one plan for all calls: making one takes longer than running it.
WITH marks AS MATERIALIZED (
    SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint AS taken_us,
           b.oid::bigint AS database,
           s.system_identifier,
           k.timeline_id AS timeline,
           (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint AS started_us,
           (extract(epoch FROM pg_catalog.pg_stat_get_db_stat_reset_time(b.oid)) * 1000000)::bigint AS reset_us,
           (extract(epoch FROM pg_catalog.pg_stat_get_bgwriter_stat_reset_time()) * 1000000)::bigint AS crash_us,
           pg_catalog.current_setting('track_counts')::bool
           AND NOT EXISTS (
               SELECT 1
                 FROM pg_catalog.pg_db_role_setting AS o
                CROSS JOIN LATERAL pg_catalog.unnest(o.setconfig) AS setting
                WHERE o.setdatabase IN (0, b.oid)
                  AND pg_catalog.lower(setting) LIKE 'track_counts=%%'
                  AND NOT pg_catalog.split_part(setting, '=', 2)::bool) AS counted
      FROM pg_catalog.pg_database AS b
     CROSS JOIN pg_catalog.pg_control_system() AS s
     CROSS JOIN pg_catalog.pg_control_checkpoint() AS k
     WHERE b.datname = pg_catalog.current_database()
), counters AS (
    SELECT pg_catalog.array_agg(asked.oid) AS oids,
           pg_catalog.array_agg(c.schema) AS schemas,
           pg_catalog.array_agg(c.name) AS names,
           pg_catalog.array_agg(c.kind) AS kinds,
           pg_catalog.array_agg(pg_catalog.pg_relation_filenode(asked.oid)) AS filenodes,
           pg_catalog.array_agg(pg_catalog.pg_stat_get_tuples_inserted(asked.oid)) AS inserted,
           pg_catalog.array_agg(pg_catalog.pg_stat_get_tuples_updated(asked.oid)) AS updated,
           pg_catalog.array_agg(pg_catalog.pg_stat_get_tuples_deleted(asked.oid)) AS deleted
      FROM pg_catalog.unnest((SELECT :oids::oid[])) AS asked (oid)
      LEFT JOIN LATERAL (
          SELECT n.nspname::text AS schema, k.relname::text AS name,
                 CASE WHEN k.oid < 16384 THEN 'system' ELSE k.relkind::text END AS kind
            FROM pg_catalog.pg_class AS k
            JOIN pg_catalog.pg_namespace AS n ON n.oid = k.relnamespace
           WHERE k.oid = asked.oid
          OFFSET 0) AS c ON true
)
SELECT * FROM marks CROSS JOIN counters;

-- name: forget_snapshot$
-- Discards the statistics that this transaction has read before, which would be returned again.
SELECT pg_catalog.pg_stat_clear_snapshot();
