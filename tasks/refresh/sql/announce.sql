-- name: notify!
-- Tells whoever listens in PostgreSQL, with the commit.
SELECT pg_catalog.pg_notify('upkeep_refreshed', :payload);

-- name: insert_announcement!
-- Notes, in the transaction of the refresh, which cached results are no longer right.
INSERT INTO upkeep.announcement (view, run_id, snapshot_at, tags, parameters) VALUES (:view, :run_id, :snapshot_at, :tags, :parameters);

-- name: announcements_of
-- What is to be told of a run?
SELECT a.id, a.view, a.run_id, a.snapshot_at, a.tags, a.parameters FROM upkeep.announcement a WHERE a.run_id = :run_id ORDER BY a.id;

-- name: left_announcements
-- Which did nobody tell: their worker died, or the cache was away? Taken by one of those that ask.
WITH left_over AS (
    SELECT a.id
      FROM upkeep.announcement a
     WHERE coalesce(a.tried_at, a.created_at) < pg_catalog.clock_timestamp() - :patience::interval
     ORDER BY a.id
     LIMIT :batch
       FOR UPDATE SKIP LOCKED
)
UPDATE upkeep.announcement AS a
   SET tried_at = pg_catalog.clock_timestamp()
  FROM left_over
 WHERE a.id = left_over.id
RETURNING a.id, a.view, a.run_id, a.snapshot_at, a.tags, a.parameters;

-- name: delete_announcements!
-- They have been told.
DELETE FROM upkeep.announcement a WHERE a.id = ANY (:ids::bigint[]);
