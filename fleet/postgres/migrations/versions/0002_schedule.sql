-- The clock: what has been put into the ledger up to when, and what is paused. Used in the home database only; every kept database has it,
-- so that any of them can become the home.

ALTER TABLE upkeep.run ADD COLUMN expires_at timestamptz;
COMMENT ON COLUMN upkeep.run.expires_at IS 'A tick that no worker has started by then is missed: the next one is due.';

CREATE TABLE upkeep.schedule_state (
    entry        text PRIMARY KEY,               -- database/tier, database/job.NAME, …
    definition   jsonb NOT NULL,                 -- task, arguments, cron, time zone: a changed entry begins anew
    last_slot    timestamptz NOT NULL,           -- every slot up to here has its run, or was before the entry's time
    paused_at    timestamptz,
    paused_by    text,
    pause_reason text,
    removed_at   timestamptz,                    -- no longer declared
    format       integer NOT NULL DEFAULT 1,     -- of this row; a newer one is refused
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE upkeep.schedule_state IS 'How far each entry of the schedule has been put into the ledger, and whether it is paused.';
