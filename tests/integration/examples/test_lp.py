"""The LP system's tables keep their promises, and its views hold what plain queries find."""

from __future__ import annotations

import threading
from random import Random

import psycopg
import pytest
from psycopg import errors, sql

from examples import lp
from examples.lp import traffic
from fleet.names import RelationName
from tests.integration.examples.conftest import Installed

pytestmark = pytest.mark.any_server

# ON DELETE RESTRICT has an error of its own from PostgreSQL 18 on.
REFERENCED = (errors.RestrictViolation, errors.ForeignKeyViolation)

# What each view has to hold, one correlated question per column: slow, and hard to get wrong in the same way.
PLAIN = {
    "public.lp_performance_latest": """
        SELECT c.id AS commitment_id, c.lp_id, c.fund_id, s.snapshot_date, s.net_irr_percent, s.gross_irr_percent,
               s.moic, s.dpi, s.rvpi, s.tvpi
        FROM lp_performance_snapshots s JOIN lp_fund_commitments c ON c.id = s.commitment_id
        WHERE NOT EXISTS (SELECT FROM lp_performance_snapshots later
                          WHERE later.commitment_id = s.commitment_id AND later.snapshot_date > s.snapshot_date)""",
    "public.lp_dashboard_summary": """
        WITH account AS (
            SELECT a.* FROM lp_capital_accounts a
            WHERE as_of_date = (SELECT max(as_of_date) FROM lp_capital_accounts b
                                WHERE b.commitment_id = a.commitment_id)
        ), kept AS (
            SELECT c.*,
                (SELECT coalesce(sum(amount_cents), 0) FROM capital_activities
                 WHERE commitment_id = c.id AND activity_type IN ('capital_call', 'management_fee')) AS paid_in,
                (SELECT coalesce(sum(amount_cents), 0) FROM capital_activities
                 WHERE commitment_id = c.id AND activity_type = 'distribution') AS paid_out
            FROM lp_fund_commitments c
        ), valued AS (
            SELECT kept.*, as_of_date,
                CASE WHEN ending_nav_cents + paid_in - contributed_to_date_cents
                          - (paid_out - distributed_to_date_cents) < 0 THEN 0
                     ELSE ending_nav_cents + paid_in - contributed_to_date_cents
                          - (paid_out - distributed_to_date_cents) END AS nav
            FROM kept JOIN account ON account.commitment_id = kept.id
        )
        SELECT lp.id AS lp_id, lp.legal_name, lp.entity_type, lp.status,
            (SELECT count(*) FROM valued v WHERE v.lp_id = lp.id) AS fund_count,
            (SELECT count(*) FROM valued v WHERE v.lp_id = lp.id AND commitment_status = 'active')
                AS active_fund_count,
            (SELECT sum(commitment_amount_cents) FROM valued v WHERE v.lp_id = lp.id)::bigint
                AS total_commitment_cents,
            (SELECT sum(paid_in) FROM valued v WHERE v.lp_id = lp.id)::bigint AS total_contributed_cents,
            (SELECT sum(paid_out) FROM valued v WHERE v.lp_id = lp.id)::bigint AS total_distributed_cents,
            (SELECT coalesce(sum(commitment_amount_cents - paid_in), 0) FROM valued v
             WHERE v.lp_id = lp.id AND commitment_status = 'active')::bigint AS total_unfunded_cents,
            (SELECT sum(nav) FROM valued v WHERE v.lp_id = lp.id)::bigint AS total_nav_cents,
            (SELECT round(sum(paid_out) / sum(paid_in), 4) FROM valued v WHERE v.lp_id = lp.id) AS dpi,
            (SELECT round(sum(nav) / sum(paid_in), 4) FROM valued v WHERE v.lp_id = lp.id) AS rvpi,
            (SELECT round(sum(paid_out) / sum(paid_in), 4) + round(sum(nav) / sum(paid_in), 4)
             FROM valued v WHERE v.lp_id = lp.id) AS tvpi,
            (SELECT max(as_of_date) FROM valued v WHERE v.lp_id = lp.id) AS latest_valuation_date,
            (SELECT max(activity_date) FROM capital_activities a JOIN lp_fund_commitments c
             ON c.id = a.commitment_id WHERE c.lp_id = lp.id) AS last_activity_date
        FROM limited_partners lp""",
    "public.fund_lp_summary": """
        SELECT f.fund_id,
            (SELECT count(*) FROM lp_fund_commitments c WHERE c.fund_id = f.fund_id) AS lp_count,
            (SELECT count(*) FROM lp_fund_commitments c
             WHERE c.fund_id = f.fund_id AND commitment_status = 'active') AS active_lp_count,
            (SELECT sum(commitment_amount_cents) FROM lp_fund_commitments c WHERE c.fund_id = f.fund_id)::bigint
                AS total_commitment_cents,
            (SELECT commitment_amount_cents FROM lp_fund_commitments c WHERE c.fund_id = f.fund_id
             ORDER BY 1 DESC LIMIT 1) AS largest_commitment_cents,
            (SELECT sum(amount_cents) FROM capital_activities a
             WHERE a.fund_id = f.fund_id AND activity_type = 'capital_call')::bigint AS total_called_cents,
            (SELECT sum(amount_cents) FROM capital_activities a
             WHERE a.fund_id = f.fund_id AND activity_type = 'management_fee')::bigint AS total_fees_cents,
            (SELECT coalesce(sum(amount_cents), 0) FROM capital_activities a
             WHERE a.fund_id = f.fund_id AND activity_type = 'distribution')::bigint AS total_distributed_cents,
            (SELECT round(100 * sum(amount_cents)
                        / (SELECT sum(commitment_amount_cents) FROM lp_fund_commitments c
                           WHERE c.fund_id = f.fund_id), 2)
             FROM capital_activities a
             WHERE a.fund_id = f.fund_id AND activity_type <> 'distribution') AS contributed_percent,
            (SELECT nav_cents FROM fund_nav_snapshots n WHERE n.fund_id = f.fund_id
             ORDER BY snapshot_date DESC LIMIT 1) AS latest_nav_cents,
            (SELECT max(snapshot_date) FROM fund_nav_snapshots n WHERE n.fund_id = f.fund_id)
                AS latest_valuation_date,
            (SELECT round(avg(net_irr_percent), 4) FROM lp_performance_latest p WHERE p.fund_id = f.fund_id)
                AS average_net_irr_percent,
            (SELECT round(avg(tvpi), 4) FROM lp_performance_latest p WHERE p.fund_id = f.fund_id)
                AS average_tvpi,
            (SELECT max(snapshot_date) FROM lp_performance_latest p WHERE p.fund_id = f.fund_id) AS measured_on,
            (SELECT max(activity_date) FROM capital_activities a WHERE a.fund_id = f.fund_id)
                AS last_activity_date
        FROM (SELECT DISTINCT fund_id FROM lp_fund_commitments) f""",
}


