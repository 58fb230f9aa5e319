"""Refresh requests from SQL and from triggers, and what is to be announced after a refresh."""

from fleet.postgres.migrations.upgrade import execute_file

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run 0003_requests.sql."""
    execute_file("0003_requests.sql")
