-- name: waiting_requests
-- For which views do requests wait, since when, and when did the last one come? One look at the index per view, however many rows there are.
WITH RECURSIVE asked AS (
    (SELECT r.view FROM upkeep.refresh_request r ORDER BY r.view LIMIT 1)
    UNION ALL
    SELECT (SELECT r.view FROM upkeep.refresh_request r WHERE r.view > a.view ORDER BY r.view LIMIT 1)
      FROM asked a
     WHERE a.view IS NOT NULL
)
SELECT a.view, oldest.created_at AS first_at, newest.created_at AS last_at, pg_catalog.clock_timestamp() AS clock
  FROM asked a
 CROSS JOIN LATERAL (SELECT r.created_at FROM upkeep.refresh_request r WHERE r.view = a.view ORDER BY r.id LIMIT 1) AS oldest
 CROSS JOIN LATERAL (SELECT r.created_at FROM upkeep.refresh_request r WHERE r.view = a.view ORDER BY r.id DESC LIMIT 1) AS newest
 WHERE a.view IS NOT NULL;

-- name: rename_requests!
-- Gives requests the canonical name of the view that they mean; what a refresh has seen of them, their xid, stays.
UPDATE upkeep.refresh_request SET view = :canonical WHERE view = :written;

-- name: drop_requests!
-- Removes the requests for a view that nobody manages.
DELETE FROM upkeep.refresh_request WHERE view = :view AND created_at < pg_catalog.clock_timestamp() - :older_than::interval;

-- name: seen_requests
-- Which requests for a view are there now, in this snapshot, and which relations were written?
SELECT pg_catalog.pg_current_snapshot()::text AS snapshot,
       count(*) AS requests,
       coalesce(bool_or(r.source IS NULL), false) AS unnamed,
       coalesce(array_agg(DISTINCT r.source) FILTER (WHERE r.source IS NOT NULL), '{}') AS sources
  FROM upkeep.refresh_request r
 WHERE r.view = :view;

-- name: take_requests
-- Deletes, in the transaction of the refresh, the requests whose writes it is going to see, and returns what they were limited to.
-- What this view alone reads of a relation is seen whenever it was committed; what comes through other managed views only as far as the
-- earlier snapshot saw it, because only that is in those.
WITH taken AS (
    DELETE FROM upkeep.refresh_request r
     WHERE r.view = :view
       AND (:everything OR r.source = ANY (:own::oid[])
            OR pg_catalog.pg_visible_in_snapshot(r.xid, :snapshot::pg_snapshot)
            -- Seen by us, and of a transaction that there has not been: the row was restored from another cluster's dump.
            OR (pg_catalog.pg_snapshot_xmax(:snapshot::pg_snapshot) > '1'
                AND r.xid >= pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())))
    RETURNING r.parameters
)
SELECT (SELECT count(*) FROM taken) AS requests,
       EXISTS (SELECT FROM taken t WHERE t.parameters IS NULL) AS unlimited,
       (SELECT coalesce(pg_catalog.jsonb_agg(DISTINCT e.parameters), '[]')
          FROM taken t
         CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(
               CASE pg_catalog.jsonb_typeof(t.parameters) WHEN 'array' THEN t.parameters WHEN 'object' THEN pg_catalog.jsonb_build_array(t.parameters) ELSE '[]' END)
               AS e (parameters)) AS parameters;

-- name: request_downstream!
-- Requests the refresh of the views that want to follow this one, in the transaction of its refresh.
INSERT INTO upkeep.refresh_request (view, source)
SELECT d.view, :source FROM pg_catalog.unnest(:views::text[]) AS d (view);
