-- name: begin_refresh
-- What is the clock now? Sets what the refresh in this transaction runs with; it is all gone when the transaction ends.
SELECT pg_catalog.clock_timestamp(),
       pg_catalog.set_config('lock_timeout', :lock_timeout, true),
       pg_catalog.set_config('statement_timeout', :statement_timeout, true),
       CASE WHEN :timezone::text IS NOT NULL THEN pg_catalog.set_config('TimeZone', :timezone, true) END,
       CASE WHEN :work_mem::text IS NOT NULL THEN pg_catalog.set_config('work_mem', :work_mem, true) END;
