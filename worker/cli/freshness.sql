-- name: read_freshness
-- How fresh is each view that a worker knows of?
SELECT view, last_updated, age, tier FROM upkeep.view_freshness ORDER BY tier, view;

-- name: read_clock$
-- What time is it on this server?
SELECT pg_catalog.clock_timestamp();
