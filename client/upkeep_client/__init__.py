"""Ask the Upkeep fleet for a refresh after a write: one round trip, debounced there, and never in the write's way.

`Upkeep` and `AsyncUpkeep` send requests; `upkeep_client.sqlalchemy` and `upkeep_client.django` send them after
the commit; `upkeep_client.cache` is a cache that the fleet empties after a refresh.
"""

from upkeep_client.aio import AsyncUpkeep
from upkeep_client.errors import InvalidRequest, InvalidUrl, RequestNotSent
from upkeep_client.marking import MARK_SCRIPT, MARK_SHA
from upkeep_client.upkeep import Upkeep

__all__ = [
    "MARK_SCRIPT",
    "MARK_SHA",
    "AsyncUpkeep",
    "InvalidRequest",
    "InvalidUrl",
    "RequestNotSent",
    "Upkeep",
]
