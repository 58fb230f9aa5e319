-- name: read_freshness
-- How fresh is each view that a worker knows of?
SELECT view, last_updated, age, tier FROM upkeep.view_freshness ORDER BY tier, view;

-- name: read_clock$
-- What time is it on this server?
SELECT pg_catalog.clock_timestamp();

-- name: read_requests
-- What have writers asked for that no refresh has seen yet?
SELECT r.view, count(*) AS requests, min(r.created_at) AS oldest FROM upkeep.refresh_request r GROUP BY r.view ORDER BY r.view;
