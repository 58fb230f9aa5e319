-- Keys, indexes and triggers of the LP tables, built once the rows are in.

ALTER TABLE public.limited_partners         ADD PRIMARY KEY (id), ADD UNIQUE (legal_name);
ALTER TABLE public.lp_fund_commitments      ADD PRIMARY KEY (id), ADD UNIQUE (lp_id, fund_id), ADD UNIQUE (id, fund_id);
ALTER TABLE public.capital_activities       ADD PRIMARY KEY (id);
ALTER TABLE public.lp_capital_accounts      ADD PRIMARY KEY (id);
ALTER TABLE public.lp_performance_snapshots ADD PRIMARY KEY (id);
ALTER TABLE public.lp_reports               ADD PRIMARY KEY (id);
ALTER TABLE public.fund_nav_snapshots       ADD PRIMARY KEY (id);

-- What records money stays for as long as the money is spoken of: RESTRICT. What was derived from it goes with it: CASCADE.
ALTER TABLE public.lp_fund_commitments
    ADD FOREIGN KEY (lp_id) REFERENCES public.limited_partners ON DELETE RESTRICT;
ALTER TABLE public.capital_activities
    ADD FOREIGN KEY (commitment_id, fund_id) REFERENCES public.lp_fund_commitments (id, fund_id) ON DELETE RESTRICT;
ALTER TABLE public.lp_capital_accounts
    ADD FOREIGN KEY (commitment_id) REFERENCES public.lp_fund_commitments ON DELETE CASCADE;
ALTER TABLE public.lp_performance_snapshots
    ADD FOREIGN KEY (commitment_id) REFERENCES public.lp_fund_commitments ON DELETE CASCADE;
ALTER TABLE public.lp_reports
    ADD FOREIGN KEY (lp_id) REFERENCES public.limited_partners ON DELETE CASCADE,
    ADD FOREIGN KEY (commitment_id) REFERENCES public.lp_fund_commitments ON DELETE SET NULL;

-- A partner's timeline, page by page: id breaks the ties of one day, so that a cursor neither skips nor repeats a row.
CREATE INDEX capital_activities_commitment_date_idx
    ON public.capital_activities (commitment_id, activity_date DESC, id DESC);
-- A fund's timeline, from the index alone.
CREATE INDEX capital_activities_fund_date_idx
    ON public.capital_activities (fund_id, activity_date DESC) INCLUDE (commitment_id, activity_type, amount_cents);

CREATE UNIQUE INDEX lp_perf_snapshots_commitment_date_idx
    ON public.lp_performance_snapshots (commitment_id, snapshot_date DESC)
    INCLUDE (net_irr_percent, gross_irr_percent, moic, dpi, rvpi, tvpi);

-- "As of" a date: the newest account up to it, from the index alone.
CREATE UNIQUE INDEX lp_capital_accounts_commitment_date_idx
    ON public.lp_capital_accounts (commitment_id, as_of_date DESC)
    INCLUDE (ending_nav_cents, contributed_to_date_cents, distributed_to_date_cents);

-- Most questions are about commitments that still run: seven in ten.
CREATE INDEX lp_commitments_active_idx
    ON public.lp_fund_commitments (lp_id, fund_id) INCLUDE (commitment_amount_cents)
    WHERE commitment_status = 'active';
CREATE INDEX lp_commitments_fund_idx ON public.lp_fund_commitments (fund_id);

CREATE UNIQUE INDEX fund_nav_snapshots_fund_date_idx
    ON public.fund_nav_snapshots (fund_id, snapshot_date DESC)
    INCLUDE (nav_cents, contributed_cents, distributed_cents);

CREATE INDEX lp_reports_lp_period_idx ON public.lp_reports (lp_id, period_end DESC);
CREATE INDEX lp_reports_commitment_idx ON public.lp_reports (commitment_id);
CREATE INDEX lp_reports_open_idx ON public.lp_reports (created_at) WHERE status IN ('pending', 'failed');

-- metadata @> '{"region": "EMEA"}'
CREATE INDEX limited_partners_metadata_idx ON public.limited_partners USING gin (metadata jsonb_path_ops);
CREATE INDEX lp_commitments_metadata_idx ON public.lp_fund_commitments USING gin (metadata jsonb_path_ops);
CREATE INDEX lp_reports_metadata_idx ON public.lp_reports USING gin (metadata jsonb_path_ops);

CREATE FUNCTION public.lp_refuse_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    RAISE EXCEPTION '%.% is append-only: % is refused', TG_TABLE_SCHEMA, TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation', HINT = 'Book what puts it right as an activity of its own.';
END
$$;

CREATE TRIGGER capital_activities_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON public.capital_activities
    FOR EACH STATEMENT EXECUTE FUNCTION public.lp_refuse_change();

CREATE FUNCTION public.lp_note_update() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    NEW.updated_at := greatest(now(), NEW.created_at);
    RETURN NEW;
END
$$;

CREATE TRIGGER limited_partners_updated BEFORE UPDATE ON public.limited_partners
    FOR EACH ROW EXECUTE FUNCTION public.lp_note_update();
CREATE TRIGGER lp_fund_commitments_updated BEFORE UPDATE ON public.lp_fund_commitments
    FOR EACH ROW EXECUTE FUNCTION public.lp_note_update();
CREATE TRIGGER lp_capital_accounts_updated BEFORE UPDATE ON public.lp_capital_accounts
    FOR EACH ROW EXECUTE FUNCTION public.lp_note_update();
CREATE TRIGGER lp_performance_snapshots_updated BEFORE UPDATE ON public.lp_performance_snapshots
    FOR EACH ROW EXECUTE FUNCTION public.lp_note_update();
CREATE TRIGGER lp_reports_updated BEFORE UPDATE ON public.lp_reports
    FOR EACH ROW EXECUTE FUNCTION public.lp_note_update();
CREATE TRIGGER fund_nav_snapshots_updated BEFORE UPDATE ON public.fund_nav_snapshots
    FOR EACH ROW EXECUTE FUNCTION public.lp_note_update();
