"""Runs, view state, monthly summaries, upkeep.view_freshness."""

from fleet.postgres.migrations.upgrade import execute_file

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run 0001_state.sql."""
    execute_file("0001_state.sql")
