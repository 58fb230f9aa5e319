-- name: begin_refresh
-- What is the clock now, and what did this session count for the relation before? (Counts of its earlier transactions that it
-- has not sent off yet stand among a transaction's own, on 14 for half a second and more.) Sets what the refresh in this transaction runs with; it is all gone when the transaction ends.
SELECT pg_catalog.clock_timestamp(),
       pg_catalog.pg_stat_get_xact_tuples_inserted(:relation) + pg_catalog.pg_stat_get_xact_tuples_updated(:relation)
       + pg_catalog.pg_stat_get_xact_tuples_deleted(:relation),
       pg_catalog.set_config('lock_timeout', :lock_timeout, true),
       pg_catalog.set_config('statement_timeout', :statement_timeout, true),
       CASE WHEN :timezone::text IS NOT NULL THEN pg_catalog.set_config('TimeZone', :timezone, true) END,
       CASE WHEN :work_mem::text IS NOT NULL THEN pg_catalog.set_config('work_mem', :work_mem, true) END;
