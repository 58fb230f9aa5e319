"""The ledger's own housekeeping."""
