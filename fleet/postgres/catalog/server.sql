-- name: read_server^
-- Which server is this, on which timeline, what time is it there, and under which settings does this session print and parse?
SELECT pg_catalog.current_setting('server_version_num')::int AS version_num,
       s.system_identifier::text AS system_identifier,
       -- A checkpoint tells the timeline only minutes after a promotion; the log that is written to knows it at once.
       CASE WHEN pg_catalog.pg_is_in_recovery() THEN c.timeline_id
            ELSE ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8))::bit(32)::int
        END AS timeline,
       pg_catalog.pg_is_in_recovery() AS in_recovery,
       pg_catalog.current_setting('TimeZone') AS timezone,
       (SELECT pg_catalog.md5(pg_catalog.string_agg(
                   name || '=' || coalesce(pg_catalog.current_setting(name, true), ''), ',' ORDER BY name))
          FROM pg_catalog.unnest(:settings::text[]) AS name) AS settings_hash,
       pg_catalog.to_char(now.clock, 'YYYY-MM-DD') AS today,
       (extract(epoch FROM now.clock) * 1000000)::bigint AS clock_us
  FROM pg_catalog.pg_control_system() AS s,
       pg_catalog.pg_control_checkpoint() AS c,
       pg_catalog.clock_timestamp() AS now (clock);
