"""What was moved out of a table and where it went, and how long rows must be kept."""

from fleet.postgres.migrations.upgrade import execute_file

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run 0004_partitions.sql."""
    execute_file("0004_partitions.sql")
