-- name: as_usual!
-- Whose settings do rows meet? The session's own again, and policies that would hide some of them are an error.
SELECT pg_catalog.set_config('search_path', (SELECT s.reset_val FROM pg_catalog.pg_settings AS s WHERE s.name = 'search_path'), true),
       pg_catalog.set_config('TimeZone', (SELECT s.reset_val FROM pg_catalog.pg_settings AS s WHERE s.name = 'TimeZone'), true),
       pg_catalog.set_config('DateStyle', (SELECT s.reset_val FROM pg_catalog.pg_settings AS s WHERE s.name = 'DateStyle'), true),
       pg_catalog.set_config('IntervalStyle', (SELECT s.reset_val FROM pg_catalog.pg_settings AS s WHERE s.name = 'IntervalStyle'), true),
       pg_catalog.set_config('row_security', 'off', true);

-- name: as_dumped!
-- And how are names and literals read that were deparsed?
SELECT pg_catalog.set_config('search_path', '', true), pg_catalog.set_config('TimeZone', 'UTC', true),
       pg_catalog.set_config('DateStyle', 'ISO, YMD', true), pg_catalog.set_config('IntervalStyle', 'postgres', true);

-- name: deadlock_timeout$
-- After how many milliseconds does the server look whether two wait for each other?
SELECT s.setting::integer FROM pg_catalog.pg_settings AS s WHERE s.name = 'deadlock_timeout';

-- name: snapshots
-- Which transactions of this database look with a snapshot now? Both are readable by everybody. Who analyses or vacuums looks for no rows.
SELECT a.pid, l.virtualtransaction AS transaction
  FROM pg_catalog.pg_stat_activity AS a
  JOIN pg_catalog.pg_locks AS l ON l.pid = a.pid AND l.locktype = 'virtualxid' AND l.granted AND l.mode = 'ExclusiveLock'
 WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid() AND a.backend_xmin IS NOT NULL
   AND a.backend_type IS DISTINCT FROM 'autovacuum worker';

-- name: bound!
-- How long may one batch wait and work? Who waits for one of its rows waits no longer either.
SELECT pg_catalog.set_config('lock_timeout', :milliseconds, true), pg_catalog.set_config('statement_timeout', :milliseconds, true);

-- name: as_declared!
-- And how long, when the batches are over, what nobody waits for?
SELECT pg_catalog.set_config('statement_timeout', (SELECT s.reset_val FROM pg_catalog.pg_settings AS s WHERE s.name = 'statement_timeout'), true);

-- name: somebody_waits$
-- Does anybody wait for a row that this transaction has taken?
SELECT EXISTS (
    SELECT
      FROM pg_catalog.pg_locks AS mine
      JOIN pg_catalog.pg_locks AS theirs ON theirs.locktype = 'transactionid' AND theirs.transactionid = mine.transactionid AND NOT theirs.granted
     WHERE mine.pid = pg_catalog.pg_backend_pid() AND mine.locktype = 'transactionid' AND mine.granted);

-- name: read_delete_triggers
-- Which triggers would believe that rows are deleted when they are moved? Foreign keys have their own look, requests for a refresh are welcome.
SELECT n.nspname AS schema, c.relname AS table, t.tgname AS name
  FROM ROWS FROM (pg_catalog.unnest(:schemas::text[]), pg_catalog.unnest(:names::text[])) AS asked (schema, name)
  JOIN pg_catalog.pg_namespace AS n ON n.nspname = asked.schema
  JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = asked.name
  JOIN pg_catalog.pg_trigger AS t ON t.tgrelid = c.oid
  JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid
  JOIN pg_catalog.pg_namespace AS f ON f.oid = p.pronamespace
 WHERE t.tgtype & 8 = 8 AND t.tgenabled IN ('O', 'A')
   AND NOT (f.nspname = 'upkeep' AND p.proname = 'note_write')
   AND NOT (f.nspname = 'pg_catalog' AND p.proname LIKE 'RI\_FKey\_%%')
 ORDER BY 1, 2, 3;
