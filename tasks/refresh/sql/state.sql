-- name: states
-- What is known of every view that is or was managed?
SELECT view, tier, relation, definition_hash, system_identifier, timeline, snapshot_at, verified_at, refresh_id, run_id, strategy,
       duration, plain_duration, rows_changed, row_estimate, reading, upstream_stale
  FROM upkeep.view_state;

-- name: timelines
-- Was a managed view last refreshed on another timeline, or in another cluster, than this? Which cluster that was.
SELECT s.system_identifier
  FROM upkeep.view_state s
 WHERE s.tier IS NOT NULL AND s.snapshot_at IS NOT NULL
   AND (s.system_identifier, s.timeline) IS DISTINCT FROM (:system_identifier::text, :timeline::bigint)
 ORDER BY s.system_identifier = :system_identifier DESC
 LIMIT 1;

-- name: manage!
-- Makes the declared views known, with their tiers; what is declared no longer stays as history without a tier. A row that is right is not
-- even locked: a reaper that begins must not wait for a refresh that ends, or for somebody's forgotten transaction.
WITH declared AS (
    SELECT * FROM unnest(:views::text[], :tiers::text[]) AS d (view, tier)
), added AS (
    INSERT INTO upkeep.view_state AS s (view, tier)
    SELECT d.view, d.tier FROM declared d
     WHERE NOT EXISTS (SELECT 1 FROM upkeep.view_state k WHERE k.view = d.view AND k.tier = d.tier)
    ON CONFLICT (view) DO UPDATE SET tier = excluded.tier, updated_at = pg_catalog.clock_timestamp()
     WHERE s.tier IS DISTINCT FROM excluded.tier
)
UPDATE upkeep.view_state s
   SET tier = NULL, updated_at = pg_catalog.clock_timestamp()
 WHERE s.tier IS NOT NULL
   AND NOT EXISTS (SELECT 1 FROM declared d WHERE d.view = s.view);

-- name: verified!
-- Counters said that nothing has changed since the recorded readings; the time never moves back.
-- Locked in one order, so that two ticks that verify the same views do not wait for each other in a circle.
WITH locked AS MATERIALIZED (
    SELECT view FROM upkeep.view_state WHERE view = ANY (:views::text[]) ORDER BY view FOR UPDATE
)
UPDATE upkeep.view_state AS s
   SET verified_at = greatest(s.verified_at, :verified_at), updated_at = pg_catalog.clock_timestamp()
  FROM locked
 WHERE s.view = locked.view;

-- name: refreshed
-- Records a real refresh, in its own transaction; a refresh that changed rows moves refresh_id.
INSERT INTO upkeep.view_state AS s (
    view, tier, relation, definition_hash, system_identifier, timeline, snapshot_at, refresh_id, run_id, strategy, duration,
    plain_duration, rows_changed, row_estimate, reading, upstream_stale)
VALUES (:view, :tier, :relation, :definition_hash, :system_identifier, :timeline, :snapshot_at, 1, :run_id, :strategy, :duration,
        :plain_duration, :rows_changed, :row_estimate, :reading, :upstream_stale)
ON CONFLICT (view) DO UPDATE
   SET tier = excluded.tier, relation = excluded.relation, definition_hash = excluded.definition_hash,
       system_identifier = excluded.system_identifier, timeline = excluded.timeline, snapshot_at = excluded.snapshot_at, verified_at = NULL,
       refresh_id = s.refresh_id + CASE WHEN excluded.rows_changed = 0 AND s.relation = excluded.relation THEN 0 ELSE 1 END,
       run_id = excluded.run_id, strategy = excluded.strategy, duration = excluded.duration,
       plain_duration = CASE WHEN excluded.plain_duration IS NOT NULL THEN excluded.plain_duration
                             WHEN s.relation = excluded.relation THEN s.plain_duration END,
       rows_changed = excluded.rows_changed, row_estimate = excluded.row_estimate, reading = excluded.reading,
       upstream_stale = excluded.upstream_stale, updated_at = pg_catalog.clock_timestamp()
RETURNING s.refresh_id;

-- name: too_slow_for_plain!
-- Remembers that a bounded plain refresh ran out of its time, so that it is not tried at every tick.
UPDATE upkeep.view_state
   SET plain_duration = greatest(plain_duration, :at_least), updated_at = pg_catalog.clock_timestamp()
 WHERE view = :view;

-- name: rows_written
-- How many rows did this transaction write into the view so far? Its own counters, visible at once.
SELECT pg_catalog.pg_stat_get_xact_tuples_inserted(:relation) + pg_catalog.pg_stat_get_xact_tuples_updated(:relation)
       + pg_catalog.pg_stat_get_xact_tuples_deleted(:relation) AS rows;

-- name: rows_written_and_told
-- The same. From PostgreSQL 15 on a session can be made to send its counters off as soon as it has committed: the reading of a
-- downstream view could see them a second later otherwise, and refresh once too often.
SELECT pg_catalog.pg_stat_get_xact_tuples_inserted(:relation) + pg_catalog.pg_stat_get_xact_tuples_updated(:relation)
       + pg_catalog.pg_stat_get_xact_tuples_deleted(:relation) AS rows,
       pg_catalog.pg_stat_force_next_flush();

-- name: materialized_views
-- Which materialized views have these names?
SELECT c.oid
  FROM ROWS FROM (pg_catalog.unnest(:schemas::text[]), pg_catalog.unnest(:names::text[])) AS asked (schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = asked.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = asked.name
 WHERE c.relkind = 'm';

-- name: other_relation
-- What else has this name, and which materialized views have it in other letters or another schema?
SELECT (SELECT c.relkind::text
          FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = :schema AND c.relname = :name AND c.relkind <> 'm') AS kind,
       ARRAY(SELECT ARRAY[n.nspname::text, c.relname::text]
               FROM pg_catalog.pg_class c
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind = 'm' AND pg_catalog.lower(c.relname) = pg_catalog.lower(:name)
              ORDER BY 1
              LIMIT 3) AS alike;
