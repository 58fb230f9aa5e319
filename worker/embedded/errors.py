"""What goes wrong with an embedded server, told like every error of ours: what it is about, and the remedy."""

from __future__ import annotations

from fleet.errors import UpkeepError


class ServerError(UpkeepError):
    """An embedded server could not be found, started or stopped; the tail of its log is in the remedy."""
