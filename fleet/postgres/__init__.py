"""PostgreSQL as the fleet needs it: connections, locks, errors, catalogue readers, migrations."""
