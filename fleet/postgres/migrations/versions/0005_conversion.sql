-- Plain tables that become partitioned ones: how far that is, so that it goes on after whatever stopped it.

CREATE TABLE upkeep.conversion (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name    text NOT NULL,                   -- canonically quoted schema.name
    relation      oid NOT NULL,                    -- the plain table
    parent        oid,                             -- the partitioned table beside it, once it is there
    how           text NOT NULL CHECK (how IN ('attach', 'fill')),
    asked         jsonb NOT NULL,                  -- column, interval and the like: what the conversion goes on with
    state         text NOT NULL DEFAULT 'preparing' CHECK (state IN ('preparing', 'ready', 'switched', 'undone')),
    steps         text[] NOT NULL DEFAULT '{}',    -- what is done, in its order
    boundary      text,                            -- attach: the old table has what comes before it
    last_key      jsonb,                           -- fill: rows up to this primary key are copied
    end_key       jsonb,                           -- fill: the last one that was there before writes were mirrored
    rows_copied   bigint NOT NULL DEFAULT 0,
    remade        jsonb NOT NULL DEFAULT '[]',     -- the materialized views that are built beside the old ones
    verified      jsonb,                           -- rows and sum of both sides, the last time they were compared
    run_id        bigint,
    requested_by  text,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at   timestamptz,
    CHECK ((state IN ('switched', 'undone')) = (finished_at IS NOT NULL))
);

COMMENT ON TABLE upkeep.conversion IS 'Every conversion of a plain table into a partitioned one, and how far it is.';

-- A view may read two tables: what depends on them is remade for one at a time.
CREATE UNIQUE INDEX conversion_open ON upkeep.conversion ((true)) WHERE finished_at IS NULL;

CREATE TABLE upkeep.conversion_missed (
    relation  oid NOT NULL,
    key       jsonb NOT NULL                       -- primary key of a row that was written and could not be mirrored
);

COMMENT ON TABLE upkeep.conversion_missed IS
    'Rows of a table that is being converted, written by transactions that cannot see what was copied (REPEATABLE READ and above).';

CREATE INDEX conversion_missed_relation ON upkeep.conversion_missed (relation);
