"""The lending views against plain queries written another way, and against cases whose answers are known."""

from __future__ import annotations

from datetime import date

import psycopg
import pytest
from psycopg import sql

from examples import lending
from examples.lending import generate
from fleet.names import RelationName
from tests.servers import Database

pytestmark = pytest.mark.any_server

# What each view has to hold, one correlated question per column: slow, and hard to get wrong in the same way.
PLAIN = {
    "public.mv_current_loan_status_realtime": """
        SELECT l.id AS loan_id, l.loan_number, l.currency_code, l.principal_amount, l.status AS loan_status,
               (SELECT category FROM product WHERE id = l.product_id) AS product_category,
               (SELECT business_unit FROM product WHERE id = l.product_id) AS business_unit,
               (SELECT display_name FROM party WHERE id = l.borrower_party_id) AS borrower_name,
               COALESCE((SELECT status_value FROM loan_status_history WHERE loan_id = l.id
                   AND status_type = 'risk_level' AND effective_through IS NULL), 'normal')
                   AS current_risk_level,
               COALESCE((SELECT status_value FROM loan_status_history WHERE loan_id = l.id
                   AND status_type = 'collections_stage' AND effective_through IS NULL), 'current')
                   AS current_collections_stage,
               d.dpd AS current_dpd,
               (ARRAY['Current', '1-7 DPD', '8-30 DPD', '31-60 DPD', '61-90 DPD', '91-180 DPD', '180+ DPD'])
                   [1 + (d.dpd > 0)::int + (d.dpd > 7)::int + (d.dpd > 30)::int + (d.dpd > 60)::int
                      + (d.dpd > 90)::int + (d.dpd > 180)::int] AS dpd_bucket
        FROM loan l,
             LATERAL (SELECT COALESCE((SELECT dpd_snapshot FROM collections_event WHERE loan_id = l.id
                                       ORDER BY dpd_snapshot DESC LIMIT 1), 0) AS dpd) d
        WHERE l.status = 'active'""",
    "public.mv_portfolio_summary_realtime": """
        SELECT le.name AS legal_entity_name, le.country_code, p.category AS product_category, p.business_unit,
               l.currency_code, l.status AS loan_status,
               COUNT(*) AS loan_count, SUM(l.principal_amount) AS total_principal,
               AVG(l.principal_amount) AS avg_loan_amount, AVG(l.interest_rate) AS avg_interest_rate,
               MIN(l.start_date) AS earliest_start, MAX(l.end_date) AS latest_end,
               COUNT(CASE WHEN l.status = 'active' THEN 1 END) AS active_loans,
               COUNT(CASE WHEN l.status = 'closed' THEN 1 END) AS closed_loans,
               COUNT(CASE WHEN l.status = 'written_off' THEN 1 END) AS written_off_loans,
               SUM(CASE WHEN l.status = 'active' THEN l.principal_amount ELSE 0 END) AS active_principal,
               SUM(CASE WHEN l.status = 'written_off' THEN l.principal_amount ELSE 0 END)
                   AS written_off_principal
        FROM legal_entity le, product p, loan l
        WHERE l.product_id = p.id AND l.legal_entity_id = le.id
        GROUP BY 1, 2, 3, 4, 5, 6""",
    "public.mv_payment_summary_detailed": """
        SELECT x.loan_id,
               COUNT(DISTINCT x.id) AS payment_count,
               SUM(x.allocated_amount) AS total_allocated,
               MAX(x.received_at) AS last_payment_date,
               MIN(x.received_at) AS first_payment_date,
               SUM(x.allocated_amount) / COUNT(DISTINCT x.id) AS avg_payment_amount,
               COUNT(DISTINCT x.id) FILTER (WHERE x.late <= 0) AS on_time_payments,
               (SELECT AVG(y.days) FROM (
                    SELECT DISTINCT z.payment_id,
                        GREATEST(COALESCE((p.received_at AT TIME ZONE 'UTC')::date
                            - (SELECT MIN(due_date) FROM amortisation_line WHERE id IN (
                                   SELECT line_id FROM payment_allocation
                                   WHERE payment_id = p.id AND loan_id = x.loan_id)), 0), 0) AS days
                    FROM payment_allocation z JOIN payment p ON p.id = z.payment_id
                    WHERE z.loan_id = x.loan_id AND p.status = 'completed' AND p.direction = 'inbound'
               ) y) AS avg_days_late,
               SUM(CASE WHEN x.component = 'principal' THEN x.allocated_amount ELSE 0 END)
                   AS principal_payments,
               SUM(CASE WHEN x.component = 'rc_fee' THEN x.allocated_amount ELSE 0 END) AS fee_payments,
               SUM(CASE WHEN x.component = 'penalty' THEN x.allocated_amount ELSE 0 END) AS penalty_payments,
               ROUND(100.0 * COUNT(DISTINCT x.id) FILTER (WHERE x.late <= 0) / COUNT(DISTINCT x.id), 2)
                   AS on_time_payment_rate_pct
        FROM (
            SELECT pa.loan_id, p.id, p.received_at, pa.allocated_amount, pa.component,
                   (p.received_at AT TIME ZONE 'UTC')::date - MIN(al.due_date)
                       OVER (PARTITION BY pa.loan_id, p.id) AS late
            FROM payment p, payment_allocation pa LEFT JOIN amortisation_line al ON al.id = pa.line_id
            WHERE p.id = pa.payment_id AND p.status = 'completed' AND p.direction = 'inbound'
        ) x
        GROUP BY x.loan_id""",
    "public.mv_collections_summary_detailed": """
        SELECT ce.loan_id,
               COUNT(*) AS total_events, MAX(ce.dpd_snapshot) AS max_dpd,
               MIN(ce.event_at) AS first_collections_event, MAX(ce.event_at) AS last_collections_event,
               SUM((ce.event_type = 'reminder_sent')::int) AS reminder_count,
               SUM((ce.event_type LIKE 'call%')::int) AS call_attempts,
               SUM((ce.event_type = 'call_successful')::int) AS successful_calls,
               SUM((ce.event_type IN ('legal_notice', 'lawyer_letter', 'court_filing'))::int)
                   AS legal_actions,
               MAX(CASE WHEN ce.resolution_status = 'resolved' THEN ce.event_at END) AS resolution_date,
               COUNT(CASE WHEN ce.resolution_status = 'resolved' THEN 1 END) AS resolved_events,
               (SELECT event_type FROM collections_event WHERE loan_id = ce.loan_id
                ORDER BY event_at DESC, id DESC LIMIT 1) AS latest_event_type,
               COALESCE(ROUND(100.0 * SUM((ce.event_type = 'call_successful')::int)
                   / NULLIF(SUM((ce.event_type LIKE 'call%')::int), 0), 2), 0) AS call_success_rate_pct,
               FLOOR(EXTRACT(epoch FROM MAX(CASE WHEN ce.resolution_status = 'resolved' THEN ce.event_at END)
                   - MIN(ce.event_at)) / 86400) AS resolution_days
        FROM collections_event ce
        GROUP BY ce.loan_id""",
    "public.mv_ml_features_cache": """
        SELECT l.id AS loan_id, l.principal_amount, l.interest_rate, l.rc_fee_rate,
               l.end_date - l.start_date AS loan_duration_days, CURRENT_DATE - l.start_date AS loan_age_days,
               (SELECT category FROM product WHERE id = l.product_id) AS product_category,
               (SELECT business_unit FROM product WHERE id = l.product_id) AS business_unit,
               (SELECT kind FROM party WHERE id = l.borrower_party_id) AS borrower_type,
               l.currency_code,
               (SELECT country_code FROM legal_entity WHERE id = l.legal_entity_id) AS country_code,
               COALESCE(ps.payment_count, 0) AS total_payments_made,
               COALESCE(ps.on_time_payment_rate_pct, 0) AS on_time_payment_rate_pct,
               COALESCE(ps.avg_days_late, 0) AS avg_days_late,
               COALESCE(ps.total_allocated, 0) AS total_amount_paid,
               COALESCE(cs.total_events, 0) AS collections_events_count,
               COALESCE(cs.max_dpd, 0) AS max_dpd_reached,
               COALESCE(cs.call_success_rate_pct, 0) AS call_success_rate_pct,
               COALESCE(cs.legal_actions, 0) AS legal_actions_count,
               COALESCE(cls.current_risk_level, 'normal') AS current_risk_level,
               COALESCE(cls.current_dpd, 0) AS current_dpd,
               COALESCE(cls.dpd_bucket, 'Current') AS dpd_bucket,
               (l.status = 'written_off')::int AS is_written_off,
               COALESCE((cls.current_risk_level LIKE 'default_level_%')::int, 0) AS is_currently_default,
               ROUND(100.0 * COALESCE(ps.total_allocated, 0) / l.principal_amount, 2)
                   AS repayment_progress_pct,
               date_part('month', l.start_date)::numeric AS origination_month,
               date_part('dow', l.start_date)::numeric AS origination_day_of_week
        FROM loan l
        LEFT JOIN mv_payment_summary_detailed ps ON ps.loan_id = l.id
        LEFT JOIN mv_collections_summary_detailed cs ON cs.loan_id = l.id
        LEFT JOIN mv_current_loan_status_realtime cls ON cls.loan_id = l.id
        WHERE CURRENT_DATE - l.start_date >= 30""",
}


