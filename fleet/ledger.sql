-- name: insert_run
-- Which run stands for this request? Inserts it unless its key (slot, event or request) is there already.
WITH new AS (
    INSERT INTO upkeep.run (task, target, entry, slot, as_of, expires_at, queue, arguments, max_attempts, requested_by, request_id, parent_id, rung_at)
    VALUES (:task, :target, :entry, :slot, coalesce(:as_of::timestamptz, :slot::timestamptz, pg_catalog.clock_timestamp()), :expires_at, :queue,
            :arguments, :max_attempts, :requested_by, :request_id, :parent_id, pg_catalog.clock_timestamp())
    ON CONFLICT DO NOTHING
    RETURNING id
)
SELECT id, true AS created FROM new
UNION ALL
SELECT r.id, false
  FROM upkeep.run r
 WHERE NOT EXISTS (SELECT 1 FROM new)
   AND ((:slot::timestamptz IS NOT NULL AND r.task = :task AND r.target = :target AND r.entry = :entry AND r.slot = :slot)
     OR (:request_id::text IS NOT NULL AND r.request_id = :request_id)
     OR (:entry = 'event' AND r.entry = 'event' AND r.task = :task AND r.target = :target AND r.state = 'queued'))
 LIMIT 1;

-- name: insert_runs
-- Which of these runs are new? One that needs no work, or gets none, comes with its final state and the reason.
INSERT INTO upkeep.run (task, target, entry, slot, as_of, expires_at, queue, arguments, max_attempts, requested_by, request_id, parent_id,
                        created_at, rung_at, state, reason, error, attempt, worker, started_at, finished_at)
SELECT n.task, n.target, n.entry, n.slot, coalesce(n.as_of, n.slot, now.clock), n.expires_at, n.queue, n.arguments, n.max_attempts, n.requested_by,
       n.request_id, n.parent_id, now.clock, now.clock, n.state, n.reason, n.error,
       CASE WHEN n.state = 'skipped' THEN 1 ELSE 0 END,
       CASE WHEN n.state = 'skipped' THEN :worker END,
       CASE WHEN n.state = 'skipped' THEN now.clock END,
       CASE WHEN n.state <> 'queued' THEN now.clock END
  FROM pg_catalog.jsonb_to_recordset(:runs) AS n (
           task text, target text, entry text, slot timestamptz, as_of timestamptz, expires_at timestamptz, queue text, arguments jsonb,
           max_attempts integer, requested_by text, request_id text, parent_id bigint, state text, reason text, error jsonb)
 CROSS JOIN pg_catalog.clock_timestamp() AS now (clock)
    ON CONFLICT DO NOTHING
RETURNING id, task, target, entry, slot, queue, state;

-- name: claim_run
-- What is this run, now that its lock is ours? Marks it running unless it is final, not due yet, or out of attempts.
-- Not waited for on disk: if a crash forgets it, the run's lock is gone as well, and the run is found again.
WITH unhurried AS MATERIALIZED (SELECT pg_catalog.set_config('synchronous_commit', 'off', true))
UPDATE upkeep.run AS r
   SET state = CASE WHEN r.attempt >= r.max_attempts THEN 'lost' ELSE 'running' END,
       attempt = least(r.attempt + 1, r.max_attempts),
       started_at = coalesce(r.started_at, pg_catalog.clock_timestamp()),
       finished_at = CASE WHEN r.attempt >= r.max_attempts THEN pg_catalog.clock_timestamp() END,
       reason = CASE WHEN r.attempt >= r.max_attempts THEN 'attempts exhausted without an answer' END,
       not_before = NULL, waits_for = NULL, worker = :worker, progress = NULL
  FROM unhurried
 WHERE r.id = :id
   AND (:task::text IS NULL OR r.task = :task)
   AND r.finished_at IS NULL
   AND (r.not_before IS NULL OR r.not_before <= pg_catalog.clock_timestamp())
RETURNING r.*;

-- name: get_run
-- What does the ledger say of this run?
SELECT r.* FROM upkeep.run r WHERE r.id = :id;

-- name: get_request
-- Which run did this message ask for?
SELECT r.* FROM upkeep.run r WHERE r.request_id = :request_id;

-- name: children
-- Which runs did this run make?
SELECT r.* FROM upkeep.run r WHERE r.parent_id = :id ORDER BY r.id;

