"""Settings: upkeep.toml for what is kept and how fresh, the environment for secrets.

The file is the first of these:

1. the path given on the command line (`--config`);
2. the variable `UPKEEP_CONFIG`; if it is set, the file must be there;
3. `upkeep.toml` in the working directory;
4. `$XDG_CONFIG_HOME/upkeep/upkeep.toml`, that is `~/.config/upkeep/upkeep.toml` by default;
5. `/etc/upkeep/upkeep.toml`.

The environment is read here and nowhere else, when `load` or `check` is called:

| variable                | what it holds                                                         |
|-------------------------|-----------------------------------------------------------------------|
| `UPKEEP_CONFIG`         | the path of upkeep.toml                                               |
| `UPKEEP_REDIS_URL`      | Redis's URL with its password; wins over `[fleet] redis_url`; the     |
|                         | default is `redis://127.0.0.1:6379/0`                                 |
| `UPKEEP_<NAME>_URL`     | the URL of the database NAME with its password, or keywords           |
|                         | (`host=... dbname=...`); wins over its `url`; without either: an error |
| what `url_env` names    | the same, under a name of your own                                    |
| `XDG_CONFIG_HOME`, `HOME` | where to look for upkeep.toml                                       |

A database without a password in its URL gets it from libpq's own places, `~/.pgpass` or `PGPASSWORD`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from fleet.settings.model import (
    BUILT_IN_TIERS,
    Database,
    Fleet,
    Job,
    Queues,
    Scheduled,
    Settings,
    Tier,
    Timing,
    View,
)
from fleet.settings.partitions import HashSubpartitions, LegalHold, PartitionSet, Retention
from fleet.settings.problems import ConfigurationErrors, Problem, Report
from fleet.settings.reading import Reader

__all__ = [
    "BUILT_IN_TIERS",
    "ConfigurationErrors",
    "Database",
    "Fleet",
    "HashSubpartitions",
    "Job",
    "LegalHold",
    "PartitionSet",
    "Problem",
    "Queues",
    "Report",
    "Retention",
    "Scheduled",
    "Settings",
    "Tier",
    "Timing",
    "View",
    "check",
    "load",
]

_FILE = "upkeep.toml"
_SYSTEM_WIDE = Path("/etc/upkeep") / _FILE


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings, or refuse with everything that is wrong with them.

    Raises:
        ConfigurationErrors: `problems` has all of them; warnings are not among them (see `check`).

    """
    environ = os.environ if environ is None else environ
    report = check(path, environ)
    if report.settings is None:
        found = _find(path, environ)
        source = str(found) if isinstance(found, Path) else "The configuration"
        raise ConfigurationErrors(report.errors, source=source)
    return report.settings


def check(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Report:
    """Judge the configuration: all errors and all warnings, and the settings if there are no errors."""
    environ = os.environ if environ is None else environ
    found = _find(path, environ)
    if isinstance(found, Problem):
        return Report(errors=(found,), warnings=(), settings=None)
    document = _parse(found)
    if isinstance(document, Problem):
        return Report(errors=(document,), warnings=(), settings=None)
    return Reader(environ).read(document, found)


def _find(path: Path | None, environ: Mapping[str, str]) -> Path | Problem:
    if path is not None:
        return path
    if environ.get("UPKEEP_CONFIG"):
        return Path(environ["UPKEEP_CONFIG"])
    places = [Path(_FILE)]
    if environ.get("XDG_CONFIG_HOME"):
        places.append(Path(environ["XDG_CONFIG_HOME"]) / "upkeep" / _FILE)
    elif environ.get("HOME"):
        places.append(Path(environ["HOME"]) / ".config" / "upkeep" / _FILE)
    places.append(_SYSTEM_WIDE)
    for place in places:
        if place.is_file():
            return place
    return Problem(
        key=_FILE,
        value="",
        message=f"there is none at {', '.join(str(place) for place in places)}",
        remedy="upkeep init URL prints one to start from; UPKEEP_CONFIG names one that is elsewhere",
    )


def _parse(path: Path) -> Mapping[str, object] | Problem:
    try:
        # Editors on Windows put a byte order mark in front, which TOML does not know.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except tomllib.TOMLDecodeError as exc:
        message, remedy = f"it is not TOML: {exc}", "Correct the line; text and names with dots go in quotes"
    except UnicodeDecodeError as exc:
        message, remedy = f"it is not UTF-8 (byte {exc.start})", "Save it as UTF-8"
    except FileNotFoundError:
        message, remedy = "there is no such file", "upkeep init URL prints one to start from"
    except OSError as exc:
        message, remedy = f"it cannot be read: {exc.strerror}", "It must be a file that this user may read"
    return Problem(key=str(path), value="", message=message, remedy=remedy)