def differences(connection: psycopg.Connection, view: str) -> int:
    """Rows of one that the other has not, with the same columns in the same order."""
    found = connection.execute(
        sql.SQL(
            "SELECT count(*) FROM ((TABLE {v} EXCEPT ALL ({p})) UNION ALL (({p}) EXCEPT ALL TABLE {v})) d"
        ).format(v=RelationName.parse(view).identifier(), p=sql.SQL(PLAIN[view]))
    )
    return found.fetchone()[0]


def refresh_all(connection: psycopg.Connection) -> None:
    for view in lp.VIEWS:
        connection.execute(
            sql.SQL("REFRESH MATERIALIZED VIEW {}").format(RelationName.parse(view).identifier())
        )


def scalar(connection: psycopg.Connection, query: str, *values: object) -> object:
    return connection.execute(query, values).fetchone()[0]


@pytest.fixture
def writer(clone: Installed) -> psycopg.Connection:
    """A copy to commit in."""
    return clone(lp).connect()


@pytest.mark.parametrize("view", lp.VIEWS)
def test_a_view_holds_what_a_plain_query_finds(lp_system: psycopg.Connection, view: str) -> None:
    assert differences(lp_system, view) == 0
    rng = Random(5)
    for _ in range(3):
        traffic.book(lp_system, rng, 20)
        traffic.book_fund(lp_system, rng)
        traffic.measure(lp_system, rng, [1, 7])
    assert differences(lp_system, view) > 0
    refresh_all(lp_system)
    assert differences(lp_system, view) == 0


