-- name: read_clock
-- What time is it here, where the run's slot and its expiry are from?
SELECT pg_catalog.clock_timestamp();

-- name: begin_batch
-- Sets what the statement in this transaction runs with; it is all gone when the transaction ends.
SELECT pg_catalog.set_config('lock_timeout', :lock_timeout, true),
       pg_catalog.set_config('statement_timeout', :statement_timeout, true);

-- name: keep_tally!
-- Keeps what the batches of a run came to, in the transaction of the batch that is counted: whoever takes the run over counts on.
UPDATE upkeep.run SET result = :tally, progress = :progress WHERE id = :id AND state = 'running';
