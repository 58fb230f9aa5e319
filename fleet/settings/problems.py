"""What is wrong with a configuration, all of it, each with its key, its value and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleet.errors import ConfigurationError

if TYPE_CHECKING:
    from fleet.settings.model import Settings


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning.

    `key` is written as in TOML (`databases.lending.views."public.mv_x".tier`) or is the name of a variable;
    `value` is as in TOML too, with secrets masked, and empty where there is none.
    """

    key: str
    value: str
    message: str
    remedy: str

    def __str__(self) -> str:
        given = f" = {self.value}" if self.value else ""
        return " ".join([f"{self.key}{given}: {_sentence(self.message)}", _sentence(self.remedy)]).rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The outcome of a check; `settings` is there when there are no errors."""

    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    settings: Settings | None


class ConfigurationErrors(ConfigurationError):
    """Everything that keeps a configuration from being used; `str()` has one line for each."""

    def __init__(self, problems: Sequence[Problem], *, source: str = "The configuration") -> None:
        self.problems = tuple(problems)
        self.source = source
        count = "an error" if len(self.problems) == 1 else f"{len(self.problems)} errors"
        super().__init__(f"{source} has {count}", remedy="upkeep check lists errors and warnings")

    def __str__(self) -> str:
        return "\n".join([f"{self.message}:", *(f"  {problem}" for problem in self.problems)])

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.problems, self.source))


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "?")) else f"{text}."


def _rebuild(problems: tuple[Problem, ...], source: str) -> ConfigurationErrors:
    return ConfigurationErrors(problems, source=source)