def test_a_partner_without_commitments_is_on_the_dashboard_with_zeros(lp_system: psycopg.Connection) -> None:
    lp_id = scalar(
        lp_system,
        "INSERT INTO limited_partners (legal_name, entity_type, country_code, contact_email)"
        " VALUES ('Newcomer', 'pension', 'DK', 'a@b.example') RETURNING id",
    )
    refresh_all(lp_system)
    row = lp_system.execute(
        "SELECT fund_count, total_commitment_cents, total_nav_cents, tvpi FROM lp_dashboard_summary"
        " WHERE lp_id = %s",
        [lp_id],
    ).fetchone()
    assert row == (0, 0, 0, None)


class TestFigures:
    def test_money_is_whole_cents(self, lp_system: psycopg.Connection) -> None:
        types = lp_system.execute(
            "SELECT DISTINCT data_type FROM information_schema.columns"
            " WHERE table_schema = 'public' AND column_name LIKE '%%cents'"
        ).fetchall()
        assert types == [("bigint",)]
        # Of materialized views information_schema knows nothing.
        of_views = lp_system.execute(
            "SELECT DISTINCT format_type(atttypid, atttypmod) FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
            " WHERE relkind = 'm' AND attname LIKE '%%cents'"
        ).fetchall()
        assert of_views == [("bigint",)]

    def test_every_table_says_when_a_row_was_made_and_changed(self, lp_system: psycopg.Connection) -> None:
        columns = lp_system.execute(
            "SELECT table_name, array_agg(column_name::text ORDER BY column_name::text) FROM information_schema.columns"
            " WHERE table_schema = 'public' AND column_name IN ('created_at', 'updated_at', 'metadata')"
            " GROUP BY table_name"
        ).fetchall()
        whole = ["created_at", "metadata", "updated_at"]
        assert dict(columns) == {
            **dict.fromkeys(
                (
                    "limited_partners",
                    "lp_fund_commitments",
                    "lp_capital_accounts",
                    "lp_performance_snapshots",
                    "lp_reports",
                    "fund_nav_snapshots",
                ),
                whole,
            ),
            "capital_activities": ["created_at", "metadata"],
        }

    def test_contributions_stay_within_the_commitment(self, lp_system: psycopg.Connection) -> None:
        query = (
            "SELECT count(*) FROM lp_fund_commitments c WHERE commitment_amount_cents <"
            " (SELECT sum(amount_cents) FROM capital_activities"
            "  WHERE commitment_id = c.id AND activity_type <> 'distribution')"
        )
        assert scalar(lp_system, query) == 0

    def test_accounts_agree_with_the_activities_to_the_cent(self, lp_system: psycopg.Connection) -> None:
        query = """
            SELECT count(*), count(*) FILTER (WHERE a.contributed_to_date_cents <> m.paid_in
                                              OR a.distributed_to_date_cents <> m.paid_out)
            FROM lp_capital_accounts a
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(amount_cents) FILTER (WHERE activity_type <> 'distribution'), 0) AS paid_in,
                       coalesce(sum(amount_cents) FILTER (WHERE activity_type = 'distribution'), 0) AS paid_out
                FROM capital_activities
                WHERE commitment_id = a.commitment_id AND activity_date <= a.as_of_date
            ) m"""
        count, wrong = lp_system.execute(query).fetchone()
        assert (count, wrong) == (5 * scalar(lp_system, "SELECT count(*) FROM lp_fund_commitments"), 0)

    def test_an_account_begins_where_the_one_before_it_ended(self, lp_system: psycopg.Connection) -> None:
        query = """
            SELECT count(*) FROM (
                SELECT beginning_nav_cents, lag(ending_nav_cents) OVER
                    (PARTITION BY commitment_id ORDER BY as_of_date) AS before
                FROM lp_capital_accounts) a
            WHERE before <> beginning_nav_cents"""
        assert scalar(lp_system, query) == 0

    def test_a_funds_value_is_what_its_partners_accounts_come_to(self, lp_system: psycopg.Connection) -> None:
        query = """
            SELECT count(*), count(*) FILTER (WHERE n.nav_cents = a.nav AND n.distributed_cents = a.paid_out)
            FROM (SELECT c.fund_id, a.as_of_date, sum(ending_nav_cents) AS nav,
                         sum(distributed_to_date_cents) AS paid_out
                  FROM lp_capital_accounts a JOIN lp_fund_commitments c ON c.id = a.commitment_id
                  GROUP BY c.fund_id, a.as_of_date) a
            LEFT JOIN fund_nav_snapshots n ON n.fund_id = a.fund_id AND n.snapshot_date = a.as_of_date"""
        count, same = lp_system.execute(query).fetchone()
        assert count == same > 0

    def test_multiples_are_those_of_the_accounts(self, lp_system: psycopg.Connection) -> None:
        query = """
            SELECT count(*), count(*) FILTER (WHERE s.tvpi = s.dpi + s.rvpi
                AND s.dpi = round(a.distributed_to_date_cents::numeric / a.contributed_to_date_cents, 4)
                AND s.rvpi = round(a.ending_nav_cents::numeric / a.contributed_to_date_cents, 4))
            FROM lp_performance_snapshots s
            LEFT JOIN lp_capital_accounts a ON a.commitment_id = s.commitment_id AND a.as_of_date = s.snapshot_date"""
        count, right = lp_system.execute(query).fetchone()
        assert count == right > 0


