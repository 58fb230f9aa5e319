-- What was moved out of a table and where it went, and how long rows must be kept.

CREATE TABLE upkeep.archive_batch (
    id            uuid PRIMARY KEY,                -- archive_batch_id of the rows
    kind          text NOT NULL CHECK (kind IN ('partition', 'rows', 'late')),
    parent        text NOT NULL,                   -- the table that they were in, canonically quoted schema.name
    archive       text NOT NULL,                   -- the table that they are in now
    partition     text NOT NULL,                   -- the archive's partition that has them
    lower_bound   text,                            -- of that partition, as PostgreSQL prints it under UTC and ISO; NULL: MINVALUE
    upper_bound   text,                            -- NULL: MAXVALUE
    rows          bigint,                          -- exact for rows and late, an estimate for a partition
    run_id        bigint,
    archived_at   timestamptz NOT NULL,
    cold_at       timestamptz,                     -- when it was exported and dropped here
    purged_at     timestamptz
);

COMMENT ON TABLE upkeep.archive_batch IS
    'Every batch of rows that left a table: a partition as a whole, the rows of a companion, rows that came late.';

CREATE INDEX archive_batch_parent ON upkeep.archive_batch (parent, archived_at);

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
