-- name: newer_rows
-- Which entries were written by a newer version, in a form that this one does not know?
SELECT s.entry, s.format FROM upkeep.schedule_state s WHERE s.format > :format ORDER BY s.entry;

-- name: reconcile!
-- Makes the declared entries known. A new one, a changed one and one that comes back begin at :now; what is declared no longer is kept
-- as history. A row that is right is not even locked: somebody's forgotten transaction on it must not stop all the others.
WITH declared AS (
    SELECT d.entry, d.definition
      FROM pg_catalog.jsonb_to_recordset(:entries) AS d (entry text, definition jsonb)
), known AS (
    INSERT INTO upkeep.schedule_state AS s (entry, definition, last_slot)
    SELECT d.entry, d.definition, :now
      FROM declared d
     WHERE NOT EXISTS (
           SELECT 1 FROM upkeep.schedule_state k WHERE k.entry = d.entry AND k.definition = d.definition AND k.removed_at IS NULL)
     ORDER BY d.entry
    ON CONFLICT (entry) DO UPDATE
       SET definition = excluded.definition, last_slot = excluded.last_slot, removed_at = NULL, updated_at = pg_catalog.clock_timestamp()
     WHERE s.definition <> excluded.definition OR s.removed_at IS NOT NULL
)
UPDATE upkeep.schedule_state s
   SET removed_at = :now, updated_at = pg_catalog.clock_timestamp()
 WHERE s.removed_at IS NULL
   AND NOT EXISTS (SELECT 1 FROM declared d WHERE d.entry = s.entry);

-- name: read_states
-- How far is each declared entry, and which are paused? With :removed also those that are declared no longer.
SELECT s.entry, s.definition, s.last_slot, s.paused_at, s.paused_by, s.pause_reason, s.removed_at
  FROM upkeep.schedule_state s
 WHERE :removed OR s.removed_at IS NULL;

-- name: declare!
-- Makes one entry known, from now on, that no scheduler has made known yet; one that is known stays as it is.
INSERT INTO upkeep.schedule_state AS s (entry, definition, last_slot)
VALUES (:entry, :definition, pg_catalog.clock_timestamp())
ON CONFLICT (entry) DO UPDATE
   SET definition = excluded.definition, last_slot = excluded.last_slot, removed_at = NULL, updated_at = pg_catalog.clock_timestamp()
 WHERE s.removed_at IS NOT NULL;

-- name: heartbeat
-- What time is it there, does this session still hold the leader's lock, may it write, and which entries are paused?
SELECT pg_catalog.clock_timestamp() AS clock,
       EXISTS (
           SELECT 1
             FROM pg_catalog.pg_locks l
            WHERE l.locktype = 'advisory' AND l.granted AND l.pid = pg_catalog.pg_backend_pid() AND l.objsubid = 1
              AND ((l.classid::bigint << 32) | l.objid::bigint) = pg_catalog.hashtextextended(:key, 0)) AS leads,
       pg_catalog.pg_is_in_recovery() AS in_recovery,
       ARRAY(SELECT s.entry FROM upkeep.schedule_state s WHERE s.paused_at IS NOT NULL AND s.removed_at IS NULL) AS paused;

-- name: advance
-- Notes up to which slot entries have been put into the ledger; never back. Which of them could it not note, because somebody holds their row?
WITH new AS (
    SELECT n.entry, n.last_slot
      FROM ROWS FROM (pg_catalog.unnest(:entries::text[]), pg_catalog.unnest(:slots::timestamptz[])) AS n (entry, last_slot)
), free AS (
    SELECT s.entry FROM upkeep.schedule_state s JOIN new USING (entry) ORDER BY s.entry FOR UPDATE OF s SKIP LOCKED
), noted AS (
    UPDATE upkeep.schedule_state s
       SET last_slot = greatest(s.last_slot, new.last_slot), updated_at = pg_catalog.clock_timestamp()
      FROM new JOIN free USING (entry)
     WHERE s.entry = new.entry
    RETURNING s.entry
)
SELECT s.entry
  FROM upkeep.schedule_state s
  JOIN new USING (entry)
 WHERE NOT EXISTS (SELECT 1 FROM noted WHERE noted.entry = s.entry);

-- name: take_back!
-- Lets entries go on from :now: they were noted up to a moment that has not come, by a clock that was wrong.
WITH free AS (
    SELECT s.entry FROM upkeep.schedule_state s WHERE s.entry = ANY (:entries::text[]) AND s.last_slot > :now ORDER BY s.entry FOR UPDATE SKIP LOCKED
)
UPDATE upkeep.schedule_state s
   SET last_slot = :now, updated_at = pg_catalog.clock_timestamp()
  FROM free
 WHERE s.entry = free.entry;

-- name: pause
-- Pauses an entry: its slots are not run until it is resumed. One that is paused keeps who paused it and why. Says whether it was.
UPDATE upkeep.schedule_state s
   SET paused_at = coalesce(s.paused_at, pg_catalog.clock_timestamp()),
       paused_by = CASE WHEN before.was THEN s.paused_by ELSE :by END,
       pause_reason = CASE WHEN before.was THEN s.pause_reason ELSE :reason END,
       updated_at = pg_catalog.clock_timestamp()
  FROM (SELECT entry, paused_at IS NOT NULL AS was FROM upkeep.schedule_state WHERE entry = :entry FOR UPDATE) AS before
 WHERE s.entry = before.entry
RETURNING before.was;

-- name: resume
-- Resumes an entry with its next slot: those of the pause are not caught up with. Says whether it was paused.
UPDATE upkeep.schedule_state s
   SET last_slot = CASE WHEN before.was THEN greatest(s.last_slot, pg_catalog.clock_timestamp()) ELSE s.last_slot END,
       paused_at = NULL, paused_by = NULL, pause_reason = NULL, updated_at = pg_catalog.clock_timestamp()
  FROM (SELECT entry, paused_at IS NOT NULL AS was FROM upkeep.schedule_state WHERE entry = :entry FOR UPDATE) AS before
 WHERE s.entry = before.entry
RETURNING before.was;

-- name: leader
-- Who leads? Its session, from when, and from where.
SELECT a.pid, a.backend_start, pg_catalog.host(a.client_addr) AS client, a.application_name
  FROM pg_catalog.pg_locks l
  JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
   AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
   AND ((l.classid::bigint << 32) | l.objid::bigint) = pg_catalog.hashtextextended(:key, 0);