def rows(connection: psycopg.Connection, query: str) -> list[dict]:
    with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        return cursor.execute(query).fetchall()


def column_names(connection: psycopg.Connection, view: str) -> list[str]:
    query = sql.SQL("SELECT * FROM {} LIMIT 0").format(RelationName.parse(view).identifier())
    return [column.name for column in connection.execute(query).description]


@pytest.mark.parametrize("view", lending.VIEWS)
def test_a_view_holds_what_a_plain_query_finds(lending_system, view):
    key = {"public.mv_portfolio_summary_realtime": "1, 2, 3, 4, 5, 6"}.get(view, "1")
    expected = rows(lending_system, f"{PLAIN[view]} ORDER BY {key}")
    found = rows(lending_system, f"SELECT * FROM {view} ORDER BY {key}")
    assert expected
    assert list(found[0]) == list(expected[0])
    assert found == expected


@pytest.mark.parametrize(
    ("table", "count"),
    [
        ("loan", 100),
        ("payment", 1_000),
        ("payment_allocation", 1_600),
        ("collections_event", 200),
        ("amortisation_line", 3_000),
        ("amortisation_plan", 100),
        ("party", 80),
        ("legal_entity", 4),
        ("product", 12),
    ],
)
def test_tables_have_the_documented_volumes_times_the_scale(lending_system, table, count):
    query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier("public", table))
    assert lending_system.execute(query).fetchone() == (count,)


