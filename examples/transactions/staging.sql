-- The plan of the history, one row a month, as generate.py makes it.
CREATE TEMPORARY TABLE transactions_month (
    first_id  bigint      NOT NULL,  -- ids run on from month to month
    rows      bigint      NOT NULL,
    starts_on date        NOT NULL,
    starts_at timestamptz NOT NULL,
    step_us   bigint      NOT NULL,  -- from one transaction to the next
    age_us    bigint      NOT NULL,  -- from the month's start to the end of the history
    held_from bigint      NOT NULL,  -- the number, from 0, of the first that was never taken on
    has_open  boolean     NOT NULL,  -- so young that some wait for long
    accounts  bigint      NOT NULL,
    seed      bigint      NOT NULL
) ON COMMIT DROP;
