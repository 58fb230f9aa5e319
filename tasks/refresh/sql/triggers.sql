-- name: read_role$
-- As whom do we work?
SELECT current_user::text;

-- name: bound_waits$
-- How long may this transaction wait for each lock?
SELECT pg_catalog.set_config('lock_timeout', :lock_timeout, true);
