"""PostgreSQL's binaries where the user who will run them can reach them.

PostgreSQL refuses to run as root, and root's files may be closed to everybody whom root lends it to.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from worker.embedded.errors import ServerError
from worker.embedded.launcher import server_environment


def unprivileged_account() -> pwd.struct_passwd:
    """Whom root lends PostgreSQL: its own user where there is one, else nobody."""
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServerError("PostgreSQL does not run as root", remedy="add a user: useradd --system postgres")


def reachable_installation(bin_dir: Path, account: pwd.struct_passwd | None) -> tuple[Path, int]:
    """The bin directory and server version, as the user who will run it finds them.

    A clone under /root (mode 700), or an umask of 077, hides the binaries from everybody but root.
    """
    version = _probe_version(bin_dir, account)
    if version is None and account is not None:
        bin_dir = copy_installation(bin_dir.resolve())
        version = _probe_version(bin_dir, account)
    if version is None:
        who = f" as {account.pw_name}" if account else ""
        raise ServerError(
            f"{bin_dir / 'postgres'} does not run{who}",
            remedy="name the bin directory of a PostgreSQL for this machine that its user can reach",
        )
    return bin_dir, version


def _probe_version(bin_dir: Path, account: pwd.struct_passwd | None) -> int | None:
    """The version, None unless both programs run, which needs the libraries they link to as well."""
    said = ""
    for program in ("initdb", "postgres"):
        try:
            done = subprocess.run(
                [bin_dir / program, "--version"],
                cwd="/",
                env=server_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
        except OSError:
            return None
        if done.returncode != 0:
            return None
        said = done.stdout
    found = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", said)
    return int(found[1]) * 10_000 + int(found[2] or 0) if found else None


def copy_installation(bin_dir: Path) -> Path:
    """The bin directory of a world-readable copy in the temporary directory, kept for the next time.

    A wheel has the libraries that its binaries link to beside the package (`package.libs`), found by a
    relative path: the copy keeps that shape. Two processes may do this at once: each copies to a name of its
    own, and the first rename wins.
    """
    installation = bin_dir.parent
    package = installation.parent
    libraries = package.with_name(f"{package.name}.libs")
    key = hashlib.sha256(f"{bin_dir}\0{bin_dir.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    temp = Path(tempfile.gettempdir())
    target = temp / f"upkeep-installation-{os.geteuid()}-{key}"
    if not target.exists():
        staging = Path(tempfile.mkdtemp(prefix="upkeep-installation-", dir=temp))
        try:
            shutil.copytree(installation, staging / package.name / installation.name, symlinks=True)
            if libraries.is_dir():
                shutil.copytree(libraries, staging / libraries.name, symlinks=True)
            for path in [staging, *staging.rglob("*")]:
                if not path.is_symlink():
                    mode = path.stat().st_mode
                    path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)
            staging.rename(target)
        except OSError:
            shutil.rmtree(staging)
            if not target.exists():
                raise
    found = target.lstat()
    if target.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        # The name can be guessed and the directory is everybody's: never run what another user put there.
        raise ServerError(f"{target} is not ours", remedy="delete it")
    return target / package.name / installation.name / bin_dir.name
