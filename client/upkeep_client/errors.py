"""What can go wrong for a caller: a request that is wrong, and a request that Redis did not take."""

from __future__ import annotations


class InvalidRequest(ValueError):
    """The caller's mistake: a wrong type or value. Raised before anything is sent, whatever `on_error` says."""


class InvalidType(InvalidRequest, TypeError):
    """An `InvalidRequest` because of a type; `except TypeError` finds it too."""


class InvalidUrl(ValueError):
    """A URL that names no Redis. The message quotes nothing of it, because it may hold a password."""


class RequestNotSent(Exception):
    """Redis did not take the request; the write that it followed is not touched by that.

    The error of redis-py is its `__cause__`, except where Redis failed a moment ago and was not asked again.
    The text holds neither the URL nor the password.
    """
