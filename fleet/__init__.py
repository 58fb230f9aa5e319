"""The ground: settings, ledger, logs, connections, catalogue. Imports nothing above it, and no Celery."""
