-- The state that Upkeep keeps next to the data it is about: runs (the queue), what is known of each view, monthly summaries.

CREATE TABLE upkeep.run (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task          text NOT NULL,                 -- wire name: upkeep.refresh.view
    target        text NOT NULL,                 -- what it works on: a view, a tier, a database
    entry         text NOT NULL,                 -- why: a tier's name, operator, event, upstream
    slot          timestamptz,                   -- the moment of the schedule, where there is one
    as_of         timestamptz,                   -- the result must not be older than this, on this database's clock
    queue         text NOT NULL,
    arguments     jsonb NOT NULL DEFAULT '{}',
    state         text NOT NULL DEFAULT 'queued'
                  CHECK (state IN ('queued', 'running', 'waiting', 'succeeded', 'skipped', 'failed', 'missed', 'lost')),
    attempt       integer NOT NULL DEFAULT 0,
    max_attempts  integer NOT NULL CHECK (max_attempts > 0),
    not_before    timestamptz,                   -- waiting until
    waits_for     text,                          -- the view whose refresh it waits for, if it waits for one
    rung_at       timestamptz,                   -- when the bell was last rung for it
    requested_by  text,
    request_id    text,                          -- the message that asked for it: a redelivered request finds its row
    parent_id     bigint,                        -- the run that made this one
    worker        text,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at    timestamptz,
    finished_at   timestamptz,
    reason        text,                          -- skipped: why; waiting: for what
    progress      jsonb,
    result        jsonb,
    error         jsonb,                         -- kind (transient, permanent), type, sqlstate, message, detail, remedy
    CHECK ((state IN ('succeeded', 'skipped', 'failed', 'missed', 'lost')) = (finished_at IS NOT NULL)),
    CHECK ((state = 'waiting') = (not_before IS NOT NULL))
);

COMMENT ON TABLE upkeep.run IS 'The ledger, which is the queue: every piece of work is a row here before it is a message.';

-- The key of a scheduled run: a second tick, a second scheduler, a redelivery insert nothing.
CREATE UNIQUE INDEX run_slot ON upkeep.run (task, target, entry, slot) WHERE slot IS NOT NULL;
-- One waiting event run per view: a burst becomes one refresh.
CREATE UNIQUE INDEX run_event ON upkeep.run (task, target) WHERE entry = 'event' AND state = 'queued';
CREATE UNIQUE INDEX run_request ON upkeep.run (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX run_open ON upkeep.run (state, created_at) WHERE finished_at IS NULL;
CREATE INDEX run_target ON upkeep.run (task, target, id DESC);
CREATE INDEX run_parent ON upkeep.run (parent_id) WHERE parent_id IS NOT NULL;
CREATE INDEX run_finished ON upkeep.run (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE upkeep.run_summary (
    month          date NOT NULL,
    task           text NOT NULL,
    target         text NOT NULL,
    state          text NOT NULL,
    runs           bigint NOT NULL,
    attempts       bigint NOT NULL,
    duration_total interval NOT NULL,
    duration_max   interval NOT NULL,
    rows_changed   bigint NOT NULL,
    PRIMARY KEY (month, task, target, state)
);

COMMENT ON TABLE upkeep.run_summary IS 'What remains of pruned runs: one row per month, task, target and final state.';

CREATE TABLE upkeep.view_state (
    view                text PRIMARY KEY,        -- canonically quoted schema.name
    tier                text,                    -- NULL: no longer managed
    relation            oid,                     -- the view that the times below speak of
    definition_hash     text,
    system_identifier   text,
    timeline            bigint,
    snapshot_at         timestamptz,             -- a real refresh saw at least what was committed by then
    verified_at         timestamptz,             -- counters said by then that nothing had changed since
    refresh_id          bigint NOT NULL DEFAULT 0,  -- moves when a refresh changed rows: what a downstream view compares
    run_id              bigint,
    strategy            text,
    duration            interval,
    plain_duration      interval,                -- the last plain refresh, for predicting the next
    rows_changed        bigint,
    row_estimate        bigint,
    reading             jsonb,                   -- the sources' counters, read before that refresh
    upstream_stale      text[] NOT NULL DEFAULT '{}',
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE upkeep.view_state IS 'What is known of every managed materialized view.';

-- The documents' last_updated column, kept outside of the views so that CONCURRENTLY rewrites nothing for it.
-- A recorded time in the future, a view that was recreated, emptied or dropped: nothing is known.
CREATE VIEW upkeep.view_freshness AS
SELECT s.view,
       f.last_updated,
       clock_timestamp() - f.last_updated AS age,
       s.tier
  FROM upkeep.view_state s
  LEFT JOIN pg_catalog.pg_class c ON c.oid = s.relation AND c.relkind = 'm' AND c.relispopulated
  LEFT JOIN LATERAL (
      SELECT max(t.at) AS last_updated
        FROM (VALUES (s.snapshot_at), (s.verified_at)) AS t (at)
       WHERE c.oid IS NOT NULL AND s.snapshot_at IS NOT NULL AND t.at <= clock_timestamp()
  ) f ON true
 WHERE s.tier IS NOT NULL;

COMMENT ON VIEW upkeep.view_freshness IS 'How fresh each managed view is: what dashboards should read instead of a last_updated column.';
