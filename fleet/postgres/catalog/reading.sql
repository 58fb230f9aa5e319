-- name: read_reading
-- What do the counters of these relations say now, and which marks tell that the counters themselves began anew?
-- One row per relation asked for, and one with a null relation if none is. Times are microseconds since 1970, which no
-- DateStyle or TimeZone can bend. A relation that does not exist has a null kind.
SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint AS taken_us,
       m.*,
       asked.oid, n.nspname AS schema, c.relname AS name,
       CASE WHEN c.oid < 16384 THEN 'system' ELSE c.relkind::text END AS kind,
       pg_catalog.pg_relation_filenode(c.oid) AS filenode,
       pg_catalog.pg_stat_get_tuples_inserted(c.oid) AS inserted,
       pg_catalog.pg_stat_get_tuples_updated(c.oid) AS updated,
       pg_catalog.pg_stat_get_tuples_deleted(c.oid) AS deleted
  FROM (SELECT b.oid::bigint AS database,
               s.system_identifier,
               k.timeline_id AS timeline,
               (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint AS started_us,
               (extract(epoch FROM pg_catalog.pg_stat_get_db_stat_reset_time(b.oid)) * 1000000)::bigint AS reset_us,
               (extract(epoch FROM pg_catalog.pg_stat_get_bgwriter_stat_reset_time()) * 1000000)::bigint AS crash_us,
               pg_catalog.current_setting('track_counts')::bool
               AND NOT EXISTS (
                   SELECT 1
                     FROM pg_catalog.pg_db_role_setting AS o, pg_catalog.unnest(o.setconfig) AS setting
                    WHERE o.setdatabase IN (0, b.oid)
                      AND pg_catalog.lower(setting) LIKE 'track_counts=%%'
                      AND NOT pg_catalog.split_part(setting, '=', 2)::bool) AS counted
          FROM pg_catalog.pg_database AS b,
               pg_catalog.pg_control_system() AS s,
               pg_catalog.pg_control_checkpoint() AS k
         WHERE b.datname = pg_catalog.current_database()) AS m
  LEFT JOIN pg_catalog.unnest(:oids::oid[]) AS asked (oid) ON true
  LEFT JOIN pg_catalog.pg_class AS c ON c.oid = asked.oid
  LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace;

-- name: forget_snapshot$
-- Discards the statistics that this transaction has read before, which would be returned again.
SELECT pg_catalog.pg_stat_clear_snapshot();
