-- Refreshes that writers ask for, in the transaction of the write: rolled back with it, found by the fleet without Redis.

CREATE TABLE upkeep.refresh_request (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    view        text NOT NULL,                   -- as the writer wrote it
    source      oid,                             -- the relation that was written; NULL: the writer did not say
    parameters  jsonb,                           -- of the tags to be invalidated; NULL: all of them
    xid         xid8 NOT NULL DEFAULT pg_current_xact_id(),  -- which refresh could see it: ids are not given in the order of commits
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 10000);

COMMENT ON TABLE upkeep.refresh_request IS 'Requests of writers, deleted by the transaction of the refresh that has seen their writes.';

CREATE INDEX refresh_request_view ON upkeep.refresh_request (view, id);

CREATE TABLE upkeep.announcement (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    view        text NOT NULL,
    run_id      bigint NOT NULL,
    snapshot_at timestamptz NOT NULL,
    tags        text[] NOT NULL,                 -- as the view declared them
    parameters  jsonb,                           -- an array of objects; NULL: every tag of the family
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    tried_at    timestamptz
);

COMMENT ON TABLE upkeep.announcement IS 'Cached results to be deleted: written with the refresh, deleted once they are gone from the cache.';

CREATE FUNCTION upkeep.request_refresh(view text, parameters jsonb DEFAULT NULL, wake boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF view IS NULL OR view = '' THEN
        RAISE WARNING 'upkeep.request_refresh: no view is named, nothing is requested';
        RETURN;
    END IF;
    INSERT INTO upkeep.refresh_request (view, parameters) VALUES (view, parameters);
    IF wake THEN
        NOTIFY upkeep_request;
    END IF;
END
$$;

COMMENT ON FUNCTION upkeep.request_refresh(text, jsonb, boolean) IS
    'Requests a refresh of a managed view, with this transaction''s writes in it; rolled back with them.';

CREATE FUNCTION upkeep.note_write() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO upkeep.refresh_request (view, source) SELECT each, TG_RELID FROM pg_catalog.unnest(TG_ARGV) AS each;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION upkeep.note_write() IS 'Of the triggers that upkeep triggers installs: a statement on a table requests the refresh of the views behind it.';

REVOKE ALL ON FUNCTION upkeep.request_refresh(text, jsonb, boolean), upkeep.note_write() FROM PUBLIC;
