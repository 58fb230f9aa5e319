-- name: insert
-- Which runs stand for these requests of writers? A run of the target that waits, or that nobody has begun with, takes them in:
-- it reads the clock once it is claimed. An unhurried request wants no run beside an open one, because what that leaves comes again.
WITH asked AS MATERIALIZED (
    SELECT a.*
      FROM pg_catalog.jsonb_to_recordset(:events) AS a (
               task text, target text, queue text, arguments jsonb, max_attempts integer, requested_by text, unhurried boolean)
     WHERE NOT (a.unhurried
                AND EXISTS (SELECT 1 FROM upkeep.run o
                             WHERE o.task = a.task AND o.target = a.target AND o.entry = 'event' AND o.finished_at IS NULL))
), joined AS (
    UPDATE upkeep.run AS r
       SET arguments = upkeep.merged_arguments(r.arguments, a.arguments)
      FROM asked a
     WHERE r.task = a.task AND r.target = a.target AND r.entry = 'event' AND r.state = 'waiting' AND r.finished_at IS NULL
    RETURNING r.task, r.target
)
INSERT INTO upkeep.run AS r (task, target, entry, as_of, queue, arguments, max_attempts, requested_by, rung_at)
SELECT a.task, a.target, 'event', pg_catalog.clock_timestamp(), a.queue, a.arguments, a.max_attempts, a.requested_by, pg_catalog.clock_timestamp()
  FROM asked a
 WHERE NOT EXISTS (SELECT 1 FROM joined j WHERE j.task = a.task AND j.target = a.target)
 ORDER BY a.task, a.target
    ON CONFLICT (task, target) WHERE entry = 'event' AND state = 'queued'
    DO UPDATE SET arguments = upkeep.merged_arguments(r.arguments, excluded.arguments)
RETURNING r.id, r.task, r.target, r.queue, r.xmax = 0 AS created;

-- name: join_waiting
-- Which run of the same target waits already and takes in what this one was asked for? Also one that waits after a failure, which no new request shortens.
UPDATE upkeep.run AS r
   SET arguments = upkeep.merged_arguments(r.arguments, :arguments)
 WHERE r.id = (SELECT w.id
                 FROM upkeep.run w
                WHERE w.task = :task AND w.target = :target AND w.entry = 'event' AND w.state = 'waiting' AND w.finished_at IS NULL AND w.id <> :id
                ORDER BY w.not_before DESC
                LIMIT 1)
   AND r.state = 'waiting'
RETURNING r.id, r.not_before;

-- name: last
-- How did the last event run of this target end, other than skipped?
SELECT r.*
  FROM upkeep.run r
 WHERE r.task = :task AND r.target = :target AND r.entry = 'event' AND r.finished_at IS NOT NULL AND r.started_at IS NOT NULL
   AND r.state <> 'skipped'
 ORDER BY r.id DESC
 LIMIT 1;
