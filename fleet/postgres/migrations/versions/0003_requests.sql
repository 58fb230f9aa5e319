-- Refreshes that writers ask for, in the transaction of the write: rolled back with it, found by the fleet without Redis.

CREATE TABLE upkeep.refresh_request (
    id          bigint GENERATED ALWAYS AS IDENTITY,
    view        text NOT NULL,                   -- as the writer wrote it
    source      oid,                             -- the relation that was written; NULL: the writer did not say, or it has children
    parameters  jsonb,                           -- of the tags to be invalidated, an object or an array of objects; NULL: all of them
    xid         xid8 NOT NULL DEFAULT pg_current_xact_id(),  -- which refresh could see it: ids are not given in the order of commits
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The only index, because every writer pays for each. It also is the identity by which a row can be deleted where the
    -- application publishes all its tables.
    PRIMARY KEY (view, id)
-- Vacuumed by the number of rows, not by a share of them; never truncated, because for that VACUUM locks writers out.
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 10000, vacuum_truncate = false);

COMMENT ON TABLE upkeep.refresh_request IS 'Requests of writers, deleted by the transaction of the refresh that has seen their writes.';

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

-- Nothing that a writer passes may end the writer's transaction: what makes no sense is a WARNING. There is no EXCEPTION
-- block, because each call would open a subtransaction for it.
CREATE FUNCTION upkeep.request_refresh(view text, parameters jsonb DEFAULT NULL, wake boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Nearly every call is of this kind, and each expression more is felt. 257 bytes are the longest name there is: two parts of 63,
    -- all of them double quotes.
    IF pg_catalog.octet_length(view) BETWEEN 1 AND 257 AND parameters IS NULL AND NOT wake
       AND pg_catalog.current_setting('transaction_read_only') = 'off' THEN
        INSERT INTO upkeep.refresh_request (view) VALUES (view);
        RETURN;
    END IF;
    IF view IS NULL OR view = '' OR pg_catalog.octet_length(view) > 257 THEN
        RAISE WARNING 'upkeep.request_refresh: % names no view, nothing is requested', coalesce(pg_catalog.quote_literal(pg_catalog.left(view, 80)), 'NULL')
            USING HINT = 'Name it as upkeep.toml does: schema.view';
        RETURN;
    ELSIF pg_catalog.current_setting('transaction_read_only') = 'on' THEN
        RAISE WARNING 'upkeep.request_refresh: a read-only transaction has written nothing, no refresh of % is requested', view;
        RETURN;
    ELSIF pg_catalog.pg_column_size(parameters) > 65536 THEN
        RAISE WARNING 'upkeep.request_refresh: the parameters for % are longer than 64 kB, so all of its tags are invalidated', view;
        parameters := NULL;
    ELSIF pg_catalog.jsonb_typeof(parameters) = 'null' THEN
        parameters := NULL;
    ELSIF pg_catalog.jsonb_typeof(parameters) <> 'object'
          AND (pg_catalog.jsonb_typeof(parameters) <> 'array'
               OR EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(parameters) AS each WHERE pg_catalog.jsonb_typeof(each) <> 'object')) THEN
        RAISE WARNING 'upkeep.request_refresh: the parameters for % are not an object or an array of objects, so all of its tags are invalidated', view;
        parameters := NULL;
    END IF;
    INSERT INTO upkeep.refresh_request (view, parameters) VALUES (view, parameters);
    -- Only where it is asked for: transactions that notify commit one after the other, in all databases of the server.
    IF wake THEN
        NOTIFY upkeep_request;
    END IF;
END
$$;

COMMENT ON FUNCTION upkeep.request_refresh(text, jsonb, boolean) IS
    'Requests a refresh of a managed view, with this transaction''s writes in it; rolled back with them.';

-- One row for each view, for the first of the statements on a table that a transaction makes one after the other: it is seen exactly
-- when all the transaction's writes are. The mark is a setting because that is rolled back with a savepoint, as the rows are.
CREATE FUNCTION upkeep.note_write() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mark text := pg_catalog.concat(pg_catalog.pg_current_xact_id(), '/', TG_RELID);
BEGIN
    IF pg_catalog.current_setting('upkeep.noted', true) = mark THEN
        RETURN NULL;
    END IF;
    FOR i IN 0 .. TG_NARGS - 1 LOOP
        -- A write through a parent may be one of any child, also of one that only an upstream view reads: nobody can say which.
        INSERT INTO upkeep.refresh_request (view, source)
        SELECT TG_ARGV[i], CASE WHEN NOT c.relhassubclass THEN c.oid END
          FROM pg_catalog.pg_class AS c
         WHERE c.oid OPERATOR(pg_catalog.=) TG_RELID;
    END LOOP;
    PERFORM pg_catalog.set_config('upkeep.noted', mark, true);
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION upkeep.note_write() IS 'Of the triggers that upkeep triggers installs: a statement on a table requests the refresh of the views behind it.';

REVOKE ALL ON FUNCTION upkeep.request_refresh(text, jsonb, boolean), upkeep.note_write() FROM PUBLIC;

-- The last event runs of a view, however many ticks it had since.
CREATE INDEX run_event_target ON upkeep.run (task, target, id DESC) WHERE entry = 'event';

CREATE FUNCTION upkeep.merged_arguments(one jsonb, other jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(jsonb_object_agg(part.name, union_of.members), '{}')
      FROM unnest(ARRAY['keys', 'parameters', 'sources']) AS part (name)
     CROSS JOIN LATERAL (
         SELECT coalesce(jsonb_agg(DISTINCT each.member), '[]') AS members
           FROM jsonb_array_elements((one -> part.name) || (other -> part.name)) AS each (member)
     ) AS union_of
     WHERE jsonb_typeof(one -> part.name) = 'array' AND jsonb_typeof(other -> part.name) = 'array'
       AND jsonb_array_length(union_of.members) <= 10000
$$;

COMMENT ON FUNCTION upkeep.merged_arguments(jsonb, jsonb) IS
    'What two requests for one view ask for together: each part is a list of what it is limited to, a part that is not there is not limited.';
