"""The schedule's own state, and when a queued run is no longer worth starting."""

from fleet.postgres.migrations.upgrade import execute_file

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run 0002_schedule.sql."""
    execute_file("0002_schedule.sql")
