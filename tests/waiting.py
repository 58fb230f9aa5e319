"""Waiting on a condition, never for a time: the one place in the tests that may sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02


def wait_until(
    predicate: Callable[[], T], timeout: float = 10.0, message: str | Callable[[], str] = "the condition"
) -> T:
    """Poll until `predicate` returns something true, and return that.

    What `predicate` raises ends the wait: let it return False for "not yet". A `message` that is a function
    is called on failure, to show the state that was found instead.
    """
    deadline = time.monotonic() + timeout
    while not (found := predicate()):
        if time.monotonic() > deadline:
            said = message if isinstance(message, str) else message()
            raise AssertionError(f"after {timeout:g} s still waiting for: {said}")
        time.sleep(POLL_S)
    return found
