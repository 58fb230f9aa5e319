-- Keys and indexes of the lending tables, built once the rows are in.

ALTER TABLE public.legal_entity        ADD PRIMARY KEY (id), ADD UNIQUE (name);
ALTER TABLE public.product             ADD PRIMARY KEY (id), ADD UNIQUE (name);
ALTER TABLE public.party               ADD PRIMARY KEY (id);
ALTER TABLE public.loan                ADD PRIMARY KEY (id), ADD UNIQUE (loan_number);
ALTER TABLE public.loan_status_history ADD PRIMARY KEY (id);
ALTER TABLE public.amortisation_plan   ADD PRIMARY KEY (id);
ALTER TABLE public.amortisation_line   ADD PRIMARY KEY (id);
ALTER TABLE public.payment             ADD PRIMARY KEY (id);
ALTER TABLE public.payment_allocation  ADD PRIMARY KEY (id);
ALTER TABLE public.collections_event   ADD PRIMARY KEY (id);

ALTER TABLE public.loan
    ADD FOREIGN KEY (legal_entity_id) REFERENCES public.legal_entity,
    ADD FOREIGN KEY (product_id) REFERENCES public.product,
    ADD FOREIGN KEY (borrower_party_id) REFERENCES public.party;
ALTER TABLE public.loan_status_history ADD FOREIGN KEY (loan_id) REFERENCES public.loan;
ALTER TABLE public.amortisation_plan   ADD FOREIGN KEY (loan_id) REFERENCES public.loan;
ALTER TABLE public.amortisation_line   ADD FOREIGN KEY (plan_id) REFERENCES public.amortisation_plan;
ALTER TABLE public.payment_allocation
    ADD FOREIGN KEY (payment_id) REFERENCES public.payment,
    ADD FOREIGN KEY (loan_id) REFERENCES public.loan,
    ADD FOREIGN KEY (line_id) REFERENCES public.amortisation_line;
ALTER TABLE public.collections_event   ADD FOREIGN KEY (loan_id) REFERENCES public.loan;

-- One classification of a kind in force per loan: what current_loan_status relies on.
CREATE UNIQUE INDEX idx_loan_status_history_current
    ON public.loan_status_history (loan_id, status_type) INCLUDE (status_value)
    WHERE effective_through IS NULL;

CREATE INDEX idx_loan_portfolio ON public.loan (legal_entity_id, product_id, status);
CREATE INDEX idx_loan_borrower ON public.loan (borrower_party_id);
CREATE INDEX idx_amortisation_plan_loan ON public.amortisation_plan (loan_id);
CREATE UNIQUE INDEX idx_amortisation_line_plan ON public.amortisation_line (plan_id, line_number);
CREATE INDEX idx_payment_received ON public.payment (received_at) WHERE status = 'completed' AND direction = 'inbound';
CREATE INDEX idx_payment_allocation_payment ON public.payment_allocation (payment_id);
CREATE INDEX idx_payment_allocation_loan ON public.payment_allocation (loan_id);
CREATE INDEX idx_collections_event_loan ON public.collections_event (loan_id, event_at DESC, event_type, dpd_snapshot);