class TestRules:
    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE capital_activities SET amount_cents = 1 WHERE id = 1",
            "DELETE FROM capital_activities WHERE id = 1",
            "TRUNCATE capital_activities",
        ],
    )
    def test_activities_are_only_added(self, lp_system: psycopg.Connection, statement: str) -> None:
        with pytest.raises(errors.RestrictViolation, match="append-only") as refused:
            lp_system.execute(statement)
        assert "as an activity of its own" in (refused.value.diag.message_hint or "")

    @pytest.mark.parametrize(
        ("statement", "error"),
        [
            ("DELETE FROM limited_partners WHERE id = 1", REFERENCED),
            ("DELETE FROM lp_fund_commitments WHERE id = 1", REFERENCED),
            ("UPDATE lp_fund_commitments SET fund_id = 99999 WHERE id = 1", errors.ForeignKeyViolation),
            (
                "UPDATE lp_fund_commitments SET commitment_amount_cents = -1 WHERE id = 1",
                errors.CheckViolation,
            ),
            ("UPDATE lp_capital_accounts SET ending_nav_cents = ending_nav_cents + 1", errors.CheckViolation),
            ("UPDATE lp_performance_snapshots SET tvpi = tvpi + 1", errors.CheckViolation),
            ("UPDATE lp_reports SET metadata = '[]'", errors.CheckViolation),
            (
                "INSERT INTO capital_activities (commitment_id, fund_id, activity_type, activity_date, amount_cents)"
                " SELECT id, fund_id + 1, 'capital_call', '2026-01-01', 1 FROM lp_fund_commitments LIMIT 1",
                errors.ForeignKeyViolation,
            ),
            (
                "INSERT INTO lp_fund_commitments (lp_id, fund_id, commitment_amount_cents, commitment_date)"
                " SELECT lp_id, fund_id, 1, '2026-01-01' FROM lp_fund_commitments LIMIT 1",
                errors.UniqueViolation,
            ),
        ],
    )
    def test_what_cannot_be_is_refused(
        self,
        lp_system: psycopg.Connection,
        statement: str,
        error: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        with pytest.raises(error):
            lp_system.execute(statement)

    def test_what_was_derived_goes_with_its_commitment(self, lp_system: psycopg.Connection) -> None:
        commitment = scalar(
            lp_system,
            "INSERT INTO lp_fund_commitments (lp_id, fund_id, commitment_amount_cents, commitment_date)"
            " VALUES (1, 99999, 100, '2026-01-01') RETURNING id",
        )
        lp_system.execute(
            "INSERT INTO lp_performance_snapshots (commitment_id, snapshot_date, moic, dpi, rvpi, tvpi)"
            " VALUES (%s, '2026-01-01', 1, 0, 1, 1)",
            [commitment],
        )
        report = scalar(
            lp_system,
            "INSERT INTO lp_reports (lp_id, commitment_id, report_type, period_start, period_end)"
            " VALUES (1, %s, 'tax', '2025-01-01', '2025-12-31') RETURNING id",
            commitment,
        )
        lp_system.execute("DELETE FROM lp_fund_commitments WHERE id = %s", [commitment])
        left = "SELECT count(*) FROM lp_performance_snapshots WHERE commitment_id = %s"
        assert scalar(lp_system, left, commitment) == 0
        # A report that was sent was sent, whatever it was about.
        assert scalar(lp_system, "SELECT commitment_id FROM lp_reports WHERE id = %s", report) is None

    def test_a_change_is_noted(self, lp_system: psycopg.Connection) -> None:
        lp_system.execute("UPDATE limited_partners SET status = 'inactive' WHERE id = 1")
        assert scalar(lp_system, "SELECT updated_at = now() FROM limited_partners WHERE id = 1")


class TestIndexes:
    def test_those_of_the_document_are_there(self, lp_system: psycopg.Connection) -> None:
        found = dict(
            lp_system.execute(
                "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
            ).fetchall()
        )
        assert "(commitment_id, activity_date DESC" in found["capital_activities_commitment_date_idx"]
        assert "(commitment_id, snapshot_date DESC)" in found["lp_perf_snapshots_commitment_date_idx"]
        assert "WHERE (commitment_status = 'active'::text)" in found["lp_commitments_active_idx"]
        assert sum(" INCLUDE (" in each for each in found.values()) >= 3
        assert sum("USING gin" in each for each in found.values()) >= 3
        assert len(found) >= 15

    @pytest.mark.parametrize(
        ("query", "index"),
        [
            (
                "SELECT id, amount_cents FROM capital_activities WHERE commitment_id = 7"
                " AND (activity_date, id) < ('2026-01-01', 1000000) ORDER BY activity_date DESC, id DESC LIMIT 20",
                "Index Scan using capital_activities_commitment_date_idx",
            ),
            (
                "SELECT commitment_id, amount_cents FROM capital_activities"
                " WHERE fund_id = 7 ORDER BY activity_date DESC",
                "Index Only Scan using capital_activities_fund_date_idx",
            ),
            (
                "SELECT tvpi FROM lp_performance_snapshots WHERE commitment_id = 7 ORDER BY snapshot_date DESC LIMIT 1",
                "Index Only Scan using lp_perf_snapshots_commitment_date_idx",
            ),
            (
                "SELECT fund_id, commitment_amount_cents FROM lp_fund_commitments"
                " WHERE lp_id = 7 AND commitment_status = 'active'",
                "Index Only Scan using lp_commitments_active_idx",
            ),
            (
                'SELECT id FROM limited_partners WHERE metadata @> \'{"region": "EMEA"}\'',
                "Bitmap Index Scan on limited_partners_metadata_idx",
            ),
        ],
    )
    def test_they_answer_what_they_are_for(
        self, lp_system: psycopg.Connection, query: str, index: str
    ) -> None:
        # So few rows fit into a page or two, which is cheaper to read than any index.
        lp_system.execute("SET LOCAL enable_seqscan = off")
        if "Bitmap" not in index:
            lp_system.execute("SET LOCAL enable_bitmapscan = off")
        lines = lp_system.execute(sql.SQL("EXPLAIN {}").format(sql.SQL(query))).fetchall()
        plan = "\n".join(line for (line,) in lines)
        assert index in plan


class TestTraffic:
    def test_a_call_touches_every_partner_of_the_fund(self, lp_system: psycopg.Connection) -> None:
        fund = scalar(
            lp_system, "SELECT max(fund_id) FROM lp_fund_commitments WHERE commitment_status = 'active'"
        )
        concerned = traffic.book_fund(lp_system, Random(1), fund_id=fund, kind="capital_call")
        partners = lp_system.execute(
            "SELECT lp_id FROM lp_fund_commitments WHERE fund_id = %s ORDER BY 1", [fund]
        ).fetchall()
        assert sorted(each.lp_id for each in concerned) == [lp_id for (lp_id,) in partners]
        assert {each.fund_id for each in concerned} == {fund}

    def test_calls_at_the_same_time_do_not_overrun_the_commitment(
        self, writer: psycopg.Connection, clone: Installed
    ) -> None:
        fund = scalar(
            writer, "SELECT max(fund_id) FROM lp_fund_commitments WHERE commitment_status = 'active'"
        )
        info = writer.info

        def call(seed: int) -> None:
            rng = Random(seed)
            with psycopg.connect(info.dsn, password=info.password, autocommit=True) as connection:
                for _ in range(40):
                    with connection.transaction():
                        traffic.book_fund(connection, rng, fund_id=fund, kind="capital_call")

        threads = [threading.Thread(target=call, args=[seed]) for seed in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        contributed, committed = writer.execute(
            "SELECT sum(amount_cents), (SELECT sum(commitment_amount_cents) FROM lp_fund_commitments"
            "  WHERE fund_id = %(fund)s)"
            " FROM capital_activities WHERE fund_id = %(fund)s AND activity_type <> 'distribution'",
            {"fund": fund},
        ).fetchone()
        # Eighty calls of about one per cent ask for more than there is: all of it is called, and no more.
        assert contributed == committed