def test_scale_1_is_the_documented_volume():
    volume = generate.Volume.at(1)
    assert (volume.loans, volume.payments, volume.collections_events) == (50_000, 500_000, 100_000)
    book = generate.portfolio(volume, seed=1, as_of=date(2026, 3, 31))
    assert sum(loan.payments for loan in book) == 500_000
    assert sum(loan.events for loan in book) == 100_000
    assert sum(loan.term_months for loan in book) == 1_500_000


def test_the_smallest_scale_still_fills_every_view(database: Database):
    connection = database.connect()
    lending.install(connection, scale=1e-9, populate=True)
    for view in lending.VIEWS:
        query = sql.SQL("SELECT count(*) FROM {}").format(RelationName.parse(view).identifier())
        assert connection.execute(query).fetchone()[0] > 0


@pytest.mark.parametrize("as_of", [date(2024, 2, 29), date(2025, 1, 1), date(2026, 12, 31)])
def test_any_day_may_be_the_last(as_of):
    volume = generate.Volume.at(0.002)
    book = generate.portfolio(volume, seed=3, as_of=as_of)
    payments = list(generate.payments(book, seed=3, as_of=as_of))
    assert len(payments) == volume.payments
    assert max(payment.received_at for payment in payments) < as_of.isoformat()
    assert all(min(payment.cents) >= 0 for payment in payments)
    assert sum(len(payment.components) for payment in payments) == volume.payments * 8 // 5