-- name: open_run_for
-- Is there an open run that will bring this target up to a moment anyway? Not a tick's, which counters may satisfy, nor one that waits for long.
SELECT r.id
  FROM upkeep.run r
 WHERE r.task = :task AND r.target = :target AND r.as_of >= :as_of AND r.finished_at IS NULL
   AND r.entry IN ('operator', 'event', 'upstream')
   AND (r.not_before IS NULL OR r.not_before <= pg_catalog.clock_timestamp() + interval '10 seconds')
 ORDER BY r.as_of, r.id
 LIMIT 1;

-- name: show_progress!
-- Notes where a running run is, for whoever watches; the disk is not waited for.
WITH unhurried AS MATERIALIZED (SELECT pg_catalog.set_config('synchronous_commit', 'off', true))
UPDATE upkeep.run SET progress = :progress FROM unhurried WHERE id = :id AND state = 'running';

-- name: finish_run!
-- Ends a run, and makes due what waited for the view that it has refreshed.
WITH woken AS (
    UPDATE upkeep.run SET not_before = pg_catalog.clock_timestamp()
     WHERE :wakes::text IS NOT NULL AND state = 'waiting' AND finished_at IS NULL AND waits_for = :wakes AND not_before > pg_catalog.clock_timestamp()
)
UPDATE upkeep.run
   SET state = :state, finished_at = pg_catalog.clock_timestamp(), reason = :reason, result = :result, error = :error,
       progress = NULL, not_before = NULL, waits_for = NULL
 WHERE id = :id AND finished_at IS NULL;

-- name: hand_back!
-- Lets a run wait: another worker finishes it once it is due. A hand-back gives its attempt back, a retry does not.
UPDATE upkeep.run
   SET state = 'waiting', not_before = pg_catalog.clock_timestamp() + :wait, waits_for = :waits_for, reason = :reason,
       error = :error, progress = NULL, attempt = attempt - CASE WHEN :counts THEN 0 ELSE 1 END
 WHERE id = :id AND finished_at IS NULL;

-- name: overdue_in
-- Which runs in these queues have not been picked up for so long that their bell may be lost?
SELECT r.id, r.queue
  FROM upkeep.run r
 WHERE r.finished_at IS NULL AND r.queue = ANY (:queues::text[])
   AND CASE r.state
         WHEN 'queued' THEN coalesce(r.rung_at, r.created_at) < pg_catalog.clock_timestamp() - :patience::interval
         WHEN 'waiting' THEN r.rung_at >= r.not_before AND r.rung_at < pg_catalog.clock_timestamp() - :patience::interval
         ELSE false
       END
 ORDER BY r.id
 LIMIT :limit;

-- name: bell_seen!
-- Notes that the bells of these runs are on their way still: as good as rung a moment ago.
WITH seen AS (
    SELECT r.id FROM upkeep.run r WHERE r.id = ANY (:ids::bigint[]) AND r.finished_at IS NULL ORDER BY r.id FOR UPDATE SKIP LOCKED
)
UPDATE upkeep.run AS r SET rung_at = pg_catalog.clock_timestamp() FROM seen WHERE r.id = seen.id;

-- name: ring_due
-- Which runs need the bell? Waiting and due; queued and not picked up; running with nobody holding the run's lock.
-- A bell for a queue that nobody can look through is probably in it: then only after the longer patience.
WITH due AS (
    SELECT r.id
      FROM upkeep.run r
     WHERE r.finished_at IS NULL
       AND CASE r.state
             WHEN 'waiting' THEN r.not_before <= pg_catalog.clock_timestamp()
                                 AND (r.rung_at IS NULL OR r.rung_at < r.not_before OR r.rung_at < pg_catalog.clock_timestamp()
                                      - CASE WHEN r.queue = ANY (:busy::text[]) THEN :long_patience::interval ELSE :patience::interval END)
             WHEN 'queued' THEN coalesce(r.rung_at, r.created_at) < pg_catalog.clock_timestamp()
                                - CASE WHEN r.queue = ANY (:busy::text[]) THEN :long_patience::interval ELSE :patience::interval END
             ELSE coalesce(r.rung_at, r.started_at) < pg_catalog.clock_timestamp() - :grace
                  AND r.started_at < pg_catalog.clock_timestamp() - :grace
                  AND NOT EXISTS (
                      SELECT 1
                        FROM pg_catalog.pg_locks l
                       WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                         AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
                         AND ((l.classid::bigint << 32) | l.objid::bigint) = pg_catalog.hashtextextended('upkeep/run/' || r.id, 0))
           END
     ORDER BY r.id
     LIMIT :batch
       FOR UPDATE SKIP LOCKED
)
UPDATE upkeep.run AS r
   SET rung_at = pg_catalog.clock_timestamp()
  FROM due
 WHERE r.id = due.id
