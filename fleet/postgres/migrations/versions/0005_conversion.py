"""Plain tables that become partitioned ones: how far that is."""

from fleet.postgres.migrations.upgrade import execute_file

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Run 0005_conversion.sql."""
    execute_file("0005_conversion.sql")
