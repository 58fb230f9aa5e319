"""A cache-aside cache with tags: the fleet deletes what a refreshed view has made old, and a ttl bounds the rest.

The Redis may be another than the broker's (`cache_url` in upkeep.toml), with LRU eviction, or a cluster.
"""

from upkeep_client.cache.aio import AsyncCache
from upkeep_client.cache.cache import Cache, invalidate
from upkeep_client.cache.layout import PREFIX, Layout, Tag
from upkeep_client.cache.statistics import PatternStats

__all__ = ["PREFIX", "AsyncCache", "Cache", "Layout", "PatternStats", "Tag", "invalidate"]