RETURNING r.id, r.task, r.queue, r.state;

-- name: miss_expired
-- Which ticks did no worker start before the next one was due? They are missed; one that somebody has just claimed is left alone.
WITH expired AS (
    SELECT r.id
      FROM upkeep.run r
     WHERE r.finished_at IS NULL AND r.state = 'queued' AND r.expires_at <= pg_catalog.clock_timestamp()
     ORDER BY r.id
     LIMIT :batch
       FOR UPDATE SKIP LOCKED
)
UPDATE upkeep.run AS r
   SET state = 'missed', finished_at = pg_catalog.clock_timestamp(), reason = 'no worker started it before the next slot'
  FROM expired
 WHERE r.id = expired.id
RETURNING r.*;

-- name: history
-- What ran lately? Newest first; any filter may be NULL.
SELECT r.*
  FROM upkeep.run r
 WHERE (:target::text IS NULL OR r.target = :target)
   AND (:task::text IS NULL OR r.task = :task)
   AND (:state::text IS NULL OR r.state = :state)
 ORDER BY r.id DESC
 LIMIT :limit;

-- name: open_runs
-- How many runs are in each open state, and since when?
SELECT r.state, r.queue, count(*) AS runs, min(r.created_at) AS oldest
  FROM upkeep.run r
 WHERE r.finished_at IS NULL
 GROUP BY r.state, r.queue
 ORDER BY r.state, r.queue;

-- name: latest_runs
-- What was the latest final run of each target of a task?
SELECT DISTINCT ON (r.target) r.*
  FROM upkeep.run r
 WHERE r.task = :task AND r.finished_at IS NOT NULL
 ORDER BY r.target, r.id DESC;

-- name: prune
-- Removes one batch of old final runs into the monthly summaries; never the newest run of a target.
WITH old AS (
    SELECT r.id
      FROM upkeep.run r
     WHERE r.finished_at < pg_catalog.clock_timestamp()
                           - CASE WHEN r.state = 'skipped' OR (r.entry = 'event' AND r.state = 'succeeded')
                                  THEN :keep_skipped::interval ELSE :keep_runs::interval END
       AND EXISTS (SELECT 1 FROM upkeep.run n WHERE n.task = r.task AND n.target = r.target AND n.id > r.id)
       AND (r.state = 'skipped' OR EXISTS (
            SELECT 1 FROM upkeep.run n WHERE n.task = r.task AND n.target = r.target AND n.id > r.id AND n.finished_at IS NOT NULL AND n.state <> 'skipped'))
     ORDER BY r.finished_at
     LIMIT :batch
       FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM upkeep.run r USING old WHERE r.id = old.id
    RETURNING pg_catalog.date_trunc('month', r.finished_at AT TIME ZONE 'UTC')::date AS month, r.task, r.target, r.state, r.attempt,
              coalesce(r.finished_at - r.started_at, '0') AS duration, coalesce((r.result ->> 'rows_changed')::bigint, 0) AS rows_changed
), summed AS (
    INSERT INTO upkeep.run_summary AS s (month, task, target, state, runs, attempts, duration_total, duration_max, rows_changed)
    SELECT month, task, target, state, count(*), sum(attempt), sum(duration), max(duration), sum(rows_changed)
      FROM gone
     GROUP BY month, task, target, state
    ON CONFLICT (month, task, target, state) DO UPDATE
       SET runs = s.runs + excluded.runs, attempts = s.attempts + excluded.attempts,
           duration_total = s.duration_total + excluded.duration_total,
           duration_max = greatest(s.duration_max, excluded.duration_max), rows_changed = s.rows_changed + excluded.rows_changed
    RETURNING 1
)
SELECT count(*) AS pruned FROM gone;
