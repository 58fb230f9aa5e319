-- The funds' histories on their way into the tables; gone with the transaction. Shares are millionths of a commitment.

CREATE TEMPORARY TABLE lp_event (
    fund_id          integer NOT NULL,
    first_commitment bigint  NOT NULL,     -- a fund's commitments are numbered without a gap
    last_commitment  bigint  NOT NULL,
    kind             text    NOT NULL,
    happened_on      date    NOT NULL,
    share            bigint  NOT NULL,
    first_id         bigint  NOT NULL      -- the activity of its first commitment
) ON COMMIT DROP;

CREATE TEMPORARY TABLE lp_quarter (
    fund_id           integer NOT NULL,
    number            integer NOT NULL,    -- 0 is the oldest
    ends_on           date    NOT NULL,
    beginning_nav     bigint  NOT NULL,
    contributions     bigint  NOT NULL,
    distributions     bigint  NOT NULL,
    ending_nav        bigint  NOT NULL,
    contributed       bigint  NOT NULL,    -- to date
    distributed       bigint  NOT NULL,
    net_irr_percent   numeric NOT NULL,
    gross_irr_percent numeric NOT NULL,
    moic              numeric NOT NULL,
    dpi               numeric NOT NULL,
    rvpi              numeric NOT NULL
) ON COMMIT DROP;
