-- What was moved out of a table and where it went, and how long rows must be kept.

CREATE TABLE upkeep.archive_batch (
    id            uuid NOT NULL,                   -- archive_batch_id of the rows; a partition and its companions share it
    kind          text NOT NULL CHECK (kind IN ('partition', 'rows', 'late')),
    parent        text NOT NULL,                   -- the table that they were in, canonically quoted schema.name
    archive       text NOT NULL,                   -- the table that they are in now
    partition     text NOT NULL,                   -- the archive's partition that has them; of a move under way: the one to be moved
    control_type  text NOT NULL CHECK (control_type IN ('date', 'timestamptz', 'timestamp', 'integer', 'uuid')),
    lower_bound   text,                            -- of that partition, as PostgreSQL prints it under UTC and ISO; NULL: MINVALUE
    upper_bound   text,                            -- NULL: MAXVALUE
    rows          bigint,                          -- exact for rows and late, an estimate for a partition
    run_id        bigint,
    begun_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    archived_at   timestamptz,                     -- NULL: begun, and not over
    cold_at       timestamptz,                     -- when it was exported and dropped here
    purged_at     timestamptz,
    PRIMARY KEY (id, parent)
);

COMMENT ON TABLE upkeep.archive_batch IS
    'Every batch of rows that left a table: a partition as a whole, the rows of a companion, rows that came late.';

CREATE INDEX archive_batch_parent ON upkeep.archive_batch (parent, archived_at);
-- One move of a partition at a time: who goes on after a killed run goes on with its batch.
CREATE UNIQUE INDEX archive_batch_under_way ON upkeep.archive_batch (parent, partition) WHERE kind = 'partition' AND archived_at IS NULL;

CREATE TABLE upkeep.unvalidated_constraint (
    table_name      text NOT NULL,                 -- canonically quoted schema.name
    constraint_name text NOT NULL,
    since           timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (table_name, constraint_name)
);

COMMENT ON TABLE upkeep.unvalidated_constraint IS
    'Foreign keys that a move has added again as NOT VALID: they were valid before, and are validated afterwards.';

-- One row per server process, so that no two transactions ever wait for each other here.
CREATE TABLE upkeep.archive_miss (
    table_name  text NOT NULL,                     -- canonically quoted schema.name
    day         date NOT NULL,                     -- in UTC
    tier        text NOT NULL,
    backend     integer NOT NULL,
    misses      bigint NOT NULL,
    PRIMARY KEY (table_name, day, tier, backend)
);

CREATE VIEW upkeep.archive_misses AS
    SELECT m.table_name, m.day, m.tier, sum(m.misses)::bigint AS misses
      FROM upkeep.archive_miss AS m
     GROUP BY m.table_name, m.day, m.tier;

COMMENT ON VIEW upkeep.archive_misses IS 'How often applications looked for a row in a table that had left it, by day.';

-- Where is the row that an application did not find? Counted only where its range has left the table. Nothing that is passed may end
-- the caller's transaction. Bounds are compared in their own type, which no caller can choose: this runs with its owner's rights.
CREATE FUNCTION upkeep.note_archive_miss(table_name text, key text) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE
    SET search_path = pg_catalog, pg_temp
    SET timezone = 'UTC'
    SET datestyle = 'ISO, YMD'
AS $$
#variable_conflict use_column
DECLARE
    found_tier text;
    control text;
    as_date date;
    as_moment timestamptz;
    as_time timestamp;
    as_number numeric;
    as_uuid uuid;
BEGIN
    IF $1 IS NULL OR $2 IS NULL OR pg_catalog.octet_length($1) > 257 OR pg_catalog.octet_length($2) > 100 THEN
        RAISE WARNING 'upkeep.note_archive_miss: name the table as upkeep.toml does, and the value of its control column';
        RETURN NULL;
    END IF;
    SELECT b.control_type INTO control FROM upkeep.archive_batch AS b WHERE b.parent = $1 AND b.archived_at IS NOT NULL LIMIT 1;
    BEGIN
        CASE control
            WHEN 'date' THEN as_date := $2::date;
            WHEN 'timestamptz' THEN as_moment := $2::timestamptz;
            WHEN 'timestamp' THEN as_time := $2::timestamp;
            WHEN 'integer' THEN as_number := $2::numeric;
            WHEN 'uuid' THEN as_uuid := $2::uuid;
            ELSE RETURN 'hot';
        END CASE;
    EXCEPTION WHEN data_exception THEN
        RAISE WARNING 'upkeep.note_archive_miss: % is no value of the control column of %', pg_catalog.quote_literal($2), $1;
        RETURN NULL;
    END;
    SELECT CASE WHEN b.purged_at IS NOT NULL THEN 'purged' WHEN b.cold_at IS NOT NULL THEN 'cold' ELSE 'warm' END
      INTO found_tier
      FROM upkeep.archive_batch AS b
     WHERE b.parent = $1 AND b.kind <> 'late' AND b.archived_at IS NOT NULL
       AND CASE b.control_type
             WHEN 'date' THEN (b.lower_bound IS NULL OR as_date >= b.lower_bound::date) AND (b.upper_bound IS NULL OR as_date < b.upper_bound::date)
             WHEN 'timestamptz' THEN (b.lower_bound IS NULL OR as_moment >= b.lower_bound::timestamptz)
                                     AND (b.upper_bound IS NULL OR as_moment < b.upper_bound::timestamptz)
             WHEN 'timestamp' THEN (b.lower_bound IS NULL OR as_time >= b.lower_bound::timestamp)
                                   AND (b.upper_bound IS NULL OR as_time < b.upper_bound::timestamp)
             WHEN 'integer' THEN (b.lower_bound IS NULL OR as_number >= b.lower_bound::numeric)
                                 AND (b.upper_bound IS NULL OR as_number < b.upper_bound::numeric)
             ELSE (b.lower_bound IS NULL OR as_uuid >= b.lower_bound::uuid) AND (b.upper_bound IS NULL OR as_uuid < b.upper_bound::uuid)
           END
     ORDER BY b.archived_at DESC
     LIMIT 1;
    IF found_tier IS NULL THEN
        RETURN 'hot';
    END IF;
    IF pg_catalog.current_setting('transaction_read_only') = 'off' THEN
        INSERT INTO upkeep.archive_miss AS m (table_name, day, tier, backend, misses)
        VALUES ($1, (pg_catalog.clock_timestamp() AT TIME ZONE 'UTC')::date, found_tier, pg_catalog.pg_backend_pid(), 1)
            ON CONFLICT ON CONSTRAINT archive_miss_pkey DO UPDATE SET misses = m.misses + 1;
    END IF;
    RETURN found_tier;
END
$$;

COMMENT ON FUNCTION upkeep.note_archive_miss(text, text) IS
    'For an application that updated no row: hot, warm, cold or purged, by the control column; what has left the table is counted.';

REVOKE ALL ON FUNCTION upkeep.note_archive_miss(text, text) FROM PUBLIC;

CREATE TABLE upkeep.retention (
    table_name            text PRIMARY KEY,        -- canonically quoted schema.name
    retention_years       integer NOT NULL CHECK (retention_years > 0),
    archive_after_months  integer NOT NULL CHECK (archive_after_months > 0),
    compliance_framework  text,
    declared              boolean NOT NULL DEFAULT true,   -- false: taken out of upkeep.toml, kept for what it was
    last_purged_at        timestamptz,
    created_at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at            timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE upkeep.retention IS 'How long the rows of a table must be kept, by whose rule, as upkeep.toml declares it.';