def test_what_is_due_adds_up_to_what_was_lent(lending_system):
    found = rows(
        lending_system,
        """
        SELECT l.id FROM loan l JOIN amortisation_plan ap ON ap.loan_id = l.id
        JOIN amortisation_line al ON al.plan_id = ap.id
        GROUP BY l.id HAVING sum(al.amount_principal) <> l.principal_amount OR max(al.due_date) <> l.end_date
        """,
    )
    assert found == []


def test_payments_are_allocated_to_the_cent_and_to_the_loans_own_lines(lending_system):
    assert (
        rows(
            lending_system,
            """
            SELECT p.id FROM payment p JOIN payment_allocation pa ON pa.payment_id = p.id
            LEFT JOIN amortisation_line al ON al.id = pa.line_id
            LEFT JOIN amortisation_plan ap ON ap.id = al.plan_id
            GROUP BY p.id
            HAVING sum(pa.allocated_amount) <> p.amount OR bool_or(ap.loan_id <> pa.loan_id)
            """,
        )
        == []
    )


class TestPaymentSummary:
    """One loan with one instalment due, and payments on it whose answer is known."""

    @pytest.fixture
    def loan(self, lending_system: psycopg.Connection) -> psycopg.Connection:
        connection = lending_system
        connection.execute("TRUNCATE payment, payment_allocation")
        connection.execute(
            "UPDATE amortisation_line SET due_date = '2026-03-10' WHERE plan_id = 1 AND line_number = 1"
        )
        return connection

    def pay(
        self,
        connection: psycopg.Connection,
        number: int,
        received_at: str,
        *amounts: int,
        line: int | None = 1,
    ) -> None:
        connection.execute(
            "INSERT INTO payment VALUES (%s, 'inbound', 'completed', 'EUR', %s, %s)",
            [number, sum(amounts), received_at],
        )
        for amount in amounts:
            connection.execute(
                "INSERT INTO payment_allocation (payment_id, loan_id, line_id, component, allocated_amount)"
                " VALUES (%s, 1, %s, 'principal', %s)",
                [number, line, amount],
            )

    def summary(self, connection: psycopg.Connection) -> dict:
        connection.execute("REFRESH MATERIALIZED VIEW mv_payment_summary_detailed")
        (row,) = rows(connection, "SELECT * FROM mv_payment_summary_detailed")
        return row

    def test_a_payment_in_three_allocations_is_one_payment_on_time(self, loan):
        self.pay(loan, 1, "2026-03-10 23:59:59+00", 60, 30, 10)
        found = self.summary(loan)
        assert (found["payment_count"], found["on_time_payments"]) == (1, 1)
        assert found["on_time_payment_rate_pct"] == 100
        assert found["avg_payment_amount"] == 100

    def test_the_day_that_counts_is_that_of_utc_in_every_session(self, loan):
        loan.execute("SET timezone = 'Pacific/Kiritimati'")
        self.pay(loan, 1, "2026-03-10 23:59:59+00", 100)
        assert self.summary(loan)["on_time_payments"] == 1

    def test_days_late_are_averaged_over_payments(self, loan):
        self.pay(loan, 1, "2026-03-14 08:00:00+00", 50, 50)
        self.pay(loan, 2, "2026-03-01 08:00:00+00", 100)
        found = self.summary(loan)
        assert (found["avg_days_late"], found["on_time_payment_rate_pct"]) == (2, 50)

    def test_a_payment_outside_the_schedule_is_neither_late_nor_on_time(self, loan):
        self.pay(loan, 1, "2026-03-14 08:00:00+00", 100, line=None)
        found = self.summary(loan)
        assert (found["payment_count"], found["on_time_payments"], found["avg_days_late"]) == (1, 0, 0)

    def test_money_that_did_not_come_in_is_not_counted(self, loan):
        self.pay(loan, 1, "2026-03-01 08:00:00+00", 100)
        self.pay(loan, 2, "2026-03-01 08:00:00+00", 100)
        self.pay(loan, 3, "2026-03-01 08:00:00+00", 100)
        loan.execute("UPDATE payment SET status = 'reversed' WHERE id = 2")
        loan.execute("UPDATE payment SET direction = 'outbound' WHERE id = 3")
        assert self.summary(loan)["total_allocated"] == 100
