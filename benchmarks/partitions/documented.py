"""The archive function of 004 as its document means it: rows go one by one, in one statement, into a table like theirs.

Its archive has the table's indexes, as a month that is moved has them in ours. What PostgreSQL refuses of it is left
out: a compression of a whole table, yearly partitions of one that is not partitioned.
"""

ARCHIVE = """
CREATE TABLE public.transactions_archive (
    LIKE public.transactions INCLUDING ALL,
    archived_at timestamptz DEFAULT now(),
    archive_batch_id uuid
) WITH (fillfactor = 100);

CREATE FUNCTION public.archive_transactions_batch(p_from date, p_cutoff_date date) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_batch_id uuid := gen_random_uuid();
    v_archived bigint;
BEGIN
    WITH archived AS (
        DELETE FROM public.transactions
         WHERE partition_date >= p_from AND partition_date < p_cutoff_date
           AND status IN ('completed', 'failed', 'reversed')
           AND completed_at < now() - interval '30 days'
        RETURNING transaction_id, transaction_uuid, reference_number, transaction_type, status, amount, currency_code,
                  source_account_id, destination_account_id, created_at, updated_at, completed_at, settlement_date,
                  risk_score, compliance_flags, regulatory_region, created_by, updated_by, version, partition_date
    )
    INSERT INTO public.transactions_archive (
        transaction_id, transaction_uuid, reference_number, transaction_type, status, amount, currency_code,
        source_account_id, destination_account_id, created_at, updated_at, completed_at, settlement_date,
        risk_score, compliance_flags, regulatory_region, created_by, updated_by, version, partition_date,
        archive_batch_id)
    SELECT archived.*, v_batch_id FROM archived;
    GET DIAGNOSTICS v_archived = ROW_COUNT;
    RETURN v_archived;
END;
$$;
"""
