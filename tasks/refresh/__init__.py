"""Refreshing materialized views: in tiers, upstream first, out of readers' way."""
