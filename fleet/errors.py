"""Why a thing failed, in words an operator can act on, and whether trying again can help.

Retry is decided by type: a `TransientError` is tried again, a `PermanentError` never is.
"""

from __future__ import annotations


class UpkeepError(Exception):
    """Anything Upkeep reports to a person.

    `message` names the object; `remedy` says what to do about it.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message.rstrip(".")
        self.remedy = remedy.rstrip(".")

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}." if self.remedy else f"{self.message}."

    def __reduce__(self) -> tuple[object, ...]:
        # Celery pickles exceptions between pool child and main process.
        return (type(self), (self.message, self.remedy))


class ConfigurationError(UpkeepError):
    """upkeep.toml or the environment is wrong; nothing was started."""


class PermanentError(UpkeepError):
    """Trying again cannot help until somebody changes something."""


class TransientError(UpkeepError):
    """The same attempt may succeed later: a lock, a connection, a deadlock, a full disk."""
