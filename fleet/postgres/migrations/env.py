"""Alembic's environment: one transaction per migration, on the connection that holds Upkeep's migration lock."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="schema_version",
    version_table_schema="upkeep",
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
