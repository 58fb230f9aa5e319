-- name: bound!
-- How long may the next statement wait for each lock, and for all in all?
SELECT pg_catalog.set_config('lock_timeout', :milliseconds, true), pg_catalog.set_config('statement_timeout', :milliseconds, true);

-- name: holders
-- Who else holds a lock on one of these, in which transaction? Readable by everybody, other than pg_stat_activity.
SELECT DISTINCT l.pid, l.virtualtransaction AS transaction
  FROM pg_catalog.pg_locks AS l
 WHERE l.locktype = 'relation' AND l.granted AND l.relation = ANY(:oids::oid[])
   AND l.database = (SELECT d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database())
   AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid();

-- name: commit_here!
-- May the end of this transaction not wait for standbys? One that is promoted without it has the state from before it, which is whole.
SELECT pg_catalog.set_config('synchronous_commit', 'local', true);
