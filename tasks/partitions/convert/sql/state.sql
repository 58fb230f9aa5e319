-- name: begin$
-- Which conversion is this? Another one that is open makes it fail.
INSERT INTO upkeep.conversion (table_name, relation, how, asked, boundary, requested_by)
VALUES (:table_name, :relation, :how, :asked, :boundary, :requested_by)
RETURNING id;

-- name: open^
-- Which conversion is under way in this database?
SELECT c.* FROM upkeep.conversion AS c WHERE c.finished_at IS NULL;

-- name: get^
-- How far is it?
SELECT c.* FROM upkeep.conversion AS c WHERE c.id = :id;

-- name: all
-- Which conversions were there, the newest first?
SELECT c.* FROM upkeep.conversion AS c ORDER BY c.id DESC LIMIT 50;

-- name: unrecorded
-- Which were switched and are not in the ledger yet?
SELECT c.* FROM upkeep.conversion AS c WHERE c.state = 'switched' AND c.run_id IS NULL ORDER BY c.id;

-- name: done!
-- Which step is done now?
UPDATE upkeep.conversion
   SET steps = CASE WHEN :step = ANY (steps) THEN steps ELSE pg_catalog.array_append(steps, :step) END,
       parent = coalesce(:parent, parent), updated_at = pg_catalog.clock_timestamp()
 WHERE id = :id;

-- name: not_done!
-- Which step was taken back?
UPDATE upkeep.conversion SET steps = pg_catalog.array_remove(steps, :step), state = 'preparing', updated_at = pg_catalog.clock_timestamp()
 WHERE id = :id;

-- name: copied!
-- How far are the rows copied?
UPDATE upkeep.conversion
   SET last_key = :last_key, rows_copied = rows_copied + :rows, updated_at = pg_catalog.clock_timestamp()
 WHERE id = :id;

-- name: until!
-- Up to which key must be copied what was there before the mirror?
UPDATE upkeep.conversion SET end_key = :end_key, updated_at = pg_catalog.clock_timestamp() WHERE id = :id;

-- name: remake!
-- Which materialized views are built beside the old ones?
UPDATE upkeep.conversion SET remade = :remade, updated_at = pg_catalog.clock_timestamp() WHERE id = :id;

-- name: verified!
-- What did the comparison of both sides say?
UPDATE upkeep.conversion SET verified = :verified, state = CASE WHEN :ready THEN 'ready' ELSE state END, updated_at = pg_catalog.clock_timestamp()
 WHERE id = :id;

-- name: end!
-- How did it end?
UPDATE upkeep.conversion SET state = :state, finished_at = pg_catalog.clock_timestamp(), updated_at = pg_catalog.clock_timestamp() WHERE id = :id;

-- name: recorded!
-- Which run of the ledger tells of it?
UPDATE upkeep.conversion SET run_id = :run_id WHERE id = :id;

-- name: missed$
-- How many writes could not be mirrored?
SELECT count(*) FROM upkeep.conversion_missed AS m WHERE m.relation = :relation;

-- name: missed_done!
-- Forgets the writes that have been done again.
DELETE FROM upkeep.conversion_missed AS m WHERE m.relation = :relation;

-- name: clock$
-- What time is it on the database's clock?
SELECT pg_catalog.clock_timestamp();

-- name: current_xid$
-- A transaction later than everything that has been copied.
SELECT pg_catalog.pg_current_xact_id()::xid::text;

-- name: older_snapshots$
-- How many sessions may not see all that was committed before that transaction?
SELECT count(*)
  FROM pg_catalog.pg_stat_activity AS a
 WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid()
   AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
   AND pg_catalog.age(a.backend_xmin) >= pg_catalog.age(:xid::xid);
